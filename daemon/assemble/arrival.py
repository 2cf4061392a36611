"""A complete study on its way into the pipeline, and its record in the job's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daemon.assemble.gaps import Gap
from daemon.assemble.index import SharedUids
from daemon.database.tables import INSTANCES, InstanceState
from daemon.jobs import records
from daemon.jobs.folder import JobFolder

Row = sa.Row[tuple[Any, ...]]


@dataclass(frozen=True)
class Arrival:
    """A complete study on its way into the pipeline."""

    job_id: str
    folder: Path
    """The job's folder; the instances are in `input`, and `arrival.json` says where they came from."""
    study_uid: str
    series_uids: tuple[str, ...]
    instances: int
    supersedes: str | None
    """The earlier job of the same study, which had fewer instances."""
    set_aside: str = ""
    """Why it is not to be worked on: the study could not be handed over."""


@dataclass(frozen=True)
class Duplicate:
    """An instance that was kept aside, as another one has its UIDs; whether both have the same pixels, where known."""

    row: Row
    same_pixels: bool | None


def job_name(files: Mapping[str, Row]) -> str:
    """Name of the job for a set of instances: a digest of their UIDs and bytes."""
    identity = sorted((row.study_uid, row.series_uid, row.sop_uid, row.sha256) for row in files.values())
    return "j" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def read_arrival(folder: Path) -> Arrival:
    """The arrival of a job folder, from its `arrival.json`.

    Raises:
        Permanent: the file is not there, or damaged.
    """
    record = records.Arrival.read(JobFolder(folder).arrival)
    return Arrival(
        job_id=record.job_id,
        folder=folder,
        study_uid=record.study_uid,
        series_uids=record.series_uids,
        instances=len(record.instances),
        supersedes=record.supersedes,
        set_aside=record.set_aside,
    )


def arrival_record(
    job_id: str,
    study_uid: str,
    supersedes: str | None,
    now: float,
    rows: Sequence[Row],
    files: Mapping[str, Row],
    gaps: Sequence[Gap],
    duplicates: Sequence[Duplicate] = (),
    shared: Sequence[SharedUids] = (),
) -> records.Arrival:
    """What `arrival.json` holds: where the instances came from, and what of the study is not among them.

    Args:
        job_id: The job.
        study_uid: Its study.
        supersedes: The earlier job of the study.
        now: When the study was found complete, POSIX time, s.
        rows: Every indexed instance of the study.
        files: Those in the job's input folder, by file name.
        gaps: What its series seem to lack.
        duplicates: Instances that were kept aside, as others have their UIDs.
        shared: SOP Instance UIDs that other series have, too.
    """
    columns = [column.name for column in INSTANCES.columns if column.name not in ("state", "job_id", "file")]
    members = list(files.values())
    return records.Arrival(
        job_id=job_id,
        study_uid=study_uid,
        series_uids=tuple(sorted({row.series_uid for row in members})),
        supersedes=supersedes,
        completed=now,
        first_received=min(row.received for row in members),
        last_received=max(row.last_received for row in members),
        calling_aets=tuple(sorted({row.calling_aet for row in members})),
        peers=tuple(sorted({row.peer for row in members})),
        repeats=sum(row.copies - 1 for row in members),
        own_results=sum(row.state == InstanceState.OWN_RESULT for row in rows),
        conflicts=tuple(
            records.Conflict(
                series_uid=copy.row.series_uid,
                sop_uid=copy.row.sop_uid,
                sha256=copy.row.sha256,
                calling_aet=copy.row.calling_aet,
                received=copy.row.received,
                same_pixels=copy.same_pixels,
            )
            for copy in duplicates
        ),
        damaged=tuple(
            records.LostInstance(series_uid=row.series_uid, sop_uid=row.sop_uid)
            for row in rows
            if row.state == InstanceState.DAMAGED
        ),
        gaps=tuple(records.SeriesGap(**gap.to_json()) for gap in gaps),
        shared_uids=tuple(records.SharedUids(**asdict(entry)) for entry in shared),
        instances=tuple(
            records.ReceivedInstance(file=name, **{column: row._mapping[column] for column in columns})
            for name, row in files.items()
        ),
    )


def record_of_what_failed(study_uid: str, rows: Sequence[Row], completed: float, reason: str) -> records.Arrival:
    """The record of a job without instances: it says why a study could not be handed over.

    Args:
        study_uid: The study.
        rows: Its instances.
        completed: POSIX time, s.
        reason: Why.
    """
    identity = ["set aside", study_uid, sorted((row.series_uid, row.sop_uid, row.sha256) for row in rows)]
    return records.Arrival(
        job_id="j" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        study_uid=study_uid,
        series_uids=tuple(sorted({row.series_uid for row in rows})),
        supersedes=None,
        set_aside=reason,
        completed=completed,
        first_received=min((row.received for row in rows), default=completed),
        last_received=max((row.last_received for row in rows), default=completed),
        calling_aets=tuple(sorted({row.calling_aet for row in rows})),
        peers=tuple(sorted({row.peer for row in rows})),
        instances=(),
    )


def warnings_of(record: records.Arrival, series_uids: tuple[str, ...]) -> list[str]:
    """What a report must say about how its series arrived, in sentences.

    Args:
        record: The job's.
        series_uids: Of the series that is reported; several where each of its slices came as a series of its own.
    """
    conflicts = [entry for entry in record.conflicts if entry.series_uid in series_uids]
    found = []
    other = [entry for entry in conflicts if entry.same_pixels is not True]
    if other:
        unsure = "" if any(entry.same_pixels is False for entry in other) else ", as far as can be told,"
        found.append(
            f"{len(other)} images of the series were sent a second time under the same SOP Instance UID with{unsure} "
            f"other pixels: the report describes those that came first."
        )
    if len(other) < len(conflicts):
        number = len(conflicts) - len(other)
        found.append(f"{number} images of the series were sent a second time with another header: the first stands.")
    lost = sum(entry.series_uid in series_uids for entry in record.damaged)
    if lost:
        found.append(f"{lost} images of the series were lost on the disk and take no part.")
    alone = sum(entry.series_uid not in (*series_uids, *record.series_uids) for entry in record.damaged)
    if alone and len(series_uids) > 1:
        found.append(
            f"{alone} images were lost on the disk of which nothing else came under their series UIDs: they may belong "
            "to this series, each of whose slices came as a series of its own, and take no part."
        )
    found += [
        f"The series seems to lack {gap.missing} images ({gap.reason}): what they show is not described."
        for gap in record.gaps
        if gap.series_uid in series_uids
    ]
    found += [
        f"{entry.instances} images of the series share their SOP Instance UIDs with series "
        f"{entry.other_series_uid} of study {entry.study_uid}: a PACS may take one for the other."
        for entry in record.shared_uids
        if entry.series_uid in series_uids
    ]
    return found
