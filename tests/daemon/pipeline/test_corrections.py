"""A patient corrected after the images came, and results without identities: what goes out carries the right one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import pydicom
import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from record_support import a_report, an_arrival, an_instance

from braingemma.checkpoint.weights import describe_weights
from daemon.assemble.identities import share_identities
from daemon.config.sections import Patient, Settings
from daemon.database.engine import open_database, open_index
from daemon.database.tables import ARRIVALS, INSTANCES, DeliveryState, InstanceState, JobState
from daemon.errors import DaemonError, Permanent, Rejected
from daemon.files import make_private, read_json
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival, Measurement, ReportExplanation, ReportFinding, Unmeasured
from daemon.jobs.report import read_report, write_report
from daemon.jobs.reviews import add_review
from daemon.jobs.store import JobStore
from daemon.pipeline import actions, workflow
from daemon.pipeline.corrections import Correction, find_correction
from daemon.pipeline.steps.runner import Steps
from daemon.pipeline.verified import send_verified
from dicom_io.deidentify import Deidentifier, deidentify_file, load_key
from dicom_io.errors import SeriesError
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

OLD = {"PatientID": "OLDPID-1", "PatientName": "Oldname^Anna", "PatientBirthDate": "19600101",
       "AccessionNumber": "ACC-1",
       "InstitutionName": "Oldhospital", "ReferringPhysicianName": "Oldreferrer^X"}  # fmt: skip
NEW = {"PatientID": "NEWPID-2", "PatientName": "Новикова^Анна", "PatientBirthDate": "19600102"}
COMPLETED = 1000.0


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that came as far as a report, which was written by hand."""
    folder = JobFolder(tmp_path_factory.mktemp("jobs") / "j1")
    volume = make_phantom(900_001, spacing=(4.0, 4.0, 8.0)).volume
    files = write_series(volume, folder.input, overrides=OLD)
    first = pydicom.dcmread(files[0])
    instances = [an_instance(f.name, str(first.SeriesInstanceUID), n) for n, f in enumerate(files)]
    an_arrival(study_uid=str(first.StudyInstanceUID), completed=COMPLETED, instances=instances).write(folder.arrival)
    steps = Steps(Settings())
    steps.run("select", folder)
    steps.run("convert", folder)
    weights = describe_weights("demo")
    repeated = f"repeats SOP Instance UID {first.SOPInstanceUID} of series {first.SeriesInstanceUID}."
    warning = f"1 files take no part; the first: {files[2].name}: truncated, {repeated}"
    model = {"name": weights.name, "version": weights.version, "weights_sha256": weights.sha256}
    text, given = "A lesion in the left frontal lobe.", {"series_uid": str(first.SeriesInstanceUID)}
    write_report(folder, a_report(text, input=given, model=model, warnings=[warning], banner=weights.banner))
    return folder.root


@pytest.fixture
def job(converted: Path, tmp_path: Path) -> JobFolder:
    return JobFolder(Path(shutil.copytree(converted, tmp_path / "jobs" / "j1")))


def at(folder: Path, **sections: Any) -> Settings:
    return Settings.model_validate({"storage": {"folder": folder}, **sections})


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = open_database(at(tmp_path))
    yield made
    made.dispose()


def receive(engine: sa.Engine, data: Path, job: JobFolder, received: float, **changes: Any) -> None:
    """The first instance again, with other values, kept aside as the assembler does."""
    dataset = pydicom.dcmread(sorted(job.input.iterdir())[0])
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    name = f"{dataset.SOPInstanceUID}.{received:g}.dcm"
    dataset.save_as(make_private(data / "conflicts") / name)
    row = {
        "sop_uid": str(dataset.SOPInstanceUID), "sha256": f"{received:g}", "study_uid": str(dataset.StudyInstanceUID),
        "series_uid": str(dataset.SeriesInstanceUID), "sop_class_uid": str(dataset.SOPClassUID),
        "transfer_syntax_uid": "1.2.840.10008.1.2.1", "state": str(InstanceState.CONFLICT), "job_id": None,
        "file": name, "segment": "s", "data_offset": 0, "data_length": 0, "association": "a", "calling_aet": "PACS",
        "peer": "p", "received": received, "last_received": received, "copies": 1,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.insert(INSTANCES).values(**row))


