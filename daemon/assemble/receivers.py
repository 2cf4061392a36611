"""Several receivers on one database, each with its own spool: one of them assembles each study.

Whoever first sees a study owns it (`study_owners`); a receiver that gets images of a study that another one owns passes
them on, as a segment in that one's folder on the shared storage (`<storage.shared_url>/spool/<receiver>`). With
`[listener] replicate = "shared"` the same folder holds the second copy of each of a receiver's segments. So what lies
in a receiver's folder and not in its spool is work for it: images that were passed on, or what it had before its disk
was lost; it is copied into the spool and followed like every other segment.

A receiver is known by the name in its data folder, made at the first start; its heartbeat stands in the database, by
whose clock it is judged. Of one that was silent for `engine.lease_seconds` another takes the studies, under a lock of
the database, and the segments, by renaming them: exactly one gets each. The writer of a replica looks after each sync
whether it is still in its place, so one that was frozen acknowledges nothing into a segment that was taken from it.
What was handed over before is not done again: the jobs of a study that changes hands are read from the shared storage
into the new owner's index.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from daemon.assemble.arrival import Row
from daemon.assemble.index import forget_study, instance_keys, is_instance
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.database.engine import upsert
from daemon.database.tables import (
    ARRIVALS,
    INSTANCES,
    JOBS,
    OPEN_ASSOCIATIONS,
    RECEIVERS,
    RECEIVING,
    STUDY_OWNERS,
    InstanceState,
)
from daemon.errors import Permanent
from daemon.files import FileBytes, make_private_folder, sync_folder, write_all, write_durably
from daemon.jobs import records
from daemon.jobs.folder import JobFolder
from daemon.observe.logs import tag
from daemon.spool.segment import RecordKind, encode_record, segment_head

log = logging.getLogger(__name__)

PASS_ON_BYTES = 64 << 20
"""A segment that is passed on is followed by another one after so many bytes."""
BEATS_PER_LEASE = 5
OWNER_LOCK = 7_361_024_504
"""PostgreSQL advisory lock under which one receiver at a time takes over from the dead."""
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


def name_of(data: DataFolder) -> str:
    """The name of the receiver whose data folder this is, made where there is none: a new disk is a new receiver."""
    if not data.receiver.exists():
        write_durably(data.receiver, f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}".encode())
    return data.receiver.read_text().strip()


def replica_folder(shared: Path, name: str) -> Path:
    """Where a receiver's segments lie on the shared storage."""
    folder = shared / "spool" / name
    make_private_folder(folder)
    return folder


def replicas_of(settings: Settings) -> Path | None:
    """Where second copies of what this host receives go; None where none are made."""
    shared = settings.storage.shared_folder
    if settings.listener.replicate != "shared" or shared is None:
        return None
    return replica_folder(shared, name_of(settings.data))


