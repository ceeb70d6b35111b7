"""Tests; `bash launch/test.sh` runs them."""
