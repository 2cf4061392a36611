"""A NIfTI file as it came, checked: no torch here, so that whoever only reads a volume need not load it.

NIfTI headers are written by many tools, and nothing in a file shows that its axes are a tool's default. What can be
seen is said; what makes a volume meaningless is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from braingemma.errors import VolumeError
from braingemma.volume.resampling import Volume

Float = npt.NDArray[np.float64]

MINIMUM_SLICES = 10
"""A volume with fewer slices than this along any axis is a localizer or a single picture, not a brain volume."""
MOST_VOXELS = 1 << 29
"""More are refused before they are read: 2 GiB in float32, four times the largest brain scans."""
SIDES_MM = (10.0, 2000.0)
"""What the longest side may measure; outside of it the header's numbers are no millimetres."""
HEAD_MM = (50.0, 600.0)
"""What the longest side measures where the numbers are millimetres whatever the header calls them."""
SHEAR_NOTED, SHEAR_REFUSED = 1.0, 10.0
"""Degrees by which two axes may miss a right angle: before it is said, and before the file is refused."""
POCKETS = 100
"""NaN around the picture over NaN inside it, from which all of it is what a threshold left out."""
MALFORMED = (
    ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, ZeroDivisionError, MemoryError, FloatingPointError, NotImplementedError, struct.error, zlib.error,
    np.linalg.LinAlgError,
)  # fmt: skip
"""What nibabel raises on files that are none, or whose header holds anything."""


@dataclass(frozen=True, eq=False)
class SourceVolume:
    """One finite 3D volume in RAS order.

    Attributes:
        voxels: (X, Y, Z) float32, a copy that may be changed.
        affine: (4, 4): voxel to RAS mm.
        warnings: What a reader of the report should know about the file.
        doubts: What casts doubt on its header as a whole.
    """

    voxels: Volume
    affine: Float
    warnings: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def read_source(path: str | Path) -> SourceVolume:
    """Read a NIfTI file; its header alone says where right, front and top are.

    Raises:
        VolumeError: the file is not one finite 3D volume of at least 10 slices along each axis, in millimetres.
    """
    with readable(path):
        return check_source(nibabel.load(path), Path(path).name)


def check_source(image: Any, name: str) -> SourceVolume:
    """Check a nibabel image, and bring it into RAS order.

    Args:
        image: A nibabel spatial image; further axes of one volume, and NaN around the picture, are taken away.
        name: What messages call it.

    Raises:
        VolumeError: see `read_source`.
    """
    image = one_volume(image, name)
    canonical = nibabel.as_closest_canonical(image)
    affine = np.asarray(canonical.affine, dtype=np.float64)
    voxels, filled = finite_voxels(canonical, name)
    return SourceVolume(voxels, affine, (*side_warnings(image), *filled), header_warnings(image))


def read_image(path: str | Path) -> tuple[nibabel.Nifti1Image, tuple[str, ...]]:
    """Read a NIfTI file as an image to keep: the file's own voxels where they are finite, axes in RAS order.

    Texts and extensions of its header are left out: they may name the patient, and nothing here reads them.

    Returns:
        The image, and what a reader of the report should know about the file.

    Raises:
        VolumeError: see `read_source`; or every voxel is the same.
    """
    name = Path(path).name
    source = read_source(path)
    require_contrast(source.voxels, name)
    with readable(path):
        image = nibabel.as_closest_canonical(one_volume(nibabel.load(path), name))
        if image.get_data_dtype().kind == "f" and not np.isfinite(image.get_fdata(dtype=np.float32)).all():
            image = nibabel.Nifti1Image(source.voxels, source.affine)
            image.header.set_xyzt_units("mm")
    _remove_texts(image.header)
    return image, (*source.warnings, *source.doubts)


def _remove_texts(header: Any) -> None:
    """Empty whatever text a NIfTI header has beside its magic (nifti1.h, nifti2.h), and its extensions."""
    for name, (kind, *_) in header.structarr.dtype.fields.items():
        if kind.kind == "S" and name not in ("magic", "eol_check"):
            header[name] = b""
    header.extensions.clear()


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Say which file cannot be read, whatever nibabel raises."""
    try:
        with np.errstate(all="ignore"):
            yield
    except VolumeError:
        raise
    except FileNotFoundError as error:
        raise VolumeError(f"{path}: no such file") from error
    except MALFORMED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VolumeError(f"{Path(path).name}: not a readable NIfTI volume: {reason}") from error


def one_volume(image: Any, name: str) -> Any:
    """The image without trailing axes of one volume, after a look at its header alone.

    Raises:
        VolumeError: it is not one 3D volume of at least 10 slices along each axis, its axes are no axes of space in
            millimetres, or it does not say where left and right are.
    """
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise VolumeError(f"{name}: expected one 3D volume, got {len(shape)} dimensions {shape}")
    if min(shape[:3]) < MINIMUM_SLICES:
        raise VolumeError(f"{name}: expected at least {MINIMUM_SLICES} slices along each axis, got {shape}")
    if shape[0] * shape[1] * shape[2] > MOST_VOXELS:
        raise VolumeError(f"{name}: expected at most {MOST_VOXELS} voxels, got {shape}")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{name}: the header's affine has no three independent axes: {affine.tolist()}")
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(f"{name}: expected one number for each voxel, got data of type {image.get_data_dtype()}")
    if _codes(image) == (0, 0):
        raise VolumeError(
            f"{name}: the header states no orientation (qform_code and sform_code are 0), so left and right are unknown"
        )
    _check_space(affine, shape, _unit(image), name)
    return image.slicer[(..., *(0 for _ in shape[3:]))] if len(shape) > 3 else image


def _check_space(affine: Float, shape: tuple[int, ...], unit: str, name: str) -> None:
    longest = float((np.linalg.norm(affine[:3, :3], axis=0) * shape[:3]).max())
    if unit in ("meter", "micron") and not HEAD_MM[0] <= longest <= HEAD_MM[1]:
        raise VolumeError(f"{name}: expected an affine in millimetres, got one in {unit}s with a side of {longest:g}")
    if not SIDES_MM[0] <= longest <= SIDES_MM[1]:
        raise VolumeError(
            f"{name}: expected a head in millimetres, got a longest side of {longest:g} mm by the header's affine"
        )
    if (angle := _shear(affine)) > SHEAR_REFUSED:
        raise VolumeError(f"{name}: expected axes at right angles, got a shear of {angle:.1f} degrees in the affine")


def _shear(affine: Float) -> float:
    """How far two axes are from a right angle, degrees."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    return float(np.degrees(np.arcsin(min(cosine, 1.0))))


