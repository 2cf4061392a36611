"""The configuration: its sections, how it is read, and the data folder."""
