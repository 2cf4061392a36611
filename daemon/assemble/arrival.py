"""A complete study on its way into the pipeline, and its record in the job's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daemon.assemble.gaps import Gap
from daemon.database.tables import INSTANCES, InstanceState
from daemon.files import read_json

ARRIVAL_FILE = "arrival.json"
PART_OF = "part_of"
"""In the record of a job of one further series (`daemon.pipeline.series_jobs`): the study's job that made it."""
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


def job_name(files: Mapping[str, Row]) -> str:
    """Name of the job for a set of instances: a digest of their UIDs and bytes."""
    identity = sorted((row.sop_uid, row.sha256) for row in files.values())
    return "j" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def read_arrival(folder: Path) -> Arrival:
    """The arrival of a job folder, from its `arrival.json`."""
    record = read_json(folder / ARRIVAL_FILE)
    return Arrival(
        job_id=record["job_id"],
        folder=folder,
        study_uid=record["study_uid"],
        series_uids=tuple(record["series_uids"]),
        instances=len(record["instances"]),
        supersedes=record["supersedes"],
    )


def arrival_record(
    job_id: str,
    study_uid: str,
    supersedes: str | None,
    now: float,
    rows: Sequence[Row],
    files: Mapping[str, Row],
    gaps: Sequence[Gap],
) -> dict[str, Any]:
    """What `arrival.json` holds: where the instances came from, and what of the study is not among them.

    Args:
        job_id: The job.
        study_uid: Its study.
        supersedes: The earlier job of the study.
        now: When the study was found complete, POSIX time, s.
        rows: Every indexed instance of the study.
        files: Those in the job's input folder, by file name.
        gaps: What its series seem to lack.
    """
    columns = [column.name for column in INSTANCES.columns if column.name not in ("state", "job_id", "file")]
    members = list(files.values())
    return {
        "job_id": job_id,
        "study_uid": study_uid,
        "series_uids": sorted({row.series_uid for row in members}),
        "supersedes": supersedes,
        "completed": now,
        "first_received": min(row.received for row in members),
        "last_received": max(row.last_received for row in members),
        "calling_aets": sorted({row.calling_aet for row in members}),
        "peers": sorted({row.peer for row in members}),
        "repeats": sum(row.copies - 1 for row in members),
        "own_results": sum(row.state == InstanceState.OWN_RESULT for row in rows),
        "conflicts": [
            {"sop_uid": row.sop_uid, "sha256": row.sha256, "calling_aet": row.calling_aet, "received": row.received}
            for row in rows
            if row.state == InstanceState.CONFLICT
        ],
        "damaged": [row.sop_uid for row in rows if row.state == InstanceState.DAMAGED],
        "gaps": [gap.to_json() for gap in gaps],
        "instances": [
            {"file": name, **{column: row._mapping[column] for column in columns}} for name, row in files.items()
        ],
    }
