"""The card's data on disk, as records: BraTS 2020 with TextBraTS reports, and MPI-Leipzig Mind-Brain-Body controls.

Layouts: BraTS 2020 has one folder `BraTS20_Training_NNN` for each patient with `..._flair.nii[.gz]` and a segmentation;
TextBraTS has `BraTS20_Training_NNN/..._flair_text.txt`, and `Train.json` and `Test.json` for its official split;
Mind-Brain-Body is BIDS: `sub-NNN/[ses-NN/]anat/sub-NNN_..._FLAIR.nii[.gz]`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import numpy as np

from braingemma.findings.vocabulary import FINDINGS, Finding
from training.data.records import SPLITS, Record, check_records, raise_all, write_manifest
from training.data.splits import stable_number, with_splits
from training.errors import DataError
from training.phantoms.wording import write_report

BRATS: Final = "BraTS 2020 with TextBraTS reports"
CONTROLS: Final = "healthy controls of a BIDS folder"
_BRATS_ID: Final = re.compile(r"BraTS20_Training_\d{3}")
_BIDS_NAME: Final = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*_FLAIR\.nii(\.gz)?")


def brats_records(images: Path, reports: Path, splits: Path | None = None) -> list[Record]:
    """BraTS 2020's patients that have a TextBraTS report.

    Args:
        images: Folder above `BraTS20_Training_NNN`.
        reports: TextBraTS's folder, or a JSONL file with `id` and `report`.
        splits: Folder with `Train.json` and `Test.json`; None: no split is stated.

    Raises:
        DataError: every file that is missing, at once.
    """
    texts = _texts(reports)
    official = official_splits(splits) if splits is not None else {}
    if official and set(texts) - set(official):
        raise DataError(f"{splits}: no official split for {', '.join(sorted(set(texts) - set(official))[:10])}")
    records, problems = [], []
    for case, text in sorted(texts.items()):
        found = sorted((images / case).glob(f"{case}_flair.nii*"))
        if not found:
            problems.append(f"{images / case / case}_flair.nii[.gz]: missing")
            continue
        # Patient 355's segmentation has another name than all others in the public release.
        masks = sorted(p for p in (images / case).glob("*.nii*") if "_seg" in p.name.lower())
        records.append(Record(case, found[0], text, case, masks[0] if masks else None, official.get(case), BRATS))
    raise_all(problems)
    return records


def _texts(reports: Path) -> dict[str, str]:
    """Case to report."""
    if reports.is_dir():
        files = {_BRATS_ID.search(p.name): p for p in sorted(reports.rglob("BraTS20_Training_*_flair_text.txt"))}
        found = {match.group(): path.read_text(encoding="utf-8").strip() for match, path in files.items() if match}
    elif reports.is_file():
        entries = [json.loads(line) for line in reports.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = {str(entry["id"]): str(entry["report"]).strip() for entry in entries}
    else:
        raise DataError(f"{reports}: no such file or folder")
    if not found:
        raise DataError(f"{reports}: expected TextBraTS reports (BraTS20_Training_NNN_flair_text.txt), found none")
    raise_all([f"{reports}: the report of {case} is empty" for case, text in found.items() if not text])
    return found


def official_splits(folder: Path) -> dict[str, str]:
    """Case to "train" or "test", from TextBraTS's `Train.json` and `Test.json` (276 and 93 cases).

    Raises:
        DataError: a file is missing, broken, or the two share a case.
    """
    cases: dict[str, set[str]] = {}
    for split in ("train", "test"):
        path = folder / f"{split.capitalize()}.json"
        try:
            listed = json.dumps(json.loads(path.read_text(encoding="utf-8"))["training"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not TextBraTS's list of cases: {error!r}") from error
        cases[split] = set(_BRATS_ID.findall(listed))
    both = cases["train"] & cases["test"]
    if both:
        raise DataError(f"{folder}: in Train.json and Test.json: {', '.join(sorted(both))}")
    return {case: split for split, names in cases.items() for case in names}


def control_records(root: Path) -> list[Record]:
    """One FLAIR of each participant of a BIDS folder, with a healthy report; the first session, by name.

    Raises:
        DataError: there is none.
    """
    first: dict[str, Path] = {}
    for path in sorted(root.glob("sub-*/**/anat/*_FLAIR.nii*")):
        if _BIDS_NAME.fullmatch(path.name):
            first.setdefault(path.name.split("_")[0], path)
    if not first:
        raise DataError(f"{root}: expected sub-*/[ses-*/]anat/sub-*_FLAIR.nii[.gz] (BIDS), found none")
    return [Record(name, path, healthy_report(name), name, source=CONTROLS) for name, path in first.items()]


def healthy_report(patient: str) -> str:
    """A report without findings; its wording follows from the patient's name alone, in every process."""
    absent = tuple(Finding(name, "absent") for name in FINDINGS)
    return write_report(absent, np.random.default_rng(stable_number(patient)))


def manifest(
    out: Path, *, brats: Path | None, reports: Path | None, splits: Path | None, controls: Path | None, seed: int = 0
) -> dict[str, int]:
    """Write one manifest for BraTS 2020 with TextBraTS and for controls; returns the cases of each split.

    Raises:
        DataError: everything that is missing or in two splits, at once.
    """
    records: list[Record] = []
    if brats is not None:
        records += with_splits(brats_records(brats, reports or brats, splits), seed)
    if controls is not None:
        records += with_splits(control_records(controls), seed)
    if not records:
        raise DataError("expected a folder of BraTS 2020, of controls, or both")
    check_records(records)
    write_manifest(records, out)
    return {split: sum(record.split == split for record in records) for split in SPLITS}
