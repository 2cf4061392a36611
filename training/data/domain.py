"""What pictures look like that a model is trained on: written once, and held against every picture that is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np

from braingemma.checks.domain import Domain
from braingemma.checks.input import picture_features
from training.errors import TrainingError
from training.phantoms.phantom import make_phantom

Features = dict[str, float]
Item = TypeVar("Item")


def measure_phantoms(seeds: Iterable[int], processes: int = 1) -> Domain:
    """The domain of phantoms."""
    return _domain("phantoms", seeds, _phantom_features, processes)


def measure_files(name: str, paths: Iterable[Path], processes: int = 1) -> Domain:
    """The domain of NIfTI volumes that hold brains."""
    return _domain(name, paths, _file_features, processes)


def _domain(name: str, items: Iterable[Item], measure: Callable[[Item], Features | None], processes: int) -> Domain:
    with ProcessPoolExecutor(processes) as pool:
        pictures = [features for features in pool.map(measure, items, chunksize=4) if features is not None]
    try:
        return Domain.measure(name, pictures)
    except ValueError as error:
        raise TrainingError(f"{name}: {error}, got {len(pictures)} in which a brain was found") from error


def _phantom_features(seed: int) -> Features | None:
    return _features(make_phantom(seed).volume)


def _file_features(path: Path) -> Features | None:
    return _features(nib.load(path))


def _features(image: nib.Nifti1Image) -> Features | None:
    canonical = nib.as_closest_canonical(image)
    volume = np.asarray(canonical.get_fdata(dtype=np.float32))
    return picture_features(volume, np.asarray(canonical.affine, dtype=np.float64)[:3, :3])
