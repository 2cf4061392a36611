"""The records of a job's folder: what is written is read again, later fields are kept, and damage has a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from record_support import a_report, a_selection, an_arrival, an_instance

from daemon.errors import Permanent
from daemon.jobs.records import Arrival, Conversion, Report, Selection, SourceFile
from daemon.pipeline.corrections import Correction
from daemon.record import Record

RECORDS: tuple[Record, ...] = (
    a_report(),
    a_selection("1.2", "1.3"),
    an_arrival(instances=[an_instance("000001.dcm", "1.2")]),
    Conversion(warnings=("a",)),
    SourceFile(file="x.nii"),
    Correction(values={"PatientID": "P"}, changed=("PatientID",)),
)
ALL = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)


@ALL
def test_what_is_written_is_read_again(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "record.json")
    assert type(record).read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@ALL
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\udcff"])
def test_a_damaged_file_has_one_clear_error(record: Record, text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Permanent, match=f"^{path}: expected {record.what}; .*, got ") as caught:
        type(record).read(path)
    assert "\n" not in str(caught.value)


@ALL
def test_a_file_that_is_not_there_is_named(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert type(record).read_if_there(path) is None
    with pytest.raises(Permanent, match=f"^{path}: expected {record.what}, found no such file$"):
        type(record).read(path)
    with pytest.raises(Permanent, match=f"^{tmp_path}: expected {record.what}: Is a directory$"):
        type(record).read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (Report, {"findings": 3}, "findings: .* got 3"),
        (Report, {"findings": [{"finding": "lesion", "presence": "maybe"}]}, "findings.0.presence: .* got 'maybe'"),
        (Report, {"report": None}, "report: .* got None"),
        (Report, {"model": {}}, "model.name: field missing"),
        (Report, {"warnings": "x" * 500}, r"warnings: .* got 'x{59}\.\.\."),
        (Arrival, {"study_uid": 5}, "study_uid: .* got 5"),
        (Arrival, {"completed": "yesterday"}, "completed: .* got 'yesterday'"),
        (Arrival, {"instances": [{"file": "1.dcm"}]}, "instances.0.sop_uid: field missing"),
        (Selection, {"chosen": 1.5}, "chosen: .* got 1.5"),
    ],
)
def test_a_wrong_field_is_named_with_what_came(kind: type[Record], change: object, said: str, tmp_path: Path) -> None:
    [whole] = [record for record in RECORDS if type(record) is kind]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(whole.to_json() | change))  # type: ignore[operator]
    with pytest.raises(Permanent, match=said):
        kind.read(path)


def test_fields_of_a_later_version_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    said = a_report().to_json()
    said["later"] = {"a": [1]}
    said["findings"][0]["size_mm"] = 12
    path.write_text(json.dumps(said))
    report = Report.read(path)
    report.model_copy(update={"warnings": ("new",)}).write(path)
    assert json.loads(path.read_text()) == said | {"warnings": ["new"]}
