"""Does a destination hold what it accepted? Storage commitment where it has that, else a query; each object alone.

Nobody is believed longer than needed: a PACS that answers Success and keeps nothing is found out, and what it lost is
sent again. Where a destination can be asked in no way, its status is all there is, and the record says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from daemon.config.sections import Destination
from daemon.database.tables import DeliveryState
from daemon.deliver import commitment
from daemon.deliver.client import DestinationClient
from daemon.deliver.outgoing import NotOffered, Outgoing, legible
from daemon.errors import DaemonError
from daemon.jobs.store import Delivery, JobStore, now

log = logging.getLogger(__name__)

CHECKS_BEFORE_LOST = 4
"""A query that does not find an object is asked again this often: archives index a little later than they accept."""

FIRST_CHECK, LONGEST_CHECK = 1.0, 60.0
"""Seconds between two looks: at first, and at the most."""

NOT_OFFERED = "-"
"""`Delivery.transaction_uid` where the destination has no storage commitment."""

NOT_POSSIBLE = "not possible"
"""`Delivery.confirmed` where the destination offers no way to ask."""


def confirm(
    store: JobStore, job_id: str, files: Callable[[str], Outgoing], destination: Destination, client: DestinationClient
) -> float | None:
    """Ask for every accepted object that is not confirmed.

    Returns:
        Seconds until it is worth asking again; None where nothing is unconfirmed any more.
    """
    open_ones = _unconfirmed(store, job_id, destination)
    if not open_ones:
        return None
    if destination.confirm == "none":  # the configuration has changed since they were accepted
        store.settle_checks(open_ones, DeliveryState.SENT)
        return None
    try:
        by_query = _by_commitment(store, open_ones, files, destination, client)
        if by_query:
            _by_query(store, by_query, files, destination, client)
    except DaemonError as error:
        _put_off(store, _still(store, open_ones), destination, str(error))
    except sa.exc.DBAPIError:
        raise  # ours, not the destination's
    except Exception as error:
        log.exception("%s: an attempt to confirm failed unexpectedly", destination.name)
        why = f"unexpected {type(error).__name__}: {error}"
        _put_off(store, _still(store, open_ones), destination, why)
    left = _unconfirmed(store, job_id, destination)
    if not left:
        return None
    return min(_pause(store, d) for d in left)


def _unconfirmed(store: JobStore, job_id: str, destination: Destination) -> list[Delivery]:
    return [d for d in store.deliveries(job_id, destination.name) if d.state is DeliveryState.UNCONFIRMED]


def _still(store: JobStore, open_ones: Sequence[Delivery]) -> list[Delivery]:
    """Those of these that are unconfirmed now, as they are on record."""
    uids = {d.sop_instance_uid for d in open_ones}
    found = [] if not open_ones else store.deliveries(open_ones[0].job_id, open_ones[0].destination)
    return [d for d in found if d.sop_instance_uid in uids and d.state is DeliveryState.UNCONFIRMED]


def _pause(store: JobStore, delivery: Delivery) -> float:
    """Longer the longer it takes, so that a PACS that commits at night is not asked every second."""
    asked = commitment.find(store.engine, delivery.transaction_uid) if delivery.transaction_uid else None
    waited = 0.0 if asked is None else now() - asked.requested
    return min(max(FIRST_CHECK * 2**delivery.checks, waited / 2), LONGEST_CHECK)


def _by_commitment(
    store: JobStore,
    open_ones: Sequence[Delivery],
    files: Callable[[str], Outgoing],
    destination: Destination,
    client: DestinationClient,
) -> list[Delivery]:
    """Ask for storage commitment, or look what was answered; returns what must be asked for by a query."""
    if destination.confirm == "query":
        return list(open_ones)
    new = [d for d in open_ones if not d.transaction_uid]
    if new:
        _request(store, new, files, destination, client)
    asked: dict[str, list[Delivery]] = {}
    for d in _still(store, open_ones):
        asked.setdefault(d.transaction_uid, []).append(d)
    return [d for uid, together in asked.items() for d in _take_answer(store, uid, together, destination)]


def _request(
    store: JobStore,
    new: Sequence[Delivery],
    files: Callable[[str], Outgoing],
    destination: Destination,
    client: DestinationClient,
) -> None:
    """Ask for storage commitment of what can be read; on the rest, or where it is not offered, a query decides."""
    illegible: list[Delivery] = []
    outgoing = legible(new, files, lambda d, _why: illegible.append(d))
    uid = NOT_OFFERED
    if outgoing:
        try:
            uid = commitment.request(store.engine, new[0].job_id, destination.name, outgoing, client)
        except NotOffered as error:
            log.info("%s: a query must do: %s", destination.name, error)
    store.note_checks([d for d in new if d not in illegible], transaction_uid=uid)
    store.note_checks(illegible, transaction_uid=NOT_OFFERED)


def _take_answer(
    store: JobStore, transaction_uid: str, asked: Sequence[Delivery], destination: Destination
) -> list[Delivery]:
    """Settle objects by the answer to their transaction; returns those on which a query must decide."""
    found = commitment.find(store.engine, transaction_uid) if transaction_uid else None
    if found is None:
        return list(asked)
    committed = [d for d in asked if d.sop_instance_uid in found.committed]
    store.settle_checks(committed, DeliveryState.SENT, confirmed="storage commitment")
    others = [d for d in asked if d.sop_instance_uid not in found.committed]
    if found.answered is None:
        # A transaction of the future was asked for before the machine's clock was set back: nobody knows when.
        waits = 0 <= now() - found.requested <= destination.commitment_seconds
        return [] if waits else others
    for d in others:
        why = found.failed.get(d.sop_instance_uid, "the report does not name it")
        reason = f"accepted, but storage commitment failed: {why}"
        store.settle_checks([d], DeliveryState.WAITING, reason=reason)
    return []


def _by_query(
    store: JobStore,
    asked: Sequence[Delivery],
    files: Callable[[str], Outgoing],
    destination: Destination,
    client: DestinationClient,
) -> None:
    """Settle objects by what the destination says that it holds; what cannot be read cannot be asked for."""
    illegible: dict[str, str] = {}
    outgoing = legible(asked, files, lambda d, why: illegible.update({d.sop_instance_uid: why}))
    try:
        held = _held(outgoing, client)
    except NotOffered as error:
        store.settle_checks(asked, DeliveryState.SENT, confirmed=NOT_POSSIBLE)
        log.info("%s: what it accepted cannot be confirmed: %s", destination.name, error)
        return
    for d in asked:
        if d.sop_instance_uid in illegible:
            _put_off(store, [d], destination, illegible[d.sop_instance_uid])
    asked = [d for d in asked if d.sop_instance_uid not in illegible]
    found = [d for d in asked if d.sop_instance_uid in held]
    store.settle_checks(found, DeliveryState.SENT, confirmed=client.query)
    missing = [d for d in asked if d.sop_instance_uid not in held]
    store.note_checks([d for d in missing if d.checks + 1 < CHECKS_BEFORE_LOST])
    for d in missing:
        if d.checks + 1 >= CHECKS_BEFORE_LOST:
            reason = f"accepted with status 0x{d.status}, but {client.query} does not find it there"
            store.settle_checks([d], DeliveryState.WAITING, reason=reason)


def _held(asked: Iterable[Outgoing], client: DestinationClient) -> set[str]:
    series = sorted({(o.study_uid, o.series_uid) for o in asked})
    return {uid for study_uid, series_uid in series for uid in client.held(study_uid, series_uid)}


def _put_off(store: JobStore, open_ones: Sequence[Delivery], destination: Destination, why: str) -> None:
    """The destination could not be asked: look again later, as often as it would be sent to."""
    for d in open_ones:
        if d.checks + 1 < destination.max_attempts:
            store.note_checks([d], reason=d.reason or f"accepted, not confirmed yet: {why}")
        else:
            reason = f"accepted with status 0x{d.status}, but whether it is held could not be asked: {why}"
            store.settle_checks([d], DeliveryState.DEAD, reason=reason)
