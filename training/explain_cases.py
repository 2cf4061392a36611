"""Volumes with known lesions to judge explanations on: phantoms, folders of cases, real scans with drawn lesions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from training.errors import DataError
from training.evaluation.cases import EvaluationCase, folder_cases, inserted_cases
from training.evaluation.explanations import BenchCase
from training.phantoms.phantom import make_phantom


def explain_cases(
    *, seed: int, count: int, folder: Path | None = None, insert: tuple[Path, ...] = ()
) -> Iterator[BenchCase]:
    """Cases with a lesion, each read or drawn when its turn comes.

    Args:
        seed: Of the first phantom, or of the first inserted lesion.
        count: Phantoms, or lesions in each scan of `insert`.
        folder: Cases as `braingemma phantom` writes them, in place of phantoms; those without a lesion are left out.
        insert: Real scans without a mass, in place of phantoms.

    Raises:
        DataError: both were given, or the folder holds no case.
        VolumeError: a picture cannot be read.
    """
    if folder is not None and insert:
        raise DataError("expected either a folder of cases or scans to insert lesions into, got both")
    if folder is not None:
        return _opened(folder_cases(folder))
    if insert:
        return _opened(inserted_cases(insert, count, seed))
    return _phantoms(seed, count)


def _phantoms(seed: int, count: int) -> Iterator[BenchCase]:
    for number in range(count):
        phantom = make_phantom(seed + number, with_lesion=True)
        yield from _case(phantom.volume, phantom.lesion)


def _opened(cases: list[EvaluationCase] | Iterator[EvaluationCase]) -> Iterator[BenchCase]:
    for case in cases:
        yield from _case(*case.open())


def _case(image: nibabel.Nifti1Image, mask: nibabel.Nifti1Image | None) -> Iterator[BenchCase]:
    """The case; nothing where there is no lesion."""
    lesion = None if mask is None else np.asarray(nibabel.as_closest_canonical(mask).dataobj) > 0
    if lesion is not None and lesion.any():
        yield BenchCase(image, lesion)