def note_arrival(index: sa.Engine, study_uid: str) -> None:
    row = {"job_id": "j1", "study_uid": study_uid, "supersedes": None, "created": COMPLETED, "submitted": True}
    with index.begin() as connection:
        connection.execute(sa.insert(ARRIVALS).values(**row))


def texts_in(dataset: Dataset) -> str:
    """Every value at any depth, without line breaks; pydicom's own listing leaves out long ones."""
    return " ".join(" ".join(str(e.value).split()) for e in dataset.iterall() if e.VR != "SQ")


def encoded(job: JobFolder, **sections: Any) -> list[Path]:
    Steps(Settings.model_validate(sections)).run("encode", job)
    return sorted(job.dicom.rglob("*.dcm"))


def test_an_instance_that_came_later_tells_who_the_patient_is_now(engine, job, tmp_path) -> None:
    receive(engine, tmp_path, job, COMPLETED - 1, PatientID="WRONG")  # before the study was handed over
    assert find_correction(engine, at(tmp_path), job) is None
    receive(engine, tmp_path, job, COMPLETED + 1, PatientID="FIRST")
    receive(engine, tmp_path, job, COMPLETED + 2, **NEW)
    found = find_correction(engine, at(tmp_path), job)
    assert found is not None
    assert found.changed == ("PatientID", "PatientName", "PatientBirthDate")
    assert found.values["PatientName"] == "Новикова^Анна"
    assert "NEWPID" not in found.named


