"""Jobs: their rows, folders, files and reports."""