@dataclass(eq=False)
class Receivers:
    """What one receiver knows of the others.

    Args:
        engine: The daemon's database, which they share.
        index: This receiver's index.
        name: This receiver.
        shared: Folder of the shared storage.
        spool: Folder of the segments.
        jobs: Folder of the jobs.
        seconds: After so long a silence a receiver is dead.
        replicates: Whether the second copies of this receiver's segments lie on the shared storage.
        fetch: Brings a job's folder here.
    """

    engine: sa.Engine
    index: sa.Engine
    name: str
    shared: Path
    spool: Path
    jobs: Path
    seconds: float
    replicates: bool
    fetch: Callable[[str], JobFolder]
    _epoch: int = field(default=0, init=False)
    _beating_since: float | None = field(default=None, init=False)
    """Monotonic time since which every sign of life came through; None: the last one did not."""
    _lost: Permanent | None = field(default=None, init=False)
    _next_look: float = field(default=0.0, init=False)
    _mine: set[str] = field(default_factory=set, init=False)
    """Studies that are known to be this receiver's, with all their jobs in the index."""
    _open: frozenset[str] | None = field(default=None, init=False)

    @property
    def replicas(self) -> Path:
        """This receiver's folder on the shared storage."""
        return replica_folder(self.shared, self.name)

    def join(self) -> None:
        """Begin: the name is this process's from now on."""
        with self.engine.begin() as connection:
            mine = RECEIVERS.c.receiver == self.name
            before = connection.execute(sa.select(RECEIVERS.c.epoch).where(mine).with_for_update()).scalar()
            self._epoch = (before or 0) + 1
            values = {"epoch": self._epoch, "beat": _NOW}
            if before is None:
                connection.execute(sa.insert(RECEIVERS).values(receiver=self.name, **values))
            else:
                connection.execute(sa.update(RECEIVERS).where(mine).values(**values))

    def keep(self, stop: threading.Event) -> None:
        """Give signs of life until `stop` is set, whatever the assembler does meanwhile."""
        while not stop.is_set():
            self.beat()
            stop.wait(self.seconds / BEATS_PER_LEASE)

    def beat(self) -> None:
        """One sign of life; a database that is away is tried again the next time."""
        try:
            self._beat()
        except sa.exc.SQLAlchemyError as error:
            self._beating_since = None
            log.warning("other receivers hear nothing of this one: %s", type(error).__name__)
        except Permanent as error:
            self._lost = error
        else:
            self._beating_since = self._beating_since or time.monotonic()

    def look(self) -> None:
        """Take over from the dead, and take what lies in this receiver's folder.

        Raises:
            Permanent: another process receives under this name: the data folder was copied.
        """
        if self._lost is not None:
            raise self._lost
        now = time.monotonic()
        if now >= self._next_look and self._may_judge():
            self._take_over()
            self._next_look = now + self.seconds / BEATS_PER_LEASE
        self._take_in()

    def _may_judge(self) -> bool:
        """Whether the silence of others is theirs: after the database was away everybody has been silent."""
        since = self._beating_since
        return since is not None and time.monotonic() - since >= self.seconds

    def _beat(self) -> None:
        me = (RECEIVERS.c.receiver == self.name, RECEIVERS.c.epoch == self._epoch)
        with self.engine.begin() as connection:
            if not connection.execute(sa.update(RECEIVERS).where(*me).values(beat=_NOW)).rowcount:
                raise Permanent(f"another process receives as {self.name}: in a copy of this data folder")

    def _is_dead(self) -> sa.ColumnElement[bool]:
        return RECEIVERS.c.beat < _NOW - self.seconds

    def _take_over(self) -> None:
        """The studies and segments of receivers that are dead."""
        with self.engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(OWNER_LOCK)))
            dead = set(connection.execute(sa.select(RECEIVERS.c.receiver).where(self._is_dead())).scalars())
            for name in sorted(dead):
                folder = self.shared / "spool" / name
                segments = sorted(folder.glob("*.seg")) if folder.is_dir() else []
                for segment in segments:
                    self._claim_segment(segment)
                owned = STUDY_OWNERS.c.receiver == name
                studies = connection.execute(sa.select(STUDY_OWNERS.c.study_uid).where(owned)).scalars().all()
                if segments:
                    connection.execute(sa.update(STUDY_OWNERS).where(owned).values(receiver=self.name))
                    log.warning("receiver %s is dead: %d segments and %d studies are taken over",
                                name, len(segments), len(studies))  # fmt: skip

    def _claim_segment(self, segment: Path) -> None:
        mine = self.replicas
        try:
            segment.rename(mine / segment.name)
        except FileNotFoundError:  # its owner was alive after all, and is done with it
            return
        sync_folder(mine)

    def _take_in(self) -> None:
        """Copy what lies in this receiver's folder into the spool where it is not there."""
        for segment in sorted(self.replicas.glob("*.seg")):
            target = self.spool / segment.name
            if target.exists():
                continue
            draft = self.spool / f".{segment.name}.draft"
            with segment.open("rb") as source, draft.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                os.fsync(copy.fileno())
            draft.rename(target)
            sync_folder(self.spool)
            log.info("%s was passed on to this receiver, %d bytes", segment.name, target.stat().st_size)
            if not self.replicates:
                segment.unlink()

    def share(self) -> None:
        """Pass images on whose study another receiver owns; read the jobs of studies that became this one's."""
        with self.index.connect() as connection:
            waits = sa.select(INSTANCES.c.study_uid).where(_to_be_passed_on())
            pending = set(connection.execute(waits.distinct()).scalars())
            opened = set(connection.execute(sa.select(OPEN_ASSOCIATIONS.c.study_uid).distinct()).scalars())
        self._mine &= pending
        owners = self._owners(pending | opened)
        for study_uid in sorted(uid for uid in pending if owners[uid] == self.name and uid not in self._mine):
            self._read_jobs(study_uid)
            self._mine.add(study_uid)
        for study_uid in sorted(uid for uid in pending if owners[uid] != self.name):
            self._pass_on(study_uid, owners[study_uid])
        self._say_open(frozenset(uid for uid in opened if owners[uid] != self.name))

    def _owners(self, studies: set[str]) -> dict[str, str]:
        """Who owns each; this receiver those that nobody owned, or one that is dead."""
        if not studies:
            return {}
        of_these = STUDY_OWNERS.c.study_uid.in_(studies)
        query = sa.select(STUDY_OWNERS.c.study_uid, STUDY_OWNERS.c.receiver).where(of_these)
        with self.engine.begin() as connection:
            found = {row.study_uid: row.receiver for row in connection.execute(query)}
            if studies - set(found) or set(found.values()) - {self.name}:
                for uid in sorted(studies - set(found)):
                    row = {"study_uid": uid, "receiver": self.name}
                    connection.execute(upsert(self.engine, STUDY_OWNERS, row, update=()))
                if self._may_judge():
                    dead = sa.select(RECEIVERS.c.receiver).where(self._is_dead())
                    orphans = (of_these, STUDY_OWNERS.c.receiver.in_(dead))
                    connection.execute(sa.update(STUDY_OWNERS).where(*orphans).values(receiver=self.name))
                found = {row.study_uid: row.receiver for row in connection.execute(query)}
        return found

    def _read_jobs(self, study_uid: str) -> None:
        """Take the jobs that another receiver made of a study into the index."""
        jobs = sa.select(JOBS.c.job_id).where(JOBS.c.study_uid == study_uid).order_by(JOBS.c.created)
        with self.engine.connect() as connection:
            there = connection.execute(jobs).scalars().all()
        with self.index.connect() as connection:
            known = set(connection.execute(sa.select(ARRIVALS.c.job_id)).scalars())
        for job_id in [name for name in there if name not in known]:
            folder = self.fetch(job_id)
            record = records.Arrival.read_if_there(folder.arrival)
            if record is None or record.part_of is not None:
                continue
            row = {
                "job_id": job_id, "study_uid": study_uid, "supersedes": record.supersedes, "created": record.completed,
                "submitted": True,
            }  # fmt: skip
            with self.index.begin() as connection:
                connection.execute(upsert(self.index, ARRIVALS, row, update=()))
                for instance in record.instances:
                    values = {**instance.to_json(), "state": InstanceState.HANDED_OVER.value, "job_id": job_id}
                    connection.execute(upsert(self.index, INSTANCES, values, update=("state", "job_id", "file")))
            log.info("job %s of study %s, which another receiver began, is known now", job_id, tag(study_uid))

    def _pass_on(self, study_uid: str, owner: str) -> None:
        mine = (INSTANCES.c.study_uid == study_uid, _to_be_passed_on())
        with self.index.connect() as connection:
            rows = connection.execute(sa.select(INSTANCES).where(*mine)).all()
        folder = replica_folder(self.shared, owner)
        for batch in _batches(rows):
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}-000001.seg"
            self._write(folder, name, batch)
            with self.index.begin() as connection:
                passed = sa.update(INSTANCES).where(is_instance()).values(state=InstanceState.PASSED_ON.value)
                connection.execute(passed, [instance_keys(row._mapping) for row in batch])
        log.info("%d images of study %s are passed on to %s", len(rows), tag(study_uid), owner)

    def _write(self, folder: Path, name: str, rows: Sequence[Row]) -> None:
        """A whole segment, or none."""
        draft = folder / f".{name}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            size = write_all(descriptor, [segment_head()], 0)
            for row in rows:
                with (self.spool / row.segment).open("rb") as source:
                    data = FileBytes(source.fileno(), row.data_length, row.data_offset)
                    parts = encode_record(RecordKind.INSTANCE, _meta(row), [data])
                    size += write_all(descriptor, parts, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.rename(folder / name)
        sync_folder(folder)

    def _say_open(self, studies: frozenset[str]) -> None:
        """Tell the owners on which studies of theirs an association is open here."""
        if studies == self._open:
            return
        with self.engine.begin() as connection:
            connection.execute(sa.delete(RECEIVING).where(RECEIVING.c.receiver == self.name))
            if studies:
                rows = [{"study_uid": uid, "receiver": self.name} for uid in sorted(studies)]
                connection.execute(sa.insert(RECEIVING), rows)
        self._open = studies

    def receiving_elsewhere(self) -> set[str]:
        """Studies of which another living receiver still gets images."""
        query = (
            sa.select(RECEIVING.c.study_uid)
            .join(RECEIVERS, RECEIVERS.c.receiver == RECEIVING.c.receiver)
            .where(RECEIVING.c.receiver != self.name, sa.not_(self._is_dead()))
        )
        with self.engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def forget_gone(self) -> None:
        """Forget what the index knows of studies whose jobs were removed, perhaps by another receiver.

        An image that was passed on and is forgotten too early is passed on again where it comes again.
        """
        with self.index.connect() as connection:
            over = sa.select(ARRIVALS.c.study_uid).where(ARRIVALS.c.submitted.is_(True)).distinct()
            passed = sa.select(INSTANCES.c.study_uid).where(INSTANCES.c.state == InstanceState.PASSED_ON.value)
            known = {*connection.execute(over).scalars(), *connection.execute(passed.distinct()).scalars()}
        with self.engine.connect() as connection:
            there = set(connection.execute(sa.select(JOBS.c.study_uid).distinct()).scalars())
        for study_uid in sorted(known - there):
            forget_study(self.index, study_uid)


def forget_owner(engine: sa.Engine, study_uid: str) -> None:
    """A study has no job any more: its next images make a new one, wherever they come."""
    with engine.begin() as connection:
        connection.execute(sa.delete(STUDY_OWNERS).where(STUDY_OWNERS.c.study_uid == study_uid))


def _to_be_passed_on() -> sa.ColumnElement[bool]:
    kept_in_spool = (INSTANCES.c.state == InstanceState.CONFLICT.value) & (INSTANCES.c.file == "")
    return (INSTANCES.c.state == InstanceState.PENDING.value) | kept_in_spool


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.data_length
        if size >= PASS_ON_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _meta(row: Row) -> dict[str, object]:
    """What its receiver wrote beside an instance."""
    return {
        "sop_class_uid": row.sop_class_uid, "sop_instance_uid": row.sop_uid, "study_uid": row.study_uid,
        "series_uid": row.series_uid, "transfer_syntax_uid": row.transfer_syntax_uid, "association": row.association,
        "calling_aet": row.calling_aet, "peer": row.peer, "received": row.received,
    }  # fmt: skip
