"""Processes that run for months: service, worker, housekeeping, doctor."""
