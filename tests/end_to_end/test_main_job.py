"""A study goes in by C-STORE; an SR and an overlay come back. Everything here is a real process on loopback.

One service with one PACS is shared: each test sends studies of its own and looks at what came of them; a test that
kills or stops the service starts it again.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import psutil
import pydicom
import pytest
from e2e_support import MARKERS, assert_nobody_is_named, processes_of, sections
from pydicom.uid import generate_uid

from daemon.database.tables import JobState
from daemon.deliver.dimse import DimseClient
from daemon.jobs.store import Job
from daemon.trial.daemon import TrialService, toml
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def braingemma(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon.cli", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


class Site:
    """The service, the PACS that it reports to, and studies of one head under ever new UIDs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pacs = EmbeddedPacs(folder / "pacs")
        self.service = TrialService(folder / "daemon", sections(self.pacs.port))
        self._head = make_phantom(900_001, spacing=(2.5, 2.5, 5.0)).volume
        self._studies = 0
        self._known: set[str] = set()
        self._log_size = 0

    def begin(self) -> None:
        """Let it run; what is there already belongs to others."""
        if self.service.process is None or self.service.process.poll() is not None:
            self.service.start()
        self._known = {job.job_id for job in self.service.store.recent()}
        self._held = {str(d.SOPInstanceUID) for d in self.pacs.instances()}
        self._log_size = self.service.log.stat().st_size

    def write(self, volume: nibabel.Nifti1Image | None = None, **overrides: object) -> list[Path]:
        """Files of a study that was never sent."""
        self._studies += 1
        folder = self.folder / f"study{self._studies}"
        uids = {f"{of}UID": generate_uid() for of in ("StudyInstance", "SeriesInstance", "FrameOfReference")}
        return write_series(volume or self._head, folder, overrides={**MARKERS, **uids, **overrides})

    def jobs(self) -> list[Job]:
        """This test's jobs, the newest first."""
        return [job for job in self.service.store.recent() if job.job_id not in self._known]

    def wait_for(self, count: int, *, seconds: float = 240) -> list[Job]:
        """This test's jobs, when there are so many and all have ended."""
        self.service.wait_for_jobs(len(self._known) + count, seconds=seconds)
        return self.jobs()

    def wait_until(self, reached: str, seconds: float = 240) -> None:
        """Wait until this test's only job is in this step (or has this state), as long as it makes progress."""
        deadline, seen = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            jobs = self.jobs()
            if jobs and reached in (jobs[0].step, str(jobs[0].state)):
                return
            state = [(job.state, job.step, job.progress) for job in jobs]
            if state != seen:
                deadline, seen = time.monotonic() + seconds, state
            time.sleep(0.02)
        raise AssertionError(f"the job never came to {reached}: {self.jobs()}")

    def results(self) -> list[pydicom.Dataset]:
        """What came to the PACS in this test."""
        return [d for d in self.pacs.instances() if str(d.SOPInstanceUID) not in self._held]

    def log(self) -> list[str]:
        """Lines that the service wrote in this test."""
        with self.service.log.open("rb") as file:
            file.seek(self._log_size)
            return file.read().decode().splitlines()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.service.stop()
    site.pacs.stop()


@pytest.fixture
def site(running: Site) -> Site:
    running.begin()
    return running


def assert_one_result(held: Sequence[pydicom.Dataset], study: list[Path]) -> None:
    """One SR and one SC series, one picture a slice, in the study that was sent; and nothing else."""
    source = pydicom.dcmread(study[0], stop_before_pixels=True)
    assert {d.StudyInstanceUID for d in held} == {source.StudyInstanceUID}
    assert {d.PatientID for d in held} == {source.PatientID}
    by_modality: dict[str, list[pydicom.Dataset]] = {}
    for dataset in held:
        by_modality.setdefault(str(dataset.Modality), []).append(dataset)
    assert len(by_modality["SR"]) == 1
    assert len(by_modality["OT"]) >= len(study)
    overlays = [d for d in by_modality["OT"] if d.SOPClassUID.name == "Secondary Capture Image Storage"]
    assert len(overlays) == len(study)
    assert len({d.SeriesInstanceUID for d in overlays}) == 1
    [report] = by_modality["SR"]
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == len(study)


