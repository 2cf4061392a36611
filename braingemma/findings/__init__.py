"""Report text to findings, by rules."""
