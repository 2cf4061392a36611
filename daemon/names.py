"""Names by which the durable workflows are known in the database; changing one strands what is in flight."""

REPORT_QUEUE = "report"
"""One study at a time for each model."""

DELIVERY_QUEUE = "delivery"
"""Deliveries wait for a destination, not for the model."""

REPORT_WORKFLOW = "report_study"
"""Select, convert, report, explain, encode."""

DELIVERY_WORKFLOW = "deliver_results"
"""One job's results to one destination."""

WORKFLOW_VERSION = "1"
"""DBOS resumes only workflows of its own version; raised when the order of steps changes, with a migration."""

EXECUTOR_ID = "main"
"""Stable over restarts and changed host names, so that pending work is found again."""
