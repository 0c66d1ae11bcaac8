"""Streets that are made up: what stands where, and what it looks like."""