def _unit(image: Any) -> str:
    """The header's unit of space; empty where it has none that is known."""
    try:
        return str(image.header.get_xyzt_units()[0])
    except (AttributeError, KeyError):
        return ""


def _codes(image: Any) -> tuple[int, int] | None:
    """(qform_code, sform_code); None for formats whose affine is always stated."""
    header = image.header
    if "qform_code" not in header or "sform_code" not in header:
        return None
    return int(header["qform_code"]), int(header["sform_code"])


def header_warnings(image: Any) -> tuple[str, ...]:
    """Why the sides, or the shape, of a volume that can be used are not to be trusted.

    Args:
        image: As it lies in the file, before its axes are put in order.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    notes: list[str] = []
    if _is_default(affine):
        notes.append(
            "The file's axes look like a tool's default (no rotation, origin at 0), as array tools write them where "
            "the real ones were lost. Left and right may be exchanged: do not trust the side."
        )
    if (angle := _shear(affine)) > SHEAR_NOTED:
        notes.append(f"The header's axes are {angle:.1f} degrees off right angles: sizes and sides may be wrong.")
    if (unit := _unit(image)) in ("meter", "micron"):
        notes.append(f"The header gives lengths in {unit}s, its numbers are those of a head in millimetres: taken so.")
    return tuple(notes)


def _is_default(affine: Float) -> bool:
    """Axes along the voxels' own and the origin exactly at 0: nibabel's and SimpleITK's affine of a bare array."""
    rotation = affine[:3, :3]
    return bool((affine[:3, 3] == 0).all() and (rotation == np.diag(np.diag(rotation))).all())


def side_warnings(image: Any) -> tuple[str, ...]:
    """Where the two affines of a NIfTI header disagree about the sides (nifti1.h, methods 2 and 3)."""
    codes = _codes(image)
    if codes is None or 0 in codes:
        return ()
    try:
        by_qform, by_sform = ("".join(map(str, nibabel.aff2axcodes(a))) for a in (image.get_qform(), image.get_sform()))
    except MALFORMED:
        return ("the header's qform cannot be read: the sform was used; check left and right",)
    if by_qform == by_sform:
        return ()
    return (f"the header's qform says {by_qform} and its sform {by_sform}: the sform was used; check left and right",)


def finite_voxels(canonical: Any, name: str) -> tuple[Volume, tuple[str, ...]]:
    """(X, Y, Z) float32, a copy that may be changed, and a word about NaN around the picture, which is background.

    Raises:
        VolumeError: voxels inside the picture are no finite numbers.
    """
    with np.errstate(all="ignore"):
        volume = np.array(canonical.get_fdata(dtype=np.float32, caching="unchanged"))
    bad = ~np.isfinite(volume)
    notes: tuple[str, ...] = ()
    if bad.any():
        nan = np.isnan(volume)
        outside = nan & _reaches_border(bad)
        if outside.sum() > POCKETS * (nan & ~outside).sum():  # a threshold made it: it left pockets inside, too
            outside = nan
        if (inside := int((bad & ~outside).sum())) or outside.all():
            raise VolumeError(f"{name}: expected finite voxels, got {inside or bad.size} that are NaN or infinite")
        volume[outside] = min(float(volume[~outside].min()), 0.0)
        notes = (f"{int(outside.sum())} voxels around the picture are NaN: taken as background.",)
    return volume, notes


def require_contrast(volume: Volume, name: str) -> None:
    """Refuse a volume of one value.

    Raises:
        VolumeError: it is one.
    """
    if volume.min() == volume.max():
        raise VolumeError(f"{name}: every voxel is {volume.flat[0]:g}; expected an image")


def _reaches_border(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The parts of a mask that touch the volume's border."""
    labels, count = ndimage.label(mask)
    edge = np.ones(labels.shape, dtype=bool)
    edge[1:-1, 1:-1, 1:-1] = False
    touching = np.zeros(count + 1, dtype=bool)
    touching[np.unique(labels[edge])] = True
    touching[0] = False
    return np.asarray(touching[labels])
