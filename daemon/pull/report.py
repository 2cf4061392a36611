"""What became of a pull as a table: JSON, or CSV with one row a study."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon.errors import DaemonError
from daemon.files import write_durably, write_json
from daemon.pull.store import Progress, PulledStudy

COLUMNS = (
    "asked", "study_uid", "accession", "patient_id", "study_date", "state", "reason", "series_taken",
    "series_left", "instances", "way", "attempts", "job_id",
)  # fmt: skip


def as_json(progress: Progress, studies: Sequence[PulledStudy]) -> dict[str, Any]:
    """Everything that is known of a pull."""
    pull = progress.pull
    return {
        "pull": pull.pull_id,
        "source": pull.source,
        "asked": [ask.label for ask in pull.asked],
        "state": str(pull.state),
        "progress": progress.text,
        "counts": {str(state): number for state, number in progress.counts.items()},
        "studies": [
            {key: value for key, value in study.to_json().items() if key not in ("pull_id", "position")}
            for study in studies
        ],
    }


def as_csv(studies: Sequence[PulledStudy]) -> str:
    """One row for each study, and for each thing that was not found; UTF-8 as RFC 4180 has it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for study in studies:
        taken = "; ".join(_named(s) for s in study.series if s["taken"])
        left = "; ".join(f"{_named(s)} ({s['reason']})" for s in study.series if not s["taken"])
        writer.writerow({**study.to_json(), "series_taken": taken, "series_left": left})
    return text.getvalue()


def _named(series: dict[str, Any]) -> str:
    return str(series["description"] or series["series_uid"])


def write_report(path: Path, progress: Progress, studies: Sequence[PulledStudy]) -> None:
    """Write `.csv` or `.json`.

    Raises:
        DaemonError: the name ends otherwise.
    """
    check_name(path)
    if path.suffix.lower() == ".csv":
        write_durably(path, as_csv(studies).encode())
    else:
        write_json(path, as_json(progress, studies))


def check_name(path: Path) -> None:
    """A report's file must be one that we can write.

    Raises:
        DaemonError: its name ends otherwise.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise DaemonError(f"{path}: expected a name that ends in .csv or .json")
