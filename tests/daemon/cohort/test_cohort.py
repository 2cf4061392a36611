"""Many studies into one table: what is found, what a row says, that each case is done once."""

from __future__ import annotations

import csv
import errno
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from record_support import a_report, a_selection
from typer.testing import CliRunner

from braingemma.volume.brain import BrainMask
from daemon.cli.app import app
from daemon.cohort.batch import Batch, CaseRecord
from daemon.cohort.bids import write_bids
from daemon.cohort.cases import Case, SeriesFacts, Source, find_cases
from daemon.cohort.page import write_page
from daemon.cohort.sessions import Compared, compare_sessions
from daemon.cohort.table import COLUMNS, rows_of, write_csv, write_parquet
from daemon.config.sections import Settings
from daemon.errors import DaemonError, Rejected
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report
from daemon.pipeline.steps.nameless import deidentifier_of
from dicom_io.deidentify import Deidentifier, load_key
from dicom_io.objects.sr_rules import plain_text
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom, write_phantom

SPACING = (4.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom whose lesion is on the right."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, make_phantom(900_001, spacing=SPACING))
    return folder / "flair.nii.gz"


def test_dicom_in_any_nesting_becomes_a_case_for_each_study(volume: Path, tmp_path: Path) -> None:
    source = tmp_path / "archive"
    for number in (1, 2):
        identity = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.3.{number}", "Manufacturer": "ACME"}
        write_series(volume, source / f"a{number}" / "deep", overrides=identity)
    moved = next((source / "a1" / "deep").iterdir())
    (source / "elsewhere").mkdir()
    moved.rename(source / "elsewhere" / "x")
    (source / "notes.txt").write_text("not DICOM")
    found = find_cases(source)
    assert len(found.cases) == 2
    assert len({len(case.files) for case in found.cases}) == 1
    assert sorted(facts.patient_id for case in found.cases for facts in case.facts.values()) == ["P1", "P2"]
    assert [file.name for file, _ in found.problems] == ["notes.txt"]
    assert all("P1" not in case.name for case in found.cases)


def test_what_is_linked_is_found_once_and_what_cannot_be_read_is_told(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without end: a link to a folder above; and of a BIDS data set, of which links are sessions and images."""
    archive, source = tmp_path / "archive", tmp_path / "source"
    write_series(volume, archive / "study")
    for link, to in (("study", archive / "study"), ("again", archive / "study"), ("up", tmp_path), ("no", "nowhere")):
        (source / "in").mkdir(parents=True, exist_ok=True)
        (source / "in" / link).symlink_to(to)
    (source / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    told = [
        (source / "in" / "no", "a link that leads nowhere"),
        (source / "locked", "cannot be read: Permission denied"),
    ]
    found = find_cases(source)
    assert [len(case.files) for case in found.cases] == [len(list((archive / "study").iterdir()))]
    assert list(found.problems) == told
    assert [(problem.path, problem.reason) for problem in scan_folder(source).problems] == told

    anat = archive / "ses-1" / "anat"
    anat.mkdir(parents=True)
    shutil.copyfile(volume, anat / "sub-01_ses-1_FLAIR.nii.gz")
    (anat / "sub-01_ses-1_acq-2d_FLAIR.nii.gz").symlink_to("nowhere")
    (tmp_path / "bids" / "sub-01" / "locked").mkdir(parents=True)
    (tmp_path / "bids" / "sub-01" / "ses-1").symlink_to(archive / "ses-1")
    found = find_cases(tmp_path / "bids")
    assert [case.name for case in found.cases] == ["sub-01_ses-1_FLAIR", "sub-01_ses-1_acq-2d_FLAIR"]
    assert [file.name for file, _ in found.problems] == ["locked"]


@pytest.mark.parametrize("place", ["source/out", "source"])
def test_results_are_no_cases(tmp_path: Path, place: str) -> None:
    """Neither those of a call whose OUT lies in SOURCE, nor, with OUT above SOURCE, those beside it."""
    out = tmp_path / place
    for file in ("cases/a/volume_ras.nii.gz", ".work/b/000001.dcm", "bids/sub-a/anat/sub-a_desc-brain_mask.nii.gz"):
        (out / file).parent.mkdir(parents=True)
        (out / file).touch()
    (tmp_path / "source" / "data").mkdir(exist_ok=True)
    (tmp_path / "source" / "data" / "a.nii.gz").touch()
    if place == "source/out":
        assert [case.name for case in find_cases(tmp_path / "source", out).cases] == ["data_a"]
    assert [case.name for case in find_cases(tmp_path / "source" / "data", out).cases] == ["a"]
    for inside in (out, out / "cases"):
        with pytest.raises(Rejected, match="expected cases outside of the results, got OUT"):
            find_cases(inside, out)


ODD_SIDECARS = (
    "[]",
    '{"MagneticFieldStrength": NaN, "Manufacturer": "\\ud800"}',
    "[" * 9999,
    '{"MagneticFieldStrength": 1e999}',
)


def test_a_sidecar_that_says_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    anat = tmp_path / "sub-x" / "in" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for number, text in enumerate(ODD_SIDECARS):
        (anat / f"sub-01_run-{number}_FLAIR.nii.gz").touch()
        (anat / f"sub-01_run-{number}_FLAIR.json").write_text(text)
    (anat / os.fsdecode(b"sub-01_M\xfcller_FLAIR.nii.gz")).touch()
    found = find_cases(tmp_path / "sub-x" / "in")
    assert {(case.facts[""].field_strength_t, case.facts[""].patient_id) for case in found.cases} == {(None, "sub-01")}
    assert Batch(found, tmp_path / "out", quick(), lambda _: None).run().reported == len(ODD_SIDECARS) + 1
    write_csv(rows_of(tmp_path / "out"), tmp_path / "cases.csv")


def test_a_bids_data_set_gives_its_flairs_with_subject_and_scanner(tmp_path: Path) -> None:
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a")):
        anat = tmp_path / f"sub-{subject}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True)
        for suffix in ("FLAIR", "T1w"):
            (anat / f"sub-{subject}_ses-{session}_{suffix}.nii.gz").touch()
        said = {"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma", "MagneticFieldStrength": 3}
        (anat / f"sub-{subject}_ses-{session}_FLAIR.json").write_text(json.dumps(said))
    cases = find_cases(tmp_path).cases
    assert [case.subject for case in cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02_ses-a"]
    assert {case.facts[""].field_strength_t for case in cases} == {3.0}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list_names_its_cases(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.nii.gz").touch()
    (tmp_path / "void").mkdir()
    paths = {"first": "x.nii.gz", "gone": "nowhere.nii", "empty": "void"}
    rows = [{"case": case, "path": path} for case, path in paths.items()]
    file = tmp_path / f"list.{kind}"
    if kind == "csv":
        file.write_text("case,path\n" + "".join(f"{r['case']},{r['path']}\n" for r in rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [case.name for case in find_cases(file).cases] == ["empty", "first", "gone"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("l.csv", "case,file_name\na,b\n", "row 1: expected a column path"),
        ("l.csv", "case;path\na;x,y.nii\n", r"row 1: expected 1 columns \['case;path'\], got more"),
        ("l.csv", "case,path\na,x,y.nii\n", r"row 1: expected 2 columns \['case', 'path'\], got more"),
        ("l.jsonl", "[" * 9999, "expected JSON lines"),
        ("l.jsonl", '{"path": ' + "1" * 5000 + "}", "expected JSON lines"),
        ("l.jsonl", "[1]\n", "line 1: expected a JSON object"),
        ("l.jsonl", "{\n", "expected JSON lines"),
        ("l.csv", "case,path\n../x,y.nii\n", "expected a case of letters"),
        ("l.csv", "case,path\na,.\na-2,x.nii\n", "further series of another's study .*, got a-2$"),
        ("l.txt", "", "expected a folder, or a list"),
    ],
)
def test_lists_that_cannot_be_read_are_one_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(Rejected, match=expected):
        find_cases(tmp_path / name)


def quick(**more: object) -> Settings:
    return Settings.model_validate({"explain": {"enabled": False}, "model": {"threads": 1}, **more})


@pytest.fixture(scope="module")
def done(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch of two studies of a patient in DICOM, the same as NIfTI, and a file that is no image; run twice."""
    root = tmp_path_factory.mktemp("batch")
    source = root / "source"
    whose = {"PatientID": "MRN-1", "PatientName": "MARKER^NAME", "PatientBirthDate": "19600101"}
    for date in ("20250101", "20260101"):
        write_series(volume, source / date, overrides={**whose, "StudyDate": date, "StudyInstanceUID": f"1.2.3.{date}"})
    shutil.copyfile(volume, source / "one.nii.gz")
    (source / "broken.nii.gz").write_text("no image")
    said: list[str] = []
    first = Batch(find_cases(source), root / "out", quick(), said.append).run()
    assert (first.reported, first.refused, first.failed, first.skipped) == (3, 1, 0, 0)
    again = Batch(find_cases(source), root / "out", quick(), said.append).run()
    assert (again.reported, again.skipped) == (0, 4)
    assert any(text.startswith("case 4/4") for text in said)
    return root / "out"


def test_each_case_has_a_row_with_its_side(volume: Path, done: Path, tmp_path: Path) -> None:
    truth = json.loads((volume.parent / "truth.json").read_text())["findings"][0]["laterality"]
    assert truth in ("left", "right")
    rows = rows_of(done)
    write_csv(rows, tmp_path / "cases.csv")
    write_parquet(rows, tmp_path / "cases.parquet")
    with (tmp_path / "cases.csv").open(newline="") as file:
        read = {row["case"]: row for row in csv.DictReader(file)}
    assert list(next(iter(read.values()))) == list(COLUMNS)
    assert read["broken"]["status"] == "refused"
    assert read["broken"]["reason"]
    reported = [row for row in read.values() if row["status"] == "reported"]
    assert {row["lesion_laterality"] for row in reported} == {truth}
    assert {row["patient_id"] for row in reported} == {"", "MRN-1"}
    table = pq.read_table(tmp_path / "cases.parquet")
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == 4
    assert table.schema.field("lesion_confidence").type == "double"


def test_dicom_objects_of_a_later_study_say_how_the_lesion_changed(done: Path) -> None:
    source = find_cases(done.parent / "source")
    work = Batch(source, done, quick(), lambda _: None)
    work.run()
    assert compare_sessions(source.cases, done, named=True).number == 1
    assert work.encode_anew() == 0
    reports = {pydicom.dcmread(file).StudyDate: file for file in done.glob("cases/*/dicom/sr.dcm")}
    said = {date: plain_text(pydicom.dcmread(file)) for date, file in reports.items()}
    assert "2025-01-01" in said["20260101"]
    assert "Compared with" not in said["20250101"]
    written = {date: file.stat().st_mtime_ns for date, file in reports.items()}
    compare_sessions(source.cases, done, named=True)
    assert work.encode_anew() == 0
    assert {date: file.stat().st_mtime_ns for date, file in reports.items()} == written


def test_objects_that_cannot_be_made_anew_are_a_failed_case_that_says_why(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    shutil.copytree(done.parent / "source", tmp_path / "source")
    source = find_cases(tmp_path / "source")
    work = Batch(source, out, quick(), lambda _: None)
    work.run()
    case = next(case for case in source.cases if not case.is_nifti)
    shutil.rmtree(out / "cases" / case.name / "dicom")
    for file in case.files:
        file.unlink()
    assert work.encode_anew() == 1
    record = CaseRecord.read(out / "cases" / case.name / "case.json")
    assert record.status == "failed"
    assert record.reason


def test_a_row_has_no_lesion_volume_that_the_report_does_not_state(tmp_path: Path) -> None:
    estimate = {"peak": 0.3, "volume_ml": 8.4, "laterality": "left", "sites": ["frontal"], "certainty": "possible"}
    stated = {"name": "lesion_volume", "value": 20.0, "unit": "mL", "method": "map"}
    for case, measurements in (("faint", []), ("plain", [stated])):
        folder = tmp_path / "cases" / case
        folder.mkdir(parents=True)
        a_report(lesion_estimate=estimate, measurements=measurements).write(folder / "report.json")
        CaseRecord(case=case, status="reported").write(folder / "case.json")
    assert [row["lesion_volume_ml"] for row in rows_of(tmp_path)] == [None, 20.0]


class StepsOfTwoFlairs:
    """In place of the model: a study with one further FLAIR; `fault` is raised by one step of one case."""

    weights = SimpleNamespace(sha256="0", banner=None)
    fault: ClassVar[tuple[str, str, BaseException] | None] = None
    ran: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, _: Settings) -> None:
        self.context = SimpleNamespace(weights=self.weights)

    def run(self, step: str, folder: JobFolder) -> None:
        self.ran.append((step, folder.root.name))
        if step == "select":
            a_selection("1.1", "1.2").write(folder.selection)
        if self.fault is not None and self.fault[:2] == (step, folder.root.name):
            raise self.fault[2]


@pytest.mark.parametrize(
    ("step", "case", "fault", "first", "second"),
    [
        ("report", "s-2", KeyboardInterrupt(), {"s": "reported"}, ["report"]),
        ("report", "s-2", DaemonError("no memory"), {"s": "reported", "s-2": "failed"}, ["report"]),
        ("report", "s", DaemonError("no memory"), {"s": "failed", "s-2": "reported"}, ["select", "report"]),
        ("convert", "s-2", Rejected("no pixels"), {"s": "reported", "s-2": "refused"}, None),
        ("convert", "s", Rejected("no pixels"), {"s": "refused", "s-2": "reported"}, None),
        ("select", "s", Rejected("two patients"), {"s": "refused"}, None),
        ("report", "s", RuntimeError("CUDA out of memory"), {"s": "failed", "s-2": "reported"}, ["select", "report"]),
        ("convert", "s-2", MemoryError(), {"s": "reported", "s-2": "failed"}, ["report"]),
        ("select", "s", ZeroDivisionError("MARKER"), {"s": "failed"}, ["select", "report", "report"]),
    ],
)
def test_further_series_of_a_study_stand_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, case: str, fault: BaseException,
    first: dict[str, str], second: list[str] | None, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What a call that was killed, or one series, leaves undone is done by the next call, and nothing else is."""
    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    monkeypatch.setattr(StepsOfTwoFlairs, "ran", [])
    (tmp_path / "1.dcm").touch()
    said: list[str] = []

    def call() -> dict[str, str]:
        StepsOfTwoFlairs.ran.clear()
        work = Batch(Source((Case("s", (tmp_path / "1.dcm",)),)), tmp_path / "out", quick(), said.append)
        with suppress(KeyboardInterrupt):
            work.run()
        return {row["case"]: row["status"] for row in rows_of(tmp_path / "out")}

    monkeypatch.setattr(StepsOfTwoFlairs, "fault", (step, case, fault))
    assert call() == first
    if first.get(case) == "failed" and not isinstance(fault, DaemonError):
        [row] = [row for row in rows_of(tmp_path / "out") if row["case"] == case]
        assert row["reason"] == f"unexpected {type(fault).__name__}: {fault} (see the log)"
        assert f"{type(fault).__name__}" in caplog.text
    monkeypatch.setattr(StepsOfTwoFlairs, "fault", None)
    again = call()
    steps = [ran for ran, _ in StepsOfTwoFlairs.ran if ran not in ("convert", "look", "encode")]
    if second is None:
        assert (again, steps) == (first, [])
    else:
        assert (again, steps) == ({"s": "reported", "s-2": "reported"}, second)
        assert call() == again
        assert StepsOfTwoFlairs.ran == []
    assert all(text.startswith("case 1/1") for text in said)


def test_the_brain_is_looked_for_once_and_while_the_model_works_on_another_case(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks and report take the mask that the converting thread found."""
    by: list[str] = []

    def found(above: np.ndarray, _: np.ndarray) -> BrainMask:
        by.append(threading.current_thread().name)
        return BrainMask(above > 0, "came without skull", 1200.0)

    monkeypatch.setattr("braingemma.volume.brain._extract", found)
    monkeypatch.setattr("braingemma.volume.brain._KNOWN", OrderedDict())
    image = nibabel.load(volume)
    (tmp_path / "in").mkdir()
    for number in (1, 2, 3):
        voxels = np.asarray(image.dataobj) * np.int16(number)
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), tmp_path / f"in/{number}.nii.gz")
    tally = Batch(find_cases(tmp_path / "in"), tmp_path / "out", quick(), lambda _: None).run()
    assert tally.reported == 3
    assert [name.startswith("convert") for name in by] == [True] * 3, by


