"""A series to a RAS volume, proven from its headers."""
