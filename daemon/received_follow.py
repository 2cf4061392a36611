"""Follows the spool's segments and keeps the index of received instances."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset, dcmread

from daemon.database import upsert
from daemon.received_files import MR_IMAGE, UNDECODABLE, part10_head
from daemon.received_index import INSTANCES, OPEN_ASSOCIATIONS, SEGMENTS, InstanceState
from daemon.spool import (
    Damage,
    Record,
    RecordKind,
    is_alive,
    make_private_folder,
    read_records,
    segment_receiver,
)
from dicom_io.own_results import is_own_result

LOGGER = logging.getLogger(__name__)

_BATCH = 1000
_MR_IMAGE_CLASSES = frozenset(
    (
        MR_IMAGE,
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR Image
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR Image
    )
)
"""Never made by us, so these need not be decoded to see whose they are."""

Row = sa.Row[tuple[Any, ...]]


@dataclass(eq=False)
class SegmentFollower:
    """Indexes what the receivers write.

    Args:
        engine: The daemon's database; its tables exist.
        spool: Folder of the segments.
        damaged: Folder for what cannot be read.
        own_result: Whether a data set is one of our own results.
    """

    engine: sa.Engine
    spool: Path
    damaged: Path
    own_result: Callable[[Dataset], bool] = is_own_result

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

    def follow(self) -> None:
        """Index what is new."""
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

    def _follow_segment(self, path: Path, consumed: int, *, final: bool) -> None:
        for batch in _batches(read_records(path, consumed, final=final), _BATCH):
            with self.engine.begin() as connection:
                for found in batch:
                    if isinstance(found, Damage):
                        self._set_damage_aside(path, found)
                    else:
                        self._index(connection, path, found)
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
        with path.open("rb") as source:
            source.seek(damage.offset)
            data = source.read(damage.end - damage.offset)
        copy = self.damaged / f"{path.name}.{damage.offset}"
        copy.write_bytes(data)
        LOGGER.warning("%s: %d bytes at %d set aside: %s", path.name, len(data), damage.offset, damage.reason)

    def _index(self, connection: sa.Connection, path: Path, record: Record) -> None:
        if record.kind is RecordKind.ASSOCIATION_END:
            association = record.meta["association"]
            connection.execute(sa.delete(OPEN_ASSOCIATIONS).where(OPEN_ASSOCIATIONS.c.association == association))
            return
        meta = record.meta
        same_uid = connection.execute(sa.select(INSTANCES).where(INSTANCES.c.sop_uid == meta["sop_instance_uid"])).all()
        copy = next((row for row in same_uid if row.sha256 == record.sha256), None)
        if copy is None:
            state = self._first_state(path, record)
            if state is InstanceState.PENDING and any(row.state != InstanceState.DAMAGED for row in same_uid):
                state = InstanceState.CONFLICT
            connection.execute(sa.insert(INSTANCES).values(_instance_row(path.name, record, state)))
        elif (copy.segment, copy.data_offset) != (path.name, record.data_offset):
            self._index_copy(connection, path, record, copy)
        if copy is None or copy.state != InstanceState.OWN_RESULT:
            row = {
                "association": meta["association"],
                "study_uid": meta["study_uid"],
                "receiver": segment_receiver(path.name),
            }
            connection.execute(upsert(self.engine, OPEN_ASSOCIATIONS, row, update=()))

    def _index_copy(self, connection: sa.Connection, path: Path, record: Record, copy: Row) -> None:
        """The same instance again: counted; where the first was damaged, this one takes its place."""
        values: dict[str, Any] = {"copies": copy.copies + 1, "last_received": record.meta["received"]}
        if copy.state == InstanceState.DAMAGED:
            values |= {"state": InstanceState.PENDING.value, "segment": path.name, "data_offset": record.data_offset}
        connection.execute(
            sa.update(INSTANCES)
            .where(INSTANCES.c.sop_uid == copy.sop_uid, INSTANCES.c.sha256 == copy.sha256)
            .values(**values)
        )

    def _first_state(self, path: Path, record: Record) -> InstanceState:
        meta = record.meta
        if meta["sop_class_uid"] in _MR_IMAGE_CLASSES:
            return InstanceState.PENDING
        head = part10_head(
            sop_class_uid=meta["sop_class_uid"],
            sop_uid=meta["sop_instance_uid"],
            transfer_syntax_uid=meta["transfer_syntax_uid"],
            calling_aet=meta["calling_aet"],
        )
        with path.open("rb") as file:
            file.seek(record.data_offset)
            data = file.read(record.data_length)
        try:
            dataset = dcmread(BytesIO(head + data), stop_before_pixels=True)
            own = self.own_result(dataset)
        except UNDECODABLE as error:
            LOGGER.warning(
                "%s at %d: not decoded, taken as foreign: %s", path.name, record.offset, type(error).__name__
            )
            return InstanceState.PENDING
        return InstanceState.OWN_RESULT if own else InstanceState.PENDING

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
                        (INSTANCES.c.state == InstanceState.PENDING.value)
                        | ((INSTANCES.c.state == InstanceState.CONFLICT.value) & (INSTANCES.c.file == ""))
                    )
                ).scalars()
            )
            finished = connection.execute(sa.select(SEGMENTS.c.segment).where(SEGMENTS.c.finished.is_(True))).scalars()
            for segment in [name for name in finished if name not in needed]:
                path = self.spool / segment
                if path.exists():
                    freed += path.stat().st_size
                    path.unlink()
                connection.execute(sa.delete(SEGMENTS).where(SEGMENTS.c.segment == segment))
        self._remove_locks_of_dead()
        return freed

    def _remove_locks_of_dead(self) -> None:
        in_use = {segment_receiver(path.name) for path in self.spool.glob("*.seg")}
        for lock in self.spool.glob("*.lock"):
            if lock.stem not in in_use and not lock.name.startswith(".") and not is_alive(self.spool, lock.stem):
                lock.unlink()


def _instance_row(segment: str, record: Record, state: InstanceState) -> dict[str, Any]:
    meta = record.meta
    return {
        "sop_uid": meta["sop_instance_uid"],
        "sha256": record.sha256,
        "study_uid": meta["study_uid"],
        "series_uid": meta["series_uid"],
        "sop_class_uid": meta["sop_class_uid"],
        "transfer_syntax_uid": meta["transfer_syntax_uid"],
        "state": state.value,
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
