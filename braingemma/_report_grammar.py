"""The words of a brain MRI report draft: tokens, sentences, clauses, and whether a mention is affirmed or negated.

Private to `findings.py`. Rules, not a model: each decision can be traced to a word, which is what the choice of the
tokens to explain needs. Negation follows the idea of NegEx (Chapman et al., J Biomed Inform 2001): a cue, a scope
that ends at certain words, and pseudo-cues ("not only") that negate nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Polarity = Literal["affirmed", "hedged", "negated", "played down", "not assessable"]
TokenKind = Literal["lesion", "edema", "necrosis", "ventricle", "deformation", "side", "site", "skip"]

# Sides in three casings only, so that `mirror_text` can exchange every side that is read, and is its own inverse.
SIDE_WORD = re.compile(
    r"(?<![^\W_])(?:(?P<left>left|Left|LEFT)|(?P<right>right|Right|RIGHT))(?=(?:wards?|most|sided?)?(?![^\W_]))(?!-handed)"
)
_LOBE = r"(?:front|pariet|tempor|occipit)(?:al|o)"
_SITES = {
    "frontal": r"front(?:al|o)",
    "parietal": r"pariet(?:al|o)",
    "temporal": r"tempor(?:al|o)",
    "occipital": r"occipit(?:al|o)",
    "insula": r"insul(?:a|ae|ar|o)",
    "cerebellum": r"cerebell(?:um|ar|a|o)|vermis",
    "brainstem": r"brain-?\s?stem|pons|pontine|midbrain|medulla oblongata",
    "thalamus": r"thalam(?:us|i|ic|o)",
    "corpus callosum": r"corpus callosum|callosal|splenium",
}
_BOTH = (
    r"both(?=(?:\s+(?:of|the|cerebral|cerebellar|brain|lateral))*"
    rf"\s+(?:hemispheres?|sides?|lobes|ventricles|insulae|thalami|{_LOBE}(?:\s+(?:lobes|regions|areas|horns)))\b)"
)
_PATTERNS: tuple[tuple[TokenKind, str, str], ...] = (
    ("skip", "", r"(?:peri|para|intra|supra|sub)-?ventricular|peri-?(?:lesional|tumou?ral)"),
    ("skip", "", rf"{_LOBE}\s+(?:bones?|sinus(?:es)?|skull)"),
    ("deformation", "", r"mass effect|(?:compress|effac|deform|narrow|collaps|flatten|constrict|distort|displac)\w*"),
    ("ventricle", "", rf"ventric(?:les?|ular)|(?:{_LOBE}|anterior|posterior)\s+horns?|trigones?"),
    (
        "lesion",
        "",
        r"lesion(?:s|al)?|tumou?r(?:s|al)?|mass(?:es)?|neoplasms?|gliomas?|glioblastomas?|metastas[ei]s"
        r"|(?:signal )?abnormalit(?:y|ies)|abnormal signals?|hyperintensit(?:y|ies)",
    ),
    ("edema", "", r"o?edema(?:s|tous)?|swelling|swollen"),
    ("necrosis", "", r"(?:micro-?)?necro(?:sis|ses|tic|ti[sz]ing)"),
    ("side", "bilateral", rf"bilateral(?:ly)?|bihemispheric|{_BOTH}|bi(?=-?(?:{_LOBE}|insul|thalam|cerebell))"),
    *(("site", name, pattern) for name, pattern in _SITES.items()),
)
# A lobe may follow another without a break ("frontoparietal") or "bi" ("bifrontal"), and "o" stems run on.
_COMPILED = tuple(
    (
        kind,
        value,
        re.compile(
            rf"(?:(?<![^\W_])|(?<=[tlr]o)|(?<=\bbi))(?:{pattern})(?:(?![^\W_])|(?<=[tlr]o)|(?<=\bbi))"
            if kind in {"site", "side"}
            else rf"(?<![^\W_])(?:{pattern})(?![^\W_])",
            re.IGNORECASE,
        ),
    )
    for kind, value, pattern in _PATTERNS
)


@dataclass(frozen=True)
class Token:
    """A word of the field at [start, end) of the report."""

    start: int
    end: int
    kind: TokenKind
    value: str


@dataclass(frozen=True)
class Sentence:
    """[start, end) of the report, its tokens, and the places where its clauses begin."""

    start: int
    end: int
    text: str
    tokens: tuple[Token, ...]
    clause_starts: tuple[int, ...]

    def clause(self, position: int) -> tuple[int, int]:
        """The clause [start, end), in characters of the report, that holds the character at `position`."""
        starts = [s for s in self.clause_starts if s <= position]
        later = [s for s in self.clause_starts if s > position]
        return starts[-1], later[0] if later else self.end

    def between(self, start: int, end: int) -> str:
        """The words from `start` to `end` (characters of the report)."""
        return self.text[start - self.start : end - self.start]


# A full stop inside a number ("2.5 cm") or after "e.g." ends nothing; a wrapped line does not end a sentence.
_SENTENCE_END = re.compile(
    r"(?<!e\.g)(?<!i\.e)(?<!approx)[.!?](?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)]|[A-Z][\w ]{0,24}:))"
)
_CLAUSE_START = re.compile(
    r"[,;()]|\b(?:but|although|though|however|while|whereas|except|without|with|yet|compared|rather than|unlike)\b"
    r"|\band\s+(?=no\b|not\b|without\b|there\b)",
    re.IGNORECASE,
)


def tokenise(text: str) -> tuple[Token, ...]:
    """All tokens of a text in order; of two that overlap the one named first in the lexicon stays."""
    taken: list[Token] = []
    for match in SIDE_WORD.finditer(text):
        taken.append(Token(match.start(), match.end(), "side", "left" if match["left"] else "right"))
    for kind, value, pattern in _COMPILED:
        for match in pattern.finditer(text):
            if match.end() > match.start() and not any(t.start < match.end() and match.start() < t.end for t in taken):
                taken.append(Token(match.start(), match.end(), kind, value))
    return tuple(sorted((t for t in taken if t.kind != "skip"), key=lambda t: t.start))


def sentences(text: str) -> tuple[Sentence, ...]:
    """Split a report into sentences with their tokens and clauses."""
    tokens = tokenise(text)
    found: list[Sentence] = []
    start = 0
    for end in [*(m.end() for m in _SENTENCE_END.finditer(text)), len(text)]:
        part = text[start:end]
        if part.strip():
            inside = tuple(t for t in tokens if start <= t.start < end)
            clauses = (start, *(start + m.start() for m in _CLAUSE_START.finditer(part) if m.start() > 0))
            found.append(Sentence(start, end, part, inside, clauses))
        start = end
    return tuple(found)


COPULA = re.compile(
    r"\b(?:is|are|was|were|has|have|had|been|appears?|seems?|remains?|can|could|may|might|cannot|does|do|did)\b|:",
    re.IGNORECASE,
)
_NOT = r"(?:not\b(?!\s+(?:only|just|merely|confined|limited|restricted)\b)|n't)"
_CUE_BEFORE = re.compile(
    rf"\b(?:no|without|neither|nor|none of|absence of|lack(?:s|ing)?(?: of)?|free (?:of|from)|negative for|never|"
    rf"rules? out|excludes?)\b|\b{_NOT}",
    re.IGNORECASE,
)
# Words that end the reach of a negation.
_SCOPE_END = re.compile(
    r"[;:.]|\b(?:but|although|though|however|while|whereas|with|around|near|within|in|from|by|due|caused|is|are|was|"
    r"were|surrounding the|adjacent to|and\s+(?:a|an|the|mild|moderate|marked|severe|slight|extensive))\b",
    re.IGNORECASE,
)
_NEW_STATEMENT = re.compile(r"\b(?:a|an|the|mild|moderate|marked|severe|slight|extensive|some|there)\b", re.IGNORECASE)
_CUE_AFTER = re.compile(
    rf"\s*(?:be\s+|been\s+|\w+ly\s+){{0,3}}(?P<cue>{_NOT}|no\b(?!\s+doubt)|never\b|none\b|absent\b|nil\b|negative\b|"
    r"undetected\b|ruled out\b|excluded\b|unlikely\b)",
    re.IGNORECASE,
)
_DIRECT_AFTER = re.compile(r"\s*[-–—,(]*\s*(?P<cue>not\b(?!\s+only)|none\b|absent\b|nil\b|negative\b)", re.IGNORECASE)
_DEGREE = re.compile(
    r"(?:not\s+(?:\w+ly\s+|very\s+|so\s+)*(?:severe|significant|pronounced|marked|extensive|prominent|major|large|"
    r"substantial)(?:ly)?|unlikely)\b",
    re.IGNORECASE,
)
_NOT_EXCLUDED = re.compile(
    r"\b(?:cannot|can ?not|could not|not)\s+be\s+(?:\w+ly\s+)?(?:excluded|ruled out)|\bnot (?:excluded|ruled out)",
    re.IGNORECASE,
)
_NOT_ASSESSABLE = re.compile(
    r"\b(?:cannot|can ?not|could not|not)\s+(?:be\s+)?(?:\w+ly\s+)?(?:assess|evaluat|determin|judg)\w*"
    r"|\b(?:ventricles?|regions?|areas?|system) (?:is|are|was|were) not (?:\w+ly )?(?:shown|included|visible|imaged|"
    r"displayed|depicted|covered)"
    r"|\b(?:indeterminate|undetermined|inconclusive|equivocal)\b|\b(?:difficult|unable|impossible) to (?:assess|"
    r"determine|judge|evaluate)",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(?:may|might|could|possibl[ey]|possibility|potential(?:ly)?|suspected|suspicious|suspicion|probabl[ey]|"
    r"likely|suggested|questionable|presumed|presumably)\b",
    re.IGNORECASE,
)
# The side or site in such a clause is spared, wider than usual, or only a measure to compare with.
SPARED = re.compile(
    r"\b(?:(?:is|are|was|were|appears?|appearing|remains?|maintains?|shows?|still|relatively|essentially|of|a|be)\s+"
    r"(?:\w+ly\s+|a\s+)*(?:normal|unremarkable|unaffected|spared|intact|preserved|uninvolved|unchanged)"
    r"|spar(?:es|ing)|enlarge\w*|dilat\w*|expan\w+|widen\w*|compared (?:to|with)|in comparison|rather than|unlike)\b",
    re.IGNORECASE,
)
DEFORMED = re.compile(r"\b(?:compress|effac|deform|narrow|collaps|flatten|constrict|distort|reduc)\w*", re.IGNORECASE)
NORMAL_STUDY = re.compile(
    r"\b(?:normal|unremarkable) (?:brain |head |cranial )?(?:mri?|study|scan|exam(?:ination)?|flair|images?)\b"
    r"|\b(?:brain|study|scan|exam(?:ination)?|mri|images?|parenchyma) (?:is|are|appears?) (?:\w+ly )*"
    r"(?:normal|unremarkable)\b(?! tissue)"
    r"|\bno (?:\w+ ){0,3}abnormalit(?:y|ies)\b|\bwithin normal limits\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reading:
    """What a sentence says of one mention, and where the word that says so stands ([start, end) of the report)."""

    polarity: Polarity
    cue: tuple[int, int] | None = None


def negated_before(sentence: Sentence, position: int) -> tuple[int, int] | None:
    """The negation cue whose reach covers `position`, if any ("no evident sign of …", "without …", "neither …")."""
    before = sentence.between(sentence.start, position)
    cues = list(_CUE_BEFORE.finditer(before))
    if not cues:
        return None
    cue = cues[-1]
    gap = before[cue.end() :]
    last_item = gap.rpartition(",")[2]
    broken = _SCOPE_END.search(gap) or len(gap.split()) > 9 or ("," in gap and _NEW_STATEMENT.search(last_item))
    if broken:
        return None
    return sentence.start + cue.start(), sentence.start + cue.end()


def negated_after(sentence: Sentence, position: int) -> tuple[int, int] | None:
    """The negation in the predicate of a mention that ends at `position` ("… is not observed", "…: none")."""
    after = sentence.between(position, sentence.end)
    verb = COPULA.search(after)
    direct = _DIRECT_AFTER.match(after)
    if direct is None and verb is not None and _reaches(after[: verb.start()], sentence, position):
        start = verb.start() if verb.group().lower() == "cannot" else verb.end()
        if verb.group().lower() == "cannot":
            return position + start, position + verb.end()
        direct = _CUE_AFTER.match(after, start)
    if direct is None:
        return None
    return position + direct.start("cue"), position + direct.end("cue")


def _reaches(tail: str, sentence: Sentence, position: int) -> bool:
    """Whether the verb after `tail` is the verb of the mention before it."""
    if re.search(r"[;.]|\b(?:which|that|but|while|whereas|although)\b", tail, re.IGNORECASE) or len(tail.split()) > 9:
        return False
    if "," not in tail:
        return True
    end = position + len(tail)
    return any(position <= t.start < end and t.kind not in {"side", "site"} for t in sentence.tokens)


def read_mention(sentence: Sentence, start: int, end: int) -> Reading:
    """Affirmed, hedged, negated, played down ("not severe") or not assessable: a mention at [start, end)."""
    rest = sentence.between(start, sentence.end)
    clause = sentence.between(*sentence.clause(start))
    if found := _NOT_ASSESSABLE.search(rest):
        return Reading("not assessable", (start + found.start(), start + found.end()))
    if found := _NOT_EXCLUDED.search(rest):
        return Reading("hedged", (start + found.start(), start + found.end()))
    if cue := negated_before(sentence, start):
        return Reading("negated", cue)
    if cue := negated_after(sentence, end):
        degree = _DEGREE.match(sentence.between(cue[0], sentence.end))
        return Reading("played down" if degree else "negated", cue)
    if found := HEDGE.search(clause):
        clause_start = sentence.clause(start)[0]
        return Reading("hedged", (clause_start + found.start(), clause_start + found.end()))
    return Reading("affirmed")
