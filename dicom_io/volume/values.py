"""Stored bits to values, of one instance.

In this order: the cells of Pixel Data; of each cell the BitsStored bits that end at HighBit, with their sign (PS3.5
8.1.1, 8.2: overlays and anything else outside of them go); pixels that are padding become background (PS3.3
C.7.5.1.1.2); MONOCHROME1 is mirrored (C.7.6.3.1.2); then the modality transform, of the instance (C.11.1) or of each
frame (Pixel Value Transformation, C.7.6.16.2.9).

A Real World Value Mapping (C.7.6.16.2.11) says what stored values mean in other units. It never takes the place of the
modality transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import RLELossless

from dicom_io import header
from dicom_io.errors import ConversionError
from dicom_io.volume.codestream import read_codestream

Array = npt.NDArray[np.integer[Any] | np.floating[Any]]
Mask = npt.NDArray[np.bool_]

JPEG_DECODER = "pylibjpeg"
"""Decodes JPEG, JPEG-LS and JPEG 2000 alike; pydicom's first choice, GDCM, prints to standard error."""
RLE_DECODER = "pydicom"
"""pylibjpeg's own panics on segments that are too long: no `Exception`, and a trace on standard error."""

DECODING_ERRORS = (*header.MALFORMED, RuntimeError, MemoryError)
"""What pydicom and its decoder plugins raise on pixel data that cannot be decoded."""

