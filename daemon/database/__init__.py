"""The daemon's database: engine and tables."""
