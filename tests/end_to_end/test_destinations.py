"""Two Orthancs, one by C-STORE with storage commitment and one by STOW-RS, and late slices that replace the results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support import sections

from daemon.database.tables import JobState
from daemon.jobs.files import LocalFiles
from daemon.pipeline import actions
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import DICOM_WEB, LOOPBACK, Orthanc

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.orthanc,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Debian's orthanc is not installed"),
    pytest.mark.skipif(not DICOM_WEB.exists(), reason="Debian's orthanc-dicomweb is not installed"),
]

KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Orthanc, Orthanc, TrialService]]:
    configuration = sections(0, "ORTHANC", explain={"samples": 12, "segments": 6})
    us = {"braingemma": ("BRAINGEMMA", LOOPBACK, configuration["listener"]["port"])}
    by_store = Orthanc(tmp_path / "store", modalities=us)
    by_web = Orthanc(tmp_path / "web", modalities={}, ae_title="WEB", dicom_web=True)
    address = {"ae_title": "ORTHANC", "host": LOOPBACK, "port": by_store.port}
    login = {"username": "test", "password": Orthanc.PASSWORD}
    configuration["destinations"] = [
        {"name": "store", **address, "reject_replaced": True},
        {"name": "web", "stow_url": by_web.web_url, **login},
        {"name": "elsewhere", **address, "from_aets": ["SOMEONE_ELSE"]},
    ]
    service = TrialService(tmp_path / "daemon", configuration)
    service.start()
    yield by_store, by_web, service
    service.stop()
    by_store.stop()
    by_web.stop()


def test_late_slices_replace_what_both_hold(site: tuple[Orthanc, Orthanc, TrialService], study: list[Path]) -> None:
    by_store, by_web, service = site
    service.send(study[:-2])
    [first] = service.wait_for_jobs(1, seconds=240)
    assert first.state is JobState.DONE, first.reason
    everywhere = service.store.deliveries(first.job_id)
    assert {d.destination for d in everywhere} == {"store", "web"}
    assert {(d.destination, d.confirmed) for d in everywhere} == {("store", "storage commitment"), ("web", "QIDO-RS")}
    for d in service.store.deliveries(first.job_id, "web"):
        [found] = by_web.post("/tools/lookup", d.sop_instance_uid.encode())
        assert (
            by_web.get_bytes(f"/instances/{found['ID']}/file") == (service.folder_of(first).dicom / d.file).read_bytes()
        )

    service.send(study[-2:])
    jobs = {job.job_id: job for job in service.wait_for_jobs(2, seconds=240)}
    [second] = [job for job in jobs.values() if job.supersedes == first.job_id]
    assert second.state is JobState.DONE, second.reason
    reports = {d.SOPInstanceUID: d for d in by_store.instances() if d.Modality == "SR"}
    images = {d.sop_instance_uid for d in everywhere if d.kind in ("sc", "pm", "seg")}
    [successor] = [d for d in reports.values() if "PredecessorDocumentsSequence" in d]
    [study_item] = successor.PredecessorDocumentsSequence
    named = study_item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named in reports
    assert named != successor.SOPInstanceUID
    [key_object] = [d for d in by_store.instances() if d.SOPClassUID == KEY_OBJECT]
    evidence = key_object.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {i.ReferencedSOPInstanceUID for s in evidence for i in s.ReferencedSOPSequence} == images
    assert key_object.ConceptNameCodeSequence[0].CodeValue == "113001"
    assert KEY_OBJECT not in {d.SOPClassUID for d in by_web.instances()}

    held = len(by_store.instances())
    files = LocalFiles(service.settings.data.jobs)
    again = actions.report_anew(service.store, service.store.engine, files, second.job_id)
    jobs = {job.job_id: job for job in service.wait_for_jobs(3, seconds=240)}
    assert jobs[again].state is JobState.SET_ASIDE
    assert "the same results: nothing is replaced" in jobs[again].reason
    assert len(by_store.instances()) == held
