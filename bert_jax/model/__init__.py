"""The network: BERT's blocks and heads; knows no files and no optimizer."""
