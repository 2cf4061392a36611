"""Which series is a brain FLAIR, and why."""
