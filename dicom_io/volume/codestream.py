"""What a compressed frame says of itself, read from its first markers without decoding it.

JPEG and JPEG-LS: the frame header (ITU-T T.81 B.2.2, T.87 C.2.2). JPEG 2000: the SIZ marker (T.800 A.5.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_NO_FRAME = frozenset((0xC4, 0xC8, 0xCC))
"""Markers between SOF0 and SOF15 that open no frame: DHT, JPG, DAC."""
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length: TEM, RST0 to RST7, SOI."""
_SOF_JPEG_LS = 0xF7
_SOC_SIZ = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class Codestream:
    """Size and depth that a codestream announces.

    Attributes:
        precision: Bits of each sample.
        rows: Rows.
        columns: Columns.
    """

    precision: int
    rows: int
    columns: int


def read_codestream(content: bytes) -> Codestream | None:
    """What the codestream announces; None where it is none that is known (RLE, or broken)."""
    try:
        start = content.find(_SOC_SIZ, 0, 512)  # a JP2 box, which DICOM does not allow, may stand before it
        if start >= 0:
            return _jpeg_2000(content, start)
        return _jpeg(content) if content[:2] == b"\xff\xd8" else None
    except (struct.error, IndexError):
        return None


def _jpeg_2000(content: bytes, start: int) -> Codestream:
    right, bottom, left, top = struct.unpack(">4L", content[start + 8 : start + 24])
    return Codestream((content[start + 42] & 0x7F) + 1, bottom - top, right - left)


def _jpeg(content: bytes) -> Codestream | None:
    place = 2
    while content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker == _SOF_JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            precision, rows, columns = struct.unpack(">BHH", content[place + 4 : place + 9])
            return Codestream(precision, rows, columns)
        else:
            place += 2 + struct.unpack(">H", content[place + 2 : place + 4])[0]
    return None
