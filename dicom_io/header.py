"""Reading values out of DICOM headers that may hold anything.

Headers come from many vendors and many de-identification tools: an element may be absent, empty, of the wrong VR or
hold text that is no number. Each function here answers None (or an empty tuple) for a value that cannot be understood,
so that rules can say "absent" instead of failing.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from pydicom.valuerep import PersonName

from dicom_io.charset import decode

TEXT = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
"""Value representations that Specific Character Set is about (PS3.5 6.1.2.2)."""
# What pydicom's lazy conversion raises on malformed values (VR unknown, bad length, text that is no number or date,
# unknown character set, broken deflate stream).
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    OverflowError,
    LookupError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
    BytesLengthException,
)


FARTHEST_MM = 1e6
"""Larger coordinates are no places; differences of those that are allowed keep 0.1 nm."""
LOSSY_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
"""Encodings that cannot be without loss; JPEG 2000 and HTJ2K may."""


def value(dataset: Dataset, keyword: str) -> Any:
    """Value of an element as pydicom gives it; None where it is absent, empty or malformed."""
    try:
        found = dataset.get(keyword)
    except MALFORMED:
        return None
    return None if found is None or found == "" else found


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """All values of a text element, stripped; empty where absent."""
    found = value(dataset, keyword)
    if found is None:
        return ()
    many = found if isinstance(found, (MultiValue, list, tuple)) else [found]
    read = tuple(str(v).strip() for v in many if v is not None and str(v).strip())
    if any("\x1b" in part for part in read) and (exact := escaped_text(dataset, keyword)) is not None:
        return tuple(part.strip() for part in exact.split("\\") if part.strip())
    return read


def character_sets(dataset: Dataset) -> tuple[str, ...]:
    """The values of Specific Character Set; the first may be empty."""
    found = value(dataset, "SpecificCharacterSet")
    if found is None:
        return ()
    return tuple(str(v or "").strip() for v in (found if isinstance(found, (MultiValue, list, tuple)) else [found]))


def escaped_text(dataset: Dataset, keyword: str) -> str | None:
    """Text with escape sequences, decoded exactly; None where it has none, or they are not known."""
    raw = raw_text(dataset, keyword)
    return decode(raw, character_sets(dataset)) if raw is not None and b"\x1b" in raw else None


def fits_its_label(dataset: Dataset, keyword: str, labels: tuple[str, ...] | None = None) -> bool:
    """Whether a text's bytes are of the character set that the header states; what was set in memory is.

    Args:
        dataset: A header, or an item of one.
        keyword: Of the text.
        labels: Specific Character Set of the header whose item `dataset` is; None: of `dataset` itself.
    """
    raw = raw_text(dataset, keyword)
    if raw is None or (raw.isascii() and b"\x1b" not in raw):
        return True
    return decode(raw, character_sets(dataset) if labels is None else labels) is not None


def raw_text(dataset: Dataset, keyword: str) -> bytes | None:
    """The bytes of a text element as they came; None where they are no longer known, or it is none."""
    if dictionary_VR(keyword) not in TEXT:  # the lengths in a sequence are no letters
        return None
    try:
        element = dataset.get_item(keyword)
        found = getattr(element, "value", None)
        if isinstance(found, MultiValue) and all(isinstance(v, PersonName) for v in found):
            originals = [v.original_string for v in found]
            return b"\\".join(originals) if all(isinstance(o, bytes) for o in originals) else None
        if isinstance(found, PersonName):
            found = found.original_string
    except MALFORMED:
        return None
    return found if isinstance(found, bytes) else None


def text(dataset: Dataset, keyword: str) -> str:
    r"""Text of an element, values joined by a backslash; empty where absent."""
    return "\\".join(texts(dataset, keyword))


def readable_name(name: str) -> str:
    """A person name as people write it: "Doe^Jane^A^Dr" as "Doe, Jane A, Dr" (components: PS3.5 6.2.1.1).

    Ideographic and phonetic forms follow in brackets; what is no such name comes back as it is.
    """
    forms = [_readable_form(group) for group in name.split("=")]
    first, *others = [form for form in forms if form] or [name]
    return " ".join([first, *(f"({other})" for other in others)])


def _readable_form(group: str) -> str:
    family, given, middle, prefix, suffix = ([part.strip() for part in group.split("^", 4)] + [""] * 5)[:5]
    parts = (family, f"{given} {middle}".strip(), prefix, suffix.replace("^", " ").strip())
    return ", ".join(part for part in parts if part)


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """All values of a numeric element that are finite numbers; empty where one of them is not."""
    result: list[float] = []
    for item in texts(dataset, keyword):
        try:
            number_ = float(item)
        except ValueError:
            return ()
        if not math.isfinite(number_):
            return ()
        result.append(number_)
    return tuple(result)


def vector(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """A place or direction in a patient: `count` numbers of at most a kilometre; empty where it is none."""
    found = numbers(dataset, keyword)
    return found if len(found) == count and all(abs(n) <= FARTHEST_MM for n in found) else ()


def finite_numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of a numeric element that are finite numbers; others, such as fill values, are passed over."""
    result: list[float] = []
    for item in texts(dataset, keyword):
        try:
            number_ = float(item)
        except ValueError:
            continue
        if math.isfinite(number_):
            result.append(number_)
    return tuple(result)


def number(dataset: Dataset, keyword: str) -> float | None:
    """First value of a numeric element; None where absent or not a finite number."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def whole_number(dataset: Dataset, keyword: str) -> int | None:
    """First value of an integer element; None where absent or not an integer."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def uid(dataset: Dataset, keyword: str) -> str:
    """A UID without padding; empty where absent."""
    found = value(dataset, keyword)
    return str(UID(str(found).strip("\0 "))) if found is not None else ""


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; empty where absent or not a sequence."""
    found = value(dataset, keyword)
    try:
        return [item for item in found if isinstance(item, Dataset)] if found is not None else []
    except MALFORMED:
        return []


def frame_groups(dataset: Dataset, index: int) -> Iterator[Dataset]:
    """Functional group items that describe one frame: per-frame first, then shared (PS3.3 C.7.6.16).

    Args:
        dataset: A multi-frame instance.
        index: 0-based frame.

    Yields:
        Datasets that hold functional group sequences.
    """
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    if index < len(per_frame):
        yield per_frame[index]
    yield from items(dataset, "SharedFunctionalGroupsSequence")[:1]


def is_multiframe(dataset: Dataset) -> bool:
    """Whether the instance describes its frames by functional groups."""
    return bool(items(dataset, "PerFrameFunctionalGroupsSequence") or items(dataset, "SharedFunctionalGroupsSequence"))


def functional_group(dataset: Dataset, index: int, sequence: str) -> Dataset | None:
    """First item of a functional group macro for one frame; None where the frame has none.

    Args:
        dataset: A multi-frame instance.
        index: 0-based frame.
        sequence: Keyword of the macro's sequence, such as `PlanePositionSequence`.
    """
    for group in frame_groups(dataset, index):
        found = items(group, sequence)
        if found:
            return found[0]
    return None


def is_lossy(dataset: Dataset) -> bool:
    """Whether the picture was once compressed with loss (PS3.3 C.7.6.1.1.5), or comes so."""
    if text(dataset, "LossyImageCompression") == "01" or text(dataset, "LossyImageCompressionMethod"):
        return True
    meta = getattr(dataset, "file_meta", None)
    return meta is not None and uid(meta, "TransferSyntaxUID") in LOSSY_SYNTAXES


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without warnings, and without the log lines of libraries that log the same error which they raise."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
