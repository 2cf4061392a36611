"""The durable workflow engine: its client, leases and recovery."""
