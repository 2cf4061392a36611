"""A day of a department in twenty minutes: bursts, rubbish, a PACS that goes away, two kills; nothing lost or doubled.

`pytest -s -m slow tests/end_to_end/test_soak.py` prints the numbers; `BRAINGEMMA_SOAK_STUDIES` makes it shorter (300
is the day). The model writes and results are encoded and sent; the explanation, which is the model many times over, is
switched off.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom
import pytest
from e2e_support import processes_of, sections
from pydicom.uid import generate_uid

from daemon.database.tables import FINAL_STATES, JobState
from daemon.errors import DaemonError
from daemon.jobs.store import Job
from daemon.observe.audit import check_chain
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

DAY = 300
STUDIES = int(os.environ.get("BRAINGEMMA_SOAK_STUDIES", str(DAY)))
SEND_SECONDS = 20 * 60 * STUDIES / 300
"""Over which the studies arrive."""
RUBBISH_SHARE = 0.1
PATIENCE_SECONDS = 3600.0
LOOK_SECONDS = 3.0
CHILDREN = {"step_process": "daemon.pipeline.step_process", "listener": "daemon.receive.processes"}

T1 = {
    "SeriesDescription": "t1_mprage_sag", "ProtocolName": "t1_mprage_sag", "ScanningSequence": "GR",
    "InversionTime": None, "RepetitionTime": "2000", "EchoTime": "2.9", "SequenceName": "*tfl3d1",
}  # fmt: skip

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


@dataclass
class Look:
    """One look at the running service: which of its lives it was, memory and handles by kind of process."""

    life: int
    memory_mb: dict[str, float]
    handles: dict[str, int]


class Watch(threading.Thread):
    """Looks at the service every few seconds, and asks it for its page as an open browser does."""

    def __init__(self, service: TrialService) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.life = 0
        self.looks: list[Look] = []
        self.page_seconds: list[float] = []
        self._browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._look()
                started = time.monotonic()
                with self._browser.open(self.service.web_url, timeout=30) as answer:
                    answer.read()
                self.page_seconds.append(time.monotonic() - started)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, OSError, DaemonError):  # killed just now
                continue

    def _look(self) -> None:
        assert self.service.process is not None
        me, life = psutil.Process(self.service.process.pid), self.life
        memory, handles = {"service": me.memory_info().rss / 1e6}, {"service": me.num_fds()}
        running = processes_of(self.service)
        for kind, child in ((kind, running[module]) for kind, module in CHILDREN.items() if module in running):
            memory[kind], handles[kind] = child.memory_info().rss / 1e6, child.num_fds()
        self.looks.append(Look(life, memory, handles))

    def stop(self) -> None:
        self._over.set()
        self.join(60)

    def trend(self, what: str, kind: str) -> tuple[float, float] | None:
        """Medians of the first and the last third of the last life; its first fifth, while all loads, left out."""
        values = [getattr(one, what)[kind] for one in self.looks if one.life == self.life and kind in one.memory_mb]
        values = values[len(values) // 5 :]
        third = len(values) // 3
        return (statistics.median(values[:third]), statistics.median(values[-third:])) if third >= 5 else None


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
    department, watch = Department(tmp_path), Watch(service)
    watch.start()
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
                    watch.life += 1
                if sent == away[0]:
                    pacs.stop()
                if sent == away[1]:
                    pacs = EmbeddedPacs(tmp_path / "pacs", port=pacs.port)
            time.sleep(max(0.0, started + SEND_SECONDS * sent / STUDIES - time.monotonic()))
        sent_after = time.monotonic() - started
        jobs = _wait_for_all(service)
        assert watch.is_alive(), "nobody looked"
        watch.stop()
        states = Counter(str(job.state) for job in jobs)
        measured = {
            "studies": STUDIES, "sent_within_s": round(sent_after), "done_within_s": round(time.monotonic() - started),
            "states": dict(states), "page_median_ms": round(1000 * statistics.median(watch.page_seconds)),
            "page_p95_ms": round(1000 * statistics.quantiles(watch.page_seconds, n=20)[-1]),
            "pages": len(watch.page_seconds),
            **{f"{what} of {kind}, early and late": watch.trend(what, kind)
               for what in ("memory_mb", "handles") for kind in ("service", "step_process", "listener")},
        }  # fmt: skip
        print(json.dumps(measured, indent=1))  # noqa: T201 - what the run is for; `pytest -s` shows it
        done = {job.study_uid for job in jobs if job.state is JobState.DONE}
        assert done == department.flair_studies, states
        assert states[str(JobState.FAILED)] == 0
        _assert_each_delivered_once(pacs, department)
        assert all(check_chain(path) for path in (service.data / "audit").glob("*.jsonl"))
        _assert_flat(watch)
    finally:
        watch.stop()
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


def _wait_for_all(service: TrialService) -> list[Job]:
    store, deadline = service.store, time.monotonic() + PATIENCE_SECONDS
    while True:
        jobs = store.recent(limit=2 * STUDIES)
        if len(jobs) >= STUDIES and all(job.state in FINAL_STATES for job in jobs):
            return jobs
        assert time.monotonic() < deadline, Counter((job.state, job.step) for job in jobs)
        time.sleep(5)


def _assert_each_delivered_once(pacs: EmbeddedPacs, department: Department) -> None:
    reports, overlays = Counter[str](), Counter[str]()
    for dataset in pacs.instances():
        reports[str(dataset.StudyInstanceUID)] += dataset.Modality == "SR"
        overlays[str(dataset.StudyInstanceUID)] += dataset.SOPClassUID.name == "Secondary Capture Image Storage"
    assert set(reports) == department.flair_studies
    assert set(reports.values()) == {1}
    assert set(overlays.values()) <= {0, len(department.flair)}


def _assert_flat(watch: Watch) -> None:
    """In the service's last life, memory and handles stay within a tenth, and a little, of what they were."""
    for what, slack in (("memory_mb", 20.0), ("handles", 8.0)):
        for kind in ("service", "step_process", "listener"):
            trend = watch.trend(what, kind)
            assert trend is not None or STUDIES < DAY, "nobody looked"
            if trend is not None:  # a short run is too short to tell
                assert trend[1] <= 1.1 * trend[0] + slack, (what, kind, trend)
