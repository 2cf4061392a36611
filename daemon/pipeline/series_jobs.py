"""Further FLAIR series of a study, each as a job of its own: `[selection] report = "all"`.

The study's job reports the best series. Every other series that was accepted gets a folder with its instances, a pack
and deliveries of its own, so that everything after the selection knows jobs of one series only. With it, a job
replaces the results of the latest earlier job of the same series, not of the whole study.
"""

from __future__ import annotations

import hashlib
import json
import os

from daemon.files import make_private, whole
from daemon.jobs.files import RECEIVED, JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.worklist import note_study
from daemon.jobs.records import Arrival, Selection
from daemon.jobs.store import Job, JobStore


def follow_choice(store: JobStore, files: JobFiles, job_id: str, *, report_all: bool) -> list[str]:
    """Note which series a job reports and, where all are to be reported, make the jobs of the others.

    May be called again with the same job: it changes nothing then.

    Returns:
        Jobs to queue, one for each further series.
    """
    folder = files.fetch(job_id)
    choice = Selection.read(folder.selection)
    job = store.get(job_id)
    if choice.chosen is None or job is None:
        return []
    store.update(job_id, series_uid=choice.chosen)
    arrival = Arrival.read_if_there(folder.arrival) if report_all else None
    if arrival is None or arrival.part_of is not None:
        return []
    _supersede_by_series(store, job, folder, arrival, choice.uids_of(choice.chosen))
    return [_make_job(store, files, job, folder, arrival, choice.uids_of(uid)) for uid in choice.further]


def _supersede_by_series(
    store: JobStore, job: Job, folder: JobFolder, arrival: Arrival, series_uids: tuple[str, ...]
) -> None:
    """Let the study's job replace the earlier results of the series that it reports, and of no other."""
    by_study = arrival.study_supersedes or arrival.supersedes
    if by_study is None:
        return
    earlier = store.get(by_study)
    supersedes = store.latest_of_series(series_uids, before=job)
    if supersedes is None and (earlier is None or not earlier.series_uid):  # made before series were noted
        supersedes = by_study
    arrival.model_copy(update={"study_supersedes": by_study, "supersedes": supersedes}).write(folder.arrival)
    store.update(job.job_id, supersedes=supersedes)


def _make_job(
    store: JobStore, files: JobFiles, job: Job, folder: JobFolder, arrival: Arrival, series_uids: tuple[str, ...]
) -> str:
    """The job of one further series; its name follows from its instances, so that the same ones make the same job."""
    members = [i for i in arrival.instances if i.series_uid in series_uids and (folder.input / i.file).exists()]
    identity = json.dumps(["part_of", series_uids[0], sorted((i.sop_uid, i.sha256) for i in members)])
    name = "j" + hashlib.sha256(identity.encode()).hexdigest()[:16]
    if store.get(name) is not None:
        return name
    supersedes = store.latest_of_series(series_uids, before=job)
    elsewhere = set(arrival.series_uids) - set(series_uids)
    record = arrival.model_copy(
        update={
            "job_id": name,
            "part_of": job.job_id,
            "series_uids": tuple(sorted(series_uids)),
            "supersedes": supersedes,
            "gaps": tuple(gap for gap in arrival.gaps if gap.series_uid in series_uids),
            "damaged": tuple(lost for lost in arrival.damaged if lost.series_uid not in elsewhere),
            "instances": tuple(members),
        }
    )
    _write_folder(folder, name, record)
    files.keep(name, RECEIVED)
    store.add(name, study_uid=job.study_uid, supersedes=supersedes, priority=job.priority)
    store.update(name, series_uid=series_uids[0])
    note_study(store, name, JobFolder(folder.root.parent / name))
    return name


def _write_folder(source: JobFolder, name: str, record: Arrival) -> None:
    """The job's folder, whole or not at all; its instances are hard links, no copies."""
    made = source.root.parent / name
    if made.exists():
        return
    with whole(made) as draft:
        make_private(make_private(draft) / "input")
        for instance in record.instances:
            os.link(source.input / instance.file, draft / "input" / instance.file)
        record.write(JobFolder(draft).arrival)
