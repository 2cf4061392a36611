"""Which sentences of a report speak of which finding, and where they place it. Private to this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from braingemma.findings.grammar import COPULA, Sentence, Token, sentences
from braingemma.findings.polarity import Reading, denied_before, read_mention
from braingemma.findings.vocabulary import COMPRESSION, TOPICS, Presence, phrase

HEDGED_CONFIDENCE = 0.5

_Mention = tuple[str, tuple[int, int]]  # a topic, and the characters of the report that name it


@dataclass(frozen=True)
class Statement:
    """A sentence, or one clause of it, on a topic.

    `mention` and `reading` are None where the sentence only goes on about the topic; `own` tells a sentence with the
    topic as its subject from an aside in a sentence about another one.
    """

    sentence: Sentence
    start: int
    end: int
    mention: tuple[int, int] | None
    reading: Reading | None
    own: bool

    def naming(self) -> tuple[Token, ...]:
        """The words of the mention that name the topic, without what stands between them."""
        words = self.sentence.within(*self.mention) if self.mention else ()
        return tuple(t for t in words if t.kind not in {"side", "site"})


@dataclass(frozen=True)
class Topic:
    """All that a report says of one finding."""

    name: str
    statements: tuple[Statement, ...]

    def presence(self) -> tuple[Presence | None, float | None]:
        """Presence (None: not mentioned) and confidence.

        Any affirmation wins over guarded words, these over a denial, and a plain denial over a played-down one.
        """
        said = {s.reading.polarity for s in self.statements if s.reading}
        if "affirmed" in said:
            return "present", None
        if "hedged" in said:
            return "present", HEDGED_CONFIDENCE
        if "negated" in said:
            return "absent", None
        if "played down" in said:
            return "absent", HEDGED_CONFIDENCE
        return ("undetermined", None) if said else (None, None)

    def places(self) -> list[Token]:
        """The side and site words that say where a finding is; none for a finding that is not present."""
        if self.presence()[0] != "present":
            return []
        words = [(s, t) for s in self.statements if not _denies(s) for t in _words_of_place(s)]
        if self.name == COMPRESSION:
            return [t for s, t in words if t.kind == "side" and not _of_lesion(s, t) and (s.own or _of_ventricle(s, t))]
        near = [(s, t) for s, t in words if not _of_ventricle(s, t)]
        near = [(s, t) for s, t in near if not _of_other_topic(self.name, s, t)] or near
        if any(t.kind == "side" for _, t in near):
            return [t for _, t in near]
        # "adjacent to the left ventricle" is a side for want of a better one, unless that ventricle is compressed.
        beside = [t for s, t in words if _of_ventricle(s, t) and not _DEFORMED.search(_clause(s.sentence, t))]
        return [t for _, t in near] + beside


def collect(report: str) -> dict[str, Topic]:
    """Give each sentence to the topics that it is about.

    Asides ("with surrounding edema") count only for topics that no sentence has as its subject.
    """
    own: dict[str, list[Statement]] = {name: [] for name in TOPICS}
    asides: dict[str, list[Statement]] = {name: [] for name in TOPICS}
    current: list[str] = []
    for sentence in sentences(report):
        mentions = _mentions(sentence)
        subjects = dict(_subjects(sentence, mentions))
        if subjects:
            current = list(subjects)
            for name, mention in subjects.items():
                own[name] += [_whole(sentence, mention, name), *_contrasts(sentence, mentions, name, mention)]
        elif _goes_on(sentence, mentions, current):
            for name in current:
                own[name].append(Statement(sentence, sentence.start, sentence.end, None, None, own=True))
        for name, mention in mentions:
            if name not in subjects:
                asides[name].append(_aside(sentence, mention, name))
    return {name: Topic(name, tuple(own[name] or asides[name])) for name in TOPICS}


# ---- what a sentence is about


def _whole(sentence: Sentence, mention: tuple[int, int], name: str) -> Statement:
    return Statement(sentence, sentence.start, sentence.end, mention, _read(sentence, mention, name), own=True)


_CONTRAST = phrase(r"[;\s]*(?:but|while|whereas|although|though|however)\b|;")


def _contrasts(sentence: Sentence, mentions: Sequence[_Mention], name: str, first: tuple[int, int]) -> list[Statement]:
    """Clauses that set something against a denial: "the right ventricle is normal, while the left is compressed"."""
    if _read(sentence, first, name).polarity not in {"negated", "played down"}:
        return []
    later = [mention for topic, mention in mentions if topic == name and mention[0] > first[1]]
    clauses = [(mention, *sentence.clause(mention[0])) for mention in later]
    return [
        Statement(sentence, start, end, mention, _read(sentence, mention, name), own=True)
        for mention, start, end in clauses
        if _CONTRAST.match(sentence.between(start, end))
    ]


def _aside(sentence: Sentence, mention: tuple[int, int], name: str) -> Statement:
    """The clause of a mention, from the end of what it says of another topic before."""
    start, end = sentence.clause(mention[0])
    others = (t.end for t in sentence.within(start, mention[0]) if _other(t, name))
    return Statement(sentence, max(others, default=start), end, mention, _read(sentence, mention, name), own=False)


def _read(sentence: Sentence, mention: tuple[int, int], name: str) -> Reading:
    if name == COMPRESSION and not any(t.kind == "deformation" for t in sentence.within(*mention)):
        return Reading("negated", mention)  # "the ventricles are normal" denies a compression without naming one
    return read_mention(sentence, *mention)


def _other(token: Token, topic: str) -> bool:
    return token.kind in {"lesion", "edema", "necrosis"} and token.kind != topic


def _mentions(sentence: Sentence) -> list[_Mention]:
    """Every topic named in a sentence with the characters that name it, in order."""
    found: list[_Mention] = [(t.kind, (t.start, t.end)) for t in sentence.tokens if t.kind in TOPICS]
    for token in sentence.tokens:
        if token.kind == "ventricle" and (mention := _compression(sentence, token)):
            found.append((COMPRESSION, mention))
    return sorted(set(found), key=lambda item: item[1])


_NORMAL = phrase(r"\b(?:normal|unremarkable)\b")


def _compression(sentence: Sentence, ventricle: Token) -> tuple[int, int] | None:
    """The words on compression of this ventricle: to the nearest word of deformation in its clause, or to "normal"."""
    start, end = sentence.clause(ventricle.start)
    words = [(t.start, t.end) for t in sentence.within(start, end) if t.kind == "deformation"]
    words = words or [(start + m.start(), start + m.end()) for m in _NORMAL.finditer(sentence.between(start, end))]
    if not words:
        return None
    word = min(words, key=lambda w: abs(w[0] - ventricle.start))
    return min(word[0], ventricle.start), max(word[1], ventricle.end)


_BEFORE_OBJECT = phrase(
    r"\b(?:around|surrounding|near|within|in|of|by|to|from|adjacent to|with|without)"
    r"\s+(?:the\s+|these\s+|this\s+|a\s+)?\S*\s?$"
)
_JOINED = phrase(r"[\s,]*(?:and|or|nor|,)\s+(?:\w+\s+)?")


def _subjects(sentence: Sentence, mentions: Sequence[_Mention]) -> list[_Mention]:
    """The topics that a sentence is about: what is named before its verb, with what "and" or "or" joins to it."""
    verb = COPULA.search(sentence.text)
    limit = sentence.start + (verb.start() if verb else len(sentence.text))
    before = [m for m in mentions if m[1][0] < limit]
    if not before:
        return []
    free = [m for m in before if not _BEFORE_OBJECT.search(sentence.between(sentence.start, m[1][0]))]
    subjects = [(free or before)[0]]
    for name, mention in mentions:
        last = subjects[-1][1][1]
        joined = mention[0] >= last and _JOINED.fullmatch(sentence.between(last, mention[0]))
        if joined and name not in dict(subjects):
            subjects.append((name, mention))
    return subjects


def _goes_on(sentence: Sentence, mentions: Sequence[_Mention], current: Sequence[str]) -> bool:
    """Whether a sentence without a subject of its own stays with the topics at hand."""
    names = {name for name, _ in mentions}
    if names & set(current):
        return True
    if _THERE.match(sentence.text):
        return False
    return bool(current) and names <= {"lesion"}  # any finding may be placed by its lesion


# ---- where a sentence places a finding

# The side or site in such a phrase is spared, wider than usual, or only a measure to compare with.
_SPARED = phrase(
    r"\b(?:(?:is|are|was|were|appears?|appearing|remains?|maintains?|shows?|still|relatively|essentially|of|a|be)\s+"
    r"(?:\w+ly\s+|a\s+)*(?:normal|unremarkable|unaffected|spared|intact|preserved|uninvolved|unchanged)"
    r"|spar(?:es|ing)|enlarge\w*|dilat\w*|expan\w+|widen\w*|(?:compared|contrasted) (?:to|with)|in comparison|"
    r"rather than|unlike)\b"
)
_DEFORMED = phrase(r"\b(?:compress|effac|deform|narrow|collaps|flatten|constrict|distort|reduc)\w*")
_AND = phrase(r"\band\b")
_SIDE_ENDS = phrase(r"\b(?:left|right) $")
_THERE = phrase(r"\s*there\b")
_SHIFT = phrase(
    r"\b(?:shift|displac|deviat|push|mov)\w*(?:\s+\w+){0,3}?\s+(?:to|towards?)\s+(?:the\s+)?$|\btowards?\s+the\s+$"
)
_DIRECTION = phrase(r"wards?\b| (?:midline )?(?:shift|displacement|deviation)\b")
_COMPARED = phrase(
    r"\b(?:(?:(?:compared|contrasted) (?:to|with)|than|relative to|unlike|rather than|not) "
    r"(?:(?:in|that of|the|on|to) )*|contralateral (?:\w+ ){0,3})$"
)
_VENTRICLE_FOLLOWS = phrase(
    r"(?:\s+(?:and|or|left|right|lateral|third|fourth|cerebral|side|of|the|frontal|temporal|occipital|anterior|"
    r"posterior))*\s+(?:ventric|horn)"
)
_CAUSE_BEFORE = phrase(
    r"\b(?:lesions?|edema|tumou?rs?|mass(?:es)?)(?: areas?)?(?:\s+(?:located|situated|and edema))?"
    r"\s+(?:in|on|within|of|at)\s+(?:the\s+)?$"
)
_CAUSE_FOLLOWS = phrase(
    r"(?:-\s*sided?)?(?:\s+(?:cerebral|hemisphere|hemispheric|frontal|parietal|temporal|occipital|and|lobe|side|brain))*"
    r"\s+(?:lesion|tumou?r|mass)"
)


def _denies(statement: Statement) -> bool:
    return statement.reading is not None and statement.reading.polarity in {"negated", "played down", "not assessable"}


def _words_of_place(statement: Statement) -> list[Token]:
    """Sides and sites of a statement, without those denied, spared, compared with, or that something shifts to."""
    sentence = statement.sentence
    inside = sentence.within(statement.start, statement.end)
    return [t for t in inside if t.kind in {"side", "site"} and not _foreign(sentence, t)]


def _foreign(sentence: Sentence, token: Token) -> bool:
    before = sentence.between(sentence.start, token.start)
    direction = _SHIFT.search(before) or _DIRECTION.match(sentence.between(token.end, sentence.end))
    if direction or _COMPARED.search(before) or denied_before(sentence, token.start):
        return True
    phrase = _phrase(sentence, token)
    return _SPARED.search(phrase) is not None and not _DEFORMED.search(phrase)


def _clause(sentence: Sentence, token: Token) -> str:
    return sentence.between(*sentence.clause(token.start))


def _phrase(sentence: Sentence, token: Token) -> str:
    """The part of a clause around a token that no "and" cuts off; "left and right" stays together."""
    words = _clause(sentence, token)
    at = token.start - sentence.clause(token.start)[0]
    cuts = [m for m in _AND.finditer(words) if not _SIDE_ENDS.search(words[: m.start()])]
    first = max((m.end() for m in cuts if m.end() <= at), default=0)
    last = min((m.start() for m in cuts if m.start() >= at), default=len(words))
    return words[first:last]


def _of_ventricle(statement: Statement, token: Token) -> bool:
    """Whether a side belongs to a ventricle: "left lateral ventricle", "left and right ventricles"."""
    return bool(_VENTRICLE_FOLLOWS.match(statement.sentence.between(token.end, statement.sentence.end)))


def _of_lesion(statement: Statement, token: Token) -> bool:
    """Whether a side in a sentence on compression is that of its cause: "lesions on the right side press …"."""
    sentence = statement.sentence
    before = sentence.between(sentence.start, token.start)
    after = sentence.between(token.end, sentence.end)
    return bool(_CAUSE_BEFORE.search(before) or _CAUSE_FOLLOWS.match(after))


def _of_other_topic(topic: str, statement: Statement, token: Token) -> bool:
    """Whether a place in a sentence on the lesion is that of the edema or necrosis named just before it."""
    if topic != "lesion":
        return False
    before = [t for t in statement.sentence.tokens if t.end <= token.start and t.kind in TOPICS]
    return bool(before) and before[-1].kind != "lesion"
