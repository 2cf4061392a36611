"""Source pixels of a series: the truth that every conversion is held against.

How one instance's bits become values is `values`' matter; here they are held together for a series, checked for what no
single slice can show, and handed to the converters as plain images without any of the traps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from dicom_io import header
from dicom_io.errors import ConversionError
from dicom_io.reading import read_dataset
from dicom_io.series.group import Series
from dicom_io.volume.geometry import SeriesGeometry, SourceSlice
from dicom_io.volume.values import (
    DECODING_ERRORS,
    Array,
    StoredValues,
    real_world_slope,
    rescale,
    stored_values,
    transformed,
)

MOST_VOXELS = 1 << 29
"""More are refused before anything is decoded: 2 GiB in float32, four times the largest brain scans."""
SAME_SCALE = 1.05
"""Largest ratio of Real World Value slopes between slices that were stored with one scale."""


class SourcePixels:
    """Decoded slices of one series: stored bits as values, bright meaning bright; see `values`.

    Instances are read and decoded once. `converted` hands them to converters.
    """

    def __init__(self, series: Series, geometry: SeriesGeometry) -> None:
        _check_size(geometry)
        self.geometry = geometry
        self._datasets: dict[str, Dataset] = {}
        self._stored: dict[str, StoredValues] = {}
        needed = {s.sop_instance_uid for s in geometry.slices}
        for path, head in zip(series.files, series.headers, strict=True):
            uid = header.uid(head, "SOPInstanceUID")
            if uid in needed:
                self._datasets[uid], self._stored[uid] = _decoded(path)
        _check_shift(list(self._stored.values()))
        self._check_real_world_scale()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the way from bits to values."""
        stored = list(self._stored.values())
        count = len(stored)
        mirrored, foreign = sum(s.mirrored for s in stored), sum(s.foreign_bits for s in stored)
        padding = sum(s.padding for s in stored)
        notes = []
        if mirrored:
            of = "" if mirrored == count else f" in {mirrored} of {count} instances"
            notes.append(f"MONOCHROME1{of}: grey values were mirrored, so that bright means bright")
        if foreign:
            notes.append(
                f"bits outside BitsStored (overlays or the like) were left out in {foreign} of {count} instances"
            )
        if padding:
            notes.append(f"{padding} pixels of padding (PixelPaddingValue) were taken as background")
        return tuple(notes)

    def slice(self, index: int) -> Array:
        """(rows, columns) values of one source slice, after the modality transform."""
        source = self.geometry.slices[index]
        values = self._frame(source)
        try:
            values = transformed(values, self._datasets[source.sop_instance_uid], source.frame_number)
        except ConversionError as error:
            raise ConversionError(f"{source.file}: {error}") from error
        expected = (self.geometry.rows, self.geometry.columns)
        if values.shape != expected:
            raise ConversionError(f"{source.file}: expected a picture of {expected}, got {values.shape}")
        return values

    def _rescale(self, source: SourceSlice) -> tuple[float, float]:
        try:
            return rescale(self._datasets[source.sop_instance_uid], source.frame_number)
        except ConversionError as error:
            raise ConversionError(f"{source.file}: {error}") from error

    def _frame(self, source: SourceSlice) -> Array:
        frames = self._stored[source.sop_instance_uid].values
        index = (source.frame_number or 1) - 1
        if index >= len(frames):
            raise ConversionError(f"{source.file}: expected frame {index + 1}, got {len(frames)} frames")
        return np.asarray(frames[index])

    def converted(self) -> list[Dataset]:
        """The series as converters are to see it: native little-endian pixels without traps.

        Instances of one frame and one multi-frame instance stay what they are; several multi-frame instances, and
        frames whose rescale stands outside their functional groups, become one classic image for each frame.
        """
        multiframe = any(s.frame_number is not None for s in self.geometry.slices)
        if multiframe and (len(self._datasets) > 1 or self._rescaled_outside_groups()):
            return [self._classic(index) for index in range(len(self.geometry.slices))]
        return [self._plain(uid) for uid in self._datasets]

    def _rescaled_outside_groups(self) -> bool:
        return any(
            header.number(d, "RescaleSlope") is not None
            and header.functional_group(d, 0, "PixelValueTransformationSequence") is None
            for d in self._datasets.values()
        )

    def _plain(self, uid: str) -> Dataset:
        dataset, stored = self._datasets[uid], self._stored[uid]
        plain = copy.copy(dataset)
        plain.SeriesInstanceUID = self.geometry.series_uid
        if not header.uid(dataset, "FrameOfReferenceUID"):  # without one highdicom places no image
            plain.FrameOfReferenceUID = f"{self.geometry.series_uid}.1"
        syntax = dataset.file_meta.TransferSyntaxUID
        if stored.changed or syntax.is_encapsulated or not syntax.is_little_endian:
            _set_pixels(plain, stored.values, stored)
        return plain

    def _classic(self, index: int) -> Dataset:
        """One frame as an MR Image Storage instance, placed by the validated geometry."""
        source, geometry = self.geometry.slices[index], self.geometry
        dataset, stored = self._datasets[source.sop_instance_uid], self._stored[source.sop_instance_uid]
        plain = Dataset()
        for keyword in ("PatientID", "PatientName", "Manufacturer", "SamplesPerPixel"):
            if keyword in dataset:
                plain[keyword] = dataset[keyword]
        plain.SOPClassUID, plain.Modality = MRImageStorage, "MR"
        plain.SOPInstanceUID = f"{source.sop_instance_uid}.{source.frame_number}"
        plain.SeriesInstanceUID, plain.StudyInstanceUID = geometry.series_uid, geometry.study_uid
        plain.FrameOfReferenceUID = geometry.frame_of_reference_uid or f"{geometry.series_uid}.1"
        plain.InstanceNumber, plain.ImageType = index + 1, ["ORIGINAL", "PRIMARY", "M"]
        plain.Rows, plain.Columns, plain.SamplesPerPixel = geometry.rows, geometry.columns, 1
        plain.PixelSpacing, plain.SliceThickness = list(geometry.pixel_spacing), geometry.slice_spacing
        plain.ImageOrientationPatient = list(geometry.orientation)
        plain.ImagePositionPatient = list(source.position)
        slope, intercept = self._rescale(source)
        if (slope, intercept) != (1.0, 0.0):
            plain.RescaleSlope, plain.RescaleIntercept, plain.RescaleType = slope, intercept, "US"
        _set_pixels(plain, self._frame(source), stored)
        return plain

    def _check_real_world_scale(self) -> None:
        """Refuse slices that were stored with scales of their own and carry no modality transform that undoes it.

        Their Real World Value Mappings would, but those are no modality transform: brightness cannot be compared.

        Raises:
            ConversionError: there are such slices.
        """
        slopes: list[float] = []
        for source in self.geometry.slices:
            plain = self._rescale(source) == (1.0, 0.0)
            slope = real_world_slope(self._datasets[source.sop_instance_uid], source.frame_number)
            if plain and slope is not None and slope > 0:
                slopes.append(slope)
        if len(slopes) == len(self.geometry.slices) and max(slopes) > SAME_SCALE * min(slopes):
            raise ConversionError(
                f"slices have Real World Value Mappings of slope {min(slopes):g} to {max(slopes):g} and no rescale: "
                "their stored values have no common scale, so brightness cannot be compared between slices"
            )


