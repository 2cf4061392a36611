"""Four-bit weights, and a few rows times packed weights on a CPU."""