def test_a_case_of_another_source_is_not_taken_for_one_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Site B's `sub-01` is another person than site A's; A's own data set may have moved meanwhile."""
    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    for site, middle in (("a", b"A"), ("b", b"B")):  # same size and start, as of uncompressed volumes
        anat = tmp_path / site / "sub-01" / "anat"
        anat.mkdir(parents=True)
        (anat / "sub-01_FLAIR.nii").write_bytes(bytes(150_000) + middle + bytes(150_000))
    (tmp_path / "1.dcm").touch()
    (tmp_path / "2.dcm").touch()
    studies = [Case("s", (tmp_path / f"{n}.dcm",), {"1": SeriesFacts(study_uid=f"1.2.{n}")}) for n in (1, 2)]

    def call(source: Source, out: str) -> tuple[int, int]:
        tally = Batch(source, tmp_path / out, quick(), lambda _: None).run()
        return tally.reported, tally.skipped

    for out, name, mine, other in (
        ("files", "sub-01_FLAIR", find_cases(tmp_path / "a"), find_cases(tmp_path / "b")),
        ("studies", "s", Source((studies[0],)), Source((studies[1],))),
    ):
        assert call(mine, out)[0] > 0
        file = tmp_path / out / "cases" / name / "case.json"
        before = file.read_bytes()
        with pytest.raises(DaemonError, match=r"expected the study or file .* got another of the same name"):
            call(other, out)
        assert file.read_bytes() == before
        assert call(mine, out) == (0, 1)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert call(find_cases(tmp_path / "moved"), "files") == (0, 1)
    record = CaseRecord.read(tmp_path / "files" / "cases" / "sub-01_FLAIR" / "case.json")
    record.model_copy(update={"origin": ""}).write(tmp_path / "files" / "cases" / "sub-01_FLAIR" / "case.json")
    assert call(find_cases(tmp_path / "moved"), "files") == (0, 1), "a record of before origins were noted"


