"""What may be asked for, and whether what a PACS gives was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset

from daemon.errors import DaemonError
from daemon.pull.asks import Ask, query, read_list, single


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("StudyDat=20260101", "'StudyDat' is no DICOM keyword, did you mean StudyDate?"),
        ("studydate=20260101", "did you mean StudyDate?"),
        ("Modality=MR", "an attribute of series, did you mean ModalitiesInStudy?"),
        ("Modaliti=MR", "did you mean ModalitiesInStudy?"),
        ("Xyzzy=1", "'Xyzzy' is no DICOM keyword"),
        ("StudyDate=2026-01-01", "expected 20260131 or 20260101-20260131, got '2026-01-01'"),
        ("StudyTime=nine", "expected 0900 or 0900-1700"),
        ("StudyDate", "expected KEY=VALUE"),
        ("StudyDate=", "expected KEY=VALUE"),
        ("", "got nothing"),
        ("PatientID=*", "asks for everything"),
        ('PatientID="1', "No closing quotation"),
        ("PatientID=1 PatientID=2", "stands twice"),
        ("ReferencedStudySequence=1", "is a sequence"),
    ],
)
def test_a_query_that_cannot_be_meant_is_one_line(text: str, said: str) -> None:
    with pytest.raises(DaemonError) as refused:
        query(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("study", "1.2.x", "expected a UID"), ("study", "1." + "2" * 64, "expected a UID"),
        ("accession", "A*", "--query"), ("patient", " ", "expected a value"), ("patient", "a\\b", "expected one value"),
    ],
)  # fmt: skip
def test_one_value_means_one_thing(kind: str, value: str, said: str) -> None:
    with pytest.raises(DaemonError, match=said):
        single(kind, value)


def a_study(**values: object) -> Dataset:
    study = Dataset()
    for keyword, value in values.items():
        setattr(study, keyword, value)
    return study


def test_a_study_counts_only_where_every_key_is_answered_and_matches() -> None:
    """PACSs leave keys that they do not know out of account, and then answer with everything."""
    asked = query('StudyDate=20260101-20260131 StudyDescription="*brain*" ModalitiesInStudy=MR')
    right = {"StudyDate": "20260115", "StudyDescription": "MR brain plain", "ModalitiesInStudy": ["CT", "MR"]}
    assert asked.missing(a_study(**right)) == ""
    assert "20260201" in asked.missing(a_study(**right | {"StudyDate": "20260201"}))
    assert "StudyDescription" in asked.missing(a_study(**right | {"StudyDescription": "knee"}))
    assert "does not tell its ModalitiesInStudy" in asked.missing(
        a_study(StudyDate="20260115", StudyDescription="brain")
    )
    assert query("StudyDate=20260110-").missing(a_study(StudyDate="20260109"))
    assert not query("StudyDate=-20260110").missing(a_study(StudyDate="20260109"))
    literal = single("accession", "A[1]")
    assert literal.missing(a_study(AccessionNumber="A1"))
    assert not literal.missing(a_study(AccessionNumber="A[1]"))
    assert Ask.from_json(asked.to_json()) == asked


def test_lists_are_uids_or_a_table(tmp_path: Path) -> None:
    plain, table, wrong, bad = (tmp_path / name for name in ("plain.txt", "table.csv", "wrong.csv", "bad.txt"))
    plain.write_text("1.2.3\n\n1.2.4\n1.2.3\n")
    table.write_text("\ufeffname,AccessionNumber\nx,A1\ny,A2\n", encoding="utf-8")
    wrong.write_text("name,number\nx,A1\n")
    bad.write_text("1.2.3\n1.2.z\n")
    assert [ask.label for ask in read_list(plain)] == ["StudyInstanceUID=1.2.3", "StudyInstanceUID=1.2.4"]
    assert [ask.label for ask in read_list(table)] == ["AccessionNumber=A1", "AccessionNumber=A2"]
    with pytest.raises(DaemonError, match="line 1: expected a study UID, or a header"):
        read_list(wrong)
    with pytest.raises(DaemonError, match="line 2: study: expected a UID"):
        read_list(bad)
