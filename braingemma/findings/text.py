"""Report text to structured findings, and back to the words that carry them.

A report has four topics: lesion, edema, necrosis and ventricular compression. Each is read from its own sentences,
so that "the left ventricle is compressed" never turns a right-sided lesion into a left one. What the text does not
state is not filled in: an unmentioned topic is "undetermined", a side that is not named is None.

`confidence` is None for a plain statement and `HEDGED_CONFIDENCE` where the words are guarded ("may be present",
"suggested by", "not pronounced"): a guarded finding counts as present, a played-down one as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

from braingemma.findings.grammar import SIDE_WORD, phrase
from braingemma.findings.topics import COMPRESSION, HEDGED_CONFIDENCE, TOPICS, Presence, Topic, collect

__all__ = [
    "FINDINGS",
    "HEDGED_CONFIDENCE",
    "SITES",
    "Finding",
    "Laterality",
    "Presence",
    "Span",
    "describe_findings",
    "finding_spans",
    "findings_from_text",
    "mirror_text",
]

Laterality = Literal["left", "right", "bilateral"]
SpanKind = Literal["side", "site", "finding", "presence"]

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

# "Normal brain MRI", "no abnormality": each finding that is not named is absent then.
_NORMAL_STUDY = phrase(
    r"\b(?:normal|unremarkable) (?:brain |head |cranial )?(?:mri?|study|scan|exam(?:ination)?|flair|images?)\b"
    r"|\b(?:brain|study|scan|exam(?:ination)?|mri|images?|parenchyma) (?:is|are|appears?) (?:\w+ly )*"
    r"(?:normal|unremarkable)\b"
    r"|\bno (?:\w+ ){0,3}abnormalit(?:y|ies)\b|\bwithin normal limits\b"
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


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a report that carry a finding.

    `value` is the side for kind "side", a name of `SITES` for "site", the finding's name for "finding", and
    "present", "absent" or "undetermined" for "presence".
    """

    start: int
    end: int
    finding: str
    kind: SpanKind
    value: str


def findings_from_text(report: str) -> tuple[Finding, ...]:
    """Exactly one finding for each name of `FINDINGS`, in that order; any text is accepted."""
    topics = collect(report)
    lesion_free = topics["lesion"].presence()[0] != "present"
    unmentioned: Presence = "absent" if lesion_free and _NORMAL_STUDY.search(report) else "undetermined"
    return tuple(_to_finding(topics[name], unmentioned) for name in FINDINGS)


def _to_finding(topic: Topic, unmentioned: Presence) -> Finding:
    presence, confidence = topic.presence()
    if presence != "present":
        return Finding(topic.name, presence or unmentioned, confidence=confidence)
    places = topic.places()
    named = {"ventricle"} if topic.name == COMPRESSION else {t.value for t in places if t.kind == "site"}
    laterality = _laterality({t.value for t in places if t.kind == "side"})
    return Finding(topic.name, presence, laterality, tuple(s for s in SITES if s in named), confidence)


def _laterality(stated: Set[str]) -> Laterality | None:
    if not stated:
        return None
    if stated == {"left"}:
        return "left"
    return "right" if stated == {"right"} else "bilateral"


def finding_spans(report: str) -> tuple[Span, ...]:
    """The words of a report that carry its findings, in the order of the text."""
    spans: set[Span] = set()
    for topic in collect(report).values():
        spans |= {Span(t.start, t.end, topic.name, cast(SpanKind, t.kind), t.value) for t in topic.places()}
        presence, _ = topic.presence()
        for statement in topic.statements:
            spans |= {Span(t.start, t.end, topic.name, "finding", topic.name) for t in statement.naming()}
            if statement.reading and statement.reading.cue and presence:
                spans.add(Span(*statement.reading.cue, topic.name, "presence", presence))
    return tuple(sorted(spans, key=lambda s: (s.start, s.end, s.finding, s.kind)))


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
