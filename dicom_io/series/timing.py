"""Timing of the acquisition of one frame, wherever an instance says it.

Classic instances say it at the top (PS3.3 C.8.3.1), enhanced ones in functional groups (C.8.13.5); legacy converted
ones in the Unassigned Converted Attributes of these groups (C.7.6.16.2.25, .26); and some vendors repeat classic
attributes at the top of enhanced instances and leave the groups out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_io import header

LONGEST_INVERSION_MS = 15000.0
"""Longer ones are fill values: fluid, the slowest, has recovered to 97 % by then."""
SAME_TIME = 0.15
"""Share by which times of slices of one acquisition may differ (gating, rounding)."""
UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")


@dataclass(frozen=True)
class Timing:
    """Times of one frame, ms; None or empty where the header does not tell.

    Attributes:
        repetition_ms: TR.
        echo_ms: TE; effective TE of an echo train.
        inversions_ms: All inversion times, ascending, without fill values.
    """

    repetition_ms: float | None
    echo_ms: float | None
    inversions_ms: tuple[float, ...]

    def conflicts(self, other: Timing) -> bool:
        """Whether the two cannot be frames of one acquisition: a time that both tell differs."""
        pairs = (
            (self.repetition_ms, other.repetition_ms),
            (self.echo_ms, other.echo_ms),
            (max(self.inversions_ms, default=None), max(other.inversions_ms, default=None)),
        )
        return any(_differ(a, b) for a, b in pairs)

    def filled_by(self, other: Timing) -> Timing:
        """This timing, with what it does not tell taken from another."""
        return Timing(
            repetition_ms=self.repetition_ms if self.repetition_ms is not None else other.repetition_ms,
            echo_ms=self.echo_ms if self.echo_ms is not None else other.echo_ms,
            inversions_ms=self.inversions_ms or other.inversions_ms,
        )

    @property
    def described(self) -> str:
        """TI, TE and TR as messages show them."""
        shown = "/".join(f"{v:g}" for v in self.inversions_ms) or "absent"
        te = f"{self.echo_ms:g}" if self.echo_ms is not None else "absent"
        tr = f"{self.repetition_ms:g}" if self.repetition_ms is not None else "absent"
        return f"TI {shown}, TE {te}, TR {tr} ms"


def _differ(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) > SAME_TIME * max(a, b)


def read_timing(dataset: Dataset, frame: int = 0) -> Timing:
    """Timing of one frame.

    Args:
        dataset: Any MR instance.
        frame: 0-based; of a classic instance 0.
    """
    repetition = _times(dataset, frame, "MRTimingAndRelatedParametersSequence", ("RepetitionTime",))
    echo = _times(dataset, frame, "MREchoSequence", ("EffectiveEchoTime", "EchoTime"))
    inversions = _times(dataset, frame, "MRModifierSequence", ("InversionTimes", "InversionTime"))
    return Timing(
        repetition_ms=repetition[0] if repetition else None,
        echo_ms=echo[0] if echo else None,
        inversions_ms=_distinct(t for t in inversions if t <= LONGEST_INVERSION_MS),
    )


def scanning_sequence(dataset: Dataset, frame: int = 0) -> frozenset[str]:
    """ScanningSequence in capitals; empty where absent, or where it only says research mode (RM), which may be any."""
    for holder in _holders(dataset, frame, ""):
        if found := frozenset(t.upper() for t in header.texts(holder, "ScanningSequence")):
            return found if found != {"RM"} else frozenset()
    return frozenset()


def _times(dataset: Dataset, frame: int, sequence: str, keywords: tuple[str, ...]) -> tuple[float, ...]:
    """Times > 0 (vendors write 0 for "not applicable") from the first place that has any."""
    for holder in _holders(dataset, frame, sequence):
        for keyword in keywords:
            if found := tuple(t for t in header.finite_numbers(holder, keyword) if t > 0):
                return found
    return ()


def _holders(dataset: Dataset, frame: int, sequence: str) -> Iterator[Dataset]:
    if header.is_multiframe(dataset):
        for name in (sequence, *UNASSIGNED) if sequence else UNASSIGNED:
            if (group := header.functional_group(dataset, frame, name)) is not None:
                yield group
    yield dataset


def _distinct(times: Iterator[float]) -> tuple[float, ...]:
    """Times that differ by more than rounding, ascending."""
    found: list[float] = []
    for time in sorted(times):
        if not found or time - found[-1] > 1.0:
            found.append(time)
    return tuple(found)
