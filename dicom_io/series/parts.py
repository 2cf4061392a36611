"""Which instances belong together, where SeriesInstanceUIDs do not say it.

Anonymisers and gateways give one UID to two acquisitions, or a UID of its own to each slice; consoles put a scout
picture or a screen capture into a series. What was done about it stands in the notes of each series, so that no report
describes less than what came without saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.series.timing import Timing, read_timing, scanning_sequence

Float = npt.NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

FEWEST = 4
"""A part of fewer slices is no stack."""
ODD_SHARE = 0.2
"""Most instances that may be left out of a series as odd ones, over those that stay."""
OTHER_DIRECTION = 0.1
"""Difference of direction cosines from which a slice lies across a stack: 6 degrees."""
CROWDED = 0.75
"""Distance of slices over their thickness, below which they are not neighbours of one acquisition."""
NAMED_AT_MOST = 6


@dataclass(frozen=True, eq=False)
class Member:
    """One instance: its file and its header without pixel data."""

    path: Path
    header: Dataset

    @property
    def name(self) -> str:
        """How messages call it."""
        number = header.whole_number(self.header, "InstanceNumber")
        return f"image {number}" if number is not None else self.path.name


@dataclass(frozen=True)
class Part:
    """Instances that are one acquisition, as far as their headers tell.

    Attributes:
        members: At least one.
        notes: What was done to find them.
    """

    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()


def joined(groups: Iterable[Sequence[Member]]) -> list[Part]:
    """Join slices that each have a UID of their own, and leave out instances that are no slices of their series.

    Args:
        groups: Members of one SeriesInstanceUID each, in the order of their series.
    """
    parts: list[Part] = []
    singles: list[Member] = []
    for group in groups:
        if len(group) == 1 and (header.whole_number(group[0].header, "NumberOfFrames") or 1) == 1:
            singles.append(group[0])
        else:
            parts.append(Part(tuple(group)))
    parts += _joined(singles)
    return [_without_odd_ones(part) for part in parts]


# ---------------------------------------------------------------------- a UID for each slice


def _joined(singles: Sequence[Member]) -> list[Part]:
    """Series of one picture each: those that are alike in all but their place are slices of one series."""
    parts: list[Part] = []
    rest = list(singles)
    for keyword in ("SeriesNumber", ""):  # slices may be numbered as series too
        groups = _grouped(rest, partial(_likeness, number=keyword))
        parts += [_one_series(group) for key, group in groups.items() if key and len(group) >= FEWEST]
        rest = [m for key, group in groups.items() if not key or len(group) < FEWEST for m in group]
    return [*parts, *(Part((member,)) for member in rest)]


def _likeness(member: Member, number: str) -> tuple[str, ...]:
    """What slices of one acquisition have in common; empty where the slice does not say where it lies."""
    head = member.header
    direction = _direction(head)
    if direction is None or not header.vector(head, "ImagePositionPatient", 3):
        return ()
    timing = read_timing(head)
    texts = (
        "StudyInstanceUID", "PatientID", "Modality", "SeriesDescription", "ProtocolName", "Rows", "Columns",
        "PixelSpacing", "ScanningSequence", "SequenceName", "ImageType", "FrameOfReferenceUID",
    )  # fmt: skip
    return (
        *(header.text(head, k) for k in (*texts, number) if k),
        str(np.round(direction, 2).tolist()),
        timing.described,
    )


def _one_series(group: Sequence[Member]) -> Part:
    uid = header.uid(group[0].header, "SeriesInstanceUID")
    return Part(
        tuple(group),
        (
            f"{len(group)} series of one picture each have the same study, description and geometry: taken as one "
            f"series, under the first one's UID {uid}",
        ),
    )


# ---------------------------------------------------------------------- two acquisitions under one UID


def apart(group: Sequence[Member]) -> list[Part]:
    """Split instances of one SeriesInstanceUID that are several acquisitions.

    By echo, inversion and repetition time and scanning sequence; by names only where slices crowd.
    """
    found: list[tuple[Timing, frozenset[str], list[Member]]] = []
    for member in group:
        timing, sequence = read_timing(member.header), scanning_sequence(member.header)
        for index, (known, sequences, members) in enumerate(found):
            if not known.conflicts(timing) and (not sequence or not sequences or sequence == sequences):
                found[index] = (known.filled_by(timing), sequences or sequence, [*members, member])
                break
        else:
            found.append((timing, sequence, [member]))
    split = [(timing.described, members) for timing, _, members in found]
    if len(split) == 1:
        split = list(_by_name(group).items())
    if len(split) == 1:
        return [Part(tuple(group))]
    total = len(group)
    parts = [
        Part(
            tuple(members),
            (
                f"{total - len(members)} of {total} instances of this series UID have another contrast and were judged "
                f"apart: {'; '.join(f'{len(m)} with {d}' for d, m in split if m is not members)}",
            ),
        )
        for _, members in split
    ]
    return [_without_odd_ones(part) for part in parts]


def _by_name(group: Sequence[Member]) -> dict[str, list[Member]]:
    """Split by what the slices are called, where they lie too close to each other to be one acquisition."""
    named = _grouped(group, lambda m: _called(m.header))
    if len(named) == 1 or min(map(len, named.values())) < FEWEST or not _crowded(group):
        return {"": list(group)}
    return named


def _called(head: Dataset) -> str:
    texts = [header.text(head, k) for k in ("SeriesDescription", "SequenceName", "SeriesNumber")]
    return " ".join(repr(t) for t in texts if t)


def _crowded(group: Sequence[Member]) -> bool:
    """Whether slices lie closer than they are thick, or at one place."""
    direction = _direction(group[0].header)
    thickness = header.number(group[0].header, "SliceThickness")
    positions = [header.vector(m.header, "ImagePositionPatient", 3) for m in group]
    if direction is None or not thickness or not all(positions):
        return False
    normal = np.cross(direction[:3], direction[3:])
    steps = np.diff(np.sort(np.array(positions) @ normal))
    return bool(np.median(steps) < CROWDED * thickness)


# ---------------------------------------------------------------------- odd ones


def _without_odd_ones(part: Part) -> Part:
    """Leave out the few instances that are no slices of the stack that the others are."""
    for what, odd_of in _ODD:
        odd = odd_of(part.members)
        rest = tuple(m for m in part.members if m not in odd)
        if odd and len(rest) >= FEWEST and len(odd) <= ODD_SHARE * len(rest):
            note = f"{len(odd)} of {len(part.members)} instances {what} and take no part: {_listed(odd)}"
            part = replace(part, members=rest, notes=(*part.notes, note))
    return part


def _of_other_kind(members: Sequence[Member]) -> list[Member]:
    return _fewer(members, lambda m: header.uid(m.header, "SOPClassUID"))


def _unplaced(members: Sequence[Member]) -> list[Member]:
    def is_placed(member: Member) -> bool:
        group = header.functional_group(member.header, 0, "PlanePositionSequence")
        holder = group if group is not None else member.header
        return bool(header.vector(holder, "ImagePositionPatient", 3)) and _direction(member.header) is not None

    return [m for m in members if not is_placed(m)]


def _scouts(members: Sequence[Member]) -> list[Member]:
    words = ("LOCALIZER", "SCOUT", "SURVEY")
    return [m for m in members if any(t.upper() in words for t in header.texts(m.header, "ImageType"))]


def _across(members: Sequence[Member]) -> list[Member]:
    directions = [_direction(m.header) for m in members]
    known = [d for d in directions if d is not None]
    if len(known) < FEWEST:
        return []
    common = np.median(known, axis=0)
    return [
        m for m, d in zip(members, directions, strict=True)
        if d is not None and np.abs(d - common).max() > OTHER_DIRECTION
    ]  # fmt: skip


def _fewer(members: Sequence[Member], trait: Callable[[Member], Hashable]) -> list[Member]:
    """All but the largest group of members that share a trait."""
    groups = _grouped(members, trait)
    most = max(groups.values(), key=len)
    return [m for group in groups.values() if group is not most for m in group]


_ODD: tuple[tuple[str, Callable[[Sequence[Member]], list[Member]]], ...] = (
    ("are of another kind", _of_other_kind),
    ("do not say where they lie", _unplaced),
    ("are scout pictures", _scouts),
    ("lie across the stack", _across),
)
"""(what the few are, which they are)"""


def _direction(head: Dataset) -> Float | None:
    group = header.functional_group(head, 0, "PlaneOrientationSequence")
    found = header.vector(group if group is not None else head, "ImageOrientationPatient", 6)
    return np.array(found) if found else None


def _grouped(members: Iterable[Member], key: Callable[[Member], Key]) -> dict[Key, list[Member]]:
    groups: dict[Key, list[Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups


def _listed(members: Sequence[Member]) -> str:
    shown = ", ".join(m.name for m in members[:NAMED_AT_MOST])
    rest = len(members) - NAMED_AT_MOST
    return f"{shown} and {rest} more" if rest > 0 else shown
