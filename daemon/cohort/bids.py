"""Cases of a batch as a BIDS derivative data set (BIDS 1.10, "BIDS Derivatives"): masks, maps and a phenotype table."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from daemon.cohort.batch import CASE_FILE, CaseRecord
from daemon.cohort.table import COLUMNS
from daemon.files import make_private, write_durably, write_json
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report

BIDS_VERSION = "1.10.0"
_MAPS = {
    "desc-brain_mask": ("brain_mask.nii.gz", "Brain mask that the report's maps and measurements used."),
    "desc-lesion_probseg": ("explain/grounding.nii.gz", "Share of lesion by the model's grounding map, 0 to 1."),
}
_TABLE = "braingemma"
_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk")
"""Of a raw image, those that names of masks and maps keep, in the order of the standard."""

Entities = dict[str, str]
"""Entity to label: `{"sub": "01", "run": "2"}`."""


def write_bids(rows: Sequence[Mapping[str, Any]], out: Path, folder: Path) -> None:
    """Write the reported cases as a derivative data set; what an earlier call wrote there is replaced.

    Args:
        rows: Of `table.rows_of`.
        out: The batch's folder.
        folder: Of the data set.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)
    write_json(folder / "dataset_description.json", _description())
    write_durably(folder / "README.md", _README.encode())
    records = [CaseRecord.read(out / str(row["folder"]) / CASE_FILE) for row in rows]
    cases = list(zip(entities_of(records), rows, strict=True))
    for (entities, row), record in zip(cases, records, strict=True):
        if record.status == "reported":
            _write_case(JobFolder(out / str(row["folder"])), folder, entities)
    _write_phenotype(cases, folder)


def entities_of(records: Sequence[CaseRecord]) -> list[Entities]:
    """The entities under which each case stands, no two alike.

    A case of a BIDS data set keeps its own. Any other gets its name for a subject; where letters and digits alone do
    not tell it from another, a digest of the name follows.
    """
    found = [_own_entities(record) for record in records]
    pairs = list(zip(found, records, strict=True))
    subjects = Counter({own["sub"].casefold() for own, record in pairs if _is_bids(record)})
    subjects.update(own["sub"].casefold() for own, record in pairs if not _is_bids(record))
    names = Counter(_name(own) for own, record in pairs if _is_bids(record))
    for own, record in pairs:
        digest = hashlib.sha256(record.case.encode()).hexdigest()[:8]
        if not _is_bids(record) and (not own["sub"] or subjects[own["sub"].casefold()] > 1):
            own["sub"] += digest
        elif _is_bids(record) and names[_name(own)] > 1:  # told apart by an entity that no mask can have
            own["acq"] = own.get("acq", "") + digest
    return found


def _is_bids(record: CaseRecord) -> bool:
    return record.subject.startswith("sub-")


def _own_entities(record: CaseRecord) -> Entities:
    if not _is_bids(record):
        return {"sub": re.sub("[^A-Za-z0-9]", "", record.case)}
    return {key: label for key, mark, label in (part.partition("-") for part in record.case.split("_")) if mark}


def _name(entities: Entities) -> str:
    return "_".join(f"{key}-{entities[key]}" for key in _ENTITIES if key in entities)


def _write_case(case: JobFolder, folder: Path, entities: Entities) -> None:
    anat = folder.joinpath(*(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities), "anat")
    report = Report.read(case.report_json)
    for ending, (name, description) in _MAPS.items():
        source = case.root / name
        if not source.exists():
            continue
        anat.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, anat / f"{_name(entities)}_{ending}.nii.gz")
        write_json(
            anat / f"{_name(entities)}_{ending}.json",
            {
                "Description": description,
                "SpatialReference": "orig",
                "ReportDraft": report.report,
                "ReportWarnings": list(report.warnings),
                "IntendedUse": report.intended_use,
            },
        )


def _write_phenotype(cases: Sequence[tuple[Entities, Mapping[str, Any]]], folder: Path) -> None:
    """A line for each case (BIDS: "Phenotypic and assessment data").

    A participant stands once in a table (`index_columns` of the standard's schema, BIDS 1.10 and 1.11): where one has
    several cases, there is a table for each session, run and so on.
    """
    make_private(folder / "phenotype")
    times = Counter(entities["sub"] for entities, _ in cases)
    many = max(times.values(), default=0) > 1
    tables: dict[str, list[tuple[Entities, Mapping[str, Any]]]] = {} if cases else {_TABLE: []}
    for entities, row in cases:
        rest = _name({key: label for key, label in entities.items() if key != "sub"}) if many else ""
        tables.setdefault(f"{_TABLE}_{rest}" if rest else _TABLE, []).append((entities, row))
    keys = [key for key in ("ses", "run") if any(key in entities for entities, _ in cases)]
    for name, members in tables.items():
        _write_table(folder / "phenotype" / f"{name}.tsv", members, keys)
    participants = sorted(f"sub-{subject}" for subject in times)
    write_durably(folder / "participants.tsv", "\n".join(["participant_id", *participants, ""]).encode())


def _write_table(file: Path, cases: Sequence[tuple[Entities, Mapping[str, Any]]], keys: Sequence[str]) -> None:
    text = io.StringIO(newline="")
    kept = [name for name in COLUMNS if name not in ("patient_id", "folder")]
    names = {"ses": "session_id", "run": "run_id"}
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["participant_id", *(names[key] for key in keys), *kept])
    for entities, row in sorted(cases, key=lambda case: _name(case[0])):
        whose = [f"{key}-{entities[key]}" if key in entities else "n/a" for key in ("sub", *keys)]
        writer.writerow([*whose, *("n/a" if row[name] is None else _cell(row[name]) for name in kept)])
    write_durably(file, text.getvalue().encode())
    write_json(file.with_suffix(".json"), dict(_meanings([*(names[key] for key in keys), *kept])))


def _cell(value: Any) -> str:
    return re.sub(r"[\t\r\n]+", " ", str(value))


def _meanings(columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    yield "MeasurementToolMetadata", {"Description": "BrainGemma3D report drafts; research use only, not verified"}
    for name in columns:
        yield name, {"Description": name.replace("_", " ")}


def _description() -> dict[str, Any]:
    version = metadata.version("braingemma3d-pacs")
    return {
        "Name": "BrainGemma3D report drafts (research use only)",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "BrainGemma3D for PACS", "Version": version}],
        "License": "n/a",
    }


_README = """# BrainGemma3D report drafts

Made by BrainGemma3D for PACS from FLAIR images. Research use only: unverified drafts of a model, never for diagnosis.
`phenotype/braingemma*.tsv` have one line for each case; where a participant has several, one table for each session and
run. Left and right are the patient's.
"""
