"""Results on their way: what goes to which destination, each attempt's outcome, back-off, dead letter.

An object is called sent when its destination accepted it and, where the destination can be asked, confirmed that it
holds it: by storage commitment, else by a query (`daemon.deliver.confirmation`). State is kept for each object alone.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from daemon.config.sections import Destination
from daemon.database.patience import patient
from daemon.database.tables import OPEN_DELIVERIES, DeliveryState
from daemon.deliver.client import DestinationClient, client_for
from daemon.deliver.confirmation import NOT_POSSIBLE, confirm
from daemon.deliver.outgoing import Outgoing, StoreOutcome, legible
from daemon.errors import DaemonError, Permanent, Retryable
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival
from daemon.jobs.store import Delivery, JobStore
from dicom_io.errors import PackError
from dicom_io.objects.kinds import BY_NAME, KINDS, REJECTION, SR
from dicom_io.pack.manifest import Manifest, is_synthetic_only, read_manifest

log = logging.getLogger(__name__)

FIRST_WAIT = 2.0
"""Seconds after the first failed attempt; each further wait is twice as long."""

LONGEST_WAIT = 900.0
"""Seconds between two attempts at the most, but for the spread."""

SPREAD = 0.25
"""Waits differ by so much of themselves, so that not all destinations are tried at once."""

LONGEST_WAIT_OF_ALL = (1 + SPREAD) * LONGEST_WAIT

HELD_BACK = "held back until the new report is there"


def plan_deliveries(store: JobStore, job_id: str, folder: JobFolder, destinations: Sequence[Destination]) -> list[str]:
    """Write down each object of the job's results for each destination that takes them.

    Returns:
        Names of the destinations that have something to wait for.
    """
    objects = [(o.sop_instance_uid, o.kind, o.file) for o in _manifest(folder).objects]
    if not objects:
        return []
    taking = takers(folder, destinations)
    for destination in taking:
        rejections = _rejections(store, job_id, folder, destination)
        store.put_deliveries(job_id, destination.name, [*objects, *rejections])
    if not taking and destinations:
        log.warning("job %s: no destination takes results of studies from its senders", job_id)
    return [destination.name for destination in taking]


def _manifest(folder: JobFolder) -> Manifest:
    try:
        return read_manifest(folder.dicom)
    except PackError as error:
        raise Permanent(str(error)) from error


def takers(folder: JobFolder, destinations: Sequence[Destination]) -> list[Destination]:
    """The destinations to which results of a job go, by who sent its study."""
    arrival = Arrival.read_if_there(folder.arrival)
    senders = () if arrival is None else arrival.calling_aets
    return [destination for destination in destinations if destination.takes(senders)]


def _rejections(
    store: JobStore, job_id: str, folder: JobFolder, destination: Destination
) -> list[tuple[str, str, str]]:
    """The Key Object, where the destination wants it and images that it rejects were to go there."""
    if not destination.reject_replaced or not folder.rejection.exists():
        return []
    if not any(store.deliveries(earlier, destination.name) for earlier in store.superseded_by(job_id)):
        return []
    return [(Outgoing.read(folder.rejection).sop_instance_uid, REJECTION.name, folder.rejection.name)]


def backoff(attempt: int, jitter: float) -> float:
    """Seconds to wait after `attempt` (1-based) failed; `jitter` in [0, 1) spreads destinations' retries apart."""
    return float(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * (1 - SPREAD + 2 * SPREAD * jitter))


def deliver_to(
    store: JobStore, job_id: str, folder: JobFolder, destination: Destination, calling_aet: str, *, allow_demo: bool
) -> float | None:
    """Send what still waits for one destination, and ask for what it accepted.

    Every object's outcome is kept apart: a refused SEG does not make the stored SR wait, and nothing is called sent
    without a Success or warning status of its own. It may be called as often as one likes: what there is to do
    follows from the states on record.

    Args:
        store: The jobs.
        job_id: The job.
        folder: Its folder; the pack in it says by what kind of weights it was made.
        destination: Where to.
        calling_aet: Our AE title.
        allow_demo: Let results of weights that were trained on synthetic images only leave this machine.

    Returns:
        Seconds until there is something to do again, or None when all is settled.
    """
    successor = store.successor(job_id, destination.name)
    if successor is not None:
        store.drop_replaced_deliveries(job_id, destination.name, by=successor)
    try:
        stays = is_synthetic_only(folder.dicom) and not allow_demo
    except PackError as error:
        give_up_all(store, job_id, destination.name, str(error))
        return None
    client = client_for(destination, calling_aet, loopback_only=stays)
    files = _files_of(folder)
    reason, give_up = _send_all(store, job_id, files, destination, client)
    pause = confirm(store, job_id, files, destination, client)
    _end_spent(store, job_id, destination, everything=give_up)
    waiting = [d for d in store.deliveries(job_id, destination.name) if d.state is DeliveryState.WAITING]
    if not waiting:
        return pause
    reason = reason or next((d.reason for d in waiting if d.reason), HELD_BACK)
    attempts = max(d.attempts for d in waiting)
    wait = backoff(max(attempts, 1), random.random())
    log.warning("job %s: %s: %s; next attempt in %.0f s", job_id, destination.name, reason, wait)
    return wait if pause is None else min(wait, pause)