def test_what_was_refused_while_nothing_was_there_is_tried_again_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    (tmp_path / "l.csv").write_text("path\nx.nii.gz\n")
    monkeypatch.setattr(StepsOfTwoFlairs, "fault", ("import", "x", Rejected("no such file")))
    assert Batch(find_cases(tmp_path / "l.csv"), tmp_path / "out", quick(), lambda _: None).run().refused == 1
    assert Batch(find_cases(tmp_path / "l.csv"), tmp_path / "out", quick(), lambda _: None).run().skipped == 1
    monkeypatch.setattr(StepsOfTwoFlairs, "fault", None)
    (tmp_path / "x.nii.gz").touch()
    assert Batch(find_cases(tmp_path / "l.csv"), tmp_path / "out", quick(), lambda _: None).run().reported == 1


def test_objects_of_a_study_that_another_process_works_on_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its links to the files must not be taken from under it."""
    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    monkeypatch.setattr(StepsOfTwoFlairs, "ran", [])
    (tmp_path / "1.dcm").touch()
    work = Batch(Source((Case("s", (tmp_path / "1.dcm",)),)), tmp_path / "out", quick(), lambda _: None)
    work.run()
    links = tmp_path / "out" / ".work" / "s"
    links.mkdir()
    StepsOfTwoFlairs.ran.clear()
    with (links.parent / "s.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert work.encode_anew() == 0
    assert (links.exists(), StepsOfTwoFlairs.ran) == (True, [])
    assert work.encode_anew() == 0
    assert (links.exists(), StepsOfTwoFlairs.ran) == (False, [("encode", "s")])


def test_pseudonyms_of_one_folder_are_of_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    (tmp_path / "x.nii.gz").touch()

    def call(key: str) -> int:
        settings = quick(results={"deidentify": True, "deidentify_key": str(tmp_path / key)})
        found = find_cases(tmp_path, tmp_path / "out", deidentifier_of(settings))
        return Batch(found, tmp_path / "out", settings, lambda _: None).run().reported

    assert [call("one"), call("one")] == [1, 0]
    with pytest.raises(DaemonError, match=r"key of pseudonyms .*two.* as before, got others .*name another folder$"):
        call("two")


def test_a_folder_takes_cases_of_the_same_options_only(done: Path) -> None:
    with pytest.raises(DaemonError, match="name another folder"):
        Batch(find_cases(done.parent / "source"), done, quick(explain={"enabled": True}), lambda _: None).run()


def test_the_page_shows_each_case_and_says_what_it_is(done: Path) -> None:
    write_page(rows_of(done), done, "Demo weights")
    html = (done / "index.html").read_text()
    assert html.count("<tr data-status") == 4
    assert html.count("data:image/jpeg") == 3
    assert 'src="http' not in html
    assert "RESEARCH USE ONLY" in html.upper()


def test_a_derivative_data_set_has_a_line_for_each_subject(done: Path, tmp_path: Path) -> None:
    write_bids(rows_of(done), done, tmp_path / "bids")
    assert json.loads((tmp_path / "bids" / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    lines = (tmp_path / "bids" / "phenotype" / "braingemma.tsv").read_text().splitlines()
    assert len(lines) == 5
    assert {len(line.split("\t")) for line in lines} == {len(lines[0].split("\t"))}
    assert not errors_of_bids(tmp_path / "bids")


def errors_of_bids(folder: Path) -> list[str]:
    """What the validator that the standard's makers publish finds wrong."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno (PyPI) is not installed")
    checked = subprocess.run(
        [validator, folder, "--json"], capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    issues = json.loads(checked.stdout)["issues"]["issues"]
    return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]


