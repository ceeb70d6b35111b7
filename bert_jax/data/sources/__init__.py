"""From files and data sets of all kinds to blocks of documents."""
