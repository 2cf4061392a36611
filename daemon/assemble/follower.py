"""Follows the spool's segments and keeps the index of received instances."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.index import instance_keys, is_instance
from daemon.assemble.part10 import HEADER_BYTES, MR_IMAGE, UNDECODABLE, decode_header
from daemon.database.engine import upsert
from daemon.database.tables import INSTANCES, OPEN_ASSOCIATIONS, SEGMENTS, InstanceState
from daemon.files import make_private_folder, read_data
from daemon.spool.locks import is_alive, segment_receiver
from daemon.spool.segment import Damage, Record, RecordKind, read_records
from dicom_io.content.equipment import TELLING, is_own_result

log = logging.getLogger(__name__)

_BATCH = 1000
_IN_CLAUSE = 500
_CHANGED_BY_A_COPY = ("copies", "last_received", "state", "segment", "data_offset")
_MR_IMAGE_CLASSES = frozenset(
    (
        MR_IMAGE,
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR Image
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR Image
    )
)
"""Never made by us, so these need not be looked at to see whose they are."""


@dataclass(eq=False)
class SegmentFollower:
    """Indexes what the receivers write.

    Args:
        engine: The daemon's database; its tables exist.
        spool: Folder of the segments.
        damaged: Folder for what cannot be read.
        own_result: Whether a data set is one of our own results.
        replicas: Folder of the segments' second copies, where there are any.
    """

    engine: sa.Engine
    spool: Path
    damaged: Path
    own_result: Callable[[Dataset], bool] = is_own_result
    replicas: Path | None = None
    _came: set[str] = field(default_factory=set, init=False)
    """Studies of which something was indexed."""

    def reset(self) -> None:
        """Forget what is not yet handed over of segments that are not fully indexed, so that they are read again."""
        with self.engine.begin() as connection:
            unfinished = sa.select(SEGMENTS.c.segment).where(SEGMENTS.c.finished.is_(False))
            here = [name for name in connection.execute(unfinished).scalars() if (self.spool / name).exists()]
            connection.execute(
                sa.delete(INSTANCES).where(
                    INSTANCES.c.segment.in_(here), INSTANCES.c.state != InstanceState.HANDED_OVER.value
                )
            )
            connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.segment.in_(here)))

    def follow(self) -> set[str]:
        """Index what is new; StudyInstanceUIDs of what was."""
        segments = sorted(self.spool.glob("*.seg"))
        alive = {name: is_alive(self.spool, name) for name in {segment_receiver(path.name) for path in segments}}
        latest = {segment_receiver(path.name): path.name for path in segments}  # sorted: the last one stays
        with self.engine.connect() as connection:
            known = {row.segment: row for row in connection.execute(sa.select(SEGMENTS))}
        for path in segments:
            receiver = segment_receiver(path.name)
            row = known.get(path.name)
            if row is not None and row.finished:
                continue
            final = not alive[receiver] or latest[receiver] != path.name
            self._follow_segment(path, row.consumed if row is not None else 0, final=final)
        self._end_associations_of_dead(alive)
        came, self._came = self._came, set()
        return came

    def _follow_segment(self, path: Path, consumed: int, *, final: bool) -> None:
        for batch in _batches(read_records(path, consumed, final=final), _BATCH):
            for found in batch:
                if isinstance(found, Damage):
                    self._set_damage_aside(path, found)
            with self.engine.begin() as connection:
                self._index(connection, path, [found for found in batch if isinstance(found, Record)])
                self._note_segment(connection, path.name, batch[-1].end, finished=False)
        if final:
            with self.engine.begin() as connection:
                self._note_segment(connection, path.name, path.stat().st_size, finished=True)

    def _note_segment(self, connection: sa.Connection, segment: str, consumed: int, *, finished: bool) -> None:
        row = {"segment": segment, "consumed": consumed, "finished": finished}
        connection.execute(upsert(self.engine, SEGMENTS, row, update=("consumed", "finished")))

    def _set_damage_aside(self, path: Path, damage: Damage) -> None:
        """Keep a copy of what cannot be read; nothing in it was acknowledged unless the disk itself failed."""
        make_private_folder(self.damaged)
        try:
            data = read_data(path, damage.offset, damage.end - damage.offset)
        except OSError as error:
            log.warning("%s: bytes at %d are lost: %s: %s", path.name, damage.offset, damage.reason, error)
            return
        copy = self.damaged / f"{path.name}.{damage.offset}"
        copy.write_bytes(data)
        log.warning("%s: %d bytes at %d set aside: %s", path.name, len(data), damage.offset, damage.reason)

    def _index(self, connection: sa.Connection, path: Path, records: Sequence[Record]) -> None:
        """Take records into the index, in a few statements however many they are."""
        instances = [record for record in records if record.kind is RecordKind.INSTANCE]
        known = _known_instances(connection, [record.meta["sop_instance_uid"] for record in instances])
        new, again, opened = [], {}, {}
        for record in instances:
            row = _instance_row(path.name, record)
            same_uids = known.setdefault(_uids(row), [])
            copy = next((other for other in same_uids if other["sha256"] == row["sha256"]), None)
            if copy is None:
                row["state"] = self._first_state(path, record, same_uids).value
                same_uids.append(row)
                new.append(row)
            elif (copy["segment"], copy["data_offset"]) != (row["segment"], row["data_offset"]):
                _count_copy(copy, row)
                again[*_uids(row), row["sha256"]] = copy
            if (copy or row)["state"] != InstanceState.OWN_RESULT:
                opened[row["association"], row["study_uid"]] = segment_receiver(path.name)
        if new:
            connection.execute(sa.insert(INSTANCES), new)
            self._came |= {row["study_uid"] for row in new}
        if again:
            connection.execute(_UPDATE_COPY, [_copy_values(row) for row in again.values()])
        self._index_associations(connection, records, opened)

    def _index_associations(
        self, connection: sa.Connection, records: Sequence[Record], opened: dict[tuple[str, str], str]
    ) -> None:
        """Within a segment the end of an association comes after its instances."""
        ended = {record.meta["association"] for record in records if record.kind is RecordKind.ASSOCIATION_END}
        for (association, study_uid), receiver in opened.items():
            if association not in ended:
                row = {"association": association, "study_uid": study_uid, "receiver": receiver}
                connection.execute(upsert(self.engine, OPEN_ASSOCIATIONS, row, update=()))
        if ended:
            connection.execute(sa.delete(OPEN_ASSOCIATIONS).where(OPEN_ASSOCIATIONS.c.association.in_(ended)))

    def _first_state(self, path: Path, record: Record, same_uids: Sequence[dict[str, Any]]) -> InstanceState:
        if record.meta["sop_class_uid"] not in _MR_IMAGE_CLASSES and self._is_own_result(path, record):
            return InstanceState.OWN_RESULT
        if any(other["state"] != InstanceState.DAMAGED for other in same_uids):
            return InstanceState.CONFLICT
        return InstanceState.PENDING

    def _is_own_result(self, path: Path, record: Record) -> bool:
        """Judged by the few attributes that tell, so that no data set is decoded or inflated here."""
        start = read_data(path, record.data_offset, min(record.data_length, HEADER_BYTES))
        try:
            return self.own_result(decode_header(start, record.meta["transfer_syntax_uid"], TELLING))
        except UNDECODABLE as error:
            log.warning("%s at %d: not decoded, taken as foreign: %s", path.name, record.offset, type(error).__name__)
            return False

    def _end_associations_of_dead(self, alive: dict[str, bool]) -> None:
        with self.engine.begin() as connection:
            receivers = connection.execute(sa.select(OPEN_ASSOCIATIONS.c.receiver).distinct()).scalars().all()
            dead = [name for name in receivers if not alive.get(name, False) and not is_alive(self.spool, name)]
            if dead:
                connection.execute(sa.delete(OPEN_ASSOCIATIONS).where(OPEN_ASSOCIATIONS.c.receiver.in_(dead)))

    def reclaim(self) -> int:
        """Delete segments that nothing needs any more; bytes freed."""
        freed = 0
        with self.engine.begin() as connection:
            needed = set(
                connection.execute(
                    sa.select(INSTANCES.c.segment).where(
                        INSTANCES.c.state.in_([InstanceState.PENDING.value, InstanceState.SET_ASIDE.value])
                        | ((INSTANCES.c.state == InstanceState.CONFLICT.value) & (INSTANCES.c.file == ""))
                    )
                ).scalars()
            )
            finished = connection.execute(sa.select(SEGMENTS.c.segment).where(SEGMENTS.c.finished.is_(True))).scalars()
            for segment in [name for name in finished if name not in needed]:
                path = self.spool / segment
                if self.replicas is not None:  # first: what is there alone is taken for work
                    (self.replicas / segment).unlink(missing_ok=True)
                if path.exists():
                    freed += path.stat().st_size
                    path.unlink()
                connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.segment == segment))
        self._remove_remains_of_dead()
        return freed

    def _remove_remains_of_dead(self) -> None:
        """Locks, and segments that were prepared and never used."""
        for spare in self.spool.glob(".*.spare"):
            if not is_alive(self.spool, segment_receiver(spare.name)):
                spare.unlink()
        in_use = {segment_receiver(path.name) for path in self.spool.glob("*.seg")}
        for lock in self.spool.glob("*.lock"):
            if lock.stem not in in_use and not lock.name.startswith(".") and not is_alive(self.spool, lock.stem):
                lock.unlink()


_UPDATE_COPY = (
    sa.update(INSTANCES).where(is_instance()).values({name: sa.bindparam(f"new_{name}") for name in _CHANGED_BY_A_COPY})
)

_Uids = tuple[str, str, str]


def _uids(row: Mapping[Any, Any]) -> _Uids:
    """Study, series and SOP Instance UID."""
    return row["study_uid"], row["series_uid"], row["sop_uid"]


def _known_instances(connection: sa.Connection, sop_uids: Sequence[str]) -> dict[_Uids, list[dict[str, Any]]]:
    """Indexed instances that have one of these SOP Instance UIDs."""
    known: dict[_Uids, list[dict[str, Any]]] = {}
    for start in range(0, len(sop_uids), _IN_CLAUSE):
        query = sa.select(INSTANCES).where(INSTANCES.c.sop_uid.in_(sop_uids[start : start + _IN_CLAUSE]))
        for row in connection.execute(query).mappings():
            known.setdefault(_uids(row), []).append(dict(row))
    return known


def _count_copy(copy: dict[str, Any], row: dict[str, Any]) -> None:
    """The same instance again: counted; where the first was damaged, set aside or passed on, this one takes its place.

    The receiver to which it was passed on may be gone, and the study be this one's now.
    """
    copy["copies"] += 1
    copy["last_received"] = max(copy["last_received"], row["received"])
    if copy["state"] in (InstanceState.DAMAGED, InstanceState.SET_ASIDE, InstanceState.PASSED_ON):
        copy |= {"state": InstanceState.PENDING.value, "segment": row["segment"], "data_offset": row["data_offset"]}


def _copy_values(row: dict[str, Any]) -> dict[str, Any]:
    return instance_keys(row) | {f"new_{name}": row[name] for name in _CHANGED_BY_A_COPY}


def _instance_row(segment: str, record: Record) -> dict[str, Any]:
    meta = record.meta
    return {
        "sop_uid": meta["sop_instance_uid"],
        "sha256": record.sha256,
        "study_uid": meta["study_uid"],
        "series_uid": meta["series_uid"],
        "sop_class_uid": meta["sop_class_uid"],
        "transfer_syntax_uid": meta["transfer_syntax_uid"],
        "state": InstanceState.PENDING.value,
        "job_id": None,
        "file": "",
        "segment": segment,
        "data_offset": record.data_offset,
        "data_length": record.data_length,
        "association": meta["association"],
        "calling_aet": meta["calling_aet"],
        "peer": meta["peer"],
        "received": meta["received"],
        "last_received": meta["received"],
        "copies": 1,
    }


def _batches(found: Iterator[Record | Damage], size: int) -> Iterator[list[Record | Damage]]:
    batch: list[Record | Damage] = []
    for entry in found:
        batch.append(entry)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
