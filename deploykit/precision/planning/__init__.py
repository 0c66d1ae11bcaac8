"""Which layers to keep in float, from what INT8 costs there in accuracy and gains in time."""
