"""A pod that nobody has rented: does it fit, how long, how much."""