BIDS_CASES = {
    "sub-03_run-1_FLAIR": "sub-03_run-1", "sub-03_run-2_FLAIR": "sub-03_run-2", "sub-04_FLAIR": "sub-04",
    "sub-05_ses-a_acq-3d_FLAIR": "sub-05_ses-a_acq-3d", "sub-05_ses-b_acq-3d_FLAIR": "sub-05_ses-b_acq-3d",
    "sub-05_ses-b_acq-2d_FLAIR": "sub-05_ses-b_acq-2d",
}  # fmt: skip


def test_each_case_has_files_and_a_line_of_its_own_in_the_derivative_data_set(done: Path, tmp_path: Path) -> None:
    given = next(done.glob("cases/*/brain_mask.nii.gz")).parent
    others = ("p1_12", "p11_2", "P11.2", "plain", "sub04", "04", "sub-06_space-a_FLAIR", "sub-06_space-b_FLAIR")
    for case in (*BIDS_CASES, *others):
        folder = tmp_path / "cases" / case
        folder.mkdir(parents=True)
        for file in ("brain_mask.nii.gz", "report.json"):
            shutil.copyfile(given / file, folder / file)
        subject = "_".join(part for part in case.split("_") if part.startswith(("sub-", "ses-")))
        CaseRecord(case=case, status="reported", subject=subject).write(folder / "case.json")
    bids = tmp_path / "bids"
    write_bids(rows_of(tmp_path), tmp_path, bids)
    masks = {file.name.removesuffix("_desc-brain_mask.nii.gz") for file in bids.rglob("*_mask.nii.gz")}
    assert len(masks) == len(BIDS_CASES) + len(others)
    assert set(BIDS_CASES.values()) | {"sub-plain", "sub-sub04"} < masks
    lines: dict[str, tuple[str, str]] = {}
    for file in (bids / "phenotype").glob("*.tsv"):
        with file.open(newline="") as table:
            lines |= {
                row["case"]: (row["participant_id"], f"{row['session_id']} {row['run_id']}")
                for row in csv.DictReader(table, delimiter="\t")
            }
    assert set(lines) == {*BIDS_CASES, *others}
    assert lines["sub-03_run-2_FLAIR"] == ("sub-03", "n/a run-2")
    assert lines["sub-05_ses-b_acq-2d_FLAIR"] == ("sub-05", "ses-b n/a")
    assert lines["04"][0] != lines["sub-04_FLAIR"][0]
    assert not errors_of_bids(bids)


