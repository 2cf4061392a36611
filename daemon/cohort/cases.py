"""The cases of a source: studies in a folder of DICOM files, a BIDS data set, NIfTI files, or a list."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from daemon.cohort.acquired import SubjectTimes
from daemon.errors import Rejected
from daemon.jobs.comparison import Patient
from daemon.pipeline.process import NIFTI_NAME
from dicom_io.deidentify import Deidentifier
from dicom_io.errors import FileError
from dicom_io.files import NOWHERE, files_below
from dicom_io.header import number, text
from dicom_io.series.file import read_header

BIDS_FLAIR = re.compile(r"FLAIR\.nii(\.gz)?$")
"""BIDS 1.10, "Anatomy imaging data": `sub-<label>/[ses-<label>/]anat/…_FLAIR.nii[.gz]`."""
BIDS_NAME = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*_FLAIR")
"""Of labels alone: by the standard these are pseudonyms."""
LONGEST_NAME = 200
"""Characters; a file system takes 255, and names of locks and of further series are longer."""
WORK = ".work"
"""In a batch's folder, what is needed only while a case is worked on: locks, and links to its files."""
RESULTS = ("cases", "bids", WORK)
"""Folders that a batch makes in its folder."""
LeaveOut = Callable[[Path], bool]
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
        problems: (file or folder, why it is no part of any case).
        hide: Made the names of cases where results are to name nobody; None elsewhere.
    """

    cases: tuple[Case, ...]
    problems: tuple[tuple[Path, str], ...] = ()
    hide: Deidentifier | None = None


def find_cases(source: Path, out: Path | None = None, hide: Deidentifier | None = None) -> Source:
    """Every case of a source.

    Args:
        source: A folder of DICOM files in any nesting, a BIDS data set, a folder of NIfTI files, or a CSV or JSONL list
            with a column `path` (a NIfTI file or a folder of one study) and, if wanted, `case` (its name).
        out: The batch's folder: what lies in it is no case.
        hide: Where results are to name nobody. A case is then named by a digest of its received UID or of its path
            that nobody can make without the key; labels of BIDS and names that a list gives are pseudonyms and stay.

    Raises:
        Rejected: nothing is there, or nothing that could be a case; or `out` is the source, or holds it as a result.
    """
    leave_out = _results_of(out, source)
    if source.is_dir():
        found = _of_bids(source, leave_out, hide) or _of_folder(source, leave_out, hide)
    elif source.suffix.lower() in (".csv", ".jsonl"):
        found = _of_list(source, leave_out, hide)
    else:
        came = "a file" if source.exists() else "nothing"
        raise Rejected(f"{source}: expected a folder, or a list ending in .csv or .jsonl, found {came}")
    if not found.cases:
        why = f"; {found.problems[0][0]}: {found.problems[0][1]}" if found.problems else ""
        raise Rejected(f"{source}: expected NIfTI files or DICOM studies, found none{why}")
    names = [case.name for case in found.cases]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise Rejected(f"{source}: expected each case once, got {', '.join(twice[:5])} more than once")
    studies = {case.name for case in found.cases if not case.is_nifti}
    unclear = sorted(name for name in names if re.sub(r"-[0-9]+$", "", name) in studies - {name})
    if unclear:
        raise Rejected(
            f"{source}: expected no case under a name that a further series of another's study gets (that case's, '-' "
            f"and a number), got {', '.join(unclear[:5])}"
        )
    return Source(tuple(sorted(found.cases, key=lambda case: case.name)), found.problems, hide)


def _results_of(out: Path | None, source: Path) -> LeaveOut:
    """Whether a folder below the source is the batch's own.

    Raises:
        Rejected: the source is.
    """
    if out is None:
        return lambda _: False
    folder, place = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    results = [folder / name for name in RESULTS] if place.is_relative_to(folder) else [folder]
    if folder == place or any(place.is_relative_to(result) for result in results):
        raise Rejected(f"{source}: expected cases outside of the results, got OUT {out}: name another folder for them")
    return lambda path: Path(os.path.realpath(path)) in results


def _of_bids(folder: Path, leave_out: LeaveOut, hide: Deidentifier | None) -> Source | None:
    images, problems = _bids_images(folder, leave_out)
    if not images:
        return None
    cases: list[Case] = []
    times: dict[str, SubjectTimes] = {}
    for image in images:
        name, whose = NIFTI_NAME.sub("", image.name), image.relative_to(folder).parts[0]
        name = name.encode("utf-8", "replace").decode()
        if hide is not None and not BIDS_NAME.fullmatch(name):
            name = _name_of(image.relative_to(folder), hide)
        subject = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
        session = next((part for part in subject if part.startswith("ses-")), "")
        acquired = times.setdefault(whose, SubjectTimes(folder / whose)).of(image, session)
        cases.append(Case(name, (image,), {"": _sidecar(image, whose)}, "_".join(subject), acquired))
    return Source(tuple(cases), (*problems, *(problem for read in times.values() for problem in read.problems)))


def _bids_images(folder: Path, leave_out: LeaveOut) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The FLAIR of all subjects, and what could not be looked at on the way to them."""
    images: list[Path] = []
    problems: list[tuple[Path, str]] = []
    for subject in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        files, unread = files_below(subject, leave_out)
        # A link to an image that is not there is a case that says so; of other files it does not matter.
        there = [*files, *(path for path, why in unread if why == NOWHERE)]
        images += sorted(p for p in there if p.parent.name == "anat" and BIDS_FLAIR.search(p.name))
        problems += [problem for problem in unread if problem[1] != NOWHERE or not problem[0].suffix]
    return images, problems