SMOOTHER = 0.5
"""Steps between neighbours in whole cells over those in stored values, below which the cells are the values."""
OTHER_PIXELS = ("FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class Layout:
    """How the pixel cells of an instance are laid out (PS3.5 8.1.1).

    Attributes:
        allocated: BitsAllocated.
        stored: BitsStored.
        shift: Bits of a cell below the stored ones.
        signed: PixelRepresentation 1.
    """

    allocated: int
    stored: int
    shift: int
    signed: bool


@dataclass(frozen=True)
class StoredValues:
    """The stored values of an instance, without padding, bright meaning bright.

    Attributes:
        values: (frames, rows, columns) integers.
        layout: How they lay in the cells.
        changed: Whether a reader that takes the cells as they are would see other values.
        foreign_bits: Whether bits outside the stored ones were set.
        padding: Pixels that were padding.
        mirrored: Whether it was MONOCHROME1.
        largest_cell: Largest value of a whole cell, unsigned.
    """

    values: Array
    layout: Layout
    changed: bool
    foreign_bits: bool
    padding: int
    mirrored: bool
    largest_cell: int


def stored_values(dataset: Dataset) -> StoredValues:
    """Decode an instance as far as its stored values.

    Args:
        dataset: A grayscale image with its Pixel Data and file meta information.

    Raises:
        ConversionError: it is no grayscale image of integers, its header contradicts itself or its pixels, or values
            do not fit the bits that the header states.
        DECODING_ERRORS: it cannot be decoded.
    """
    _check_grayscale(dataset)
    layout = _layout(dataset)
    cells = _cells(dataset)
    values = _extract(cells, layout)
    foreign = bool((values != cells).any()) if not layout.shift else True
    if foreign and not layout.shift:
        _check_no_overflow(cells, values, layout)
    padding = _padding(dataset, cells, values, layout)
    mirrored = header.text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    count = 0 if padding is None else int(padding.sum())
    if mirrored:
        low, high = _range(layout)
        values = (low + high - values.astype(np.int64)).astype(values.dtype)
    if padding is not None and count:
        values = _without_padding(values, padding)
    return StoredValues(
        values=values,
        layout=layout,
        changed=bool(foreign or count or mirrored),
        foreign_bits=foreign and not layout.shift and _has_foreign_bits(cells, layout),
        padding=count,
        mirrored=mirrored,
        largest_cell=int(_unsigned(cells, layout).max()) if layout.shift else 0,
    )


def _check_grayscale(dataset: Dataset) -> None:
    samples = header.whole_number(dataset, "SamplesPerPixel") or 1
    photometric = header.text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ConversionError(f"expected a grayscale image, got {photometric} with {samples} samples")
    floating = next((k for k in OTHER_PIXELS if k in dataset), None)
    if floating:
        raise ConversionError(f"expected integer Pixel Data, got {floating}")


def _layout(dataset: Dataset) -> Layout:
    allocated = header.whole_number(dataset, "BitsAllocated") or 0
    if allocated not in (8, 16, 32):
        raise ConversionError(f"expected BitsAllocated 8, 16 or 32, got {allocated or 'none'}")
    stored = header.whole_number(dataset, "BitsStored") or allocated
    high = header.whole_number(dataset, "HighBit")
    high = stored - 1 if high is None else high
    if not 1 <= stored <= high + 1 <= allocated:
        raise ConversionError(
            f"bits of a pixel contradict each other: BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}"
        )
    layout = Layout(allocated, stored, high + 1 - stored, header.whole_number(dataset, "PixelRepresentation") == 1)
    return _compressed_layout(dataset, layout) if dataset.file_meta.TransferSyntaxUID.is_encapsulated else layout


def _compressed_layout(dataset: Dataset, layout: Layout) -> Layout:
    """The layout of decoded cells, after a look at the size that the first codestream announces.

    A codestream of as many bits as are stored holds the stored values themselves; one of more bits holds cells.

    Raises:
        ConversionError: the codestream is not of the size that the header states.
    """
    frames = header.whole_number(dataset, "NumberOfFrames") or 1
    found = read_codestream(get_frame(dataset.PixelData, 0, number_of_frames=frames))
    if found is None:
        return layout
    rows, columns = (header.whole_number(dataset, k) for k in ("Rows", "Columns"))
    if (found.rows, found.columns) != (rows, columns):
        raise ConversionError(
            f"expected compressed pixels of {rows} x {columns}, got a codestream of {found.rows} x {found.columns}"
        )
    if found.precision > layout.stored:
        return layout
    return Layout(layout.allocated, layout.stored, 0, layout.signed)


def _cells(dataset: Dataset) -> Array:
    """(frames, rows, columns): whole cells as they were stored."""
    syntax = dataset.file_meta.TransferSyntaxUID
    options: dict[str, object] = {"raw": True, "correct_unused_bits": False}
    if syntax.is_encapsulated:
        options["decoding_plugin"] = RLE_DECODER if syntax == RLELossless else JPEG_DECODER
    cells, _ = get_decoder(syntax).as_array(dataset, **options)
    if cells.dtype.kind not in "iu":
        raise ConversionError(f"expected integer pixels, got {cells.dtype}")
    return cells.reshape((-1, *cells.shape[-2:])).astype(cells.dtype.newbyteorder("="), copy=False)


def _extract(cells: Array, layout: Layout) -> Array:
    """The stored bits of each cell, with their sign; of the cells' type."""
    bits = 8 * cells.dtype.itemsize
    above = bits - layout.stored - layout.shift
    if above == 0 and layout.shift == 0:
        return cells
    left = np.left_shift(cells, above)
    return np.asarray(np.right_shift(left, above + layout.shift), dtype=cells.dtype)


def _check_no_overflow(cells: Array, values: Array, layout: Layout) -> None:
    """Tell values that need more bits than the header states from overlays in the unused bits.

    Anatomy is smooth: where bits outside the stored ones begin, the step to the neighbour is small in the whole cells
    if these bits belong to the value, and large if they are something else.

    Raises:
        ConversionError: they belong to the value.
    """
    foreign = cells != values
    edges = foreign[..., 1:] != foreign[..., :-1]
    whole, stored = (float(np.abs(np.diff(array.astype(np.int64), axis=-1))[edges].sum()) for array in (cells, values))
    if edges.any() and whole < SMOOTHER * stored:
        raise ConversionError(
            f"values reach {int(cells.max())} and do not fit the {layout.stored} bits that BitsStored states"
        )


def _has_foreign_bits(cells: Array, layout: Layout) -> bool:
    """Whether bits above the stored ones hold anything but a sign."""
    above = _unsigned(cells, layout) >> layout.stored
    sign = (1 << (layout.allocated - layout.stored)) - 1 if layout.signed else 0
    return bool(((above != 0) & (above != sign)).any())


def _unsigned(cells: Array, layout: Layout) -> npt.NDArray[np.int64]:
    return cells.astype(np.int64) & ((1 << layout.allocated) - 1)


def _padding(dataset: Dataset, cells: Array, values: Array, layout: Layout) -> Mask | None:
    """Which pixels are padding: of PixelPaddingValue, or between it and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2).

    The two are compared bit by bit, since their sign is often written wrong; a value that needs more than the stored
    bits is looked for in the whole cells.
    """
    first = header.whole_number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    limit = header.whole_number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((first, first if limit is None else limit))
    lowest, highest = _range(layout)
    if lowest <= low and high <= highest:
        return np.asarray((values >= low) & (values <= high))
    whole = (1 << layout.allocated) - 1
    low, high = sorted((low & whole, high & whole))
    found = _unsigned(cells, layout)
    return np.asarray((found >= low) & (found <= high))


def _without_padding(values: Array, padding: Mask) -> Array:
    """Padding as background: 0, or the lowest value of the rest where that is negative."""
    rest = values[~padding]
    background = min(int(rest.min()), 0) if rest.size else 0
    return np.where(padding, np.asarray(background, dtype=values.dtype), values)


def _range(layout: Layout) -> tuple[int, int]:
    """Smallest and largest value that the stored bits can express."""
    if layout.signed:
        return -(1 << (layout.stored - 1)), (1 << (layout.stored - 1)) - 1
    return 0, (1 << layout.stored) - 1


# ---------------------------------------------------------------------- modality transform


def rescale(dataset: Dataset, frame_number: int | None) -> tuple[float, float]:
    """(slope, intercept) of the modality transform of one frame; (1, 0) where there is none.

    Raises:
        ConversionError: a slope of 0, which makes every value the same.
    """
    holder: Dataset | None = dataset
    if frame_number is not None:
        holder = header.functional_group(dataset, frame_number - 1, "PixelValueTransformationSequence") or dataset
    slope = header.number(holder, "RescaleSlope")
    intercept = header.number(holder, "RescaleIntercept")
    if slope == 0:
        raise ConversionError("RescaleSlope is 0: expected a slope by which values differ")
    return (slope if slope is not None else 1.0, intercept if intercept is not None else 0.0)


def transformed(values: Array, dataset: Dataset, frame_number: int | None) -> Array:
    """(rows, columns) values of one frame after the modality transform.

    Args:
        values: (rows, columns) stored values.
        dataset: Its instance.
        frame_number: 1-based frame of a multi-frame instance; None for a single-frame one.

    Raises:
        ConversionError: the transform cannot be applied, or gives values that are no finite numbers.
    """
    try:
        if frame_number is None and header.items(dataset, "ModalityLUTSequence"):
            return np.asarray(apply_modality_lut(values, dataset))
    except DECODING_ERRORS as error:
        raise ConversionError(f"its Modality LUT cannot be applied: {error}") from error
    slope, intercept = rescale(dataset, frame_number)
    if (slope, intercept) == (1.0, 0.0):
        return values
    with np.errstate(over="ignore"):
        result = np.asarray(values.astype(np.float64) * slope + intercept)
        finite = np.isfinite(result.astype(np.float32)).all()
    if not finite:
        raise ConversionError(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} give no finite values")
    return result


def real_world_slope(dataset: Dataset, frame_number: int | None) -> float | None:
    """Slope of a frame's first Real World Value Mapping; None where it has none, or a LUT."""
    if frame_number is None:
        mappings = header.items(dataset, "RealWorldValueMappingSequence")
        return header.number(mappings[0], "RealWorldValueSlope") if mappings else None
    mapping = header.functional_group(dataset, frame_number - 1, "RealWorldValueMappingSequence")
    return header.number(mapping, "RealWorldValueSlope") if mapping is not None else None
