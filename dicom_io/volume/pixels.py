"""Source pixels of a series, decoded by pydicom: the truth that every conversion is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import RLELossless

from dicom_io import header
from dicom_io.errors import ConversionError
from dicom_io.series.group import Series
from dicom_io.volume.geometry import SeriesGeometry, SourceSlice

Array = npt.NDArray[np.generic]

JPEG_DECODER = "pylibjpeg"
"""Decodes JPEG, JPEG-LS and JPEG 2000 alike; pydicom's first choice, GDCM, prints to standard error."""
RLE_DECODER = "pydicom"
"""pylibjpeg's own panics on segments that are too long: no `Exception`, and a trace on standard error."""

DECODING_ERRORS = (*header.MALFORMED, RuntimeError, MemoryError)
"""What pydicom and its decoder plugins raise on pixel data that cannot be decoded."""


class SourcePixels:
    """Decoded slices of one series, with the modality transform applied and bright meaning bright.

    Datasets are read once and kept, so that the converters can share the decoded pixels.
    """

    def __init__(self, series: Series, geometry: SeriesGeometry) -> None:
        self.geometry = geometry
        self.datasets: dict[str, Dataset] = {}
        for path, head in zip(series.files, series.headers, strict=True):
            _check_grayscale(path, head)
            self.datasets[header.uid(head, "SOPInstanceUID")] = _decoded(path)
        self.inverted = any(header.text(h, "PhotometricInterpretation") == "MONOCHROME1" for h in series.headers)

    def slice(self, index: int) -> Array:
        """(rows, columns) values of one source slice."""
        return self.decode(self.geometry.slices[index])

    def decode(self, source: SourceSlice) -> Array:
        """(rows, columns) values of one frame, after the modality transform; see the class."""
        dataset = self.datasets[source.sop_instance_uid]
        frame = dataset.pixel_array
        if source.frame_number is not None and frame.ndim == 3:
            frame = frame[source.frame_number - 1]
        try:
            values = _rescaled(frame, dataset, source.frame_number)
        except DECODING_ERRORS as error:
            raise ConversionError(f"{source.file}: its modality transform cannot be applied: {error}") from error
        expected = (self.geometry.rows, self.geometry.columns)
        if values.shape != expected:
            raise ConversionError(f"{source.file}: expected a picture of {expected}, got {values.shape}")
        if self.inverted:
            return self.invert(values, source)
        return values

    def invert(self, values: Array, source: SourceSlice) -> Array:
        """MONOCHROME1 shows low values bright (PS3.3 C.7.6.3.1.2): mirror values within the stored range."""
        dataset = self.datasets[source.sop_instance_uid]
        low, high = _value_range(dataset, source.frame_number)
        return np.asarray(low + high - values.astype(np.float64)).astype(np.float32)


def _check_grayscale(path: Path, head: Dataset) -> None:
    samples = header.whole_number(head, "SamplesPerPixel") or 1
    photometric = header.text(head, "PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ConversionError(f"{path.name}: expected a grayscale image, got {photometric} with {samples} samples")


def _decoded(path: Path) -> Dataset:
    """Read one instance and decode it; pydicom keeps the decoded pixels in the dataset, for the converters too."""
    try:
        with header.quiet("pydicom"):
            dataset = pydicom.dcmread(path)
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                is_rle = dataset.file_meta.TransferSyntaxUID == RLELossless
                dataset.pixel_array_options(decoding_plugin=RLE_DECODER if is_rle else JPEG_DECODER)
            if dataset.pixel_array.dtype.kind not in "iu":
                raise ConversionError(f"{path.name}: expected integer pixels, got {dataset.pixel_array.dtype}")
    except (OSError, *DECODING_ERRORS) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{path.name}: its {_syntax(path)} pixels cannot be decoded: {reason}") from error
    return dataset


def _syntax(path: Path) -> str:
    return str(pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID.name)


def rescale(dataset: Dataset, frame_number: int | None) -> tuple[float, float]:
    """(slope, intercept) of the modality transform of one frame; (1, 0) where there is none."""
    holder: Dataset | None = dataset
    if frame_number is not None:
        holder = header.functional_group(dataset, frame_number - 1, "PixelValueTransformationSequence")
    slope = header.number(holder, "RescaleSlope") if holder is not None else None
    intercept = header.number(holder, "RescaleIntercept") if holder is not None else None
    return (slope if slope is not None else 1.0, intercept if intercept is not None else 0.0)


def _rescaled(frame: Array, dataset: Dataset, frame_number: int | None) -> Array:
    if frame_number is None and header.items(dataset, "ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(frame, dataset))
    slope, intercept = rescale(dataset, frame_number)
    if (slope, intercept) == (1.0, 0.0):
        return frame
    return np.asarray(frame.astype(np.float64) * slope + intercept)


def _value_range(dataset: Dataset, frame_number: int | None) -> tuple[float, float]:
    """Smallest and largest value that the stored bits can express, after the modality transform."""
    bits = header.whole_number(dataset, "BitsStored") or 16
    signed = header.whole_number(dataset, "PixelRepresentation") == 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    slope, intercept = rescale(dataset, frame_number)
    return (low * slope + intercept, high * slope + intercept)
