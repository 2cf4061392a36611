"""Further FLAIR series of a study, each as a job of its own: `[selection] report = "all"`.

The study's job reports the best series. Every other series that was accepted gets a folder with its instances, a pack
and deliveries of its own, so that everything after the selection knows jobs of one series only. With it, a job
replaces the results of the latest earlier job of the same series, not of the whole study.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from daemon.assemble.arrival import ARRIVAL_FILE, PART_OF
from daemon.files import make_private, read_json, sync_folder, write_json
from daemon.jobs.files import RECEIVED, JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import Job, JobStore

STUDY_SUPERSEDES = "study_supersedes"
"""In `arrival.json` of a study's job: the study's earlier job, where `supersedes` was changed to that of the series."""


def follow_choice(store: JobStore, files: JobFiles, job_id: str, *, report_all: bool) -> list[str]:
    """Note which series a job reports and, where all are to be reported, make the jobs of the others.

    May be called again with the same job: it changes nothing then.

    Returns:
        Jobs to queue, one for each further series.
    """
    folder = files.fetch(job_id)
    choice = read_json(folder.selection)
    job = store.get(job_id)
    if choice["chosen"] is None or job is None:
        return []
    store.update(job_id, series_uid=choice["chosen"])
    if not report_all or not folder.arrival.exists():
        return []
    arrival = read_json(folder.arrival)
    if PART_OF in arrival:
        return []
    _supersede_by_series(store, job, folder, arrival, choice["chosen"])
    return [_make_job(store, files, job, folder, arrival, uid) for uid in choice["further"]]


def _supersede_by_series(
    store: JobStore, job: Job, folder: JobFolder, arrival: dict[str, Any], series_uid: str
) -> None:
    """Let the study's job replace the earlier results of the series that it reports, and of no other."""
    by_study = arrival.get(STUDY_SUPERSEDES, arrival["supersedes"])
    if by_study is None:
        return
    earlier = store.get(by_study)
    supersedes = store.latest_of_series(series_uid, before=job)
    if supersedes is None and (earlier is None or not earlier.series_uid):  # made before series were noted
        supersedes = by_study
    write_json(folder.arrival, {**arrival, STUDY_SUPERSEDES: by_study, "supersedes": supersedes})
    store.update(job.job_id, supersedes=supersedes)


def _make_job(
    store: JobStore, files: JobFiles, job: Job, folder: JobFolder, arrival: Mapping[str, Any], series_uid: str
) -> str:
    """The job of one further series; its name follows from its instances, so that the same ones make the same job."""
    members = [i for i in arrival["instances"] if i["series_uid"] == series_uid and (folder.input / i["file"]).exists()]
    identity = json.dumps([PART_OF, series_uid, sorted((i["sop_uid"], i["sha256"]) for i in members)])
    name = "j" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    if store.get(name) is not None:
        return name
    supersedes = store.latest_of_series(series_uid, before=job)
    record = {
        **arrival,
        "job_id": name,
        PART_OF: job.job_id,
        "series_uids": [series_uid],
        "supersedes": supersedes,
        "gaps": [gap for gap in arrival["gaps"] if gap["series_uid"] == series_uid],
        "instances": members,
    }
    _write_folder(folder, name, record)
    files.keep(name, RECEIVED)
    store.add(name, study_uid=job.study_uid, supersedes=supersedes)
    store.update(name, series_uid=series_uid)
    return name


def _write_folder(source: JobFolder, name: str, record: Mapping[str, Any]) -> None:
    """The job's folder, whole or not at all; its instances are hard links, no copies."""
    made, draft = source.root.parent / name, source.root.parent / f".part-{name}"
    shutil.rmtree(draft, ignore_errors=True)  # a crash left it
    make_private(make_private(draft) / "input")
    for instance in record["instances"]:
        os.link(source.input / instance["file"], draft / "input" / instance["file"])
    write_json(draft / ARRIVAL_FILE, dict(record))
    sync_folder(draft / "input")
    if not made.exists():
        draft.rename(made)
    sync_folder(made.parent)
