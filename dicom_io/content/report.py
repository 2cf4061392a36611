"""What a result says, as plain values: the report, its findings, the model that wrote it, and its limits."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dicom_io.content import codes
from dicom_io.errors import PackError

RESEARCH_USE_LINE = "UNVERIFIED AI DRAFT - FOR RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
"""First line of every report; also burned into every picture."""

MODEL_LIMITS = (
    "Limits of the model: it reads one FLAIR series and nothing else; it writes English only; it was developed "
    "mainly on glioblastoma and may miss or misname everything else; it must not be used in emergencies."
)
"""Stands in every SR."""

LISTED = 6
"""Longest list that is said in full."""

LINE_WIDTH = 88
"""Longest line of SR text, characters: viewers show it in an element that does not wrap."""


@dataclass(frozen=True)
class FindingRecord:
    """One structured finding.

    Attributes:
        finding: A key of `codes.FINDINGS`, such as `lesion`.
        presence: `present`, `absent` or `undetermined`.
        laterality: `left`, `right`, `bilateral` or None.
        sites: Keys of `codes.SITES`, such as `frontal`.
        confidence: Probability in [0, 1]; None where the model gives none.

    Raises:
        PackError: a value has no code.
    """

    finding: str
    presence: str
    laterality: str | None = None
    sites: tuple[str, ...] = ()
    confidence: float | None = None

    def __post_init__(self) -> None:
        """Only what can be coded may pass."""
        _known("finding", self.finding, codes.FINDINGS)
        _known("presence", self.presence, codes.PRESENCES)
        if self.laterality is not None:
            _known("laterality", self.laterality, codes.LATERALITIES)
        for site in self.sites:
            _known("site", site, codes.SITES)
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise PackError(f"confidence: expected a probability in [0, 1], got {self.confidence}")

    def sentence(self) -> str:
        """The finding in words, as `Lesion: present, left, frontal`."""
        said = [self.presence, self.laterality or "", *self.sites]
        words = ", ".join(word for word in said if word)
        certainty = "" if self.confidence is None else f" (confidence {self.confidence:.0%})"
        return f"{codes.FINDINGS[self.finding].meaning}: {words}{certainty}"


LESION_VOLUME = "lesion_volume"
"""The measurement that the segmented lesion has."""


@dataclass(frozen=True)
class MeasurementRecord:
    """One value that image processing measured.

    Attributes:
        name: Such as `lesion_volume` or `midline_shift`; one that `codes.MEASUREMENTS` lacks gets a private code.
        value: In `unit`.
        unit: UCUM, such as `mL` or `mm`.
        method: How it was measured, in words.
        laterality: `left`, `right`, `bilateral` or None.

    Raises:
        PackError: a value cannot be coded.
    """

    name: str
    value: float
    unit: str
    method: str
    laterality: str | None = None

    def __post_init__(self) -> None:
        """Only what can be coded may pass."""
        if not self.name or not self.unit:
            raise PackError(f"measurement: expected a name and a UCUM unit, got {self.name!r} and {self.unit!r}")
        if not math.isfinite(self.value):
            raise PackError(f"measurement {self.name}: expected a number, got {self.value}")
        if self.laterality is not None:
            _known("laterality", self.laterality, codes.LATERALITIES)

    def sentence(self) -> str:
        """The measurement in words, as `Lesion volume, left: 12.3 mL (lesion map)`."""
        words = self.name.replace("_", " ")
        side = "" if self.laterality is None or self.laterality in words.split() else f", {self.laterality}"
        return f"{words[:1].upper()}{words[1:]}{side}: {self.value:.4g} {self.unit} ({self.method})"


@dataclass(frozen=True)
class ComparisonRecord:
    """What changed since an earlier result.

    Attributes:
        lines: In sentences.
        values: The earlier volume, the change and its uncertainty, where they are known.
    """

    lines: tuple[str, ...]
    values: tuple[MeasurementRecord, ...] = ()


@dataclass(frozen=True)
class ModelIdentity:
    """The model that wrote the report.

    Attributes:
        name: Its name.
        version: Its version.
        weights_sha256: Digest of its weights, hexadecimal.
        manufacturer: Who made it.
        parameters: What else decides its output: prompt, decoding, quantisation, device class, ...; said `in_words`.
    """

    name: str
    version: str
    weights_sha256: str
    manufacturer: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContent:
    """Everything that the result objects say.

    Attributes:
        report_text: The generated report.
        findings: Its structured findings.
        warnings: What the reader must know about this case.
        banner: What the weights may not be used for; on every object and picture. None for ordinary weights.
        intended_use: The statement of intended use.
        model: Who wrote it.
        explain: Method, samples, r2, faithfulness of the explanation; None where there is none.
        measurements: What image processing measured.
        possible: What only a closer look by it shows, and is no measurement, a sentence; empty: nothing.
        comparison: With an earlier result of the patient; None where there is none.
        unmeasured: What it could not, and why, a sentence each.
        face_removed: Whether the volume, and so every picture, is without the face.
        edited: Whether text and findings are a reader's: what was measured is then said to be none of theirs.
    """

    report_text: str
    findings: tuple[FindingRecord, ...]
    warnings: tuple[str, ...]
    banner: str | None
    intended_use: str
    model: ModelIdentity
    explain: dict[str, Any] | None = None
    measurements: tuple[MeasurementRecord, ...] = ()
    possible: str = ""
    comparison: ComparisonRecord | None = None
    unmeasured: tuple[str, ...] = ()
    face_removed: bool = False
    edited: bool = False

    def __post_init__(self) -> None:
        """An empty report must never look like a healthy one."""
        for what, text in (("report", self.report_text), ("intended use", self.intended_use)):
            if not wrap(text):
                raise PackError(f"{what}: expected text, got {text!r}")

    @property
    def lesion_volume(self) -> MeasurementRecord | None:
        """The one lesion volume that every result states; None where nothing was measured."""
        return next((m for m in self.measurements if m.name == LESION_VOLUME), None)

    def has_present(self, finding: str) -> bool:
        """Whether the report says that this finding is there."""
        return any(record.presence == "present" for record in self.findings if record.finding == finding)

    @property
    def undetermined(self) -> bool:
        """Whether a finding may be there or not."""
        return any(record.presence == "undetermined" for record in self.findings)

    @property
    def nothing_present(self) -> str:
        """See `nothing_present`."""
        return nothing_present(record.presence for record in self.findings)

    def impression(self) -> Iterator[str]:
        """Lines that sum up the coded findings."""
        if self.nothing_present:
            yield self.nothing_present
        for record in self.findings:
            yield record.sentence()

    def processed(self) -> Iterator[str]:
        """Lines that image processing contributes: what was measured, what is possible, what not, and what changed.

        Beside a reader's words they are said to be none of theirs.
        """
        compared = self.comparison.lines if self.comparison else ()
        measured = [f"{record.sentence()}." for record in self.measurements]
        possible = [self.possible] if self.possible else []
        if self.edited:
            for line in (*measured, *possible, *self.unmeasured, *compared):
                yield f"By image processing, not by the reader: {line}"
            return
        yield from (f"Estimated by image processing: {line}" for line in measured)
        yield from (*possible, *self.unmeasured, *compared)


def nothing_present(presences: Iterable[str]) -> str:
    """Why no finding stands as present, in a sentence; empty where one does.

    A finding is undetermined too where the text states it and everything else denies it: then the text names it.

    Args:
        presences: `present`, `absent` or `undetermined`, of each finding.
    """
    found = set(presences)
    if not found:
        return "No finding could be coded; read the text."
    if "present" in found:
        return ""
    if found == {"absent"}:
        return "The text names no abnormal finding as present."
    return "No finding could be confirmed as present; read the text and the warnings."


def in_words(value: object) -> str:
    """A value as a person reads it: rounded, no brackets; a long list is only counted."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {in_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) if len(value) <= LISTED else f"({len(value)} values)"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def wrap(text: str) -> str:
    """Hard-wrap for a DICOM UT value: lines of at most 88 characters, CRLF between them, no controls (PS3.5 6.2)."""
    lines: list[str] = []
    for raw in text.splitlines():
        line = "".join(c if c.isprintable() else " " for c in raw)
        lines += textwrap.wrap(line, LINE_WIDTH, break_on_hyphens=False) or [""]
    return "\r\n".join(lines).strip()


def _known(what: str, value: str, table: dict[str, Any]) -> None:
    if value not in table:
        raise PackError(f"{what}: expected one of {', '.join(table)}; got {value!r}")
