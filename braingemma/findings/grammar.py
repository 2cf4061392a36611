"""The words of a brain MRI report draft: tokens, sentences and clauses. Private to this folder.

Rules, not a model: each decision can be traced to a word, which is what the choice of the tokens to explain needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from braingemma.findings.vocabulary import SIDE_WORD, phrase

TokenKind = Literal["lesion", "edema", "necrosis", "ventricle", "deformation", "side", "site", "skip"]


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
        phrase(
            rf"(?:(?<![^\W_])|(?<=[tlr]o)|(?<=\bbi))(?:{pattern})(?:(?![^\W_])|(?<=[tlr]o)|(?<=\bbi))"
            if kind in {"site", "side"}
            else rf"(?<![^\W_])(?:{pattern})(?![^\W_])",
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

    def within(self, start: int, end: int) -> tuple[Token, ...]:
        """The tokens that begin from `start` to before `end` (characters of the report)."""
        return tuple(t for t in self.tokens if start <= t.start < end)

    def between(self, start: int, end: int) -> str:
        """The words from `start` to `end` (characters of the report)."""
        return self.text[start - self.start : end - self.start]


# A full stop inside a number ("2.5 cm") or after "e.g." ends nothing, nor does a line that is merely wrapped.
_SENTENCE_END = re.compile(
    r"(?<!e\.g)(?<!i\.e)(?<!approx)[.!?](?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)]|[A-Z][a-z]))(?!\s*Flair\b)"
)
_CLAUSE_START = phrase(
    r"[,;()]|\b(?:but|although|though|however|while|whereas|except|without|with|yet|compared|rather than|unlike)\b"
    r"|\band\s+(?=no\b|not\b|without\b|there\b)"
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


# A verb that links a finding to what is said of it; a colon stands for one ("Edema: none").
COPULA = phrase(
    r"\b(?:is|are|was|were|has|have|had|been|appears?|seems?|remains?|can|could|may|might|cannot|does|do|did)"
    r"(?=n['’]t|\b)|:"
)
