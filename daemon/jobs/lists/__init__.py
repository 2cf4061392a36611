"""What is shown of many jobs: the worklist, counts by state and destination, figures by scanner and month."""
