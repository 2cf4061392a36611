"""One DICOM file: its header, and whether its pixel data are all there.

Only the header is held in memory. The pixel data are measured, not read: a native value must be as long as rows,
columns and bits ask for, and an encapsulated one must be a whole chain of fragments (PS3.5 A.4).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    MediaStorageDirectoryStorage,
)

from dicom_io import header
from dicom_io.errors import SHOWN, FileError
from dicom_io.reading import MOST_PIXELS, PIXEL_DATA, Opened, opened, read_opened

IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""UIDs that every instance has, each once."""
LONGEST_UID = 1024
"""Characters: of 64 that are legal (PS3.5 9.1) some makers take more, but results must be able to name it."""
ITEM = 0xFFFEE000
SEQUENCE_END = 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
CODESTREAMS = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
END_OF_IMAGE = b"\xff\xd9"
"""Marker that ends every JPEG, JPEG-LS and JPEG 2000 codestream (ITU-T T.81 B.1.1.3, T.87, T.800 A.4.4)."""


def read_header(path: Path) -> FileDataset:
    """Read one file's header and check that its pixel data are whole.

    Args:
        path: A DICOM Part 10 file.

    Returns:
        The dataset without pixel data. Its attribute `mended` names the elements that had no value representation.

    Raises:
        FileError: It is not DICOM, lacks the UIDs that every instance has, is truncated, or is larger than any picture.
    """
    try:
        with opened(path, pixels=False) as file:
            dataset = read_opened(file, pixels=False)
            _check_identity(dataset)
            _check_pixels(dataset, file)
            dataset.mended = file.mended
    except InvalidDicomError as error:
        raise FileError("not a DICOM file: the DICM prefix of a Part 10 file is missing") from error
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from error
    except (*header.MALFORMED, RecursionError, MemoryError) as error:
        raise FileError(f"the DICOM header cannot be parsed: {error}") from error
    return dataset


def _check_identity(dataset: FileDataset) -> None:
    syntax = header.uid(dataset.file_meta, "TransferSyntaxUID")
    if not syntax:
        raise FileError("expected a Transfer Syntax UID in the file meta information, got none")
    if not UID(syntax).is_transfer_syntax:
        raise FileError(f"Transfer Syntax UID {syntax} is not one of DICOM's")
    if header.uid(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise FileError("a DICOMDIR, not an image")
    absent = [
        k for k in IDENTIFIERS
        if not header.uid(dataset, k)
    ]  # fmt: skip
    if absent:
        raise FileError(f"truncated or incomplete header: expected {', '.join(absent)}, got none")
    for keyword in IDENTIFIERS:
        found = dataset.get(keyword)
        if not isinstance(found, str) or len(found) > LONGEST_UID:
            raise FileError(f"expected one UID in {keyword}, got {str(found)[:SHOWN]}")


def _check_pixels(dataset: FileDataset, file: Opened) -> None:
    """Measure the pixel data of an image; anything else has none to measure."""
    rows, columns = (header.whole_number(dataset, k) for k in ("Rows", "Columns"))
    if rows is None and columns is None and not _is_image_class(dataset):
        return
    if not rows or not columns or min(rows, columns) < 1:
        raise FileError(f"truncated or incomplete header: expected Rows and Columns, got {rows} and {columns}")
    if (decoded := native_length(dataset)) > MOST_PIXELS:
        raise FileError(f"expected at most {MOST_PIXELS >> 20} MiB of decoded pixels, got {decoded >> 20} MiB")
    length = _pixel_data_length(dataset, file.stream)
    if length == UNDEFINED:
        _check_fragments(dataset, file.stream, file.size)
    else:
        _check_native(dataset, length, file.size - file.stream.tell())


def _is_image_class(dataset: FileDataset) -> bool:
    return "Image Storage" in UID(header.uid(dataset, "SOPClassUID")).name


def _pixel_data_length(dataset: FileDataset, stream: BinaryIO) -> int:
    """Length field of Pixel Data at the stream's position; the stream is left at the value's first byte."""
    implicit, little = dataset.original_encoding
    endian = "<" if little else ">"
    head = stream.read(8)
    if len(head) < 8:
        raise FileError(f"truncated: the file ends at byte {stream.tell()}, before its Pixel Data")
    group, element = struct.unpack(endian + "HH", head[:4])
    if Tag(group, element) != PIXEL_DATA:
        raise FileError(f"expected integer Pixel Data (7FE0,0010), got {Tag(group, element)}")
    field = head[4:] if implicit else stream.read(4)
    if len(field) < 4:
        raise FileError(f"truncated: the file ends at byte {stream.tell()}, before its Pixel Data")
    return int(struct.unpack(endian + "L", field)[0])


def native_length(dataset: FileDataset) -> int:
    """Bytes that native pixel data of this header must have (PS3.5 8.1.1), without the padding byte."""
    frames = header.whole_number(dataset, "NumberOfFrames") or 1
    samples = header.whole_number(dataset, "SamplesPerPixel") or 1
    bits = header.whole_number(dataset, "BitsAllocated") or 0
    rows, columns = (header.whole_number(dataset, k) or 0 for k in ("Rows", "Columns"))
    return (rows * columns * samples * frames * bits + 7) // 8


def _check_native(dataset: FileDataset, length: int, available: int) -> None:
    expected = native_length(dataset)
    if min(length, available) < expected:
        raise FileError(f"truncated: expected {expected} bytes of pixel data, got {min(length, available)}")


def _check_fragments(dataset: FileDataset, stream: BinaryIO, size: int) -> None:
    """Walk the items of encapsulated pixel data (PS3.5 A.4); the first one is the Basic Offset Table."""
    fragments = 0
    last_end = stream.tell()
    while True:
        head = stream.read(8)
        if len(head) < 8:
            raise FileError(f"truncated: the file ends after {max(fragments - 1, 0)} fragments of compressed pixels")
        group, element, length = struct.unpack("<HHL", head)
        if Tag(group, element) == SEQUENCE_END:
            break
        if Tag(group, element) != ITEM or stream.tell() + length > size:
            raise FileError(f"truncated: fragment {fragments} of the compressed pixels runs past the file's end")
        fragments += 1
        last_end = stream.seek(length, 1)
    frames = header.whole_number(dataset, "NumberOfFrames") or 1
    if fragments - 1 < frames:
        raise FileError(f"truncated: expected {frames} compressed frames, got {fragments - 1} fragments")
    _check_codestream_end(dataset, stream, last_end)


def _check_codestream_end(dataset: FileDataset, stream: BinaryIO, end: int) -> None:
    """A cut codestream still decodes, to wrong pixels, so the end marker must be there."""
    if dataset.file_meta.TransferSyntaxUID not in CODESTREAMS:
        return
    stream.seek(max(end - 4, 0))
    if END_OF_IMAGE not in stream.read(4):
        raise FileError("truncated: the last compressed frame has no end-of-image marker")
