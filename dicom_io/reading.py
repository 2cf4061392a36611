"""Reading DICOM files that others wrote, within bounds.

A deflated data set (PS3.5 A.5) is inflated no further than stated here: a few kilobytes can hold gigabytes of zeros.
Elements whose value representation is no two letters, such as "??", have a length of two bytes; they are read by the
dictionary, or as text.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import FileDataset
from pydicom.filereader import read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dicom_io.errors import FileError

MOST_HEADER = 64 << 20
"""Bytes of an inflated header; the largest of enhanced instances have a few MiB."""
MOST_PIXELS = 1 << 30
"""Bytes of the decoded pixel data of one instance; the largest brain scans have a quarter."""

PIXEL_DATA = 0x7FE00010
_PIXEL_DATA_TAG = struct.pack("<HH", 0x7FE0, 0x0010)
_PIECE = 1 << 20
_LOOKED_AT = 1 << 16
"""Bytes at the beginning in which odd value representations are looked for."""
_ITEMS = 0xFFFE
_LONG = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32)


@dataclass(frozen=True)
class Opened:
    """A Part 10 file, as `pydicom.dcmread` can take it.

    Attributes:
        stream: At its beginning.
        size: Bytes of the whole; may be more than the stream holds, where only the header was inflated.
        deflated: Whether it was inflated; its file meta information then says Explicit VR Little Endian.
        mended: Names of the elements that had no value representation.
    """

    stream: BinaryIO
    size: int
    deflated: bool = False
    mended: tuple[str, ...] = ()


@contextmanager
def opened(path: Path, *, pixels: bool) -> Iterator[Opened]:
    """Open a Part 10 file for reading; see `read_dataset`."""
    with path.open("rb") as stream:
        beginning = stream.read(_LOOKED_AT)
        stream.seek(0)
        size = path.stat().st_size
        if DeflatedExplicitVRLittleEndian.encode() in beginning[:4096]:
            yield _inflated(path, stream, size, pixels=pixels)
        elif b"??" in beginning and ImplicitVRLittleEndian.encode() + b"\0" not in beginning[:4096]:
            content, mended = _with_representations(stream.read(), _start(path))
            yield Opened(BytesIO(content), size, mended=mended)
        else:
            yield Opened(stream, size)


def read_dataset(path: Path, *, pixels: bool = True) -> FileDataset:
    """Read a DICOM Part 10 file.

    Args:
        path: The file.
        pixels: False: without Pixel Data and what follows it.

    Raises:
        FileError: it inflates beyond all measure.
        pydicom.errors.InvalidDicomError, OSError, header.MALFORMED: as pydicom raises them.
    """
    with opened(path, pixels=pixels) as file:
        return read_opened(file, pixels=pixels)


def read_elements(path: Path, keywords: Iterable[str]) -> FileDataset:
    """Only these elements of a file, by keyword; raises as `read_dataset` does."""
    with opened(path, pixels=False) as file:
        return read_opened(file, pixels=False, keywords=keywords)


def read_opened(file: Opened, *, pixels: bool, keywords: Iterable[str] | None = None) -> FileDataset:
    """Read an opened file, or some of its elements; without pixels its stream is left where Pixel Data begins."""
    tags = None if keywords is None else list(keywords)
    dataset = pydicom.dcmread(file.stream, stop_before_pixels=not pixels, specific_tags=tags)
    if file.deflated:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


def _start(path: Path) -> int:
    """Where the data set begins."""
    group_length = read_file_meta_info(path).get("FileMetaInformationGroupLength")
    return 132 + 12 + int(group_length or 0)


def _inflated(path: Path, stream: BinaryIO, size: int, *, pixels: bool) -> Opened:
    """The file with its data set inflated, for the header alone no further than that needs; the rest is only measured.

    Raises:
        FileError: it is larger than any brain scan.
        zlib.error: it is broken.
    """
    start = min(_start(path), size)
    head = stream.read(start)
    as_native = ExplicitVRLittleEndian.ljust(len(DeflatedExplicitVRLittleEndian), "\0")
    head = head.replace(DeflatedExplicitVRLittleEndian.encode(), as_native.encode())
    kept, total, most = bytearray(), 0, MOST_HEADER + MOST_PIXELS
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    piece = stream.read(_PIECE)
    while piece and not inflate.eof:
        out = inflate.decompress(piece, _PIECE)
        total += len(out)
        if pixels or len(kept) < MOST_HEADER:
            kept += out
        if total > most:
            raise FileError(f"expected a data set of at most {most >> 20} MiB, got one that inflates to more")
        piece = inflate.unconsumed_tail or stream.read(_PIECE)
    if not inflate.eof:
        raise FileError("truncated: the deflated data set has no end")
    if total > len(kept) and _PIXEL_DATA_TAG not in kept:
        raise FileError(f"expected a header of at most {MOST_HEADER >> 20} MiB, got one that inflates to more")
    return Opened(BytesIO(head + kept), start + total, deflated=True)


def _with_representations(content: bytes, start: int) -> tuple[bytes, tuple[str, ...]]:
    """Explicit VR Little Endian with a representation wherever there is none, and the names of those elements."""
    changed, names = bytearray(content), []
    for place, tag in _elements(content, start):
        representation = content[place + 4 : place + 6]
        if tag >> 16 != _ITEMS and not representation.isalpha():
            changed[place + 4 : place + 6] = _short_representation(tag)
            names.append(keyword_for_tag(tag) or str(Tag(tag)))
    return bytes(changed), tuple(dict.fromkeys(names))


def _elements(content: bytes, start: int) -> Iterator[tuple[int, int]]:
    """(place, tag) of every element before Pixel Data, those in sequences and items too."""
    place = start
    while place + 8 <= len(content):
        group, element, length = struct.unpack_from("<HHL", content, place)
        tag = group << 16 | element
        if tag == PIXEL_DATA:
            return
        yield place, tag
        if group == _ITEMS:  # what follows is inside it, or behind it
            place += 8
            continue
        representation = content[place + 4 : place + 6]
        if representation in _LONG:
            if place + 12 > len(content):
                return
            (length,) = struct.unpack_from("<L", content, place + 8)
            inside = representation == b"SQ" or length == 0xFFFFFFFF
            place += 12 + (0 if inside else length)
        else:
            (length,) = struct.unpack_from("<H", content, place + 6)
            place += 8 + length


def _short_representation(tag: int) -> bytes:
    """The dictionary's, if its length has two bytes too; else that of text."""
    try:
        found = dictionary_VR(tag).encode()
    except KeyError:
        return b"LO"
    return found if len(found) == 2 and found not in _LONG else b"LO"
