"""The page: what has arrived, what is worked on, what was refused, what waits; one page for each job."""
