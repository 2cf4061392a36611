"""The three phases of the card: objectives, loop, run."""
