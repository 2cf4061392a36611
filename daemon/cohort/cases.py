"""The cases of a source: studies in a folder of DICOM files, a BIDS data set, NIfTI files, or a list."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from daemon.cohort.acquired import SubjectTimes
from daemon.errors import Rejected
from daemon.jobs.comparison import Patient
from daemon.pipeline.process import NIFTI_NAME
from dicom_io.errors import FileError
from dicom_io.header import number, text
from dicom_io.series.file import read_header

BIDS_FLAIR = "sub-*/**/anat/*FLAIR.nii*"
"""BIDS 1.10, "Anatomy imaging data": `sub-<label>/[ses-<label>/]anat/…_FLAIR.nii[.gz]`."""
LIST_COLUMNS = ("path", "image", "file")
"""Columns of a list in which a case's file or folder may stand."""


@dataclass(frozen=True)
class SeriesFacts:
    """What the table says of a series, and the headers of its results do not: identity and scanner."""

    patient_id: str = ""
    issuer: str = ""
    study_uid: str = ""
    manufacturer: str = ""
    model_name: str = ""
    field_strength_t: float | None = None
    study_date: str = ""
    study_time: str = ""
    patient_name: str = ""
    """Folded, see `daemon.jobs.comparison`; like the date of birth for comparisons only, and written nowhere."""
    birth_date: str = ""
    identity_removed: bool = False


@dataclass(frozen=True)
class Case:
    """One input of a batch.

    Attributes:
        name: Unique within the source, fit for a folder's name, the same at each run.
        files: One NIfTI file, or all DICOM files of one study.
        facts: By SeriesInstanceUID; of a NIfTI file under the empty key.
        subject: BIDS entities such as `sub-01_ses-02`; empty where the source is no BIDS data set.
        acquired: When, by the tables of a BIDS data set, as `acquired.SubjectTimes` gives it; written nowhere.
    """

    name: str
    files: tuple[Path, ...]
    facts: Mapping[str, SeriesFacts] = field(default_factory=dict)
    subject: str = ""
    acquired: str = ""

    @property
    def is_nifti(self) -> bool:
        """Whether it is one NIfTI file."""
        return len(self.files) == 1 and NIFTI_NAME.search(self.files[0].name) is not None


@dataclass(frozen=True)
class Source:
    """What was found.

    Attributes:
        cases: In the order of their names.
        problems: (file, why it is no part of any case).
    """

    cases: tuple[Case, ...]
    problems: tuple[tuple[Path, str], ...] = ()


