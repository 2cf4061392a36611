"""What a case was made from: a name alone does not tell a case of one source from that of another."""

from __future__ import annotations

import hashlib

from daemon.cohort.cases import Case
from dicom_io.deidentify import Deidentifier

SPOT_BYTES = 1 << 16
"""Read at the start and in the middle of a file: in an uncompressed volume the start may be the same for two heads."""


def origin_of(case: Case, hide: Deidentifier | None) -> str:
    """A digest of a study's received UID, or of a NIfTI file's size and what stands at its start and in its middle.

    Path and time do not count: a source may be moved, copied and mounted elsewhere.

    Args:
        case: Of a source.
        hide: Where results are to name nobody: without its key nobody can tell that a file or study is the case's.

    Returns:
        Empty where there is no study and no file that can be read.
    """
    study = next((facts.study_uid for facts in case.facts.values()), "")
    what = f"study {study}" if study else _content(case)
    if not what:
        return ""
    return hashlib.sha256(what.encode()).hexdigest() if hide is None else hide.digest("origin", what)


def _content(case: Case) -> str:
    try:
        with case.files[0].open("rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256()
            for place in (0, size // 2):
                file.seek(place)
                digest.update(file.read(SPOT_BYTES))
    except OSError:
        return ""
    return f"file of {size} bytes {digest.hexdigest()}"
