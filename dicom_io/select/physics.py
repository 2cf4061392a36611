"""Whether the acquisition nulls cerebrospinal fluid and weights by T2, from TI, TE and TR judged together.

An inversion nulls tissue of relaxation time T1 at TI = T1 (ln 2 - ln(1 + exp(-TR/T1))) (spin echo, TE << TR; Bydder and
Young 1985; De Coene et al. 1992 for FLAIR). With T1 = 4.2 s for cerebrospinal fluid this gives 1.75 s at TR 4.8 s and
2.4 s at TR 9 s, where vendors' FLAIR protocols indeed lie; STIR, T1-FLAIR and the long inversion of DIR do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dicom_io import header
from dicom_io.series.group import Series
from dicom_io.series.timing import Timing, read_timing, scanning_sequence

CSF_T1_MS = 4200.0
"""T1 of cerebrospinal fluid, ms, nearly the same at all field strengths."""

TI_RANGE = (1150.0, 3100.0)
"""Inversion times of T2-FLAIR, ms: low field with short TR, to 7 T."""
TE_RANGE = (50.0, 800.0)
"""Echo times, ms: T1-FLAIR lies below 40; effective TE of 3D trains reaches 600."""
TR_RANGE = (2900.0, 25000.0)
"""Repetition times, ms."""
NAMED_RATIO = (0.5, 1.35)
"""TI over the nulling TI, where the name says FLAIR."""
UNNAMED_RATIO = (0.72, 1.20)
"""TI over the nulling TI, where the physics must speak alone; a double inversion's long TI lies above."""


@dataclass(frozen=True)
class Acquisition:
    """Timing of one series; None where the headers do not tell.

    Attributes:
        repetition_ms: TR.
        echo_ms: TE; effective TE of an echo train.
        inversions_ms: All inversion times.
        inversion_recovery: Whether the headers say inversion recovery; None where they say nothing.
        gradient_echo: Whether the headers say that echoes are gradient echoes only.
        contrast: Contrast that an enhanced header names (PS3.3 C.8.13.3.1), such as FLUID_ATTENUATED.
        diffusion_b: Largest diffusion weighting of any instance, s/mm2; 0 where none.
    """

    repetition_ms: float | None
    echo_ms: float | None
    inversions_ms: tuple[float, ...]
    inversion_recovery: bool | None
    gradient_echo: bool
    contrast: str
    diffusion_b: float = 0.0

    @property
    def described(self) -> str:
        """TI, TE and TR as messages show them."""
        words = {True: ", inversion recovery", False: ", no inversion recovery", None: ""}[self.inversion_recovery]
        return f"{Timing(self.repetition_ms, self.echo_ms, self.inversions_ms).described}{words}"


def read_acquisition(series: Series) -> Acquisition:
    """Timing of a series, from all its instances: what the first does not tell, a later one may."""
    timing = Timing(None, None, ())
    sequence: frozenset[str] = frozenset()
    for head in series.headers:
        timing = timing.filled_by(read_timing(head))
        sequence = sequence or scanning_sequence(head)
    says = _first_text(series, "MRModifierSequence", "InversionRecovery")
    pulse = _first_text(series, "MRPulseSequenceSequence", "EchoPulseSequence")
    return Acquisition(
        repetition_ms=timing.repetition_ms,
        echo_ms=timing.echo_ms,
        inversions_ms=timing.inversions_ms,
        inversion_recovery={"YES": True, "NO": False}.get(says, ("IR" in sequence) if sequence else None),
        gradient_echo=pulse == "GRADIENT" or ("GR" in sequence and "SE" not in sequence),
        contrast=_first_text(series, "MRImageFrameTypeSequence", "AcquisitionContrast"),
        diffusion_b=max(header.number(h, "DiffusionBValue") or 0.0 for h in series.headers),
    )


def _first_text(series: Series, sequence: str, keyword: str) -> str:
    """Text in capitals of the first instance that has it, in the first frame's functional group or at the top."""
    for head in series.headers:
        for holder in (header.functional_group(head, 0, sequence), head):
            if holder is not None and (found := header.text(holder, keyword).upper()):
                return found
    return ""


def nulling_inversion_ms(repetition_ms: float) -> float:
    """Inversion time, ms, that nulls cerebrospinal fluid at this repetition time."""
    return CSF_T1_MS * (math.log(2) - math.log1p(math.exp(-repetition_ms / CSF_T1_MS)))


def nulling_ratio(acquisition: Acquisition) -> float | None:
    """TI over the TI that nulls cerebrospinal fluid; None where TI or TR is absent, or TR is no time."""
    if not acquisition.inversions_ms or acquisition.repetition_ms is None or acquisition.repetition_ms <= 0:
        return None
    nulling = nulling_inversion_ms(acquisition.repetition_ms)
    return max(acquisition.inversions_ms) / nulling if nulling > 0 else None


def contradictions(acquisition: Acquisition, *, named: bool) -> list[str]:
    """What speaks against T2-FLAIR in values that are present.

    Args:
        acquisition: Timing.
        named: Whether the name says FLAIR; without it the limits are closer and nothing may be absent.
    """
    found = [
        f"{label} {value:g} ms is outside {low:g} to {high:g}"
        for label, value, (low, high) in (
            ("TI", max(acquisition.inversions_ms, default=None), TI_RANGE),
            ("TE", acquisition.echo_ms, TE_RANGE),
            ("TR", acquisition.repetition_ms, TR_RANGE),
        )
        if value is not None and not low <= value <= high
    ]
    if len(acquisition.inversions_ms) > 1:
        found.append("several inversion times (double inversion recovery)")
    if acquisition.gradient_echo:
        found.append("gradient echo")
    if acquisition.diffusion_b > 0:
        found.append(f"diffusion weighting, b = {acquisition.diffusion_b:g} s/mm2")
    if acquisition.contrast and acquisition.contrast not in ("FLUID_ATTENUATED", "T2", "UNKNOWN", "NONE"):
        found.append(f"the header names the contrast {acquisition.contrast}")
    if acquisition.inversion_recovery is False and not acquisition.inversions_ms:
        found.append("no inversion recovery")
    found += _ratio_contradiction(acquisition, named=named)
    return found


def _ratio_contradiction(acquisition: Acquisition, *, named: bool) -> list[str]:
    ratio = nulling_ratio(acquisition)
    if ratio is None or acquisition.repetition_ms is None:
        return []
    low, high = NAMED_RATIO if named else UNNAMED_RATIO
    if low <= ratio <= high:
        return []
    expected = nulling_inversion_ms(acquisition.repetition_ms)
    return [f"TI is {ratio:.2f} of the {expected:.0f} ms that null fluid at this TR, outside {low:g} to {high:g}"]


def absent(acquisition: Acquisition) -> list[str]:
    """Which of TI, TE and TR the headers leave out."""
    values = {"TI": acquisition.inversions_ms, "TE": acquisition.echo_ms, "TR": acquisition.repetition_ms}
    return [label for label, value in values.items() if not value]
