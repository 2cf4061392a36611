"""What was delivered before a database was lost, from the audit log: it must not be sent again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.database.tables import DeliveryState
from daemon.jobs.store import JobStore

log = logging.getLogger(__name__)

STATES = {"sent": DeliveryState.SENT, "accepted": DeliveryState.UNCONFIRMED}
"""By the last event of an object: sent and confirmed, or accepted, which is asked for again."""


def restore_deliveries(store: JobStore, audit: Path) -> int:
    """Put the deliveries of which the audit log speaks into a new database.

    Args:
        store: The jobs; deliveries that it knows stay as they are.
        audit: Folder of the audit log.

    Returns:
        How many objects were found to be delivered.
    """
    last = {(e["job"], e["destination"], e["sop_instance_uid"]): e for e in _attempts(audit)}
    delivered = {key: entry for key, entry in last.items() if entry["event"] in STATES}
    for (job_id, destination, uid), entry in delivered.items():
        state = STATES[entry["event"]]
        store.restore_delivery(job_id, destination, uid, state=state, status=str(entry.get("status", "")))
    if delivered:
        log.warning("the database is new: %d objects are not sent again, as the audit log has them", len(delivered))
    return len(delivered)


def _attempts(audit: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(audit.glob("audit-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # the last line of a file may be torn
                    continue
                if entry.get("event") in (*STATES, "not_sent") and "sop_instance_uid" in entry:
                    yield entry
