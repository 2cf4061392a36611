"""Records of a job's folder, whole, with what a test wants to be different."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.jobs.records import Arrival, Report, Selection, SeriesVerdict
from daemon.jobs.report import INTENDED_USE


def an_arrival(job_id: str = "j1", **changes: Any) -> Arrival:
    fields = {
        "job_id": job_id, "study_uid": "1.2.3", "series_uids": [], "supersedes": None, "completed": 0.0,
        "first_received": 0.0, "last_received": 0.0, "calling_aets": ["SCANNER"], "peers": ["127.0.0.1"],
        "instances": [],
    }  # fmt: skip
    return Arrival.model_validate(fields | changes)


def an_instance(file: str, series_uid: str, number: int = 1) -> dict[str, str]:
    return {
        "file": file, "series_uid": series_uid, "sop_uid": f"{series_uid}.{number}", "sha256": f"{number}".zfill(64),
    }  # fmt: skip


def a_selection(chosen: str | None, *further: str, joined: Mapping[str, tuple[str, ...]] | None = None) -> Selection:
    """Of accepted series; `joined`: UIDs of slices that are one series, by that of the first."""
    accepted = tuple(
        SeriesVerdict(series_uid=uid, verdict="accepted", joined=uids) for uid, uids in (joined or {}).items()
    )
    return Selection(chosen=chosen, further=further, series=accepted)


def a_report(text: str = "The lesion area is in the left frontal lobe.", **changes: Any) -> Report:
    lesion = {
        "finding": "lesion", "presence": "present", "laterality": "left", "sites": ["frontal"], "confidence": 0.91,
    }  # fmt: skip
    model = {
        "name": "demo", "version": "1", "weights_sha256": "0" * 64, "format": "braingemma", "prompt": "p",
        "generation": {"decoding": "greedy"}, "device": "cpu", "quantization": "none",
    }  # fmt: skip
    given = {
        "series_uid": "1.2.3", "shape": [46, 55, 43], "spacing_mm": [4, 4, 4], "orientation": "RAS", "sha256": "1" * 64,
    }  # fmt: skip
    fields = {
        "report": text, "findings": [lesion], "model": model | changes.pop("model", {}), "intended_use": INTENDED_USE,
        "input": given | changes.pop("input", {}),
    }  # fmt: skip
    return Report.model_validate(fields | changes)
