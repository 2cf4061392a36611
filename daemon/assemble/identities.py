"""Whose a study is by what came last of it: where that names another patient, the identity was corrected.

Instances lie on the host that received them. Where several hosts share a database, the one that assembles a study
says there what the last of its late instances names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset

from daemon.assemble.part10 import UNDECODABLE, read_header
from daemon.config.data_folder import DataFolder
from daemon.database.engine import upsert
from daemon.database.tables import ARRIVALS, INSTANCES, STUDY_IDENTITIES, InstanceState
from dicom_io import header
from dicom_io.errors import FileError
from dicom_io.reading import read_elements

log = logging.getLogger(__name__)

KEYWORDS = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber")
"""Who the patient is, and which order it was."""
UNREADABLE = "\ufffd"
"""Stands in texts whose bytes do not fit their character set."""
_TELLING = [str(s) for s in (InstanceState.PENDING, InstanceState.HANDED_OVER, InstanceState.CONFLICT)]


@dataclass(frozen=True)
class Identity:
    """What an instance says of its patient and order: texts by keyword, none that are empty."""

    received: float
    """POSIX time, s."""
    values: dict[str, str]


def texts_of(dataset: Dataset) -> dict[str, str]:
    """What a header says of patient and order, by keyword; empty values are left out."""
    return {keyword: text for keyword in KEYWORDS if (text := _text(dataset, keyword))}


def read_identity(path: Path) -> dict[str, str] | None:
    """`texts_of` a DICOM file; None where it cannot be read."""
    header_of_file = _read(path)
    return None if header_of_file is None else texts_of(header_of_file)


def latest_identity(index: sa.Engine, data: DataFolder, study_uid: str, after: float) -> Identity | None:
    """Of the instance of a study that came last after a time and names a patient; None where none did.

    Args:
        index: The index of what this host received (`open_index`).
        data: Where this host keeps it.
        study_uid: StudyInstanceUID.
        after: POSIX time, s.
    """
    query = sa.select(INSTANCES).where(
        INSTANCES.c.study_uid == study_uid, INSTANCES.c.state.in_(_TELLING), INSTANCES.c.received > after
    )
    with index.connect() as connection:
        rows = connection.execute(query.order_by(INSTANCES.c.received.desc())).all()
    for row in rows:
        found = _header_of(data, row)
        if found is not None and _text(found, "PatientID"):
            return Identity(row.received, texts_of(found))
    return None


def studies_with_late_instances(index: sa.Engine) -> set[str]:
    """StudyInstanceUIDs of which something came after they were first handed over."""
    first = sa.select(ARRIVALS.c.study_uid, sa.func.min(ARRIVALS.c.created).label("created"))
    handed = first.group_by(ARRIVALS.c.study_uid).subquery()
    query = (
        sa.select(INSTANCES.c.study_uid)
        .join(handed, handed.c.study_uid == INSTANCES.c.study_uid)
        .where(INSTANCES.c.received > handed.c.created, INSTANCES.c.state.in_(_TELLING))
    )
    with index.connect() as connection:
        return set(connection.execute(query.distinct()).scalars())


def share_identities(index: sa.Engine, shared: sa.Engine, data: DataFolder, studies: Iterable[str]) -> None:
    """Say in the database that hosts share what the last of each study's late instances names.

    A study of which nothing was handed over yet has none: its first job reads all of them.
    """
    for study_uid in sorted(studies):
        with index.connect() as connection:
            first = sa.select(sa.func.min(ARRIVALS.c.created)).where(ARRIVALS.c.study_uid == study_uid)
            handed_over = connection.execute(first).scalar()
        found = None if handed_over is None else latest_identity(index, data, study_uid, float(handed_over))
        if found is None:
            continue
        row = {"study_uid": study_uid, "received": found.received, "texts": json.dumps(found.values)}
        known = sa.select(STUDY_IDENTITIES.c.received).where(STUDY_IDENTITIES.c.study_uid == study_uid)
        with shared.begin() as connection:
            if (connection.execute(known).scalar() or 0.0) < found.received:  # by a host that is gone: what it kept is
                connection.execute(upsert(shared, STUDY_IDENTITIES, row, update=("received", "texts")))


def shared_identity(shared: sa.Engine, study_uid: str, after: float) -> Identity | None:
    """What another host said by `share_identities`, where that came after a time (POSIX, s)."""
    query = sa.select(STUDY_IDENTITIES).where(
        STUDY_IDENTITIES.c.study_uid == study_uid, STUDY_IDENTITIES.c.received > after
    )
    with shared.connect() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else Identity(row.received, json.loads(row.texts))


def forget_identity(shared: sa.Engine, study_uid: str) -> None:
    """A study has no job any more."""
    with shared.begin() as connection:
        connection.execute(sa.delete(STUDY_IDENTITIES).where(STUDY_IDENTITIES.c.study_uid == study_uid))


def _header_of(data: DataFolder, row: sa.Row[Any]) -> Dataset | None:
    """What a received instance says; None where it cannot be read."""
    if row.state == InstanceState.CONFLICT and row.file:
        return _read(data.conflicts / row.file)
    return read_header(data.spool, data.jobs, row, KEYWORDS)


def _read(path: Path) -> Dataset | None:
    try:
        with header.quiet("pydicom"):
            return read_elements(path, KEYWORDS)
    except (OSError, FileError, *UNDECODABLE) as error:
        log.warning("%s: not read for the patient's identity: %s", path.name, type(error).__name__)
        return None


def _text(dataset: Dataset, keyword: str) -> str:
    text = header.text(dataset, keyword).rstrip("^ ")
    return text if header.fits_its_label(dataset, keyword) else text.replace(UNREADABLE, "") + UNREADABLE
