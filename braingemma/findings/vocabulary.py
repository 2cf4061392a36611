"""What a finding is: names, sides, sites, and how it is said in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, get_args


def phrase(pattern: str) -> re.Pattern[str]:
    """Compile without regard to case; a space in the pattern stands for any run of white space."""
    return re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)


# Sides in three casings only, so that `mirror_text` can exchange every side that is read, and is its own inverse.
SIDE_WORD = re.compile(
    r"(?<![^\W_])(?:(?P<left>left|Left|LEFT)|(?P<right>right|Right|RIGHT))(?=(?:wards?|most|sided?)?(?![^\W_]))(?!-handed)"
)


Presence = Literal["present", "absent", "undetermined"]


TOPICS = ("lesion", "edema", "necrosis", "ventricular_compression")


COMPRESSION = TOPICS[3]


Laterality = Literal["left", "right", "bilateral"]


OTHER_SIDE: Final[Mapping[str | None, Laterality]] = {"left": "right", "right": "left"}
"""The side across the midline; "bilateral" has none."""


FINDINGS = TOPICS
SITES = (
    "frontal",
    "parietal",
    "temporal",
    "occipital",
    "insula",
    "cerebellum",
    "brainstem",
    "thalamus",
    "corpus callosum",
    "ventricle",
)


@dataclass(frozen=True)
class Finding:
    """One finding of a report, as in `report.json`.

    Attributes:
        finding: "lesion", "edema", "necrosis" or "ventricular_compression" (further names may be added).
        presence: "present", "absent", or "undetermined" where the text does not say.
        laterality: the patient's "left" or "right", "bilateral", or None where no side is stated.
        sites: names out of `SITES`, in the order of `SITES`.
        confidence: 0 to 1, or None where only a plain statement of the text stands behind the finding.
    """

    finding: str
    presence: Presence
    laterality: Laterality | None = None
    sites: tuple[str, ...] = ()
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.presence not in get_args(Presence):
            raise ValueError(f"presence must be one of {get_args(Presence)}, got {self.presence!r}")
        if self.laterality is not None and self.laterality not in get_args(Laterality):
            raise ValueError(f"laterality must be one of {get_args(Laterality)} or None, got {self.laterality!r}")
        unknown = [site for site in self.sites if site not in SITES]
        if unknown:
            raise ValueError(f"sites must be out of {SITES}, got {unknown}")
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"confidence must be from 0 to 1 or None, got {self.confidence!r}")

    def to_json(self) -> dict[str, Any]:
        """As an entry of `findings` in `report.json`."""
        return {
            "finding": self.finding,
            "presence": self.presence,
            "laterality": self.laterality,
            "sites": list(self.sites),
            "confidence": self.confidence,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry of `findings` of a `report.json`; ValueError names a missing or wrong field."""
        missing = [key for key in ("finding", "presence") if key not in entry]
        if missing:
            raise ValueError(f"a finding needs the keys finding and presence, missing {missing} in {entry!r}")
        return cls(
            finding=entry["finding"],
            presence=entry["presence"],
            laterality=entry.get("laterality"),
            sites=tuple(entry.get("sites", ())),
            confidence=entry.get("confidence"),
        )


def mirror_text(report: str) -> str:
    """Exchange left and right in a text, keeping case and all other characters; its own inverse."""
    exchange = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
    exchange |= {right: left for left, right in exchange.items()}
    return SIDE_WORD.sub(lambda match: exchange[match.group()], report)


def describe_findings(findings: Iterable[Finding]) -> str:
    """One short line for each finding, e.g. "Lesion: present, left, frontal and parietal"."""
    return "\n".join(_describe(finding) for finding in findings)


def _describe(finding: Finding) -> str:
    parts: list[str] = [finding.presence]
    if finding.laterality:
        parts.append(finding.laterality)
    if finding.sites:
        *first, last = finding.sites
        parts.append(f"{', '.join(first)} and {last}" if first else last)
    if finding.confidence is not None:
        parts.append(f"confidence {finding.confidence:.2f}")
    return f"{finding.finding.replace('_', ' ').capitalize()}: {', '.join(parts)}"


def mirrored_findings(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings of the same head seen in a mirror."""
    return tuple(replace(f, laterality=OTHER_SIDE.get(f.laterality, f.laterality)) for f in findings)