def _end_spent(store: JobStore, job_id: str, destination: Destination, *, everything: bool) -> None:
    """Each object has all its attempts, and takes none with it that has some left; a withdrawal ends with its report.

    With `everything` the destination will never take any: all that waits is dead.
    """
    waiting = [d for d in store.deliveries(job_id, destination.name) if d.state is DeliveryState.WAITING]
    spent = [d for d in waiting if everything or d.attempts >= destination.max_attempts]
    store.settle_checks(spent, DeliveryState.DEAD)
    deliveries = store.deliveries(job_id, destination.name)
    held = [d for d in deliveries if d.state is DeliveryState.WAITING and d.kind == REJECTION.name]
    if held and not _reports_may_come(deliveries):
        store.settle_checks(held, DeliveryState.DEAD, reason=HELD_BACK)
        spent += held
    for d in spent:
        log.error("job %s: dead letter for %s after %d attempts: %s", job_id, destination.name, d.attempts, d.reason)


def _files_of(folder: JobFolder) -> Callable[[str], Outgoing]:
    """The files of a job's results by their names in it, each read once in an attempt."""
    digests = {entry.file: entry.sha256 for entry in _manifest(folder).objects}
    return functools.cache(lambda file: Outgoing.read(folder.dicom / file, digests.get(file, "")))


def give_up_all(store: JobStore, job_id: str, destination: str, reason: str) -> None:
    """Nothing can be done for a destination any more: what waits is dead, what was accepted is believed."""
    store.give_up_delivery(job_id, destination, reason)
    accepted = [d for d in store.deliveries(job_id, destination) if d.state is DeliveryState.UNCONFIRMED]
    store.settle_checks(accepted, DeliveryState.SENT, confirmed=NOT_POSSIBLE)


def _send_all(
    store: JobStore, job_id: str, files: Callable[[str], Outgoing], destination: Destination, client: DestinationClient
) -> tuple[str, bool]:
    """Send what is ready, and then what was held back for it; why something still waits, and whether for ever."""
    reason, give_up = "", False
    tried: set[str] = set()
    while not give_up:
        ready = [d for d in _ready(store.deliveries(job_id, destination.name)) if d.sop_instance_uid not in tried]
        if not ready:
            break
        tried |= {d.sop_instance_uid for d in ready}
        why, give_up = _send(store, ready, files, destination, client)
        reason = reason or why
    return reason, give_up


def _ready(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """What waits and may go now: earlier images are withdrawn only once the new report is there."""
    waiting = sorted((d for d in deliveries if d.state is DeliveryState.WAITING), key=lambda d: _rank(d.kind))
    if all(d.state in (DeliveryState.UNCONFIRMED, DeliveryState.SENT) for d in _reports(deliveries)):
        return waiting
    return [d for d in waiting if d.kind != REJECTION.name]


def _reports_may_come(deliveries: Sequence[Delivery]) -> bool:
    """Whether the new report is there, or what is missing of it still on its way."""
    reports = _reports(deliveries)
    return any(d.state in OPEN_DELIVERIES for d in reports) or all(d.state is DeliveryState.SENT for d in reports)


def _reports(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """The report of a job, or all its objects where it has none."""
    new = [d for d in deliveries if d.kind != REJECTION.name]
    return [d for d in new if d.kind == SR.name] or new


def _rank(kind: str) -> int:
    return KINDS.index(BY_NAME[kind]) if kind in BY_NAME else len(KINDS)


def _send(
    store: JobStore,
    waiting: Sequence[Delivery],
    files: Callable[[str], Outgoing],
    destination: Destination,
    client: DestinationClient,
) -> tuple[str, bool]:
    """One association, or a few requests; why something still waits, and whether it will for ever."""
    left = {d.sop_instance_uid: d for d in waiting}
    accepted = DeliveryState.SENT if destination.confirm == "none" else DeliveryState.UNCONFIRMED
    reasons: list[str] = []

    def note(uid: str, state: DeliveryState, status: str, reason: str) -> None:
        delivery = left.pop(uid)
        patient(store.note_delivery)(  # without it what was accepted would be sent again
            delivery.job_id, delivery.destination, uid, state=state, status=status, reason=reason
        )
        if state is DeliveryState.WAITING:
            reasons.append(reason)

    def on_outcome(outcome: StoreOutcome) -> None:
        state = accepted if outcome.stored else DeliveryState.WAITING
        status = "" if outcome.status is None else f"{outcome.status:04X}"
        note(outcome.outgoing.sop_instance_uid, state, status, outcome.reason)

    give_up = False
    try:
        outgoing = legible(waiting, files, lambda d, why: note(d.sop_instance_uid, DeliveryState.WAITING, "", why))
        if outgoing:
            client.store(outgoing, on_outcome=on_outcome)
    except DaemonError as error:  # what was answered before it counts
        for uid in list(left):
            note(uid, DeliveryState.WAITING, "", str(error))
        give_up = not isinstance(error, Retryable)
    except sa.exc.DBAPIError:
        raise  # ours, not the destination's: the whole attempt is done again
    except Exception as error:  # whatever it is, it is an attempt that failed, and the last one of them ends it
        log.exception("%s: an attempt failed unexpectedly", destination.name)
        for uid in list(left):
            note(uid, DeliveryState.WAITING, "", f"unexpected {type(error).__name__}: {error}")
    return (f"{len(reasons)} of {len(waiting)} objects not stored: {reasons[0]}" if reasons else ""), give_up


def is_open(deliveries: Sequence[Delivery]) -> bool:
    """Whether something is still to be done about any of them, by itself."""
    return any(d.state in OPEN_DELIVERIES for d in deliveries)
