"""Results to destinations, and whether they hold them."""
