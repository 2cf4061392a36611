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
from training.data.records import read_manifest
from training.errors import TrainingError
from training.phantoms.phantom import make_phantom
from training.progress import Say

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


def domain(out: Path, say: Say, *, manifest: Path | None, split: str, count: int, seed: int) -> str:
    """Measure what weights are trained on, and write it; beside the weights it is held against every picture.

    Args:
        out: The file, `domain.json` beside the weights.
        say: Told what is being done.
        manifest: The training cases; None: phantoms.
        split: Of the manifest.
        count: Pictures to measure at most.
        seed: Of the first phantom.

    Returns:
        What was measured, in words.
    """
    if manifest is None:
        say(f"measuring {count} phantoms")
        found = measure_phantoms(range(seed, seed + count))
    else:
        paths = [r.image for r in read_manifest(manifest) if r.split in (None, split)][:count]
        say(f"measuring {len(paths)} pictures")
        found = measure_files(f"training pictures of {manifest.stem}", paths)
    found.save(out)
    return f"{out}: {found.count} {found.name}"
