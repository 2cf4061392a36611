"""Earlier reports of ours found in a real Orthanc, by C-GET and by DICOMweb, and of nobody else."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pull_support import LOGIN
from results_factory import content, default_pack, make_case

from daemon.config.sections import Settings
from daemon.jobs.comparison import Patient
from daemon.jobs.records import EarlierResult
from daemon.pull import results
from daemon.pull.dimse import DimseSource
from daemon.pull.results import earlier_in_pacs
from daemon.trial.pacs import DICOM_WEB, LOOPBACK, Orthanc, free_port
from dicom_io.content.report import ComparisonRecord, MeasurementRecord
from dicom_io.objects.read_sr import read_sr
from dicom_io.pack.encode import encode_pack, wanted

NOW = "20991231", "120000"


def test_a_document_of_ours_says_its_weights_and_the_lesion_volume(tmp_path: Path) -> None:
    case, pack = default_pack()
    read = read_sr(pydicom.dcmread(pack.of_kind("sr")[0].path))
    assert read is not None
    assert (read.model_name, read.model_version) == ("BrainGemma3D demo", "1")
    assert read.weights_sha256 == case.content.model.weights_sha256
    assert case.content.lesion_volume is not None
    assert read.volume_ml == pytest.approx(case.content.lesion_volume.value)
    ventricle = MeasurementRecord("ventricle_volume_left", 9.0, "mL", "tissue maps", "left")
    before = ComparisonRecord(("Compared.",), (MeasurementRecord("earlier_lesion_volume", 5.0, "mL", "map"),))
    said = content(measurements=(ventricle,), comparison=before)
    other = make_case(tmp_path, said=said)
    kinds = wanted(sc=False, pm=False, seg=False)
    made = encode_pack(**other.arguments(lesion_path=None, kinds=kinds, out=tmp_path / "d"))  # type: ignore[arg-type]
    read = read_sr(pydicom.dcmread(made.objects[0].path))
    assert read is not None
    assert read.volume_ml is None, "neither the ventricle's nor the one before"
    foreign = pydicom.dcmread(pack.of_kind("sr")[0].path)
    foreign.Manufacturer = "ELSE"
    del foreign.ContributingEquipmentSequence
    assert read_sr(foreign) is None


def test_a_source_that_does_not_answer_holds_up_neither_the_report_nor_another_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it does meanwhile, such as to send a byte now and then."""
    over = threading.Event()
    there = EarlierResult(
        job_id="1.2", study_date="20250101", model_name="m", model_version="1", weights_sha256="0", volume_ml=1.0
    )

    def ask(client: DimseSource, *_: Any) -> EarlierResult | None:
        if client.source.name == "hangs":
            over.wait(300)
        return there if client.source.name == "answers" else None

    monkeypatch.setattr(results, "_latest", ask)
    monkeypatch.setattr(results, "SECONDS", 0.5)
    entry = {"ae_title": "X", "host": LOOPBACK, "port": 104, "compare": True}
    asked = [{"name": name, **entry} for name in ("hangs", "answers")]
    who = Patient("4711", "", "doe jane", "19600101")
    try:
        settings = Settings.model_validate({"sources": asked})
        assert earlier_in_pacs(settings, who, "1.2.3", NOW) == there
        assert earlier_in_pacs(Settings.model_validate({"sources": asked[:1]}), who, "1.2.3", NOW) is None
        assert not over.is_set()
    finally:
        over.set()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if shutil.which("Orthanc") is None or not DICOM_WEB.exists():
        pytest.skip("Debian's orthanc and orthanc-dicomweb are not installed")
    us = {"us": ("BRAINGEMMA", LOOPBACK, free_port())}
    server = Orthanc(tmp_path_factory.mktemp("orthanc"), modalities=us, dicom_web=True)
    for item in default_pack()[1].objects:
        if item.kind in ("sr", "seg"):
            server.post("/instances", item.path.read_bytes())
    yield server
    server.stop()


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.orthanc
@pytest.mark.parametrize("by", ["dimse", "web"])
def test_our_report_is_found_for_its_patient_and_for_no_other(orthanc: Orthanc, by: str) -> None:
    pack = default_pack()[1]
    sr = pydicom.dcmread(pack.of_kind("sr")[0].path)
    who, study, date = Patient.of(sr), str(sr.StudyInstanceUID), str(sr.StudyDate)
    there: dict[str, Any] = {"ae_title": "ORTHANC", "host": LOOPBACK, "port": orthanc.port}
    there = {"url": orthanc.web_url, **LOGIN} if by == "web" else there
    away = {"name": "away", "ae_title": "X", "host": LOOPBACK, "port": free_port(), "compare": True}
    settings = Settings.model_validate({"sources": [{"name": "unasked", **there}]})
    assert earlier_in_pacs(settings, who, "1.2.3", NOW) is None
    settings = Settings.model_validate({"sources": [away, {"name": "a", **there, "compare": True}]})
    found = earlier_in_pacs(settings, who, "1.2.3", NOW)
    assert found is not None
    assert (found.job_id, found.study_date, found.weights_sha256) == (sr.SOPInstanceUID, date, sr.DeviceSerialNumber)
    assert found.volume_ml == pytest.approx(read_sr(sr).volume_ml)  # type: ignore[union-attr]
    assert earlier_in_pacs(settings, who, study, NOW) is None, "of the study itself"
    assert earlier_in_pacs(settings, who, "1.2.3", (date, "000000")) is None, "not before"
    others = (
        Patient(who.patient_id + "1", who.issuer, who.name, who.birth_date),
        Patient(who.patient_id, who.issuer + "X", who.name, who.birth_date),
        Patient(who.patient_id, who.issuer, "someone else", who.birth_date),
        Patient(who.patient_id, who.issuer, who.name, "18500101"),
    )
    assert all(earlier_in_pacs(settings, other, "1.2.3", NOW) is None for other in others)
