"""What a complete study becomes: a job's folder with its instances, and the note of it in the index.

Order of durability: job folder, then the index. A crash in between is mended by taking the folder into the index.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from daemon.assemble.arrival import Duplicate, Row, arrival_record, job_name, record_of_what_failed
from daemon.assemble.gaps import Gap
from daemon.assemble.index import instance_keys, is_instance, shared_uids
from daemon.assemble.part10 import DamagedInstance, pixel_digest, sync_files, write_instance
from daemon.config.data_folder import DataFolder
from daemon.database.engine import upsert
from daemon.database.tables import ARRIVALS, INSTANCES, OF_A_JOB, InstanceState
from daemon.errors import Permanent
from daemon.files import make_private_folder, sync_folder
from daemon.jobs import records
from daemon.jobs.folder import JobFolder
from daemon.observe.logs import tag

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HandOver:
    """Makes jobs of studies.

    Attributes:
        engine: The daemon's database.
        data: Where spool and jobs are.
        gaps: What is missing between a study's slices, by its UID.
        clock: POSIX time, s: for what is written down, never for waiting.
    """

    engine: sa.Engine
    data: DataFolder
    gaps: Callable[[str], Sequence[Gap]]
    clock: Callable[[], float]

    def hand_over(self, study_uid: str) -> None:
        """Make a job of a study's instances; where every byte of it is lost there is none.

        Raises:
            OSError: the disk is full or fails; what was received stays in the spool.
        """
        rows = self._rows(study_uid)
        previous, completed = self._previous(study_uid)
        draft = self.data.jobs / f".draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        (draft / "input").mkdir(mode=0o700)
        try:
            files, damaged = self._write_input(draft / "input", [row for row in rows if row.state in OF_A_JOB])
            self._note_damaged(damaged)
            if not files:
                return
            job_id = job_name(files)
            arrival = arrival_record(
                job_id,
                study_uid,
                next((name for name in reversed(previous) if name != job_id), None),
                completed,
                self._rows(study_uid),
                files,
                self.gaps(study_uid),
                self._duplicates(draft / "input", rows, files),
                shared_uids(self.engine, study_uid),
            )
            arrival.write(JobFolder(draft).arrival)
            sync_files(draft / "input")
            self._publish(draft, self.data.jobs / job_id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._note_arrival(arrival, files)

    def set_aside(self, study_uid: str, reason: str) -> None:
        """Make a job that only says why there is none; the bytes stay in the spool as long as it is kept."""
        log.error("study %s is set aside: %s", tag(study_uid), reason)
        rows = [row for row in self._rows(study_uid) if row.state in OF_A_JOB]
        _, completed = self._previous(study_uid)
        reason = f"{reason}; sent again, it is tried again"
        record = record_of_what_failed(study_uid, rows, completed, reason)
        draft = self.data.jobs / f".draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        try:
            (draft / "input").mkdir(mode=0o700)
            record.write(JobFolder(draft).arrival)
            self._publish(draft, self.data.jobs / record.job_id)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        with self.engine.begin() as connection:
            self._insert_arrival(connection, record)
            connection.execute(
                sa.update(INSTANCES)
                .where(INSTANCES.c.study_uid == study_uid, INSTANCES.c.state == InstanceState.PENDING.value)
                .values(state=InstanceState.SET_ASIDE.value)
            )

    def keep_conflicts(self) -> None:
        """Write instances whose UIDs another instance has already into the data folder's `conflicts`."""
        aside = self.data.conflicts
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(INSTANCES).where(INSTANCES.c.state == InstanceState.CONFLICT.value, INSTANCES.c.file == "")
            ).all()
        for row in rows:
            make_private_folder(aside)
            path = aside / f"{row.sop_uid}.{row.sha256[:16]}.dcm"
            try:
                write_instance(path, row, self.data.spool)
            except OSError as error:
                log.warning("conflicting instance %s stays in the spool: %s", tag(row.sop_uid), error)
                return
            except DamagedInstance as error:
                log.warning("conflicting instance %s is lost: %s", tag(row.sop_uid), error)
                self._note_damaged([row])
                continue
            log.warning("instance %s came again with other bytes; kept in %s", tag(row.sop_uid), aside)
            sync_files(aside)
            with self.engine.begin() as connection:
                kept = sa.update(INSTANCES).where(is_instance()).values(file=path.name)
                connection.execute(kept, instance_keys(row._mapping))

    def adopt_job_folders(self) -> None:
        """Take job folders into the index that it does not know: it was lost, or a crash came in between."""
        with self.engine.begin() as connection:
            known = set(connection.execute(sa.select(ARRIVALS.c.job_id)).scalars())
            for arrival in sorted(self._unknown_arrivals(known), key=lambda arrival: arrival.completed):
                self._insert_arrival(connection, arrival)
                for instance in arrival.instances:
                    row = {**instance.to_json(), "state": InstanceState.HANDED_OVER.value, "job_id": arrival.job_id}
                    connection.execute(upsert(self.engine, INSTANCES, row, update=("state", "job_id", "file")))

    def _rows(self, study_uid: str) -> Sequence[Row]:
        order = (INSTANCES.c.received, INSTANCES.c.segment, INSTANCES.c.data_offset)
        query = sa.select(INSTANCES).where(INSTANCES.c.study_uid == study_uid).order_by(*order)
        with self.engine.connect() as connection:
            return connection.execute(query).all()

    def _previous(self, study_uid: str) -> tuple[list[str], float]:
        """Earlier jobs of a study, oldest first; and a time for the next one that is later than theirs."""
        query = sa.select(ARRIVALS).where(ARRIVALS.c.study_uid == study_uid).order_by(ARRIVALS.c.created)
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        latest = rows[-1].created + 1e-3 if rows else 0.0  # the machine's clock may have been set back
        return [row.job_id for row in rows], max(self.clock(), latest)

    def _write_input(self, folder: Path, rows: Sequence[Row]) -> tuple[dict[str, Row], list[Row]]:
        """Write or link every instance; {file name: row} and those whose bytes are lost."""
        files: dict[str, Row] = {}
        damaged: list[Row] = []
        for number, row in enumerate(rows, start=1):
            name = f"{number:06d}.dcm"
            if row.state == InstanceState.HANDED_OVER and _link(
                self.data.jobs / row.job_id / "input" / row.file, folder / name
            ):
                files[name] = row
                continue
            try:
                write_instance(folder / name, row, self.data.spool)
                files[name] = row
            except DamagedInstance as error:
                log.warning("instance %s of study %s is lost: %s", tag(row.sop_uid), tag(row.study_uid), error)
                damaged.append(row)
        return files, damaged

    def _duplicates(self, folder: Path, rows: Sequence[Row], files: dict[str, Row]) -> list[Duplicate]:
        """Instances that were kept aside, and whether their pixels are those of the one that stands."""
        standing = {(row.series_uid, row.sop_uid): name for name, row in files.items()}
        found = []
        for row in rows:
            if row.state != InstanceState.CONFLICT:
                continue
            name = standing.get((row.series_uid, row.sop_uid))
            same = None
            if name is not None and row.file:
                theirs = pixel_digest(self.data.conflicts / row.file, row.transfer_syntax_uid)
                ours = pixel_digest(folder / name, files[name].transfer_syntax_uid)
                same = None if theirs is None or ours is None else theirs == ours
            found.append(Duplicate(row, same))
        return found

    def _note_damaged(self, rows: Iterable[Row]) -> None:
        with self.engine.begin() as connection:
            for row in rows:
                lost = sa.update(INSTANCES).where(is_instance())
                connection.execute(
                    lost.values(state=InstanceState.DAMAGED.value, job_id=None, file=""), instance_keys(row._mapping)
                )

    def _publish(self, draft: Path, final: Path) -> None:
        sync_folder(draft)
        if not final.exists():  # otherwise a crash came between this and the index: same name, same content
            draft.rename(final)
        sync_folder(self.data.jobs)

    def _note_arrival(self, arrival: records.Arrival, files: dict[str, Row]) -> None:
        with self.engine.begin() as connection:
            self._insert_arrival(connection, arrival)
            handed_over = [
                {**instance_keys(row._mapping), "new_job_id": arrival.job_id, "new_file": name}
                for name, row in files.items()
            ]
            connection.execute(_HAND_OVER, handed_over)

    def _insert_arrival(self, connection: sa.Connection, arrival: records.Arrival) -> None:
        row = {
            "job_id": arrival.job_id,
            "study_uid": arrival.study_uid,
            "supersedes": arrival.supersedes,
            "created": arrival.completed,
            "submitted": False,
        }
        connection.execute(upsert(self.engine, ARRIVALS, row, update=()))

    def _unknown_arrivals(self, known: set[str]) -> list[records.Arrival]:
        """Of job folders that the index does not know, but for those that were made of a job."""
        found = []
        for folder in sorted(self.data.jobs.iterdir()):
            if folder.name.startswith(".") or folder.name in known or not JobFolder(folder).arrival.exists():
                continue
            try:
                found.append(records.Arrival.read(JobFolder(folder).arrival))
            except Permanent as error:
                log.warning("left as it is: %s", error)
        return [arrival for arrival in found if arrival.part_of is None]


_HAND_OVER = (
    sa.update(INSTANCES)
    .where(is_instance())
    .values(state=InstanceState.HANDED_OVER.value, job_id=sa.bindparam("new_job_id"), file=sa.bindparam("new_file"))
)


def _link(source: Path, target: Path) -> bool:
    """Hard-link a file of an earlier job; False where it is no longer there."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    return True
