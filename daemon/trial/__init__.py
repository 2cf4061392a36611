"""A test PACS and daemon on loopback for demo and trials."""
