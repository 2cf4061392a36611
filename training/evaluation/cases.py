"""Cases to judge: phantoms drawn on the spot or written as folders, manifests, real scans with inserted lesions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from braingemma.errors import VolumeError
from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import FINDINGS, Finding, Laterality
from training.data.records import Record, raise_all, read_manifest
from training.data.splits import chosen, stable_number
from training.errors import DataError
from training.evaluation.metrics import Findings
from training.phantoms.generator import Difficulty
from training.phantoms.insertion import insert_lesion
from training.phantoms.phantom import make_phantom
from training.phantoms.wording import write_report

Pictures = tuple[Any, Any | None]
"""(image, lesion mask or None), both nibabel images."""
_LOBES: Final = ("frontal", "parietal", "temporal", "occipital")


@dataclass(frozen=True)
class EvaluationCase:
    """One case with its truth; the picture is read when its turn comes.

    Attributes:
        name: Of the case.
        truth: What is true of it.
        reference: A report that says so.
        open: Reads the picture and the lesion mask; raises `VolumeError` where that fails.
    """

    name: str
    truth: Findings
    reference: str
    open: Callable[[], Pictures]


def phantom_cases(seeds: Sequence[int], difficulty: Difficulty = "plain") -> Iterator[EvaluationCase]:
    """Phantoms as `braingemma phantom` draws them."""
    for seed in seeds:
        phantom = make_phantom(seed, difficulty=difficulty)
        pictures = (phantom.volume, phantom.lesion)
        yield EvaluationCase(f"phantom-{seed}", phantom.findings, str(phantom.truth["report"]), _kept(*pictures))


def folder_cases(root: Path) -> list[EvaluationCase]:
    """Cases as `braingemma phantom` writes them: folders with `flair.nii.gz`, `truth.json` and `lesion.nii.gz`.

    Raises:
        DataError: no case, or everything that is missing, at once. Pictures that are there but broken fail later, as
            cases.
    """
    cases, problems = [], []
    folders = sorted({p.parent for name in ("truth.json", "flair.nii.gz") for p in root.glob(f"*/{name}")})
    for folder in folders:
        picture, mask = folder / "flair.nii.gz", folder / "lesion.nii.gz"
        try:
            stated = json.loads((folder / "truth.json").read_text())
            truth = tuple(Finding.from_json(entry) for entry in stated["findings"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{folder / 'truth.json'}: {error!r}")
            continue
        if not picture.exists():
            problems.append(f"{picture}: missing")
        reference = str(stated.get("report") or _report_of(truth, folder.name))
        cases.append(EvaluationCase(folder.name, truth, reference, _opener(picture, mask if mask.exists() else None)))
    raise_all(problems)
    if not cases:
        raise DataError(f"{root}: expected folders with truth.json and flair.nii.gz, found none")
    return cases


def manifest_cases(path: Path, split: str | None = None) -> list[EvaluationCase]:
    """Cases of a manifest, or of one split of it; the truth is read from the reference reports.

    Raises:
        DataError: lines that cannot be used, all at once, or no case in that split.
    """
    records = read_manifest(path)
    picked: list[Record] = chosen(records, split) if split else records
    return [EvaluationCase(r.name, findings_from_text(r.report), r.report, _opener(r.image, r.mask)) for r in picked]


INSERTED_RATIOS: Final = (1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8)
"""Brightness of inserted lesions over the brain's median, in turn."""


def inserted_cases(
    scans: Sequence[Path], each: int = 8, seed: int = 0, *, hard: bool = False
) -> Iterator[EvaluationCase]:
    """Real scans without a mass: each as it is, and with one drawn lesion in turn in every lobe of both sides.

    `hard`: as bright as `INSERTED_RATIOS` say, in each scan another one in the same lobe; otherwise that is drawn.
    """
    ratios = cycle(INSERTED_RATIOS if hard else (None,))
    for scan in scans:
        name = scan.name.removesuffix(".gz").removesuffix(".nii")
        absent = tuple(Finding(finding, "absent") for finding in FINDINGS)
        yield EvaluationCase(name, absent, _report_of(absent, name), _opener(scan, None))
        for number, (region, side) in zip(range(each), _places(), strict=False):
            yield _inserted(scan, f"{name} + {side} {region}", seed + number, region, side, next(ratios))


def _inserted(scan: Path, label: str, seed: int, region: str, side: Laterality, ratio: float | None) -> EvaluationCase:
    """The scan with a lesion; one that cannot be read is a case whose picture fails to open."""
    try:
        found = insert_lesion(load_picture(scan), seed, region=region, side=side, brightness=ratio)
    except VolumeError as error:
        wanted = (Finding("lesion", "present", side, (region,)), *(Finding(n, "absent") for n in FINDINGS[1:]))
        return EvaluationCase(label, wanted, _report_of(wanted, label), _failing(str(error)))
    return EvaluationCase(label, found.findings, _report_of(found.findings, label), _kept(found.volume, found.lesion))


def _failing(reason: str) -> Callable[[], Pictures]:
    def fail() -> Pictures:
        raise VolumeError(reason)

    return fail


def _places() -> Iterator[tuple[str, Laterality]]:
    sides: tuple[Laterality, ...] = ("left", "right")
    while True:
        yield from product(_LOBES, sides)


def _report_of(truth: Findings, name: str) -> str:
    """A report that states the truth; what is not known is worded as not there."""
    known = {f.finding: f for f in truth if f.presence != "undetermined"}
    whole = [known.get(finding) or Finding(finding, "absent") for finding in FINDINGS]
    return write_report(whole, np.random.default_rng(stable_number(name)))


def _kept(image: Any, mask: Any) -> Callable[[], Pictures]:
    return lambda: (image, mask)


def _opener(picture: Path, mask: Path | None) -> Callable[[], Pictures]:
    return lambda: (load_picture(picture), load_picture(mask) if mask is not None else None)


def load_picture(path: Path) -> Any:
    """A NIfTI file with its voxels read.

    Raises:
        VolumeError: it is missing or broken.
    """
    try:
        image = nibabel.load(path)
        image.get_fdata(dtype=np.float32)
    except FileNotFoundError as error:
        raise VolumeError(f"{path}: no such file") from error
    except (ImageFileError, EOFError, OSError, HeaderDataError, ValueError) as error:
        raise VolumeError(f"{path.name}: not a readable NIfTI volume: {error}") from error
    return image