def test_a_case_that_another_process_works_on_is_left_to_it(done: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_text("no image")
    out = tmp_path / "out"
    (out / ".work").mkdir(parents=True)
    with (out / ".work" / "x.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Batch(find_cases(tmp_path), out, quick(), lambda _: None).run().skipped == 1
    assert Batch(find_cases(tmp_path), out, quick(), lambda _: None).run().refused == 1
    assert CaseRecord.read(out / "cases" / "x" / "case.json").status == "refused"


def test_a_deidentified_batch_names_nobody(volume: Path, tmp_path: Path) -> None:
    """Neither names nor received UIDs: a refused study, and one with a warning that names a repeated instance."""
    source, out = tmp_path / "MARKERSOURCE", tmp_path / "out"
    who = {"PatientID": "MARKERMRN", "PatientName": "MARKERNAME^X"}
    refused = {"StudyInstanceUID": "1.2.3.4.4711", "SeriesInstanceUID": "1.2.3.4.4712"}
    write_series(volume, source / "MARKERFOLDER", overrides={**who, **refused, "SeriesDescription": "t1 MARKERTEXT"})
    head = nibabel.load(volume)
    for field, size in (("descrip", 80), ("db_name", 18), ("aux_file", 24), ("intent_name", 16), ("data_type", 10)):
        head.header[field] = b"MARKER" + field.encode()[: size - 6]
    head.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"MARKERNAME"))
    (source / "MARKER_JANE").mkdir()
    nibabel.save(head, source / "MARKER_JANE" / "MARKER_flair.nii.gz")
    (source / "MARKER_JANE" / "MARKER_broken.nii.gz").write_text("no image")
    write_series(volume, source / "b", overrides={**who, "StudyInstanceUID": "1.2.3.4.4811"})
    images = sorted((source / "b").iterdir())
    shutil.copyfile(images[0], source / "b" / "MARKERCOPY.dcm")
    uids = [str(pydicom.dcmread(images[0])[key].value) for key in ("SeriesInstanceUID", "SOPInstanceUID")]
    settings = quick(results={"deidentify": True, "deidentify_key": str(tmp_path / "key")})
    found = find_cases(source, out, deidentifier_of(settings))
    assert not {case.name for case in found.cases} & {case.name for case in find_cases(source).cases}
    work = Batch(found, out, settings, lambda _: None)
    tally = work.run()
    assert (tally.refused, tally.reported) == (2, 2)
    write_csv(rows_of(out), out / "cases.csv")
    write_page(rows_of(out), out, None)
    write_bids(rows_of(out), out, out / "bids")
    volumes = [*out.glob("cases/*/*.nii.gz"), *out.glob("bids/**/*.nii.gz")]
    assert len(volumes) >= 6
    assert [file for file in volumes if b"MARKER" in gzip.decompress(file.read_bytes())] == []
    shown = (
        "*.csv", "*.html", "*.json", "cases/*/report.*", "cases/*/case.json", "cases/case-*/*.json", "**/*.dcm",
        "bids/**/*.[jtm]*",
    )  # fmt: skip
    for file in (file for pattern in shown for file in out.glob(pattern)):
        content = file.read_bytes()
        assert [m for m in ("MARKER", "1.2.3.4.", *uids) if m.encode() in content] == [], file
    assert not [file for file in out.rglob("*") if "MARKER" in str(file.relative_to(out))]

    assert not list(out.glob("cases/case-*/source.json"))
    [report] = map(Report.read, out.glob("cases/study-*/report.json"))
    [warning] = [w for w in report.warnings if "repeats SOP Instance UID" in w]
    key = Deidentifier(load_key(tmp_path / "key"))
    assert f"UID {key.uid(uids[1])} " in warning
    assert report.input.series_uid == key.uid(uids[0])
    for _ in range(2):
        [sr] = out.glob("cases/*/dicom/sr.dcm")
        assert warning in plain_text(pydicom.dcmread(sr))
        shutil.rmtree(sr.parent)
        assert work.encode_anew() == 0


def test_a_configuration_that_deidentifies_counts_like_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def compare(cases: object, out: object, *, named: bool) -> Compared:
        told.append(named)
        return Compared(0, ("sub-07",))

    monkeypatch.setattr("daemon.cohort.batch.Steps", StepsOfTwoFlairs)
    monkeypatch.setattr("daemon.cohort.sessions.compare_sessions", compare)
    monkeypatch.setattr("os.nice", lambda _: 0)
    (tmp_path / "x.nii.gz").touch()
    (tmp_path / "c.toml").write_text(f"[results]\ndeidentify = true\ndeidentify_key = {str(tmp_path / 'key')!r}\n")
    arguments = ["batch", str(tmp_path / "x.csv"), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "c.toml")]
    (tmp_path / "x.csv").write_text("path\nx.nii.gz\ngone\n")
    ended = CliRunner().invoke(app, arguments)
    assert (ended.exit_code, told) == (0, [False]), ended.output
    assert ended.stderr.count("sub-07: expected acq_time") == 1
    assert f"not read: {tmp_path / 'gone'}: expected a file or a folder, found nothing" in ended.stderr
