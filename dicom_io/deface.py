"""Instances without the face: what lies outside a mask gets background, all other stored bits stay as they came.

The geometry, the slices and their order stay. The pixels differ, so instances and series get UIDs of their own
(PS3.3 C.12.1.1), which follow from the old ones. Other places of a header that may hold a picture go: icons, overlays
that are drawn, and private binaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from dicom_io import header
from dicom_io.content.equipment import is_own_result
from dicom_io.content.uids import digest_uid
from dicom_io.errors import ConversionError, FileError
from dicom_io.reading import read_dataset
from dicom_io.volume.geometry import SeriesGeometry
from dicom_io.volume.nifti import resample_to_source
from dicom_io.volume.values import DECODING_ERRORS

Mask = npt.NDArray[np.bool_]

PICTURES = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "EncapsulatedDocument")
"""Where an instance holds what can be looked at."""
PICTURE_BYTES = 256
"""A private binary of so many bytes may be a picture."""
BINARY = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})
FACELESS = frozenset({"Parametric Map Storage", "Segmentation Storage"})
"""Of our own results: maps and masks inside the brain."""


def shows_no_face(dataset: Dataset) -> bool:
    """Whether an instance needs nothing done: it has no picture, says itself that nobody is known by it, or is our map.

    Args:
        dataset: With its pixel data, or its header where that still names it.
    """
    if not any(keyword in dataset for keyword in PICTURES):
        return True
    if header.text(dataset, "RecognizableVisualFeatures").upper() == "NO":
        return True
    return is_own_result(dataset) and dataset.SOPClassUID.name in FACELESS


def deface_instances(files: Sequence[Path], geometry: SeriesGeometry, keep: Path, out: Path) -> dict[Path, Path]:
    """Write the slices of a series without what lies outside a mask.

    Args:
        files: Of the series.
        geometry: Of the series, as its conversion proved it.
        keep: NIfTI on the grid of the converted volume, 0 where pixels go.
        out: Takes one file for each instance.

    Returns:
        Each file that was written, with its original. An instance without a slice of the geometry has none.

    Raises:
        ConversionError: pixels cannot be decoded, or not be put back as they were.
    """
    masks: dict[str, list[tuple[int, Mask]]] = {}
    kept = np.asarray(resample_to_source(nib.load(keep), geometry, order=0), np.bool_)
    for source, mask in zip(geometry.slices, kept, strict=True):
        masks.setdefault(source.sop_instance_uid, []).append(((source.frame_number or 1) - 1, mask))
    written: dict[Path, Path] = {}
    for file in files:
        try:
            dataset = read_dataset(file)
            uid = header.uid(dataset, "SOPInstanceUID")
            if uid not in masks:
                continue
            _blank(dataset, masks[uid])
            _rename(dataset)
            target = out / f"{len(written) + 1:06d}.dcm"
            dataset.save_as(target, enforce_file_format=True)
        except (InvalidDicomError, OSError, *DECODING_ERRORS) as error:
            reason = " ".join(str(error).split())
            raise ConversionError(f"{file.name}: its pixels cannot be put back without the face: {reason}") from error
        written[target] = file
    return written


def _blank(dataset: Dataset, masks: list[tuple[int, Mask]]) -> None:
    """Give the stored cells outside the masks the value of the picture's corners, bit by bit."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress(generate_instance_uid=False)
    if dataset.BitsAllocated not in (8, 16, 32) or dataset.get("SamplesPerPixel", 1) != 1:
        raise ConversionError(
            f"expected one sample of 8, 16 or 32 bits for each pixel, got {dataset.get('SamplesPerPixel')} of "
            f"{dataset.BitsAllocated}"
        )
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    frames, size = int(dataset.get("NumberOfFrames") or 1), dataset.Rows * dataset.Columns
    stored = dataset.PixelData
    cells = np.frombuffer(stored, np.dtype(f"{order}u{dataset.BitsAllocated // 8}"), frames * size).copy()
    cells = cells.reshape(frames, dataset.Rows, dataset.Columns)
    if {frame for frame, _ in masks} != set(range(frames)):
        raise ConversionError(f"expected {frames} frames that are slices of one volume, got {len(masks)}")
    for frame, mask in masks:
        corners = np.sort(cells[frame][[0, 0, -1, -1], [0, -1, 0, -1]])
        cells[frame][~mask] = corners[1]
    dataset.PixelData = cells.tobytes() + stored[cells.nbytes :]


def _rename(dataset: Dataset) -> None:
    """Other UIDs, the statement that nobody is known by it, and no picture anywhere else."""
    for level in list(_levels(dataset)):
        for element in list(level):
            private = element.tag.is_private and element.VR in BINARY and len(element.value or b"") >= PICTURE_BYTES
            if private or element.keyword == "IconImageSequence" or 0x6000 <= element.tag.group <= 0x60FF:
                del level[element.tag]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, keyword, digest_uid("defaced", header.uid(dataset, keyword)))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.RecognizableVisualFeatures = "NO"
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if keyword in dataset:
            delattr(dataset, keyword)


def _levels(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in list(dataset):
        if element.VR == "SQ" and element.keyword != "IconImageSequence":
            for item in element.value or ():
                yield from _levels(item)


def read_instance(file: Path) -> Dataset:
    """One instance with its pixels.

    Raises:
        FileError: it is not DICOM.
    """
    try:
        return read_dataset(file)
    except (InvalidDicomError, OSError, *header.MALFORMED) as error:
        raise FileError(f"{file.name}: expected a DICOM file (PS3.10): {error}") from error
