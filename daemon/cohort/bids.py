"""Cases of a batch as a BIDS derivative data set (BIDS 1.10, "BIDS Derivatives"): masks, maps and a phenotype table."""

from __future__ import annotations

import csv
import io
import re
import shutil
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
    subjects: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        case = out / str(row["folder"])
        record = CaseRecord.read(case / CASE_FILE)
        entities = record.subject or f"sub-{re.sub('[^A-Za-z0-9]', '', record.case)}"
        subjects[entities] = row
        if record.status == "reported":
            _write_case(JobFolder(case), folder, entities)
    _write_phenotype(subjects, folder)


def _write_case(case: JobFolder, folder: Path, entities: str) -> None:
    anat = folder.joinpath(*entities.split("_"), "anat")
    report = Report.read(case.report_json)
    for ending, (name, description) in _MAPS.items():
        source = case.root / name
        if not source.exists():
            continue
        anat.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, anat / f"{entities}_{ending}.nii.gz")
        write_json(
            anat / f"{entities}_{ending}.json",
            {
                "Description": description,
                "SpatialReference": "orig",
                "ReportDraft": report.report,
                "ReportWarnings": list(report.warnings),
                "IntendedUse": report.intended_use,
            },
        )


def _write_phenotype(subjects: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """The table, one line for each subject and session (BIDS: "Phenotypic and assessment data")."""
    text = io.StringIO(newline="")
    kept = [name for name in COLUMNS if name not in ("case", "patient_id", "folder")]
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    sessions = any("_ses-" in entities for entities in subjects)
    writer.writerow(["participant_id", *(["session_id"] if sessions else []), *kept])
    for entities, row in sorted(subjects.items()):
        subject, _, session = entities.partition("_")
        cells = ["n/a" if row[name] is None else _cell(row[name]) for name in kept]
        writer.writerow([subject, *([session or "n/a"] if sessions else []), *cells])
    make_private(folder / "phenotype")
    write_durably(folder / "phenotype" / f"{_TABLE}.tsv", text.getvalue().encode())
    write_json(folder / "phenotype" / f"{_TABLE}.json", dict(_meanings(kept)))
    participants = sorted({entities.partition("_")[0] for entities in subjects})
    write_durably(folder / "participants.tsv", "\n".join(["participant_id", *participants, ""]).encode())


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
`phenotype/braingemma.tsv` has one line for each subject and session. Left and right are the patient's.
"""
