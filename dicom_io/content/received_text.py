"""Text that does not fit its character set: the received bytes in results, under the received label.

An identity whose bytes nobody can decode must not be guessed at: a PACS compares bytes, and a name that was made to fit
is another name. Inside this software such bytes are strings with one surrogate for each byte from 128 on (PEP 383); a
data set that holds them is written with those bytes, with the Specific Character Set of the source, and with all other
text in ASCII, which means the same under every label (PS3.3 C.12.1.1.2).
"""

from __future__ import annotations

import unicodedata

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.multival import MultiValue

from dicom_io import header

CHARACTER_SET = "ISO_IR 192"
"""UTF-8; results are written in it where the source's texts can be decoded exactly (PS3.3 C.12.1.1.2)."""
TEXT = header.TEXT
_FIRST, _LAST = "\udc80", "\udcff"
_SHORT = {"LO": 64, "SH": 16}
_PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "·": ".", "’": "'", "‘": "'", "“": '"', "”": '"',
                        "≥": ">=", "≤": "<=", "±": "+-", "…": "..."})  # fmt: skip


def as_received(raw: bytes) -> str:
    """Bytes as a string that keeps them."""
    return raw.decode("ascii", "surrogateescape")


def is_as_received(text: str) -> bool:
    """Whether a string holds bytes that were not decoded."""
    return any(_FIRST <= character <= _LAST for character in text)


def shown(text: str) -> str:
    """The string for people: bytes that were not decoded as `<E9>`."""
    return "".join(f"<{ord(c) - 0xDC00:X}>" if _FIRST <= c <= _LAST else c for c in text)


def holds_received_bytes(identity: Dataset) -> bool:
    """Whether results of a header (as `normalised_header` makes it) are to be written under the source's label."""
    if identity.get("SpecificCharacterSet") != CHARACTER_SET:
        return True
    return any(is_as_received(str(e.value)) for e in identity if e.VR in TEXT)


def stated(identity: Dataset, keyword: str) -> str:
    """What a header, as `normalised_header` makes it, says; values joined by a backslash."""
    found = identity.get(keyword)
    values = found if isinstance(found, (MultiValue, list)) else [found]
    return "\\".join("" if value is None else str(value) for value in values).rstrip()


def text_in(written: Dataset, keyword: str, identity: Dataset) -> str:
    """What a file that was written for `identity` says, in the form of `stated`."""
    kept = dictionary_VR(keyword) in TEXT and holds_received_bytes(identity)
    raw = header.raw_text(written, keyword) if kept else None
    return stated(written, keyword) if raw is None else as_received(raw).rstrip()


def under_received_label(dataset: Dataset, identity: Dataset) -> Dataset:
    """The data set as it is written: itself, or a copy whose texts are bytes and whose label is the source's.

    Args:
        dataset: Complete but for this; explicit little endian.
        identity: The source's header as `normalised_header` makes it.
    """
    if not holds_received_bytes(identity):
        return dataset
    correct_ambiguous_vr(dataset, True)
    written = _in_bytes(dataset, unicode=identity.get("SpecificCharacterSet") == CHARACTER_SET)
    if "SpecificCharacterSet" in identity:
        written.SpecificCharacterSet = identity.SpecificCharacterSet
    elif "SpecificCharacterSet" in written:
        del written.SpecificCharacterSet
    written.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
    with header.quiet("pydicom"):  # it does not know some labels
        written.set_original_encoding(False, True, written._character_set)
    return written


def _in_bytes(dataset: Dataset, *, unicode: bool) -> Dataset:
    """A copy whose texts are bytes, at any depth, which pydicom writes as they are."""
    copy = Dataset()
    for element in dataset:
        if element.VR == "SQ":
            items = [_in_bytes(item, unicode=unicode) for item in element.value]
            copy.add(DataElement(element.tag, "SQ", items))
        elif element.VR in TEXT and not element.is_empty:
            raw = _bytes_of(element, unicode=unicode)
            copy._dict[element.tag] = RawDataElement(element.tag, element.VR, len(raw), raw, 0, False, True)
        else:
            copy.add(element)
    copy.set_original_encoding(False, True, copy._character_set)
    return copy


def _bytes_of(element: DataElement, *, unicode: bool) -> bytes:
    values = element.value if element.VM > 1 else [element.value]
    text = "\\".join(str(value) for value in values)
    if unicode or is_as_received(text):
        raw = text.encode("utf-8" if unicode else "ascii", "surrogateescape")
    else:
        raw = _in_ascii(text).encode("ascii")[: _SHORT.get(element.VR) if element.VM == 1 else None]
    return raw + b" " * (len(raw) % 2)


def _in_ascii(text: str) -> str:
    """Letters without accents, plain punctuation, and a number for what has no such form."""
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    return kept.encode("ascii", "xmlcharrefreplace").decode("ascii")
