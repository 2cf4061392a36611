"""Report text to structured findings, and back to the words that carry them.

A report has four topics: lesion, edema, necrosis and ventricular compression. Each is read from its own sentences,
so that "the left ventricle is compressed" never turns a right-sided lesion into a left one. What the text does not
state is not filled in: an unmentioned topic is "undetermined", a side that is not named is None.

`confidence` is None for a plain statement and `HEDGED_CONFIDENCE` where the words are guarded ("may be present",
"suggested by", "not pronounced"): a guarded finding counts as present, a played-down one as absent.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, cast

from braingemma.findings.topics import Topic, collect
from braingemma.findings.vocabulary import (
    COMPRESSION,
    FINDINGS,
    SITES,
    Finding,
    Laterality,
    Presence,
    phrase,
)

SpanKind = Literal["side", "site", "finding", "presence"]


# "Normal brain MRI", "no abnormality": each finding that is not named is absent then.
_NORMAL_STUDY = phrase(
    r"\b(?:normal|unremarkable) (?:brain |head |cranial )?(?:mri?|study|scan|exam(?:ination)?|flair|images?)\b"
    r"|\b(?:brain|study|scan|exam(?:ination)?|mri|images?|parenchyma) (?:is|are|appears?) (?:\w+ly )*"
    r"(?:normal|unremarkable)\b"
    r"|\bno (?:\w+ ){0,3}abnormalit(?:y|ies)\b|\bwithin normal limits\b"
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
