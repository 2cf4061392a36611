"""Pictures that differ in a few attributes, taken apart without being decoded.

A study has hundreds of overlays that are the same but for their place and pixels. What was found of one holds for all
others whose shared elements are the same bytes, so they need not be looked at again.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dicom_io.errors import PackError

PIXEL_DATA = 0x7FE00010
_META_LENGTH, _META_INSTANCE, _META_SYNTAX = 0x00020000, 0x00020003, 0x00020010
"""File Meta Information (PS3.10 7.1): its length and its instance differ from file to file, too."""
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32)


def apart(path: Path, own: Collection[str]) -> tuple[Dataset, dict[int, bytes]]:
    """What a picture has of its own, and what it shares.

    Args:
        path: A Part 10 file in Explicit VR Little Endian, as results are written.
        own: Keywords of attributes.

    Returns:
        The own attributes as they read back, without pixels; and the bytes of all other elements by their tag, those
        of the File Meta Information among them.

    Raises:
        PackError: the file is cut off, or written in another way.
    """
    try:
        elements = dict(_elements(path.read_bytes()))
    except struct.error as error:
        raise PackError(f"{path.name}: expected a whole DICOM file, got one that is cut off") from error
    if _value(elements.get(_META_SYNTAX, b"")) != ExplicitVRLittleEndian.encode():
        raise PackError(f"{path.name}: expected Explicit VR Little Endian")
    for tag in (_META_LENGTH, _META_INSTANCE):
        elements.pop(tag, None)
    tags = sorted(tag for tag in map(tag_for_keyword, own) if tag in elements)
    mine = b"".join(elements.pop(tag) for tag in tags)
    return read_dataset(BytesIO(mine), is_implicit_VR=False, is_little_endian=True), elements


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and bytes of each element up to Pixel Data, sequences as a whole (PS3.5 7.1.2).

    Raises:
        struct.error: there is no Pixel Data, or an element without a length.
    """
    place = 132
    while True:
        group, number, representation, length = struct.unpack_from("<HH2sH", content, place)
        tag, start = group << 16 | number, place + 8
        if tag == PIXEL_DATA:
            return
        if representation in _LONG:
            (length,) = struct.unpack_from("<L", content, start)
            start += 4
        if length == _UNDEFINED or start + length > len(content):
            raise struct.error
        yield tag, content[place : start + length]
        place = start + length


def _value(element: bytes) -> bytes:
    """Value of an element with a length of two bytes, without its padding."""
    return element[8:].rstrip(b"\0 ")
