"""One file for each kind of result object."""
