"""`braingemma bench convert`: a folder of DICOM files to RAS NIfTI, beside dicom2nifti alone on the same files.

Both start at the folder and end with a compressed file on disk. What ours does more: it proves the geometry from the
headers, decodes each slice a second time by pydicom and compares, and ends in RAS. Runs alternate, so that both meet
the same machine; medians count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.converters import quiet_dicom2nifti
from dicom_io.volume.nifti import convert_series

SIDE = 240
"""Rows and columns, as in BraTS."""


def bench_convert(*, slices: int = 155, rounds: int = 5, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Median seconds of each, and our ratio to dicom2nifti as it is called by default, and without its reorientation.

    Args:
        slices: Of the series, each of 240 x 240 pixels.
        rounds: Runs of each, after one that is not counted.
        say: Told what is being done.
    """
    ways: dict[str, Callable[[Path, Path], None]] = {
        "braingemma": _ours,
        "dicom2nifti": partial(_theirs, reorient=True),  # its default, and the like of ending in RAS
        "dicom2nifti_not_reoriented": partial(_theirs, reorient=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="braingemma-bench-") as temporary:
        root = Path(temporary)
        write_series(_head(slices), root / "series")
        for number in range(rounds + 1):
            for name, convert in ways.items():
                say(f"round {number}/{rounds}: {name}")
                started = time.perf_counter()
                convert(root / "series", root / f"{name}.nii.gz")
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    return {
        "series": f"{slices} slices of {SIDE} x {SIDE}",
        "rounds": rounds,
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratios": {f"vs_{n}": round(medians["braingemma"] / medians[n], 3) for n in medians if n != "braingemma"},
    }


def _head(slices: int) -> nib.Nifti1Image:
    """A bright noisy body in a dark noisy field, which compresses about as a head does."""
    rng = np.random.default_rng(3)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (SIDE, SIDE, slices)), indexing="ij")
    inside = (x / 0.6) ** 2 + (y / 0.75) ** 2 + (z / 0.9) ** 2 < 1
    voxels = np.where(inside, 1200 + 400 * np.sin(9 * x) * np.cos(7 * y), 0) + rng.normal(20, 8, inside.shape)
    return nib.Nifti1Image(np.clip(voxels, 0, 4095).astype(np.int16), np.eye(4))


def _ours(folder: Path, out: Path) -> None:
    [series] = scan_folder(folder).series
    convert_series(series, out)


def _theirs(folder: Path, out: Path, *, reorient: bool) -> None:
    with quiet_dicom2nifti() as package:
        package.dicom_series_to_nifti(str(folder), str(out), reorient_nifti=reorient)
