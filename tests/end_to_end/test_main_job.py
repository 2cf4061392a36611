"""A study goes in by C-STORE; an SR and an overlay come back. Everything here is a real process on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pydicom
import pytest
import sqlalchemy as sa
from e2e_support import MARKERS, processes_of
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


def assert_one_result(pacs: EmbeddedPacs, study: list[Path]) -> None:
    """One SR and one SC series, one picture a slice, in the study that was sent; and nothing else."""
    source = pydicom.dcmread(study[0], stop_before_pixels=True)
    held = pacs.instances()
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


def test_a_study_comes_back_as_report_and_overlay(
    service: TrialService, pacs: EmbeddedPacs, study: list[Path], tmp_path: Path
) -> None:
    service.start()
    DimseClient(service.peer, "SENDER").echo()
    t1 = write_series(
        make_phantom(900_002, spacing=(4.0, 4.0, 6.0)).volume,
        tmp_path / "t1",
        overrides={
            **MARKERS,
            "SeriesDescription": "t1_mprage_sag", "ProtocolName": "t1_mprage_sag", "ScanningSequence": "GR",
            "InversionTime": None, "RepetitionTime": "2000", "EchoTime": "2.9", "SequenceName": "*tfl3d1",
            "StudyInstanceUID": pydicom.dcmread(study[0], stop_before_pixels=True).StudyInstanceUID,
        },
    )  # fmt: skip
    service.send([*study, *t1])
    [job] = service.wait_for_jobs(1, seconds=240)
    assert job.state is JobState.DONE, job.reason
    assert_one_result(pacs, study)
    assert set(job.timings) >= {"select", "convert", "report", "explain", "encode"}
    folder = service.folder_of(job).root
    for name in ("report.txt", "report.json", "report.html", "volume_ras.nii.gz", "explain/overlay_slices.png"):
        assert (folder / name).stat().st_size > 0
    report = json.loads((folder / "report.json").read_text())
    assert "synthetic images only" in report["banner"]
    assert "synthetic images only" in (folder / "report.html").read_text()

    assert_nobody_is_named(service)

    refused = str(pydicom.dcmread(t1[0], stop_before_pixels=True).SeriesInstanceUID)
    why = braingemma("jobs", "why", refused, "--config", str(service.configuration))
    assert why.returncode == 0
    assert "refused" in why.stdout
    assert "REFUSED" in why.stdout
    listed = json.loads(braingemma("jobs", "list", "--json", "--config", str(service.configuration)).stdout)
    assert [row["job_id"] for row in listed] == [job.job_id]


def assert_nobody_is_named(service: TrialService) -> None:
    """No identity in a log line, a metric, a record of the workflow engine, or a job's row; every line is JSON.

    The worklist's two tables are there to name people, to whoever shows a token or comes by a proxy.
    """
    for line in service.log.read_text().splitlines():
        json.loads(line)
    with urllib.request.urlopen(f"{service.web_url}/metrics", timeout=60) as answer:
        metrics = answer.read().decode()
    with service.store.engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        rows = {table: str(connection.execute(sa.text(f"SELECT * FROM {table}")).fetchall()) for table in tables}
    assert len(rows["jobs"]) > 100
    assert "MARKERFAMILY^MARKERGIVEN" in rows.pop("job_studies")
    assert "markermrn1" in rows.pop("job_words")
    for where, text in {"log": service.log.read_text(), "metrics": metrics, **rows}.items():
        assert "MARKER" not in text, where


def test_the_same_study_again_starts_nothing_new(service: TrialService, pacs: EmbeddedPacs, study: list[Path]) -> None:
    service.start()
    service.send(study)
    service.wait_for_jobs(1, seconds=240)
    before = len(pacs.instances())
    service.send(study)
    time.sleep(4)
    assert len(service.store.recent()) == 1
    assert len(pacs.instances()) == before


def wait_until(service: TrialService, reached: str, seconds: float = 240) -> None:
    """Wait until the one job is in this step (or has this state)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        jobs = service.store.recent()
        if jobs and reached in (jobs[0].step, str(jobs[0].state)):
            return
        time.sleep(0.02)
    raise AssertionError(f"the job never came to {reached}: {service.store.recent()}")