def _check_size(geometry: SeriesGeometry) -> None:
    voxels = int(np.prod([int(n) for n in geometry.shape], dtype=object))
    if voxels > MOST_VOXELS:
        raise ConversionError(f"expected at most {MOST_VOXELS} voxels, got {voxels} ({geometry.shape})")


def _check_shift(stored: Sequence[StoredValues]) -> None:
    """HighBit above the stored bits: the values must then lie in the upper bits of the cells of some slice.

    Raises:
        ConversionError: those bits are empty in all slices.
    """
    shifted = [s for s in stored if s.layout.shift]
    if shifted and all(s.largest_cell < 1 << s.layout.stored for s in shifted):
        layout = shifted[0].layout
        raise ConversionError(
            f"HighBit {layout.shift + layout.stored - 1} says that values lie in the upper bits of their cells, but "
            f"those are empty: no value is above {max(s.largest_cell for s in shifted)}"
        )


def _decoded(path: Path) -> tuple[Dataset, StoredValues]:
    """Read one instance and decode it."""
    try:
        with header.quiet("pydicom"):
            dataset = read_dataset(path)
            return dataset, stored_values(dataset)
    except ConversionError as error:
        raise ConversionError(f"{path.name}: {error}") from error
    except (OSError, *DECODING_ERRORS) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{path.name}: its {_syntax(path)} pixels cannot be decoded: {reason}") from error


def _syntax(path: Path) -> str:
    return str(pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID.name)


def _set_pixels(plain: Dataset, values: Array, stored: StoredValues) -> None:
    """Put stored values into a dataset as native pixels."""
    for keyword in _gone(plain):
        delattr(plain, keyword)
    signed = values.dtype.kind == "i"
    bits = 8 * values.dtype.itemsize
    plain.BitsAllocated, plain.PixelRepresentation = bits, int(signed)
    plain.BitsStored = min(stored.layout.stored, bits)
    plain.HighBit = plain.BitsStored - 1
    plain.PhotometricInterpretation = "MONOCHROME2"
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding="utf-8")
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    plain.add_new("PixelData", "OB" if bits == 8 else "OW", little.tobytes())


def _gone(plain: Dataset) -> Iterator[str]:
    """Attributes that describe the pixels as they were stored."""
    for keyword in (
        "PixelData", "PixelPaddingValue", "PixelPaddingRangeLimit", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
        "SmallestImagePixelValue", "LargestImagePixelValue",
    ):  # fmt: skip
        if keyword in plain:
            yield keyword
