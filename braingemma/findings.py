"""Report text to structured findings, and back to the words that carry them.

A report has four topics: lesion, edema, necrosis and ventricular compression. Each is read from its own sentences,
so that "the left ventricle is compressed" never turns a right-sided lesion into a left one. What the text does not
state is not filled in: an unmentioned topic is "undetermined", a side that is not named is None.

`confidence` is None for a plain statement and `HEDGED_CONFIDENCE` where the words are guarded ("may be present",
"suggested by", "not pronounced"): a guarded finding counts as present, a played-down one as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast, get_args

from braingemma._report_grammar import (
    COPULA,
    DEFORMED,
    NORMAL_STUDY,
    SIDE_WORD,
    SPARED,
    Reading,
    Sentence,
    Token,
    negated_before,
    read_mention,
    sentences,
)

Presence = Literal["present", "absent", "undetermined"]
Laterality = Literal["left", "right", "bilateral"]
SpanKind = Literal["side", "site", "finding", "presence"]

FINDINGS = ("lesion", "edema", "necrosis", "ventricular_compression")
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
HEDGED_CONFIDENCE = 0.5


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
    def from_json(cls, entry: dict[str, Any]) -> Self:
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


@dataclass(frozen=True)
class _Statement:
    """A sentence, or one clause of it, that speaks of a topic; `reading` is None where it only goes on about it."""

    sentence: Sentence
    start: int
    end: int
    mention: tuple[int, int] | None
    reading: Reading | None
    own: bool  # the topic is the subject, not an aside in a sentence about another topic


@dataclass
class _Topic:
    name: str
    statements: list[_Statement] = field(default_factory=list)


def findings_from_text(report: str) -> tuple[Finding, ...]:
    """Exactly one finding for each name of `FINDINGS`, in that order; any text is accepted."""
    topics = _collect(report)
    normal = NORMAL_STUDY.search(report) is not None
    return tuple(_to_finding(topics[name], normal) for name in FINDINGS)


def finding_spans(report: str) -> tuple[Span, ...]:
    """The words of a report that carry its findings, in the order of the text."""
    spans: list[Span] = []
    for topic in _collect(report).values():
        presence, _ = _presence(topic)
        spans += [Span(t.start, t.end, topic.name, cast(SpanKind, t.kind), t.value) for t in _places(topic)]
        for statement in topic.statements:
            if statement.mention:
                spans.append(Span(*statement.mention, topic.name, "finding", topic.name))
            if statement.reading and statement.reading.cue and presence:
                spans.append(Span(*statement.reading.cue, topic.name, "presence", presence))
    return tuple(sorted(set(spans), key=lambda s: (s.start, s.end, s.finding, s.kind)))


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


# ---- from sentences to topics


def _collect(report: str) -> dict[str, _Topic]:
    """Give each sentence to the topic that it is about; asides count only for topics with no sentence of their own."""
    topics = {name: _Topic(name) for name in FINDINGS}
    asides: list[tuple[str, _Statement]] = []
    current: list[str] = []
    for sentence in sentences(report):
        mentions = _mentions(sentence)
        subjects = _subjects(sentence, mentions)
        if subjects:
            current = [name for name, _ in subjects]
            for name, mention in subjects:
                topics[name].statements.append(_statement(sentence, mention, whole=True))
        elif current and not _changes_topic(mentions, current, sentence):
            for name in current:
                whole = _Statement(sentence, sentence.start, sentence.end, None, None, own=True)
                topics[name].statements.append(whole)
        named = {name for name, _ in subjects}
        asides += [(n, _statement(sentence, m, whole=False)) for n, m in mentions if n not in named]
    own = {name for name, topic in topics.items() if topic.statements}
    for name, statement in asides:
        if name not in own:
            topics[name].statements.append(statement)
    return topics


def _statement(sentence: Sentence, mention: tuple[int, int], *, whole: bool) -> _Statement:
    start, end = (sentence.start, sentence.end) if whole else sentence.clause(mention[0])
    return _Statement(sentence, start, end, mention, read_mention(sentence, *mention), own=whole)


def _mentions(sentence: Sentence) -> list[tuple[str, tuple[int, int]]]:
    """Every topic named in a sentence with the characters that name it, in order."""
    found = [(str(t.kind), (t.start, t.end)) for t in sentence.tokens if t.kind in {"lesion", "edema", "necrosis"}]
    for token in sentence.tokens:
        if token.kind == "ventricle" and (mention := _compression_mention(sentence, token)):
            found.append(("ventricular_compression", mention))
    return sorted(set(found), key=lambda item: item[1])


def _compression_mention(sentence: Sentence, ventricle: Token) -> tuple[int, int] | None:
    """The words that speak of compression of this ventricle: the nearest word of deformation in its clause."""
    start, end = sentence.clause(ventricle.start)
    near = [t for t in sentence.tokens if t.kind == "deformation" and start <= t.start < end]
    if near:
        token = min(near, key=lambda t: abs(t.start - ventricle.start))
        return min(token.start, ventricle.start), max(token.end, ventricle.end)
    normal = SPARED.search(sentence.between(start, end))
    return (ventricle.start, ventricle.end) if normal else None


_BEFORE_OBJECT = re.compile(
    r"\b(?:around|surrounding|near|within|in|of|by|to|from|adjacent to|with|without)"
    r"\s+(?:the\s+|these\s+|this\s+|a\s+)?\S*\s?$",
    re.IGNORECASE,
)


def _subjects(sentence: Sentence, mentions: Sequence[tuple[str, tuple[int, int]]]) -> list[tuple[str, tuple[int, int]]]:
    """The topics that a sentence is about: what is named before its verb, with what is joined to it by "and", "or"."""
    verb = COPULA.search(sentence.text)
    limit = sentence.start + (verb.start() if verb else len(sentence.text))
    before = [m for m in mentions if m[1][0] < limit]
    if not before:
        return []
    free = [m for m in before if not _BEFORE_OBJECT.search(sentence.between(sentence.start, m[1][0]))]
    first = (free or before)[0]
    subjects = [first]
    for name, mention in mentions:
        gap = sentence.between(subjects[-1][1][1], mention[0]) if mention[0] >= subjects[-1][1][1] else "?"
        if re.fullmatch(r"[\s,]*(?:and|or|nor|,)\s+(?:\w+\s+)?", gap) and name not in {n for n, _ in subjects}:
            subjects.append((name, mention))
    return subjects


def _changes_topic(mentions: Sequence[tuple[str, tuple[int, int]]], current: Sequence[str], sentence: Sentence) -> bool:
    """Whether a sentence without a subject of its own leaves the topic at hand ("There is also edema …")."""
    names = {name for name, _ in mentions}
    if not names or names & set(current):
        return bool(re.match(r"\s*there\b", sentence.text, re.IGNORECASE)) and not names & set(current)
    return names != {"lesion"}


# ---- from topics to findings


def _to_finding(topic: _Topic, normal_study: bool) -> Finding:
    presence, confidence = _presence(topic)
    if presence is None:
        presence = "absent" if normal_study else "undetermined"
    if presence != "present":
        return Finding(topic.name, presence, confidence=confidence)
    places = _places(topic)
    sites = {t.value for t in places if t.kind == "site"}
    if topic.name == "ventricular_compression":
        sites = {"ventricle"}
    side = _laterality(t.value for t in places if t.kind == "side")
    return Finding(topic.name, presence, side, tuple(s for s in SITES if s in sites), confidence)


def _presence(topic: _Topic) -> tuple[Presence | None, float | None]:
    """Any affirmation wins over guarded words, these over a denial, and a plain denial over a played-down one."""
    polarities = {_polarity(topic, s) for s in topic.statements if s.reading}
    if "affirmed" in polarities:
        return "present", None
    if "hedged" in polarities:
        return "present", HEDGED_CONFIDENCE
    if "negated" in polarities:
        return "absent", None
    if "played down" in polarities:
        return "absent", HEDGED_CONFIDENCE
    return ("undetermined", None) if polarities else (None, None)


def _polarity(topic: _Topic, statement: _Statement) -> str:
    assert statement.reading is not None
    polarity = statement.reading.polarity
    if topic.name != "ventricular_compression" or polarity != "affirmed" or statement.mention is None:
        return polarity
    words = statement.sentence.between(*statement.mention)
    # "The ventricles are normal" names no compression: a denial.
    return "affirmed" if DEFORMED.search(words) or "mass effect" in words.lower() or "displac" in words else "negated"


def _laterality(sides: Iterable[str]) -> Laterality | None:
    stated = set(sides)
    if not stated:
        return None
    if stated == {"left"}:
        return "left"
    return "right" if stated == {"right"} else "bilateral"


def _places(topic: _Topic) -> list[Token]:
    """The side and site words that say where a finding is; none for a finding that is not present."""
    if _presence(topic)[0] != "present":
        return []
    words = [(s, t) for s in topic.statements for t in s.sentence.tokens if s.start <= t.start < s.end]
    words = [(s, t) for s, t in words if t.kind in {"side", "site"} and not _foreign(s, t)]
    words = [(s, t) for s, t in words if not (s.reading and s.reading.polarity in {"negated", "played down"})]
    if topic.name == "ventricular_compression":
        return [t for s, t in words if t.kind == "side" and not _of_lesion(s, t) and (s.own or _of_ventricle(s, t))]
    near = [(s, t) for s, t in words if not _of_ventricle(s, t)]
    if topic.name == "lesion":
        near = [(s, t) for s, t in near if not _of_other_topic(s, t)] or near
    # "adjacent to the left ventricle" is a side for want of a better one, unless that ventricle is compressed.
    beside = [(s, t) for s, t in words if not DEFORMED.search(s.sentence.between(*s.sentence.clause(t.start)))]
    has_side = any(t.kind == "side" for _, t in near)
    return [t for _, t in (near if has_side else [*near, *(w for w in beside if w not in near)])]


_SHIFT = re.compile(
    r"\b(?:shift|displac|deviat|push|mov)\w*(?:\s+\w+){0,3}?\s+(?:to|towards?)\s+(?:the\s+)?$|\btowards?\s+the\s+$",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"\b(?:compared (?:to|with)|than|relative to|unlike|rather than|but not)\s+(?:(?:in|that of|the|on)\s+)*$",
    re.IGNORECASE,
)


def _foreign(statement: _Statement, token: Token) -> bool:
    """Whether a side or site is denied, spared, only compared with, or the way that something is shifted."""
    sentence = statement.sentence
    before = sentence.between(sentence.start, token.start)
    if _SHIFT.search(before) or _COMPARED.search(before) or negated_before(sentence, token.start):
        return True
    return SPARED.search(_phrase(sentence, token)) is not None and not DEFORMED.search(_phrase(sentence, token))


def _phrase(sentence: Sentence, token: Token) -> str:
    """The part of the clause around a token that no "and" cuts off, but "left and right" and lists of sites stay."""
    start, end = sentence.clause(token.start)
    words = sentence.between(start, end)
    at = token.start - start
    cuts = [
        m
        for m in re.finditer(r"\band\b", words, re.I)
        if not re.search(r"(?:left|right)\s+$", words[: m.start()], re.I)
    ]
    first = max((m.end() for m in cuts if m.end() <= at), default=0)
    last = min((m.start() for m in cuts if m.start() >= at), default=len(words))
    return words[first:last]


_VENTRICLE_FOLLOWS = re.compile(
    r"(?:\s+(?:and|or|left|right|lateral|third|fourth|cerebral|side|of|the|frontal|temporal|occipital|anterior|"
    r"posterior))*\s+(?:ventric|horn)",
    re.IGNORECASE,
)
_CAUSE_BEFORE = re.compile(
    r"\b(?:lesions?|edema|tumou?rs?|mass(?:es)?)(?: areas?)?(?:\s+(?:located|situated|and edema))?"
    r"\s+(?:in|on|within|of|at)\s+(?:the\s+)?$",
    re.IGNORECASE,
)
_CAUSE_FOLLOWS = re.compile(
    r"(?:-sided?)?(?:\s+(?:cerebral|hemisphere|hemispheric|frontal|parietal|temporal|occipital|and|lobe|side|brain))*"
    r"\s+(?:lesion|tumou?r|mass)",
    re.IGNORECASE,
)


def _of_ventricle(statement: _Statement, token: Token) -> bool:
    """Whether a side belongs to a ventricle: "left lateral ventricle", "left and right ventricles"."""
    return bool(_VENTRICLE_FOLLOWS.match(statement.sentence.between(token.end, statement.sentence.end)))


def _of_lesion(statement: _Statement, token: Token) -> bool:
    """Whether a side in a sentence on compression is that of its cause: "lesions on the right side press …"."""
    sentence = statement.sentence
    before = sentence.between(sentence.start, token.start)
    after = sentence.between(token.end, sentence.end)
    return bool(_CAUSE_BEFORE.search(before) or _CAUSE_FOLLOWS.match(after))


def _of_other_topic(statement: _Statement, token: Token) -> bool:
    """Whether a clause of a sentence on the lesion speaks of edema, necrosis or the ventricles instead."""
    start, end = statement.sentence.clause(token.start)
    if start == statement.sentence.start:
        return False
    kinds = {t.kind for t in statement.sentence.tokens if start <= t.start < end}
    return bool(kinds & {"edema", "necrosis", "ventricle"}) and "lesion" not in kinds