def _sidecar(image: Path, whose: str) -> SeriesFacts:
    """What the JSON file beside a BIDS image says of the scanner, and the subject as the patient."""
    beside = image.with_name(NIFTI_NAME.sub("", image.name) + ".json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        said = {}
    said = said if isinstance(said, dict) else {}
    strength = said.get("MagneticFieldStrength")
    return SeriesFacts(
        patient_id=whose,
        manufacturer=str(said.get("Manufacturer", "")),
        model_name=str(said.get("ManufacturersModelName", "")),
        field_strength_t=float(strength) if isinstance(strength, int | float) and 0 < strength < 100 else None,
    )


def _of_folder(folder: Path, leave_out: LeaveOut, hide: Deidentifier | None) -> Source:
    """NIfTI files each as a case, and every other file as DICOM, by study; what is hidden is left out."""
    found, unread = files_below(folder, lambda path: path.name.startswith(".") or leave_out(path))
    files = [p for p in found if not p.name.startswith(".")]
    images = [p for p in files if NIFTI_NAME.search(p.name)]
    others = (p for p in files if not NIFTI_NAME.search(p.name) and p.suffix.lower() not in (".json", ".csv"))
    studies = _studies(others, hide)
    cases = [Case(_name_of(p.relative_to(folder), hide), (p,), {"": SeriesFacts()}) for p in images]
    return Source((*cases, *studies.cases), (*unread, *studies.problems))


def _name_of(path: Path, hide: Deidentifier | None) -> str:
    """A path below the source as one name; where results are to name nobody, a digest."""
    if hide is not None:
        return "case-" + hide.digest("case", str(path))[:12]
    plain = NIFTI_NAME.sub("", str(path))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip("._") or "case"
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{digest}_{name[len(digest) + 1 - LONGEST_NAME :]}"


def _studies(files: Iterable[Path], hide: Deidentifier | None) -> Source:
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
    cases = [Case(_study_name(uid, hide), tuple(paths), facts[uid]) for uid, paths in members.items()]
    return Source(tuple(cases), tuple(problems))


def _study_name(uid: str, hide: Deidentifier | None) -> str:
    """By the UID under which results show the study: who knows the received one does not find a pseudonym's study."""
    return "study-" + hashlib.sha256((uid if hide is None else hide.uid(uid)).encode()).hexdigest()[:12]


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


def _of_list(source: Path, leave_out: LeaveOut, hide: Deidentifier | None) -> Source:
    cases: list[Case] = []
    problems: list[tuple[Path, str]] = []
    for count, row in enumerate(_rows(source), start=1):
        column = next((c for c in LIST_COLUMNS if row.get(c)), None)
        if column is None:
            raise Rejected(f"{source}: row {count}: expected a column {' or '.join(LIST_COLUMNS)}, got {list(row)}")
        path = source.parent / str(row[column])
        name = str(row.get("case") or _name_of(Path(str(row[column])), hide))
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith(".") or len(name) > LONGEST_NAME:
            raise Rejected(
                f"{source}: row {count}: expected a case of letters, digits, '_', '-' and '.', at most {LONGEST_NAME}, "
                f"got {name!r}"
            )
        if os.path.isdir(path):  # noqa: PTH112 - whatever the list says, also what can be no path
            files, unread = files_below(path, leave_out)
            studies = _studies(files, hide)
            many = len(studies.cases) > 1
            cases += [Case(f"{name}-{c.name}" if many else name, c.files, c.facts) for c in studies.cases]
            if not studies.cases:  # its row says so
                cases.append(Case(name, (path,)))
            problems += [*unread, *studies.problems]
        elif os.path.isfile(path):  # noqa: PTH113
            cases.append(Case(name, (path,), {"": SeriesFacts()}))
        else:
            problems.append((path, "expected a file or a folder, found nothing"))
            cases.append(Case(name, (path,)))
    return Source(tuple(cases), tuple(problems))


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            if source.suffix.lower() == ".csv":
                yield from _csv_rows(source, csv.DictReader(file))
                return
            for count, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise Rejected(f"{source}: line {count}: expected a JSON object, got {line.strip()[:60]}")
                yield row
    except (ValueError, RecursionError, csv.Error) as error:
        expected = "CSV" if source.suffix.lower() == ".csv" else "JSON lines"
        raise Rejected(f"{source}: expected {expected}: {error}") from error


def _csv_rows(source: Path, table: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    """Rows no longer than the header: in a longer one a value with a comma has become two, and a path may be cut."""
    for count, row in enumerate(table, start=1):
        if None in row:
            columns = list(table.fieldnames or ())
            raise Rejected(f"{source}: row {count}: expected {len(columns)} columns {columns}, got more")
        yield row
