"""Results on their way: what goes to which destination, each attempt's outcome, back-off, dead letter."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from daemon import scu
from daemon.config import Destination
from daemon.errors import DaemonError, Permanent, Retryable
from daemon.folders import JobFolder, read_json
from daemon.jobs import Delivery, DeliveryState, JobStore

log = logging.getLogger(__name__)

FIRST_WAIT = 2.0
"""Seconds after the first failed attempt; each further wait is twice as long."""

LONGEST_WAIT = 900.0
"""Seconds between two attempts at the most."""


def plan_deliveries(store: JobStore, job_id: str, folder: JobFolder, destinations: Sequence[Destination]) -> list[str]:
    """Write down each object of the job's pack for each destination.

    Returns:
        Names of the destinations that have something to wait for.
    """
    objects = [(o["sop_instance_uid"], o["kind"], o["file"]) for o in read_json(folder.dicom / "pack.json")["objects"]]
    if not objects:
        return []
    for destination in destinations:
        store.put_deliveries(job_id, destination.name, objects)
    return [destination.name for destination in destinations]


def backoff(attempt: int, jitter: float) -> float:
    """Seconds to wait after `attempt` (1-based) failed; `jitter` in [0, 1) spreads destinations' retries apart."""
    return float(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * (0.75 + 0.5 * jitter))


def deliver_to(
    store: JobStore, job_id: str, folder: JobFolder, destination: Destination, calling_aet: str, attempt: int
) -> float | None:
    """Send what still waits for one destination.

    Every object's outcome is kept apart: a refused SEG does not make the stored SR wait, and nothing is called sent
    without a Success or warning status of its own.

    Returns:
        Seconds until the next attempt, or None when nothing waits any more.
    """
    waiting = [d for d in store.deliveries(job_id, destination.name) if d.state is DeliveryState.WAITING]
    if not waiting:
        return None
    try:
        reason = _send(store, waiting, folder, destination, calling_aet)
    except DaemonError as error:
        for d in waiting:
            state = DeliveryState.WAITING
            store.note_delivery(job_id, d.destination, d.sop_instance_uid, state=state, status="", reason=str(error))
        reason, give_up = str(error), not isinstance(error, Retryable)
    else:
        give_up = False
    if reason is None:
        return None
    if give_up or attempt >= destination.max_attempts:
        store.give_up_delivery(job_id, destination.name)
        log.error("job %s: dead letter for %s after %d attempts: %s", job_id, destination.name, attempt, reason)
        return None
    wait = backoff(attempt, random.random())
    log.warning("job %s: %s: %s; next attempt in %.0f s", job_id, destination.name, reason, wait)
    return wait


def _send(
    store: JobStore, waiting: Sequence[Delivery], folder: JobFolder, destination: Destination, calling_aet: str
) -> str | None:
    """One association; returns why something still waits, or None."""
    if destination.ae_title is None or destination.host is None or destination.port is None:
        raise Permanent(f"destination {destination.name!r} has no address")
    peer = scu.Peer(destination.ae_title, destination.host, destination.port, destination.tls)
    by_uid = {d.sop_instance_uid: d for d in waiting}

    def note(outcome: scu.StoreOutcome) -> None:
        delivery = by_uid[outcome.outgoing.sop_instance_uid]
        store.note_delivery(
            delivery.job_id,
            delivery.destination,
            delivery.sop_instance_uid,
            state=DeliveryState.SENT if outcome.stored else DeliveryState.WAITING,
            status="" if outcome.status is None else f"{outcome.status:04X}",
            reason=outcome.reason,
        )

    outgoing = [scu.Outgoing.read(folder.dicom / d.file) for d in waiting]
    outcomes = scu.store(outgoing, peer, calling_aet, on_outcome=note)
    failed = [o for o in outcomes if not o.stored]
    return f"{len(failed)} of {len(outcomes)} objects not stored: {failed[0].reason}" if failed else None
