"""Names by which the durable workflows are known in the database; changing one strands what is in flight."""

REPORT_QUEUE = "report"
"""One study at a time for each model."""

DESTINATION_QUEUE = "destinations"
"""Deliveries wait for a destination, not for the model: one queue for each, a partition of this one by its name."""

REPORT_WORKFLOW = "report_study"
"""Select, convert, report, explain, encode."""

DELIVERY_WORKFLOW = "deliver_results"
"""One job's results to one destination."""

FIRST_TURN = 1
"""A delivery is one attempt; the next one is another workflow, with the number of its turn."""

WORKFLOW_VERSION = "1"
"""DBOS resumes only workflows of its own version. It stays as long as what is in flight can go on: a workflow that must
run otherwise says so by its arguments. Where it is raised, `daemon.engine.recovery` queues anew what it leaves."""

EXECUTOR_ID = "main"
"""Stable over restarts and changed host names, so that pending work is found again."""
