"""The daemon beside the PACS: receives series, runs the pipeline, delivers results."""
