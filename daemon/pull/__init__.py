"""Studies fetched from a PACS: what is asked for, found, fetched and reported."""
