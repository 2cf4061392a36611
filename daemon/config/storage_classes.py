"""Which storage SOP classes the listener takes, from what the configuration says."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydicom.uid import UID
from pynetdicom.presentation import AllStoragePresentationContexts

ALL = "all"
"""Every storage SOP class of the standard."""

_UID = re.compile(r"(?=.{3,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+")

STANDARD = tuple(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
"""UIDs of the storage SOP classes of the standard (PS3.4 Table B.5-1)."""

_BY_KEYWORD = {UID(uid).keyword: uid for uid in STANDARD}


def resolve_storage_classes(entries: Iterable[str]) -> tuple[str, ...]:
    """The UIDs that the entries name, in a fixed order.

    Args:
        entries: Each `all`, a keyword such as `MRImageStorage`, or a UID, which may be a private one.

    Raises:
        ValueError: an entry is none of these.
    """
    found: set[str] = set()
    for entry in entries:
        if entry == ALL:
            found.update(STANDARD)
        elif entry in _BY_KEYWORD:
            found.add(_BY_KEYWORD[entry])
        elif _UID.fullmatch(entry):
            found.add(entry)
        else:
            raise ValueError(f"expected `all`, the keyword of a storage SOP class, or a UID, got {entry!r}")
    return tuple(sorted(found))