def test_what_a_host_received_is_looked_up_where_it_keeps_its_index(engine, job, tmp_path) -> None:
    """With PostgreSQL that is not the daemon's database."""
    settings = at(tmp_path, engine={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    receive(open_index(settings, engine), tmp_path, job, COMPLETED + 1, **NEW)
    assert find_correction(engine, at(tmp_path), job) is None
    assert find_correction(engine, settings, job) is not None


def test_what_another_host_received_is_known_by_the_shared_database(engine, job, tmp_path) -> None:
    """The later of what both say counts, and what the images' own job knew already does not."""
    there = at(tmp_path / "elsewhere", engine={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    make_private(there.data.root)
    index, study_uid = open_index(there, engine), Arrival.read(job.arrival).study_uid
    note_arrival(index, study_uid)
    receive(index, tmp_path / "elsewhere", job, COMPLETED - 1, PatientID="WRONG")
    share_identities(index, engine, there.data, [study_uid])
    assert find_correction(engine, at(tmp_path), job) is None
    receive(index, tmp_path / "elsewhere", job, COMPLETED + 2, **NEW)
    receive(engine, tmp_path, job, COMPLETED + 1, PatientID="FIRST")
    assert find_correction(engine, at(tmp_path), job).values["PatientID"] == "FIRST"
    share_identities(index, engine, there.data, [study_uid])
    assert find_correction(engine, at(tmp_path), job).values["PatientName"] == "Новикова^Анна"
    receive(engine, tmp_path, job, COMPLETED + 3, PatientID="LAST")
    assert find_correction(engine, at(tmp_path), job).values["PatientID"] == "LAST"


@pytest.mark.parametrize(
    "changes", [{"SeriesDescription": "again"}, {"PatientID": ""}, {"PatientName": "Oldname^Anna^"}]
)
def test_what_says_nothing_else_is_no_correction(changes, engine, job, tmp_path) -> None:
    receive(engine, tmp_path, job, COMPLETED + 1, **changes)
    assert find_correction(engine, at(tmp_path), job) is None
    receive(engine, tmp_path, job, COMPLETED + 0.5, **NEW)  # before it: where nobody is named the correction stands
    assert (find_correction(engine, at(tmp_path), job) is not None) == (changes == {"PatientID": ""})


def test_results_carry_the_corrected_identity_and_say_so(engine, job, tmp_path) -> None:
    receive(engine, tmp_path, job, COMPLETED + 1, **NEW)
    correction = find_correction(engine, at(tmp_path), job)
    assert correction is not None
    correction.write(job.identity)
    assert Correction.read(job.identity) == correction
    for path in encoded(job):
        result = pydicom.dcmread(path)
        assert {k: str(result[k].value) for k in NEW} == NEW
        assert b"OLDPID" not in path.read_bytes()
        assert b"Oldname" not in path.read_bytes()
    [warning] = [w for w in read_report(job).warnings if "corrected after the images came" in w]
    assert warning in texts_in(pydicom.dcmread(job.dicom / "sr.dcm"))
    assert "NEWPID" not in warning


def test_deidentified_results_hold_no_identity_in_any_byte(job, tmp_path) -> None:
    key = tmp_path / "pseudonyms.key"
    source = pydicom.dcmread(sorted(job.input.iterdir())[0])
    uids = [str(source[k].value) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    names = [part for text in OLD.values() for part in text.split("^") if len(part) > 2]
    shown = ["000003.dcm", "0003.dcm", str(source.StudyDate)]
    results = encoded(job, results={"deidentify": True, "deidentify_key": key})
    assert {p.parent.name for p in results} == {"dicom", "sc"}
    for path in results:
        content = path.read_bytes()
        assert [t for t in (*uids, *names, *shown) if t.encode() in content] == []
    report = pydicom.dcmread(job.dicom / "sr.dcm")
    assert report.PatientIdentityRemoved == "YES"
    assert [c.CodeValue for c in report.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert "left frontal" in texts_in(report)
    assert f"[file]: truncated, repeats SOP Instance UID {Deidentifier(load_key(key)).uid(uids[2])}" in texts_in(report)
    assert key.stat().st_size == 32


def test_deidentified_results_belong_to_images_that_were_sent_without_identities(job, tmp_path) -> None:
    key = tmp_path / "pseudonyms.key"
    encoded(job, results={"deidentify": True, "deidentify_key": key})
    images = sorted(job.input.iterdir())
    deidentify_file(Deidentifier(load_key(key)), images[0], tmp_path / "sent.dcm")
    sent, report = pydicom.dcmread(tmp_path / "sent.dcm"), pydicom.dcmread(job.dicom / "sr.dcm")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate"):
        assert report[keyword].value == sent[keyword].value
    assert str(sent.SOPInstanceUID) in str(report)


SAID_BESIDES: list[dict[str, Any]] = [
    {"warnings": ("3 images of the series were sent a second time with other pixels.",)},
    {"unmeasured": (Unmeasured(name="midline_shift", reason="the head is cut off"),)},
    {"banner": "Trained on something else."},
    {"intended_use": "Teaching only."},
]


@pytest.mark.parametrize("said", [*SAID_BESIDES, {}], ids=lambda said: next(iter(said), "nothing"))
def test_results_under_the_same_uids_say_the_same(said, job) -> None:
    """A later job of the study, whose results replace those of the first: with other words they are others."""
    only_text = {"results": {"sc": False, "pm": False, "seg": False}}
    later = JobFolder(Path(shutil.copytree(job.root, job.root.with_name("j2"))))
    Arrival.read(job.arrival).model_copy(update={"job_id": "j2", "supersedes": "j1"}).write(later.arrival)
    write_report(later, read_report(later).model_copy(update=said))
    [first], [second] = encoded(job, **only_text), encoded(later, **only_text)
    if not said:
        assert first.read_bytes() == second.read_bytes(), "nothing is replaced"
        return
    old, new = pydicom.dcmread(first), pydicom.dcmread(second)
    assert (new.SOPInstanceUID, new.SeriesInstanceUID) != (old.SOPInstanceUID, old.SeriesInstanceUID)
    [replaced] = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert replaced.SeriesInstanceUID == old.SeriesInstanceUID


def test_a_study_of_two_patients_is_refused_whatever_is_in_the_flair(tmp_path) -> None:
    folder = JobFolder(tmp_path / "j2")
    volume = make_phantom(900_001, spacing=(4.0, 4.0, 8.0)).volume
    write_series(volume, folder.input / "a", overrides={"PatientID": "A", "StudyInstanceUID": "1.2.3"})
    other = {"PatientID": "B", "StudyInstanceUID": "1.2.3", "SeriesDescription": "AX T1", "InversionTime": None,
             "EchoTime": "10", "RepetitionTime": "500", "ScanningSequence": "SE"}  # fmt: skip
    write_series(nibabel.Nifti1Image(volume.dataobj, volume.affine), folder.input / "b", overrides=other)
    with pytest.raises(Rejected, match=r"study 1\.2\.3: expected one PatientID, got 2: 'A', 'B'"):
        Steps(Settings()).run("select", folder)
    assert read_json(folder.selection)["chosen"] is not None


def test_the_corrected_text_survives_any_character_set() -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet, dataset.PatientName, dataset.StudyDescription = "ISO_IR 100", "Jérôme", "Tête"
    Correction(values={"PatientID": "P", "PatientName": "山田^太郎"}, changed=("PatientName",)).apply(dataset)
    assert (str(dataset.PatientName), dataset.StudyDescription) == ("山田^太郎", "Tête")
    assert dataset.SpecificCharacterSet == "ISO_IR 192"


def test_bytes_that_fit_no_label_are_not_corrected_into_another_name() -> None:
    def received(**raw: bytes) -> Dataset:
        dataset = Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in raw.items():
            tag = Tag(keyword)
            dataset._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
        return dataset

    right = Correction(values={"PatientID": "P"}, changed=("PatientID",))
    with pytest.raises(SeriesError, match="other bytes in PatientName"):
        right.apply(received(PatientName=b"J\xe9r\xf4me"))
    unsaid = received(StudyDescription=b"T\xeate", PatientName=b"Doe")
    right.apply(unsaid)
    assert "StudyDescription" not in unsaid
    with pytest.raises(SeriesError, match="other bytes in PatientName"):
        Correction(values={"PatientName": "J\ufffd"}, changed=("PatientName",)).apply(received())


# ---------------------------------------------------------------------- what a reader verified


def verified(job: JobFolder, engine: sa.Engine, edited: str = "", **sections: Any) -> Dataset:
    """The SR that a reader's word makes: another text, or the draft's."""
    store = JobStore(engine)
    store.add("j1", study_uid="1.2", supersedes=None)
    store.update("j1", state=JobState.DONE)
    verdict = "edit" if edited else "agree"
    review = add_review(engine, job, "j1", verdict=verdict, reader="R", edited=edited)
    settings = Settings.model_validate(sections)
    done = store.get("j1")
    assert done is not None
    send_verified(settings, engine, store, LocalFiles(job.root.parent), done, review)
    [path] = job.dicom.glob("sr-verified-*.dcm")
    return pydicom.dcmread(path)


@pytest.mark.parametrize("sections", [{}, {"patient": {"corrected": "carry"}}], ids=["as_received", "carried"])
def test_a_verified_report_is_of_the_patient_of_its_draft(sections, engine, job) -> None:
    if sections:
        Correction(values=NEW, changed=("PatientID", "PatientName")).write(job.identity)
    encoded(job, **sections)
    draft, document = pydicom.dcmread(job.dicom / "sr.dcm"), verified(job, engine, **sections)
    expected = NEW if sections else OLD
    assert (document.PatientID, str(document.PatientName)) == (expected["PatientID"], expected["PatientName"])
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID"):
        assert document[keyword].value == draft[keyword].value
    assert document.VerificationFlag == "VERIFIED"


def test_a_verified_report_of_a_deidentified_draft_names_nobody(engine, job, tmp_path) -> None:
    sections = {"results": {"deidentify": True}, "storage": {"folder": tmp_path}}
    encoded(job, **sections)
    document = verified(job, engine, **sections)
    said = texts_in(document)
    assert [value for value in (*OLD.values(), "Oldname") if value in said] == []
    assert not [file.name for file in job.input.iterdir() if file.name in said]
    assert document.StudyInstanceUID == pydicom.dcmread(job.dicom / "sr.dcm").StudyInstanceUID


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of_an_earlier_version"])
@pytest.mark.parametrize("edited", ["A lesion in the right frontal lobe.", ""], ids=["edited", "agreed"])
def test_a_replaced_text_is_not_blamed_for_the_draft(edited: str, noted: bool, engine, job) -> None:
    lost, doubt = "2 images were lost.", "The text places lesion on the left, but the lesion map on the right."
    poor = "The additive model fits poorly."
    measured = Measurement(name="lesion_volume", value=23.0, unit="mL", method="lesion map", laterality="right")
    denied = ReportFinding(finding="lesion", presence="undetermined", laterality="left", confidence=0.05)
    said = {
        "warnings": (lost, doubt, poor), "doubts": (doubt,) if noted else None, "measurements": (measured,),
        "findings": (denied,),
        "explain": ReportExplanation(method="lime", warnings=(poor,)),
    }  # fmt: skip
    write_report(job, read_report(job).model_copy(update=said))
    encoded(job, results={"sc": False, "pm": False, "seg": False})
    document = verified(job, engine, edited)
    lines = texts_in(document)
    for warning, of_the_text in ((lost, not noted), (doubt, True), (poor, True)):
        beginning = "Warning: Of the model's draft, not of this text:" if edited and of_the_text else "Warning:"
        assert f"{beginning} {warning}" in lines
    by = "By image processing, not by the reader" if edited else "Estimated by image processing"
    assert f"{by}: Lesion volume, right: 23 mL" in lines
    side = "right" if edited else "left"
    assert f"Lesion: present, {side}, frontal" in lines, "as the reader's text says, not as the model doubted it"
    assert "confidence" not in lines


def test_what_changed_since_the_draft_is_not_verified(engine, job, tmp_path) -> None:
    encoded(job)
    Correction(values=NEW, changed=("PatientID", "PatientName")).write(job.identity)
    with pytest.raises(DaemonError, match="expected the PatientID of the draft"):
        verified(job, engine)
    assert not list(job.dicom.glob("sr-verified-*"))


# ---------------------------------------------------------------------- the pipeline's side of it


class Recorder:
    """In place of the process that runs the steps."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.gpu_bytes = 0.0

    def run(self, step: str, _folder: Path, **_: Any) -> None:
        self.ran.append(step)


@pytest.fixture
def at_work(engine: sa.Engine, job: JobFolder, tmp_path: Path) -> Iterator[tuple[JobStore, Recorder]]:
    """The pipeline's surroundings, with a job that waits for a destination that is down."""
    store, steps = JobStore(engine), Recorder()
    store.add("j1", study_uid=read_json(job.arrival)["study_uid"], supersedes=None)
    here = {"name": "pacs", "ae_title": "A", "host": "127.0.0.1", "port": 1}
    settings = Settings.model_validate({"storage": {"folder": tmp_path}, "destinations": [here]})
    workflow.set_context(workflow.Context(settings, store, steps, LocalFiles(tmp_path / "jobs")))  # type: ignore[arg-type]
    yield store, steps
    workflow._context = None


def carry() -> None:
    here = workflow.context()
    settings = here.settings.model_copy(update={"patient": Patient(corrected="carry")})
    workflow.set_context(workflow.Context(settings, here.store, here.steps, here.files))


def test_results_wait_for_a_person_unless_the_site_wants_them_carried(at_work, engine, job, tmp_path) -> None:
    store, steps = at_work
    receive(engine, tmp_path, job, COMPLETED + 1, **NEW)
    with pytest.raises(Permanent, match=r"the results wait: .* `braingemma jobs retry j1` lets them go out"):
        workflow.DURABLE_STEPS["encode"]("j1")
    assert (steps.ran, job.identity.exists()) == ([], False)
    store.update("j1", runs=2)  # as `jobs retry` does
    workflow.DURABLE_STEPS["encode"]("j1")
    assert steps.ran == ["encode"]
    assert read_json(job.identity)["values"]["PatientID"] == "NEWPID-2"


def test_a_site_may_have_them_carried_at_once(at_work, engine, job, tmp_path) -> None:
    carry()
    receive(engine, tmp_path, job, COMPLETED + 1, **NEW)
    workflow.DURABLE_STEPS["encode"]("j1")
    assert at_work[1].ran == ["encode"]
    assert job.identity.exists()


@pytest.mark.parametrize("carried", [False, True])
def test_results_that_are_on_their_way_are_held_back(carried, at_work, engine, job, tmp_path) -> None:
    store, _ = at_work
    encoded(job)
    store.put_deliveries("j1", "pacs", [("1.2.3", "sr", "sr.dcm")])
    store.update("j1", state=JobState.DELIVERING)
    receive(engine, tmp_path, job, COMPLETED + 1, **NEW)
    started: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "enqueue_report", lambda _engine, job, **_: started.append(job.job_id))
        if carried:
            carry()
        assert workflow.attempt_step("j1", "pacs", 1) is None
    [delivery] = store.deliveries("j1")
    assert delivery.state is DeliveryState.DEAD
    assert "was corrected after the results were made" in delivery.reason
    assert store.get("j1").state is JobState.FAILED
    if carried:
        [anew] = started
        assert store.get(anew).supersedes == "j1"
        assert f"job {anew} carries the corrected one" in delivery.reason
    else:
        assert started == []
        assert "`braingemma jobs retry --anew j1`" in delivery.reason


def test_results_under_an_identity_that_was_taken_back_are_held_back_and_made_anew(
    at_work, engine, job, tmp_path
) -> None:
    store, steps = at_work
    carry()
    steps.run = lambda step, _folder, **_: Steps(Settings()).run(step, job)
    receive(engine, tmp_path, job, COMPLETED + 1, **NEW)
    workflow.DURABLE_STEPS["encode"]("j1")
    assert "NEWPID-2" in job.report_html.read_text()
    store.put_deliveries("j1", "pacs", [("1.2.3", "sr", "sr.dcm")])
    assert not workflow._holds_back(store.get("j1"), "pacs")
    aside = tmp_path / "elsewhere"
    (tmp_path / "conflicts").rename(aside)  # what told it cannot be read any more: it was told all the same
    assert not workflow._holds_back(store.get("j1"), "pacs")
    aside.rename(tmp_path / "conflicts")

    receive(engine, tmp_path, job, COMPLETED + 2, **OLD)
    store.update("j1", state=JobState.DELIVERING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "enqueue_report", lambda *_, **__: None)
        assert workflow._holds_back(store.get("j1"), "pacs")
    store.update("j1", state=JobState.QUEUED)  # started again
    assert workflow.attempt_step("j1", "pacs", 2) is None, "an attempt of before sends nothing meanwhile"
    workflow.DURABLE_STEPS["encode"]("j1")
    assert (job.identity.exists(), store.deliveries("j1")) == (False, [])
    assert pydicom.dcmread(job.dicom / "sr.dcm").PatientID == "OLDPID-1"
    assert "corrected after" not in texts_in(pydicom.dcmread(job.dicom / "sr.dcm"))
    assert ("OLDPID-1" in job.report_html.read_text(), "NEWPID-2" in job.report_html.read_text()) == (True, False)
    assert not workflow._holds_back(store.get("j1"), "pacs")

    store.put_deliveries("j1", "pacs", [("1.2.3", "sr", "sr.dcm")])
    store.note_delivery("j1", "pacs", "1.2.3", state=DeliveryState.WAITING, status="", reason="no answer")
    receive(engine, tmp_path, job, COMPLETED + 3, **NEW)
    with pytest.raises(Permanent, match="were sent under another identity; `braingemma jobs retry --anew j1`"):
        workflow.DURABLE_STEPS["encode"]("j1")
