"""The few attributes that routing needs, read from an encoded data set without decoding the rest.

PS3.5 7.1: elements stand in order of their tags, so reading stops behind Series Instance UID (0020,000E). Values are
stepped over, sequences of undefined length (PS3.5 7.5) included.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.files import Buffer
from daemon.spool.segment import Part, pieces_of

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""PS3.5 7.1.2: value representations whose length field has 32 bits."""
_UNKNOWN_VR = b"??"
"""What some software writes for a private element whose VR it does not know; its length has 16 bits."""
_WANTED = {(0x0008, 0x0016): 0, (0x0008, 0x0018): 1, (0x0020, 0x000D): 2, (0x0020, 0x000E): 3}
_NAMES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_LAST = (0x0020, 0x000E)
_UID = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,63}")
"""Wider than PS3.5 9.1: software that anonymises makes UIDs of letters, too. Each is fit for a file's name."""
_INFLATE_STEP = 1 << 16
_MAX_HEADER_BYTES = 4 << 20
_MAX_ELEMENTS = 500_000
_MAX_DEPTH = 32
MAX_INFLATED_BYTES = 512 << 20
"""Far more than any study of ours needs."""

Tag = tuple[int, int]


class DatasetError(ValueError):
    """The encoded data set cannot be understood as far as routing needs it; the text holds no patient data."""


@dataclass(frozen=True)
class Identity:
    """Who an instance is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


def read_identity(data: bytes | bytearray | memoryview, transfer_syntax_uid: str) -> Identity:
    """The four UIDs of an encoded data set.

    Args:
        data: The data set without preamble and file meta information.
        transfer_syntax_uid: How it is encoded.

    Raises:
        DatasetError: it is cut off, not encoded so, or lacks one of them.
    """
    if transfer_syntax_uid == DEFLATED:
        return _read_deflated(data)
    return _read(data, transfer_syntax_uid)


def _read(data: bytes | bytearray | memoryview, transfer_syntax_uid: str) -> Identity:
    reader = _Reader(
        data, explicit=transfer_syntax_uid != IMPLICIT_LITTLE, order=">" if transfer_syntax_uid == EXPLICIT_BIG else "<"
    )
    try:
        values = reader.uids()
    except struct.error as error:
        raise DatasetError("the data set ends before SeriesInstanceUID (0020,000E)") from error
    for name, value in zip(_NAMES, values, strict=True):
        if value is None:
            raise DatasetError(f"the data set has no {name}")
        if not _UID.fullmatch(value):
            raise DatasetError(f"{name}: expected a UID of digits and dots, got {len(value)} characters")
    return Identity(*(value or "" for value in values))


def _read_deflated(data: bytes | bytearray | memoryview) -> Identity:
    """PS3.5 A.5: inflate as much as is needed, in doubling steps, so that a bomb cannot fill the memory."""
    wanted = _INFLATE_STEP
    while True:
        inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        try:
            plain = inflater.decompress(data, wanted)
        except zlib.error as error:
            raise DatasetError(f"the deflated data set cannot be inflated: {error}") from error
        try:
            return _read(plain, "1.2.840.10008.1.2.1")
        except DatasetError:
            if len(plain) < wanted or wanted >= _MAX_HEADER_BYTES:
                raise
        wanted *= 4


def check_inflated(data: Sequence[Part]) -> None:
    """Whoever reads a deflated data set has to inflate all of it, so what it comes to is bounded.

    Args:
        data: The deflated data set.

    Raises:
        DatasetError: it comes to more than `MAX_INFLATED_BYTES`, or cannot be inflated.
    """
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    size = 0
    try:
        for piece in pieces_of(data):
            left: Buffer = piece
            while len(left) and not inflater.eof:
                size += len(inflater.decompress(left, _INFLATE_STEP))
                left = inflater.unconsumed_tail
                if size > MAX_INFLATED_BYTES:
                    raise DatasetError(f"deflated data set: inflates to more than {MAX_INFLATED_BYTES >> 20} MB")
    except zlib.error as error:
        raise DatasetError(f"the deflated data set cannot be inflated: {error}") from error


class _Reader:
    """Steps through the elements of a data set in one transfer syntax."""

    def __init__(self, data: bytes | bytearray | memoryview, *, explicit: bool, order: str) -> None:
        self._data = data
        self._explicit = explicit
        self._tag = struct.Struct(order + "HH")
        self._short = struct.Struct(order + "H")
        self._long = struct.Struct(order + "L")
        self._position = 0
        self._elements = 0

    def uids(self) -> list[str | None]:
        values: list[str | None] = [None] * len(_NAMES)
        end = len(self._data)
        while self._position < end:
            tag, vr, length = self._element()
            if tag > _LAST:
                break
            if length == _UNDEFINED:
                self._skip_sequence(1, explicit=self._explicit and vr != b"UN")
                continue
            start = self._position
            self._advance(length)
            place = _WANTED.get(tag)
            if place is not None:
                raw = bytes(self._data[start : self._position])
                values[place] = raw.rstrip(b"\0 ").decode("ascii", "replace")
        return values

    def _advance(self, length: int) -> None:
        self._position += length
        if self._position > len(self._data):
            raise DatasetError("a value reaches beyond the end of the data set")

    def _element(self, *, explicit: bool | None = None) -> tuple[Tag, bytes, int]:
        """Tag, VR (empty in implicit VR and for item tags) and length; leaves the position at the value."""
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise DatasetError(f"more than {_MAX_ELEMENTS} elements before SeriesInstanceUID (0020,000E)")
        at = self._position
        group, element = self._tag.unpack_from(self._data, at)
        if not (self._explicit if explicit is None else explicit) or group == 0xFFFE:
            self._position = at + 8
            return (group, element), b"", self._long.unpack_from(self._data, at + 4)[0]
        vr = bytes(self._data[at + 4 : at + 6])
        if vr in _LONG_VRS:
            self._position = at + 12
            return (group, element), vr, self._long.unpack_from(self._data, at + 8)[0]
        if not vr.isalpha() and vr != _UNKNOWN_VR:
            raise DatasetError(f"({group:04X},{element:04X}): expected a value representation")
        self._position = at + 8
        return (group, element), vr, self._short.unpack_from(self._data, at + 6)[0]

    def _skip_sequence(self, depth: int, *, explicit: bool) -> None:
        """Step over items up to the delimitation; inside UN of undefined length VR is implicit (PS3.5 6.2.2)."""
        if depth > _MAX_DEPTH:
            raise DatasetError(f"sequences nested deeper than {_MAX_DEPTH}")
        while True:
            tag, _, length = self._element(explicit=False)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise DatasetError(f"expected an item in a sequence, got ({tag[0]:04X},{tag[1]:04X})")
            if length == _UNDEFINED:
                self._skip_item(depth, explicit=explicit)
            else:
                self._advance(length)

    def _skip_item(self, depth: int, *, explicit: bool) -> None:
        while True:
            tag, vr, length = self._element(explicit=explicit)
            if tag == _ITEM_END:
                return
            if length == _UNDEFINED:
                self._skip_sequence(depth + 1, explicit=explicit and vr != b"UN")
            else:
                self._advance(length)
