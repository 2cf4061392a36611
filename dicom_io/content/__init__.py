"""What a result says: codes, identity, sources and regions."""