@pytest.mark.parametrize("moment", ["acknowledged", "convert", "report", "explain", "encode", "delivering"])
def test_sigkill_at_any_step_still_delivers_exactly_once(
    service: TrialService, pacs: EmbeddedPacs, study: list[Path], moment: str
) -> None:
    service.start()
    service.send(study)
    if moment != "acknowledged":
        wait_until(service, moment)
    service.kill()
    service.start()
    [job] = service.wait_for_jobs(1, seconds=240)
    assert job.state is JobState.DONE, job.reason
    assert_one_result(pacs, study)


def model_process(service: TrialService) -> psutil.Process:
    """The child that runs the steps."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        child = processes_of(service).get("daemon.pipeline.step_process")
        if child is not None:
            return child
        time.sleep(0.02)
    raise AssertionError("the model process never started")


def test_a_study_that_crashes_the_model_is_tried_three_times_and_the_next_one_runs(
    service: TrialService, pacs: EmbeddedPacs, study: list[Path], tmp_path: Path
) -> None:
    service.start()
    service.send(study)
    wait_until(service, "report")
    seen: set[int] = set()
    while len(seen) < 3:
        child = model_process(service)
        if child.pid not in seen:
            seen.add(child.pid)
            child.send_signal(signal.SIGSEGV)
    [job] = service.wait_for_jobs(1, seconds=240)
    assert job.state is JobState.SET_ASIDE
    assert "SIGSEGV" in job.reason
    assert pacs.instances() == []

    other = write_series(make_phantom(900_003, spacing=(3.0, 3.0, 5.0)).volume, tmp_path / "other")
    service.send(other)
    jobs = service.wait_for_jobs(2, seconds=240)
    assert jobs[0].state is JobState.DONE, jobs[0].reason
    assert_one_result(pacs, other)

    retried = braingemma("jobs", "retry", job.job_id, "--config", str(service.configuration))
    assert retried.returncode == 0, retried.stderr
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and _state(service, job) is not JobState.DONE:
        time.sleep(0.2)
    assert _state(service, job) is JobState.DONE


def _state(service: TrialService, job: Job) -> JobState | None:
    now = service.store.get(job.job_id)
    return None if now is None else now.state


def test_what_is_no_brain_flair_is_kept_aside_and_does_not_stop_the_daemon(
    service: TrialService, pacs: EmbeddedPacs, study: list[Path], tmp_path: Path
) -> None:
    service.start()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    study_uid, series_uid = generate_uid(), generate_uid()
    for path in study:
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]
        dataset.save_as(damaged / path.name)
    service.send(sorted(damaged.iterdir()))
    [job] = service.wait_for_jobs(1, seconds=240)
    assert job.state is JobState.SET_ASIDE
    assert job.reason
    assert pacs.instances() == []
    service.send(study)
    jobs = service.wait_for_jobs(2, seconds=240)
    assert jobs[0].state is JobState.DONE
    assert_one_result(pacs, study)


def test_sigterm_ends_it_in_mid_step_and_unfinished_work_goes_on(
    service: TrialService, pacs: EmbeddedPacs, study: list[Path]
) -> None:
    service.start()
    service.send(study)
    wait_until(service, "report")
    assert service.stop() == 0
    [job] = service.store.recent()
    assert job.state is JobState.RUNNING, "it did not wait for the study"
    service.start()
    [job] = service.wait_for_jobs(1, seconds=240)
    assert job.state is JobState.DONE, job.reason
    assert_one_result(pacs, study)


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


def test_two_daemons_never_share_a_folder(service: TrialService) -> None:
    service.start()
    second = braingemma("serve", "--config", str(service.configuration))
    assert second.returncode == 2
    assert "another braingemma service" in second.stderr
