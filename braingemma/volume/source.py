"""A NIfTI file as it came, checked: no torch here, so that whoever only reads a volume need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from braingemma.errors import VolumeError
from braingemma.volume.resampling import Volume

#: A volume with fewer slices than this along any axis is a localizer or a single picture, not a brain volume.
MINIMUM_SLICES = 10


@dataclass(frozen=True, eq=False)
class SourceVolume:
    """One finite 3D volume in RAS order.

    Attributes:
        voxels: (X, Y, Z) float32, a copy that may be changed.
        affine: (4, 4): voxel to RAS mm.
        warnings: What a reader of the report should know about the header.
    """

    voxels: Volume
    affine: npt.NDArray[np.float64]
    warnings: tuple[str, ...]


def read_source(path: str | Path) -> SourceVolume:
    """Read a NIfTI file; its header alone says where right, front and top are.

    Raises:
        VolumeError: the file is not one finite 3D volume of at least 10 slices along each axis.
    """
    try:
        return check_source(nibabel.load(path), Path(path).name)
    except FileNotFoundError as error:
        raise VolumeError(f"{path}: no such file") from error
    except (ImageFileError, EOFError, OSError, HeaderDataError) as error:
        raise VolumeError(f"{Path(path).name}: not a readable NIfTI volume: {error}") from error


def check_source(image: Any, name: str) -> SourceVolume:
    """Check a nibabel image, and bring it into RAS order.

    Args:
        image: A nibabel spatial image.
        name: What messages call it.

    Raises:
        VolumeError: see `read_source`.
    """
    _check_header(image, name)
    canonical = nibabel.as_closest_canonical(image)
    affine = np.asarray(canonical.affine, dtype=np.float64)
    return SourceVolume(_voxels(canonical, name), affine, _orientation_warnings(image))


def _check_header(image: Any, name: str) -> None:
    """What must hold before the voxels are read."""
    shape = tuple(image.shape)
    if len(shape) != 3:
        raise VolumeError(f"{name}: expected one 3D volume, got {len(shape)} dimensions {shape}")
    if min(shape) < MINIMUM_SLICES:
        raise VolumeError(f"{name}: expected at least {MINIMUM_SLICES} slices along each axis, got {shape}")
    affine = np.asarray(image.affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{name}: the header's affine has no three independent axes: {affine.tolist()}")
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(f"{name}: expected one number for each voxel, got data of type {image.get_data_dtype()}")
    if _codes(image) == (0, 0):
        raise VolumeError(
            f"{name}: the header states no orientation (qform_code and sform_code are 0), so left and right are unknown"
        )


def _codes(image: Any) -> tuple[int, int] | None:
    """(qform_code, sform_code); None for formats whose affine is always stated."""
    header = image.header
    if "qform_code" not in header or "sform_code" not in header:
        return None
    return int(header["qform_code"]), int(header["sform_code"])


def _orientation_warnings(image: Any) -> tuple[str, ...]:
    """Where the two affines of a NIfTI header disagree about the sides (nifti1.h, methods 2 and 3)."""
    codes = _codes(image)
    if codes is None or 0 in codes:
        return ()
    by_qform, by_sform = (nibabel.aff2axcodes(a) for a in (image.get_qform(), image.get_sform()))
    if by_qform == by_sform:
        return ()
    return (
        f"the header's qform says {''.join(by_qform)} and its sform {''.join(by_sform)}: the sform was used; "
        "check left and right",
    )


def _voxels(canonical: Any, name: str) -> Volume:
    """(X, Y, Z) float32, a copy that may be changed."""
    volume = np.array(canonical.get_fdata(dtype=np.float32, caching="unchanged"))
    bad = int(volume.size - np.isfinite(volume).sum())
    if bad:
        raise VolumeError(f"{name}: expected finite voxels, got {bad} that are NaN or infinite")
    return volume


def require_contrast(volume: Volume, name: str) -> None:
    """Refuse a volume of one value.

    Raises:
        VolumeError: it is one.
    """
    if volume.min() == volume.max():
        raise VolumeError(f"{name}: every voxel is {volume.flat[0]:g}; expected an image")
