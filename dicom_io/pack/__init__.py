"""Results of one study as a pack: encoded, validated, listed."""
