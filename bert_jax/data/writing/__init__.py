"""A corpus while it is written: by one machine or in parts, without copies."""
