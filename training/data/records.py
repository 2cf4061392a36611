"""Real cases: what a manifest lists, checked as a whole before anything is trained on it.

A manifest is a CSV or JSONL file with `image` and `report` for each case, and where known `mask`, `patient`, `split`,
`id` and `source`. Paths are relative to the manifest. Patients without a name are taken for one each.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from training.errors import DataError

SPLITS: Final = ("train", "val", "test")
_FIELDS: Final = ("id", "image", "report", "mask", "patient", "split", "source")


@dataclass(frozen=True)
class Record:
    """One case.

    Attributes:
        name: What messages and tables call it.
        image: FLAIR, NIfTI.
        report: Reference report.
        patient: Whose it is; never in two splits.
        mask: Lesion mask on the grid of the image, NIfTI, above 0 in the lesion; None: unknown.
        split: "train", "val" or "test"; None: not yet decided.
        source: The data set that it comes from, in words; empty: not stated.
    """

    name: str
    image: Path
    report: str
    patient: str
    mask: Path | None = None
    split: str | None = None
    source: str = ""


def read_manifest(path: Path) -> list[Record]:
    """The cases of a CSV or JSONL manifest.

    Raises:
        DataError: every line that cannot be used, at once.
    """
    records, problems = _parse(path)
    raise_all(problems)
    return records


def read_checked(path: Path) -> list[Record]:
    """The cases of a manifest with every file read once.

    Raises:
        DataError: every line that cannot be used and everything that is missing, broken or inconsistent, at once.
    """
    records, problems = _parse(path)
    raise_all([*problems, *partly_split(records), *_inconsistent(records)])
    return records


def _parse(path: Path) -> tuple[list[Record], list[str]]:
    """(the cases of the lines that can be used, what is wrong with the others)."""
    try:
        rows = _rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable manifest: {error}") from error
    records, problems = [], []
    for number, row in rows:
        fault = _fault(row)
        if fault:
            problems.append(f"{path}:{number}: {fault}")
        else:
            records.append(_record(row, path.parent))
    if not records and not problems:
        problems = [f"{path}: expected lines with image and report, found none"]
    return records, problems


def _rows(path: Path) -> list[tuple[int, Any]]:
    """(line number, row); a row that is no JSON object stays the text that it is."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        return [(number, row) for number, row in enumerate(csv.DictReader(text.splitlines()), 2)]
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError:
                rows.append((number, line))
    return rows


def _fault(row: Any) -> str | None:
    if not isinstance(row, Mapping):
        return f"expected one JSON object, got {str(row)[:60]!r}"
    missing = [key for key in ("image", "report") if not row.get(key)]
    if missing:
        return f"{' and '.join(missing)} missing; known columns are {', '.join(_FIELDS)}"
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        return f"split must be one of {', '.join(SPLITS)}, got {split!r}"
    return None


def _record(row: Mapping[str, Any], folder: Path) -> Record:
    image = folder / str(row["image"])
    name = str(row.get("id") or image.name.removesuffix(".gz").removesuffix(".nii"))
    return Record(
        name=name,
        image=image,
        report=str(row["report"]).strip(),
        patient=str(row.get("patient") or row.get("id") or image),
        mask=folder / str(row["mask"]) if row.get("mask") else None,
        split=row.get("split") or None,
        source=str(row.get("source") or ""),
    )


def write_manifest(records: Iterable[Record], path: Path) -> None:
    """As JSONL, with absolute paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for record in records:
        entry = {"id": record.name, "image": str(record.image.resolve()), "report": record.report}
        entry |= {"mask": str(record.mask.resolve())} if record.mask else {}
        entry |= {"source": record.source} if record.source else {}
        lines.append(json.dumps({**entry, "patient": record.patient, "split": record.split}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_records(records: Sequence[Record]) -> None:
    """Read every file once, and look for patients in two splits.

    Raises:
        DataError: everything that is missing, broken or inconsistent, at once.
    """
    raise_all(_inconsistent(records))


def partly_split(records: Sequence[Record]) -> list[str]:
    """One line where splits are stated for some records alone."""
    unstated = [record.name for record in records if record.split is None]
    if not unstated or len(unstated) == len(records):
        return []
    named = ", ".join(unstated[:10])
    return [f"{len(unstated)} of {len(records)} cases state no split ({named}): state it for all or for none"]


def _inconsistent(records: Sequence[Record]) -> list[str]:
    problems = leaks(records)
    images = [record.image.resolve() for record in records]
    problems += [
        f"{image}: listed {images.count(image)} times" for image in dict.fromkeys(images) if images.count(image) > 1
    ]
    for record in records:
        problems += _file_problems(record)
    return problems


def leaks(records: Sequence[Record]) -> list[str]:
    """One line for each patient that is in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.split is not None:
            splits[record.patient].add(record.split)
    return [f"patient {p}: in the splits {' and '.join(sorted(s))}" for p, s in sorted(splits.items()) if len(s) > 1]


def _file_problems(record: Record) -> list[str]:
    image, problem = _grid(record.image)
    problems = [problem] if problem else []
    if record.mask is None:
        return problems
    mask, problem = _grid(record.mask)
    problems += [problem] if problem else []
    if image and mask:
        if image[0] != mask[0]:
            problems.append(f"{record.mask}: shape {mask[0]}, but the image's is {image[0]}")
        elif not np.allclose(image[1], mask[1], atol=1e-2):
            problems.append(f"{record.mask}: its header places it elsewhere than {record.image.name}")
    return problems


def _grid(path: Path) -> tuple[tuple[tuple[int, ...], Any] | None, str | None]:
    """((shape, affine) in RAS order, None) of a NIfTI file whose voxels can all be read, or (None, what is wrong)."""
    try:
        picture = nibabel.load(path)
        voxels = np.asanyarray(picture.dataobj)
    except FileNotFoundError:
        return None, f"{path}: missing"
    except (ImageFileError, EOFError, OSError, HeaderDataError, ValueError) as error:
        return None, f"{path}: not a readable NIfTI volume: {' '.join(str(error).split())[:120]}"
    if voxels.ndim != 3:
        return None, f"{path}: expected one 3D volume, got shape {voxels.shape}"
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        return None, f"{path}: voxels that are NaN or infinite"
    canonical = nibabel.as_closest_canonical(picture)
    return (canonical.shape, canonical.affine), None


def raise_all(problems: Sequence[str], limit: int = 200) -> None:
    """One error for all problems; nothing where there are none."""
    if not problems:
        return
    more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
    found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError("\n".join([f"{found} in the data:", *problems[:limit], *more]))