def test_a_study_comes_back_as_report_and_overlay_and_sent_again_starts_nothing_new(site: Site) -> None:
    service = site.service
    DimseClient(service.peer, "SENDER").echo()
    study = site.write()
    t1 = site.write(
        make_phantom(900_002, spacing=(4.0, 4.0, 6.0)).volume,
        SeriesDescription="t1_mprage_sag", ProtocolName="t1_mprage_sag", ScanningSequence="GR", InversionTime=None,
        RepetitionTime="2000", EchoTime="2.9", SequenceName="*tfl3d1",
        StudyInstanceUID=pydicom.dcmread(study[0], stop_before_pixels=True).StudyInstanceUID,
    )  # fmt: skip
    service.send([*study, *t1])
    [job] = site.wait_for(1)
    assert job.state is JobState.DONE, job.reason
    assert_one_result(site.results(), study)
    assert set(job.timings) >= {"select", "convert", "report", "explain", "encode"}
    folder = service.folder_of(job).root
    for name in ("report.txt", "report.json", "report.html", "volume_ras.nii.gz", "explain/overlay_slices.png"):
        assert (folder / name).stat().st_size > 0
    report = json.loads((folder / "report.json").read_text())
    assert "synthetic images only" in report["banner"]
    assert "synthetic images only" in (folder / "report.html").read_text()

    rows = assert_nobody_is_named(service, "job_studies", "job_words")
    assert "MARKERFAMILY^MARKERGIVEN" in rows["job_studies"]
    assert "markermrn1" in rows["job_words"]

    refused = str(pydicom.dcmread(t1[0], stop_before_pixels=True).SeriesInstanceUID)
    why = braingemma("jobs", "why", refused, "--config", str(service.configuration))
    assert why.returncode == 0
    assert "refused" in why.stdout
    assert "REFUSED" in why.stdout
    listed = json.loads(braingemma("jobs", "list", "--json", "--config", str(service.configuration)).stdout)
    assert job.job_id in [row["job_id"] for row in listed]

    before = len(site.results())
    service.send([*study, *t1])
    service.send(damaged(site))  # when this one has become a job, so would the other have
    assert [job.state for job in site.wait_for(2)] == [JobState.SET_ASIDE, JobState.DONE]
    assert len(site.results()) == before


@pytest.mark.parametrize(
    "moment",
    ["report", "delivering"]
    + [pytest.param(m, marks=pytest.mark.slow) for m in ("acknowledged", "convert", "explain", "encode")],
)
def test_sigkill_at_any_step_still_delivers_exactly_once(site: Site, moment: str) -> None:
    study = site.write()
    site.service.send(study)
    if moment != "acknowledged":
        site.wait_until(moment)
    site.service.kill()
    site.service.start()
    [job] = site.wait_for(1)
    assert job.state is JobState.DONE, job.reason
    assert_one_result(site.results(), study)


def model_process(service: TrialService) -> psutil.Process:
    """The child that runs the steps."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        child = processes_of(service).get("daemon.pipeline.step_process")
        if child is not None:
            return child
        time.sleep(0.02)
    raise AssertionError("the model process never started")


def test_a_study_that_crashes_the_model_is_tried_three_times_and_the_next_one_runs(site: Site) -> None:
    service = site.service
    service.send(site.write())
    site.wait_until("report")
    seen: set[int] = set()
    while len(seen) < 3:
        child = model_process(service)
        if child.pid not in seen:
            seen.add(child.pid)
            child.send_signal(signal.SIGSEGV)
    [job] = site.wait_for(1)
    assert job.state is JobState.SET_ASIDE
    assert "SIGSEGV" in job.reason
    assert site.results() == []

    other = site.write(make_phantom(900_003, spacing=(3.0, 3.0, 5.0)).volume)
    service.send(other)
    jobs = site.wait_for(2)
    assert jobs[0].state is JobState.DONE, jobs[0].reason
    assert_one_result(site.results(), other)

    retried = braingemma("jobs", "retry", job.job_id, "--config", str(service.configuration))
    assert retried.returncode == 0, retried.stderr
    assert [job.state for job in site.wait_for(2)] == [JobState.DONE, JobState.DONE]


def damaged(site: Site) -> list[Path]:
    """A study whose pixels are cut off."""
    files = site.write()
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]
        dataset.save_as(path)
    return files


def test_what_is_no_brain_flair_is_kept_aside_and_does_not_stop_the_daemon(site: Site) -> None:
    site.service.send(damaged(site))
    [job] = site.wait_for(1)
    assert job.state is JobState.SET_ASIDE
    assert job.reason
    assert site.results() == []
    study = site.write()
    site.service.send(study)
    jobs = site.wait_for(2)
    assert jobs[0].state is JobState.DONE
    assert_one_result(site.results(), study)


def test_sigterm_ends_it_in_mid_step_and_unfinished_work_goes_on(site: Site) -> None:
    study = site.write()
    site.service.send(study)
    site.wait_until("report")
    assert site.service.stop() == 0
    [job] = site.jobs()
    assert job.state is JobState.RUNNING, "it did not wait for the study"
    site.service.start()
    [job] = site.wait_for(1)
    assert job.state is JobState.DONE, job.reason
    assert_one_result(site.results(), study)


def test_demo_weights_refuse_a_destination_on_another_machine(tmp_path: Path) -> None:
    away = {"name": "away", "ae_title": "PACS", "host": "192.0.2.1", "port": 104}
    storage = {"folder": str(tmp_path / "data"), "min_free_gb": 0}
    path = tmp_path / "away.toml"
    path.write_text(toml({"listener": {"port": 0}, "destinations": [away], "storage": storage}))
    refused = braingemma("serve", "--config", str(path))
    assert refused.returncode == 2
    assert "synthetic images only" in refused.stderr
    assert "192.0.2.1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_two_daemons_never_share_a_folder(site: Site) -> None:
    second = braingemma("serve", "--config", str(site.service.configuration))
    assert second.returncode == 2
    assert "another braingemma service" in second.stderr
