"""The workflow of a job and what people may do to it."""
