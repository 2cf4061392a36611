"""Many studies in, one table out."""
