"""From acknowledged instances to complete studies, each handed over as a job."""
