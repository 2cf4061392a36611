"""Whether a series looks as if slices of it were still to come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

TAGS = ("ImageOrientationPatient", "ImagePositionPatient", "ImagesInAcquisition", "AcquisitionNumber")
"""What is read of each header."""
MIN_SLICES = 4
"""Fewer slices of one orientation say nothing: localizers."""
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
GAP = 1.5
"""A step of more than this many usual steps is a gap."""
FAR = 1e6
"""No slice is so far away, mm: a number beyond is none, and sums of them would overflow."""


@dataclass(frozen=True)
class Gap:
    """Something that is missing from a series."""

    series_uid: str
    present: int
    missing: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in `arrival.json`."""
        return asdict(self)


def find_gaps(series_uid: str, headers: Sequence[Dataset]) -> tuple[Gap, ...]:
    """Gaps in one series of single-frame images.

    Two signs count: Images in Acquisition (0020,1002), where all instances agree on it and belong to one acquisition,
    is more than there are; or, among slices of one orientation, a step along the normal is larger than the others.

    Args:
        series_uid: Whose headers these are.
        headers: One for each instance, with at least `TAGS`, as far as the instance has them.
    """
    expected = {_count(header.get("ImagesInAcquisition")) for header in headers}
    acquisitions = {str(header.get("AcquisitionNumber", "")) for header in headers}
    gaps = []
    if len(expected) == 1 and len(acquisitions) == 1 and max(expected) > len(headers):
        missing = max(expected) - len(headers)
        gaps.append(Gap(series_uid, len(headers), missing, f"Images in Acquisition is {max(expected)}"))
    missing = sum(_missing_steps(positions) for positions in _positions(headers))
    if missing:
        gaps.append(Gap(series_uid, len(headers), missing, "slice positions leave a gap"))
    return tuple(gaps)


def _count(value: object) -> int:
    """A number of images; 0 where it is none, as senders write anything."""
    return int(value) if isinstance(value, int) and value > 0 else 0


def _numbers(value: object, count: int) -> FloatArray | None:
    """So many numbers that can be a place in a scanner (mm) or a direction, or None for anything else."""
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.shape == (count,) and bool((np.abs(numbers) < FAR).all()) else None


def _positions(headers: Sequence[Dataset]) -> list[FloatArray]:
    """Positions along the normal, mm, rising and each once, for each orientation."""
    by_orientation: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for header in headers:
        orientation = _numbers(header.get("ImageOrientationPatient"), 6)
        position = _numbers(header.get("ImagePositionPatient"), 3)
        if orientation is None or position is None:
            continue
        normal = np.cross(orientation[:3], orientation[3:])
        by_orientation[tuple(np.round(orientation, 3))].append(float(normal @ position))
    return [np.unique(np.round(found, 2)) for found in by_orientation.values()]


def _missing_steps(positions: FloatArray) -> int:
    if len(positions) < MIN_SLICES:
        return 0
    steps = np.diff(positions)
    usual = float(np.median(steps))
    return int(sum(round(step / usual) - 1 for step in steps if step > GAP * usual))
