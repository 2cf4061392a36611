"""Whether the acquisition nulls cerebrospinal fluid and weights by T2, from TI, TE and TR judged together.

An inversion nulls tissue of relaxation time T1 at TI = T1 (ln 2 - ln(1 + exp(-TR/T1))) (spin echo, TE << TR; Bydder and
Young 1985; De Coene et al. 1992 for FLAIR). With T1 = 4.2 s for cerebrospinal fluid this gives 1.75 s at TR 4.8 s and
2.4 s at TR 9 s, where vendors' FLAIR protocols indeed lie; STIR, T1-FLAIR and the long inversion of DIR do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.series.group import Series

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
        shown = "/".join(f"{v:g}" for v in self.inversions_ms) or "absent"
        te = f"{self.echo_ms:g}" if self.echo_ms is not None else "absent"
        tr = f"{self.repetition_ms:g}" if self.repetition_ms is not None else "absent"
        words = {True: ", inversion recovery", False: ", no inversion recovery", None: ""}[self.inversion_recovery]
        return f"TI {shown}, TE {te}, TR {tr} ms{words}"


def read_acquisition(series: Series) -> Acquisition:
    """Timing of a series' first instance, classic or enhanced."""
    first = series.header
    if header.is_multiframe(first):
        return _enhanced(first)
    sequence = {t.upper() for t in header.texts(first, "ScanningSequence")}
    return Acquisition(
        repetition_ms=_positive(header.number(first, "RepetitionTime")),
        echo_ms=_positive(header.number(first, "EchoTime")),
        inversions_ms=_inversions(header.numbers(first, "InversionTime")),
        inversion_recovery=("IR" in sequence) if sequence else None,
        gradient_echo="GR" in sequence and "SE" not in sequence,
        contrast=header.text(first, "AcquisitionContrast").upper(),
        diffusion_b=max(header.number(h, "DiffusionBValue") or 0.0 for h in series.headers),
    )


def _enhanced(dataset: Dataset) -> Acquisition:
    """Functional groups first; some vendors repeat the classic attributes at the top and leave the groups out."""

    def holder(sequence: str, keyword: str) -> Dataset:
        found = header.functional_group(dataset, 0, sequence)
        return found if found is not None and keyword in found else dataset

    recovery = header.text(holder("MRModifierSequence", "InversionRecovery"), "InversionRecovery").upper()
    sequence = {t.upper() for t in header.texts(dataset, "ScanningSequence")}
    echo = holder("MREchoSequence", "EffectiveEchoTime")
    echo_keyword = "EffectiveEchoTime" if "EffectiveEchoTime" in echo else "EchoTime"
    inversion = holder("MRModifierSequence", "InversionTimes")
    inversion_keyword = "InversionTimes" if "InversionTimes" in inversion else "InversionTime"
    timing = holder("MRTimingAndRelatedParametersSequence", "RepetitionTime")
    says = {"YES": True, "NO": False}.get(recovery)
    return Acquisition(
        repetition_ms=_positive(header.number(timing, "RepetitionTime")),
        echo_ms=_positive(header.number(echo, echo_keyword)),
        inversions_ms=_inversions(header.numbers(inversion, inversion_keyword)),
        inversion_recovery=says if says is not None else (("IR" in sequence) if sequence else None),
        gradient_echo=header.text(dataset, "EchoPulseSequence").upper() == "GRADIENT",
        contrast=_contrast(dataset),
    )


def _contrast(dataset: Dataset) -> str:
    frame_type = header.functional_group(dataset, 0, "MRImageFrameTypeSequence")
    for holder in (frame_type, dataset):
        if holder is not None and (found := header.text(holder, "AcquisitionContrast").upper()):
            return found
    return ""


def _positive(value: float | None) -> float | None:
    """Vendors write 0 for "not applicable"."""
    return value if value is not None and value > 0 else None


def _inversions(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(v for v in values if v > 0)


def nulling_inversion_ms(repetition_ms: float) -> float:
    """Inversion time, ms, that nulls cerebrospinal fluid at this repetition time."""
    return CSF_T1_MS * (math.log(2) - math.log1p(math.exp(-repetition_ms / CSF_T1_MS)))


def nulling_ratio(acquisition: Acquisition) -> float | None:
    """TI over the TI that nulls cerebrospinal fluid; None where TI or TR is absent."""
    if not acquisition.inversions_ms or acquisition.repetition_ms is None:
        return None
    return max(acquisition.inversions_ms) / nulling_inversion_ms(acquisition.repetition_ms)


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
    if len(set(acquisition.inversions_ms)) > 1:
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