def find_cases(source: Path, shown_uid: Callable[[str], str] = str) -> Source:
    """Every case of a source.

    Args:
        source: A folder of DICOM files in any nesting, a BIDS data set, a folder of NIfTI files, or a CSV or JSONL list
            with a column `path` (a NIfTI file or a folder of one study) and, if wanted, `case` (its name).
        shown_uid: The UID under which results show a study; names of studies follow from it, so that where it is a
            pseudonym nobody who knows the received one finds the study by its name.

    Raises:
        Rejected: nothing is there, or nothing that could be a case.
    """
    if source.is_dir():
        found = _of_bids(source) or _of_folder(source, shown_uid)
    elif source.suffix.lower() in (".csv", ".jsonl"):
        found = _of_list(source, shown_uid)
    else:
        came = "a file" if source.exists() else "nothing"
        raise Rejected(f"{source}: expected a folder, or a list ending in .csv or .jsonl, found {came}")
    if not found.cases:
        why = f"; {found.problems[0][0]}: {found.problems[0][1]}" if found.problems else ""
        raise Rejected(f"{source}: expected NIfTI files or DICOM studies, found none{why}")
    names = [case.name for case in found.cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Rejected(f"{source}: expected each case once, got {', '.join(twice[:5])} more than once")
    studies = {case.name for case in found.cases if not case.is_nifti}
    unclear = sorted(name for name in names if re.sub(r"-[0-9]+$", "", name) in studies - {name})
    if unclear:
        raise Rejected(
            f"{source}: expected no case under a name that a further series of another's study gets (that case's, '-' "
            f"and a number), got {', '.join(unclear[:5])}"
        )
    return Source(tuple(sorted(found.cases, key=lambda case: case.name)), found.problems)


def _of_bids(folder: Path) -> Source | None:
    images = [p for p in sorted(folder.glob(BIDS_FLAIR)) if NIFTI_NAME.search(p.name)]
    if not images:
        return None
    cases: list[Case] = []
    times: dict[str, SubjectTimes] = {}
    for image in images:
        name, whose = NIFTI_NAME.sub("", image.name), image.relative_to(folder).parts[0]
        subject = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
        session = next((part for part in subject if part.startswith("ses-")), "")
        acquired = times.setdefault(whose, SubjectTimes(folder / whose)).of(image, session)
        cases.append(Case(name, (image,), {"": _sidecar(image)}, "_".join(subject), acquired))
    return Source(tuple(cases), tuple(problem for read in times.values() for problem in read.problems))


def _sidecar(image: Path) -> SeriesFacts:
    """What the JSON file beside a BIDS image says of the scanner, and the subject as the patient."""
    beside = image.with_name(NIFTI_NAME.sub("", image.name) + ".json")
    try:
        said: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    subject = next((part for part in image.parts if part.startswith("sub-")), "")
    strength = said.get("MagneticFieldStrength")
    return SeriesFacts(
        patient_id=subject,
        manufacturer=str(said.get("Manufacturer", "")),
        model_name=str(said.get("ManufacturersModelName", "")),
        field_strength_t=float(strength) if isinstance(strength, int | float) else None,
    )


def _of_folder(folder: Path, shown_uid: Callable[[str], str]) -> Source:
    """NIfTI files each as a case, and every other file as DICOM, by study."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    images = [p for p in files if NIFTI_NAME.search(p.name)]
    others = (p for p in files if not NIFTI_NAME.search(p.name) and p.suffix.lower() not in (".json", ".csv"))
    studies = _studies(others, shown_uid)
    cases = [Case(_name_of(p.relative_to(folder)), (p,), {"": SeriesFacts()}) for p in images]
    return Source((*cases, *studies.cases), studies.problems)


def _name_of(path: Path) -> str:
    """A path below the source as one name."""
    plain = NIFTI_NAME.sub("", str(path))
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip("._") or "case"


def _studies(files: Iterable[Path], shown_uid: Callable[[str], str]) -> Source:
    """DICOM files by study; only what the table needs is kept of each header."""
    members: dict[str, list[Path]] = {}
    facts: dict[str, dict[str, SeriesFacts]] = {}
    problems: list[tuple[Path, str]] = []
    for file in files:
        try:
            header = read_header(file)
        except FileError as error:
            problems.append((file, str(error)))
            continue
        study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
        members.setdefault(study, []).append(file)
        facts.setdefault(study, {}).setdefault(series, _facts(header))
    cases = [Case(_study_name(shown_uid(uid)), tuple(paths), facts[uid]) for uid, paths in members.items()]
    return Source(tuple(cases), tuple(problems))


def _study_name(shown_uid: str) -> str:
    return "study-" + hashlib.sha256(shown_uid.encode()).hexdigest()[:12]


def _facts(header: Dataset) -> SeriesFacts:
    patient = Patient.of(header)
    return SeriesFacts(
        patient_id=patient.patient_id,
        issuer=patient.issuer,
        study_uid=text(header, "StudyInstanceUID"),
        manufacturer=text(header, "Manufacturer"),
        model_name=text(header, "ManufacturerModelName"),
        field_strength_t=number(header, "MagneticFieldStrength"),
        study_date=text(header, "StudyDate"),
        study_time=text(header, "StudyTime"),
        patient_name=patient.name,
        birth_date=patient.birth_date,
        identity_removed=patient.identity_removed,
    )


def _of_list(source: Path, shown_uid: Callable[[str], str]) -> Source:
    cases: list[Case] = []
    problems: list[tuple[Path, str]] = []
    for count, row in enumerate(_rows(source), start=1):
        column = next((c for c in LIST_COLUMNS if row.get(c)), None)
        if column is None:
            raise Rejected(f"{source}: row {count}: expected a column {' or '.join(LIST_COLUMNS)}, got {sorted(row)}")
        path = source.parent / str(row[column])
        name = str(row.get("case") or _name_of(Path(str(row[column]))))
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
            raise Rejected(f"{source}: row {count}: expected a case of letters, digits, '_', '-' and '.', got {name!r}")
        if path.is_dir():
            studies = _studies((p for p in sorted(path.rglob("*")) if p.is_file()), shown_uid)
            many = len(studies.cases) > 1
            cases += [Case(f"{name}-{c.name}" if many else name, c.files, c.facts) for c in studies.cases]
            if not studies.cases:  # its row says so
                cases.append(Case(name, (path,)))
            problems += studies.problems
        elif path.is_file():
            cases.append(Case(name, (path,), {"": SeriesFacts()}))
        else:
            problems.append((path, "expected a file or a folder, found nothing"))
            cases.append(Case(name, (path,)))
    return Source(tuple(cases), tuple(problems))


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            if source.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
                return
            for count, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise Rejected(f"{source}: line {count}: expected a JSON object, got {line.strip()[:60]}")
                yield row
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        expected = "CSV" if source.suffix.lower() == ".csv" else "JSON lines"
        raise Rejected(f"{source}: expected {expected}: {error}") from error
