"""Series to RAS NIfTI, and the way from any RAS NIfTI back to the source slices.

A conversion is believed only after two checks against the headers' own `SeriesGeometry`: the grid must be the same but
for the order of its axes, and each slice must hold the pixels that pydicom decodes from that slice's own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import UID
from scipy import ndimage

from dicom_io import header
from dicom_io.errors import ConversionError, GeometryError
from dicom_io.files import whole
from dicom_io.header import is_lossy
from dicom_io.series.group import Series
from dicom_io.volume.converters import by_dicom2nifti, by_highdicom
from dicom_io.volume.geometry import SeriesGeometry
from dicom_io.volume.grids import Array, axis_map, ras_grid
from dicom_io.volume.pixels import SourcePixels
from dicom_io.volume.stack import series_geometry

IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber")
"""Texts that must not come out changed without a word."""
MINIMUM_SLICES = 4
"""Fewer slices are no volume."""

CONVERTERS: tuple[Callable[[list[Dataset]], nib.Nifti1Image], ...] = (by_dicom2nifti, by_highdicom)
"""In the order in which they are tried."""


@dataclass(frozen=True)
class Conversion:
    """A series as a RAS NIfTI.

    Attributes:
        geometry: The way from every voxel back to its source slice and pixel.
        volume_path: The NIfTI: axes closest to RAS+, voxels exactly those of the source.
        warnings: What a reader of the result should know.
    """

    geometry: SeriesGeometry
    volume_path: Path
    warnings: tuple[str, ...] = ()


def convert_series(series: Series, out_path: Path) -> Conversion:
    """Convert one series to a RAS NIfTI.

    Args:
        series: As scanned.
        out_path: The `.nii.gz` or `.nii` to write; it appears whole or not at all.

    Returns:
        The conversion.

    Raises:
        SeriesError: Several patients, studies or frames of reference.
        GeometryError: The slices form no regular volume.
        ConversionError: The pixels cannot be decoded, or no converter agrees with the headers.
    """
    with header.quiet("pydicom"):  # odd values were judged by rule; decoding errors are raised
        geometry = series_geometry(series)
        if len(geometry.slices) < MINIMUM_SLICES:
            raise GeometryError(f"too few slices: expected at least {MINIMUM_SLICES}, got {len(geometry.slices)}")
        volume, notes = _converted(SourcePixels(series, geometry))
    affine, _ = ras_grid(geometry)
    _save(volume, affine, out_path)
    warnings = (*series.notes, *notes, *_header_notes(series, geometry), *_completeness(series, geometry))
    return Conversion(geometry=geometry, volume_path=out_path, warnings=warnings)


def _converted(pixels: SourcePixels) -> tuple[Array, tuple[str, ...]]:
    """RAS voxels of the first converter that agrees with the headers, and notes for the reader."""
    datasets = pixels.converted()
    failures: list[str] = []
    for convert in CONVERTERS:
        try:
            volume = _agreed(convert(datasets), pixels)
        except ConversionError as error:
            failures.append(str(error))
            continue
        return volume, (*(f"converted by another way, since {failure}" for failure in failures), *pixels.notes)
    raise ConversionError("; ".join(failures))


def _agreed(image: nib.Nifti1Image, pixels: SourcePixels) -> Array:
    """Voxels of a converter's image on the RAS grid, after comparing it with the source slice by slice.

    Raises:
        ConversionError: Grid or voxels differ.
    """
    geometry = pixels.geometry
    data = np.asanyarray(image.dataobj)
    source_shape = (geometry.columns, geometry.rows, len(geometry.slices))
    to_source = None
    if data.ndim == 3:
        to_source = axis_map(image.affine, data.shape, geometry.affine_ras, source_shape)
    if to_source is None:
        raise ConversionError(
            f"the converted grid is not the source's: expected the voxels of {source_shape} with affine "
            f"{geometry.affine_ras.round(3).tolist()}, got {data.shape} with {image.affine.round(3).tolist()}"
        )
    on_source = to_source.apply(data)  # (columns, rows, slices)
    volume = np.empty(source_shape, dtype=np.float32 if on_source.dtype.kind == "f" else on_source.dtype)
    for index in range(source_shape[2]):
        expected = pixels.slice(index).T
        got = on_source[..., index]
        if not _same(got, expected):
            raise ConversionError(f"the converted voxels of {geometry.slices[index].file} are not its own pixels")
        volume[..., index] = got
    affine, shape = ras_grid(geometry)
    to_ras = axis_map(geometry.affine_ras, source_shape, affine, shape)
    if to_ras is None:
        raise ConversionError(f"no RAS grid for {source_shape} with affine {geometry.affine_ras.round(3).tolist()}")
    return to_ras.apply(volume)


def _same(got: Array, expected: Array) -> bool:
    if got.dtype.kind != "f" and expected.dtype.kind != "f":
        return bool(np.array_equal(got, expected))
    return bool(np.allclose(got, expected, rtol=1e-5, atol=1e-5))


def _header_notes(series: Series, geometry: SeriesGeometry) -> tuple[str, ...]:
    """What the headers say that a reader should know: loss, UIDs that are none, a space without a name."""
    notes: list[str] = []
    lossy = next((h for h in series.headers if is_lossy(h)), None)
    if lossy is not None:
        ratio = header.text(lossy, "LossyImageCompressionRatio")
        notes.append("the pictures were compressed with loss" + (f", by a ratio of {ratio}" if ratio else ""))
    uids = (
        series.study_uid,
        series.series_uid,
        geometry.frame_of_reference_uid or "",
        geometry.slices[0].sop_instance_uid,
    )
    illegal = [u for u in uids if u and not UID(u).is_valid]
    if illegal:
        notes.append(f"UIDs that are not legal (PS3.5 9.1) are kept as received, such as {illegal[0]!r}")
    for keyword in IDENTITY:
        misfit = next((h for h in series.headers if not header.fits_its_label(h, keyword)), None)
        if misfit is not None:
            label = header.text(misfit, "SpecificCharacterSet") or "none, that is ASCII"
            notes.append(
                f"{keyword} does not fit its character set ({label}): results carry its bytes and that label as "
                "they came, and a viewer may show it wrongly"
            )
    if geometry.frame_of_reference_uid is None:
        notes.append(
            "the series has no FrameOfReferenceUID: no parametric map and no segmentation can refer to its space"
        )
    return tuple(notes)


def _completeness(series: Series, geometry: SeriesGeometry) -> tuple[str, ...]:
    """Hints that slices are missing at an end of the stack, which positions alone cannot show."""
    numbers = sorted(s.instance_number for s in geometry.slices if s.instance_number is not None)
    notes: list[str] = []
    if len(set(numbers)) == len(geometry.slices) and numbers[-1] - numbers[0] + 1 != len(numbers):
        notes.append(f"instance numbers run from {numbers[0]} to {numbers[-1]}, but {len(numbers)} images came")
    announced = header.whole_number(series.header, "ImagesInAcquisition")
    if announced is not None and announced > len(geometry.slices):
        notes.append(f"the header announces {announced} images in the acquisition, {len(geometry.slices)} came")
    for uid in series.distinct("ConcatenationUID"):  # PS3.3 C.7.6.16.2.2.4
        came = [h for h in series.headers if header.text(h, "ConcatenationUID") == uid]
        total = max(header.whole_number(h, "InConcatenationTotalNumber") or 0 for h in came)
        if total > len(came):
            notes.append(f"a concatenation of {total} instances came with {len(came)}")
    return tuple(notes)


def _save(volume: Array, affine: npt.NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(np.ascontiguousarray(volume), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with whole(path) as draft:
        nib.save(image, draft)


def resample_to_source(ras_image: nib.Nifti1Image, geometry: SeriesGeometry, order: int = 1) -> Array:
    """Put a NIfTI on the source grid.

    Args:
        ras_image: 3D image whose affine leads to RAS mm; any grid.
        geometry: The source series.
        order: Spline order of the interpolation, 0 (nearest) to 5. Not used, and nothing is interpolated, where the
            image's voxels are the source's own.

    Returns:
        (slices, rows, columns) array in the order of `geometry.slices`; 0 outside the image.

    Raises:
        GeometryError: The image is not 3D.
    """
    data = np.asanyarray(ras_image.dataobj)
    if data.ndim != 3:
        raise GeometryError(f"expected a 3D image, got shape {data.shape}")
    source_shape = (geometry.columns, geometry.rows, len(geometry.slices))
    exact = axis_map(ras_image.affine, data.shape, geometry.affine_ras, source_shape)
    if exact is not None:
        return np.ascontiguousarray(exact.apply(data).T)
    to_voxel = np.linalg.inv(ras_image.affine) @ geometry.affine_ras
    if data.dtype.kind != "f":
        data = data.astype(np.float32) if order > 0 else data
    resampled = ndimage.affine_transform(
        data, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=source_shape, order=order, mode="constant", cval=0.0
    )
    return np.ascontiguousarray(resampled.T)
