"""Text of any Specific Character Set to Unicode, exactly or not at all (PS3.5 6.1.2, PS3.3 C.12.1.1.2).

pydicom's decoder leaves escape sequences of some code extensions in the text, and puts U+FFFD or another alphabet's
letters where bytes do not fit their label. An identity must not come out changed without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

ESCAPE = 0x1B


@dataclass(frozen=True)
class _Set:
    """One graphic character set: the Python codec that knows it, and what that codec wants around its bytes."""

    codec: str
    bytes_each: int = 1
    before: bytes = b""


_ASCII, _ROMAJI = _Set("ascii"), _Set("shift_jis")
_LOW: dict[bytes, _Set] = {
    b"(B": _ASCII, b"(J": _ROMAJI, b"$B": _Set("iso2022_jp", 2, b"\x1b$B"), b"$@": _Set("iso2022_jp", 2, b"\x1b$@"),
    b"$(D": _Set("iso2022_jp_2", 2, b"\x1b$(D"),
}  # fmt: skip
"""Escape sequences that change what bytes below 128 mean (PS3.3 tables C.12-3 and C.12-4)."""
_HIGH: dict[bytes, _Set] = {
    b")I": _Set("shift_jis"), b"-A": _Set("latin_1"), b"-B": _Set("iso8859_2"), b"-C": _Set("iso8859_3"),
    b"-D": _Set("iso8859_4"), b"-F": _Set("iso8859_7"), b"-G": _Set("iso8859_6"), b"-H": _Set("iso8859_8"),
    b"-L": _Set("iso8859_5"), b"-M": _Set("iso8859_9"), b"-T": _Set("tis_620"), b"-b": _Set("iso8859_15"),
    b"$)C": _Set("euc_kr", 2), b"$)A": _Set("gb2312", 2),
}  # fmt: skip
"""Those that change what bytes from 128 on mean."""
_WHOLE = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk"}
"""Labels of sets that know no escape sequences."""
_FIRST: dict[str, bytes] = {
    "13": b")I", "100": b"-A", "101": b"-B", "109": b"-C", "110": b"-D", "126": b"-F", "127": b"-G", "138": b"-H",
    "144": b"-L", "148": b"-M", "166": b"-T", "203": b"-b", "149": b"$)C", "58": b"$)A",
}  # fmt: skip
"""Registration number in a label, and the escape sequence of its upper half."""


def decode(raw: bytes, labels: Sequence[str], delimiters: bytes = b"^=\\\r\n\t\f") -> str | None:
    """Text of an element.

    Args:
        raw: Its bytes.
        labels: The values of Specific Character Set; none or an empty first one means the default repertoire, ASCII.
        delimiters: Bytes after which the first character set holds again (PS3.5 6.1.2.5.3).

    Returns:
        The text; None where the bytes do not fit the labels, or nobody knows a label.
    """
    first = labels[0].strip() if labels else ""
    try:
        if first in _WHOLE:
            return raw.decode(_WHOLE[first])
        start = _start(first)
        if start is None:
            return None
        return "".join(_runs(raw, start, delimiters))
    except (UnicodeDecodeError, KeyError):
        return None


@dataclass(frozen=True)
class _State:
    low: _Set
    high: _Set | None


def _start(label: str) -> _State | None:
    """What bytes mean before the first escape sequence; None for a label that nobody knows."""
    number = label.rpartition(" ")[2]
    if label in ("", "ISO_IR 6", "ISO 2022 IR 6", "ISO 2022 IR 87", "ISO 2022 IR 159"):
        return _State(_ASCII, None)
    if not label.startswith(("ISO_IR ", "ISO 2022 IR ")) or number not in _FIRST:
        return None
    return _State(_ROMAJI if number == "13" else _ASCII, _HIGH[_FIRST[number]])


def _runs(raw: bytes, start: _State, delimiters: bytes) -> Iterator[str]:
    """The text of each run of bytes of one set."""
    state, place = start, 0
    while place < len(raw):
        byte = raw[place]
        if byte == ESCAPE:
            short, long = raw[place + 1 : place + 3], raw[place + 1 : place + 4]
            sequence = short if short in _LOW or short in _HIGH else long
            state = replace(state, low=_LOW[sequence]) if sequence in _LOW else replace(state, high=_HIGH[sequence])
            place += 1 + len(sequence)
            continue
        current = state.low if byte < 0x80 else state.high
        if byte in delimiters and state.low.bytes_each == 1:
            state = start
        if current is None:
            raise UnicodeDecodeError("ascii", raw, place, place + 1, "no set for bytes from 128 on")
        piece = raw[place : place + current.bytes_each]
        yield (current.before + piece).decode(current.codec)
        place += len(piece)
