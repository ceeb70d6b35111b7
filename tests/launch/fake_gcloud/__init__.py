"""A Google Cloud of folders and processes, for the tests of launch/."""
