"""A day of a department in twenty minutes: bursts, rubbish, a PACS that goes away, two kills; nothing lost or doubled.

`pytest -m slow tests/end_to_end/test_soak.py`; `BRAINGEMMA_SOAK_STUDIES` makes it shorter (300 is the day).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pydicom
import pytest
from e2e_support import sections
from pydicom.uid import generate_uid

from daemon.errors import DaemonError
from daemon.jobs import FINAL_STATES, JobState
from daemon.trial_pacs import EmbeddedPacs
from daemon.trial_service import TrialService
from dicom_io.series_writer import write_series
from training.phantoms import make_phantom

STUDIES = int(os.environ.get("BRAINGEMMA_SOAK_STUDIES", "300"))
SEND_SECONDS = 20 * 60 * STUDIES / 300
"""Over which the studies arrive."""
RUBBISH_SHARE = 0.1
PATIENCE_SECONDS = 3600.0

T1 = {
    "SeriesDescription": "t1_mprage_sag", "ProtocolName": "t1_mprage_sag", "ScanningSequence": "GR",
    "InversionTime": None, "RepetitionTime": "2000", "EchoTime": "2.9", "SequenceName": "*tfl3d1",
}  # fmt: skip

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


@dataclass
class Usage:
    """Memory and file handles of the service and its children over time."""

    memory_mb: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)

    def look(self, service: TrialService) -> None:
        assert service.process is not None
        try:
            family = [me := psutil.Process(service.process.pid), *me.children(recursive=True)]
            self.memory_mb.append(sum(p.memory_info().rss for p in family) / 1e6)
            self.handles.append(sum(p.num_fds() for p in family))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):  # killed just now
            return


class Department:
    """Makes studies from two templates by giving them new UIDs; counts what should come back."""

    def __init__(self, folder: Path) -> None:
        phantom = make_phantom(900_001, spacing=(4.0, 4.0, 6.0))
        self.flair = [pydicom.dcmread(p) for p in write_series(phantom.volume, folder / "flair")]
        self.t1 = [pydicom.dcmread(p) for p in write_series(phantom.volume, folder / "t1", overrides=T1)]
        self.folder = folder
        self.flair_studies: set[str] = set()
        self.rng = random.Random(7)

    def study(self, number: int) -> list[Path]:
        """Files of a study: a FLAIR and a T1, or rubbish (a T1 alone, or a FLAIR with half its pixels)."""
        rubbish = self.rng.random() < RUBBISH_SHARE
        uid, out = generate_uid(), self.folder / f"{number}"
        out.mkdir()
        series = [self.t1] if rubbish and self.rng.random() < 0.5 else [self.flair, self.t1]
        files = []
        for members in series:
            files += self._copy(members, uid, out, damaged=rubbish and members is self.flair)
        if not rubbish:
            self.flair_studies.add(str(uid))
        return files

    def _copy(self, members: list[pydicom.Dataset], study_uid: str, out: Path, *, damaged: bool) -> list[Path]:
        series_uid, files = generate_uid(), []
        for dataset in members:
            whole = dataset.PixelData
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.PixelData = whole[: len(whole) // 2] if damaged else whole
            files.append(out / f"{dataset.SOPInstanceUID}.dcm")
            dataset.save_as(files[-1])
            dataset.PixelData = whole
        return files


def test_a_day_of_a_department(tmp_path: Path) -> None:
    pacs = EmbeddedPacs(tmp_path / "pacs")
    service = TrialService(tmp_path / "daemon", sections(pacs.port, explain={"enabled": False}))
    service.start()
    department, usage = Department(tmp_path), Usage()
    sent = 0
    kills = [STUDIES // 3, 2 * STUDIES // 3]
    away = (STUDIES // 2, STUDIES // 2 + max(2, STUDIES // 20))
    started = time.monotonic()
    try:
        while sent < STUDIES:
            for _ in range(min(department.rng.choice([1, 1, 2, 6]), STUDIES - sent)):  # bursts
                _send_until_acknowledged(service, department.study(sent))
                sent += 1
                if sent in kills:
                    service.kill()
                    service.start()
                if sent == away[0]:
                    pacs.stop()
                if sent == away[1]:
                    pacs = EmbeddedPacs(tmp_path / "pacs", port=pacs.port)
            usage.look(service)
            time.sleep(max(0.0, started + SEND_SECONDS * sent / STUDIES - time.monotonic()))
        jobs = _wait_for_all(service, usage)
        states = Counter(job.state for job in jobs)
        done = {job.study_uid for job in jobs if job.state is JobState.DONE}
        assert done == department.flair_studies, states
        assert states[JobState.FAILED] == 0
        _assert_each_delivered_once(pacs, department)
        _assert_flat(usage)
    finally:
        service.stop()
        pacs.stop()


def _send_until_acknowledged(service: TrialService, files: list[Path]) -> None:
    """As a PACS does: what was not acknowledged is sent again."""
    for _ in range(20):
        try:
            service.send(files)
        except DaemonError:
            time.sleep(2)
        else:
            return
    raise AssertionError("the daemon does not take the study")


def _wait_for_all(service: TrialService, usage: Usage):  # type: ignore[no-untyped-def]
    store, deadline = service.store, time.monotonic() + PATIENCE_SECONDS
    while True:
        jobs = store.recent(limit=2 * STUDIES)
        if len(jobs) >= STUDIES and all(job.state in FINAL_STATES for job in jobs):
            return jobs
        assert time.monotonic() < deadline, Counter((job.state, job.step) for job in jobs)
        usage.look(service)
        time.sleep(5)


def _assert_each_delivered_once(pacs: EmbeddedPacs, department: Department) -> None:
    reports, overlays = Counter[str](), Counter[str]()
    for dataset in pacs.instances():
        reports[str(dataset.StudyInstanceUID)] += dataset.Modality == "SR"
        overlays[str(dataset.StudyInstanceUID)] += dataset.SOPClassUID.name == "Secondary Capture Image Storage"
    assert set(reports) == department.flair_studies
    assert set(reports.values()) == {1}
    assert set(overlays.values()) <= {0, len(department.flair)}


def _assert_flat(usage: Usage) -> None:
    """The last quarter uses no more than the second one, give or take a tenth; after the model is loaded."""
    quarter = len(usage.memory_mb) // 4
    if quarter < 5:
        return
    for name, values, slack in (("memory", usage.memory_mb, 60.0), ("handles", list(map(float, usage.handles)), 12.0)):
        early, late = sorted(values[quarter : 2 * quarter]), sorted(values[-quarter:])
        assert late[quarter // 2] <= 1.1 * early[quarter // 2] + slack, (name, values)
