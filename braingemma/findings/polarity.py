"""Whether a report affirms or denies what it names. Private to this folder.

After NegEx (Chapman et al., J Biomed Inform 2001, doi:10.1006/jbin.2001.1029): a cue, a reach that ends at certain
words, and pseudo-cues ("not only") that deny nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from braingemma.findings.grammar import COPULA, Sentence, Token
from braingemma.findings.vocabulary import phrase

Polarity = Literal["affirmed", "hedged", "negated", "played down", "not assessable"]

_NOT = r"(?:not\b(?!\s+(?:only|just|merely|confined|limited|restricted)\b)|n['’]t)"
_CUE_BEFORE = phrase(
    rf"\b(?:no(?!\s+doubt)|without|neither|nor|none of|absence of|lack(?:s|ing)?(?: of)?|free (?:of|from)|"
    rf"negative for|never|rules? out|excludes?)\b|(?:\b|(?=n['’])){_NOT}"
)
# Words that end the reach of a denial.
_SCOPE_END = phrase(
    r"[;:.]|\b(?:but|although|though|however|while|whereas|with|around|near|within|in|from|by|due|caused|is|are|was|"
    r"were|surrounding the|adjacent to|and\s+(?:a|an|the|mild|moderate|marked|severe|slight|extensive))\b"
)
# Where a list of denied things stops: "no edema, mild necrosis".
_NEW_STATEMENT = phrase(r"\b(?:a|an|the|mild|moderate|marked|severe|slight|extensive|some|there)\b")
_CUE_AFTER = phrase(
    rf"\s*(?:be\s+|been\s+|\w+ly\s+){{0,3}}(?P<cue>{_NOT}|no\b(?!\s+doubt)|never\b|none\b|absent\b|nil\b|negative\b|"
    r"undetected\b|ruled out\b|excluded\b|unlikely\b)"
)
# Verbs that deny their object and not their subject: "the lesion has no edema", "does not cross the midline".
_ACTIVE = phrase(
    r"(?:has|have|had)(?:n['’]t| not| no)(?! been)|(?:does|do|did)(?:n['’]t| not)(?! (?:\w+ly )?(?:appear|exist|occur))"
)
_DIRECT_AFTER = phrase(
    r"\s*[-–—,(]*\s*(?P<cue>not\b(?!\s+(?:only|just|merely|confined|limited|restricted)\b)|none\b|absent\b|nil\b|"
    r"negative\b)"
)
_DEGREE = phrase(
    r"(?:not\s+(?:\w+ly\s+|very\s+|so\s+)*(?:severe|significant|pronounced|marked|extensive|prominent|major|large|"
    r"substantial)(?:ly)?|unlikely)\b"
)
_NOT_EXCLUDED = phrase(
    r"\b(?:cannot|can ?not|could not|not)\s+be\s+(?:\w+ly\s+)?(?:excluded|ruled out)|\bnot (?:excluded|ruled out)"
)
_NOT_ASSESSABLE = phrase(
    r"\b(?:cannot|can ?not|could not|not)\s+(?:be\s+)?(?:\w+ly\s+)?(?:assess|evaluat|determin|judg)\w*"
    r"|\b(?:ventricles?|regions?|areas?|system) (?:is|are|was|were) not (?:\w+ly )?(?:shown|included|visible|imaged|"
    r"displayed|depicted|covered)"
    r"|\b(?:indeterminate|undetermined|inconclusive|equivocal)\b|\b(?:difficult|unable|impossible) to (?:assess|"
    r"determine|judge|evaluate)"
)
_NEW_CLAUSE = phrase(r"[;.]|\b(?:which|that|but|while|whereas|although)\b")
_HEDGE = phrase(
    r"\b(?:may|might|could|possibl[ey]|possibility|potential(?:ly)?|suspected|suspicious|suspicion|probabl[ey]|"
    r"likely|suggested|questionable|presumed|presumably)\b"
)


@dataclass(frozen=True)
class Reading:
    """What a sentence says of one mention, and where the words that say so stand ([start, end) of the report)."""

    polarity: Polarity
    cue: tuple[int, int] | None = None


def read_mention(sentence: Sentence, start: int, end: int) -> Reading:
    """Read what is said of the topic named at [start, end): see `Polarity`; "played down" is "not severe"."""
    if found := _NOT_ASSESSABLE.search(rest := sentence.between(start, sentence.end)):
        return Reading("not assessable", (start + found.start(), start + found.end()))
    if found := _NOT_EXCLUDED.search(rest):
        return Reading("hedged", (start + found.start(), start + found.end()))
    if cue := denied_before(sentence, start) or _denied_inside(sentence, start, end) or _denied_after(sentence, end):
        degree = _DEGREE.match(sentence.between(cue[0], sentence.end))
        return Reading("played down" if degree else "negated", cue)
    clause_start, clause_end = sentence.clause(start)
    if found := _HEDGE.search(sentence.between(clause_start, clause_end)):
        return Reading("hedged", (clause_start + found.start(), clause_start + found.end()))
    return Reading("affirmed")


def denied_before(sentence: Sentence, position: int) -> tuple[int, int] | None:
    """The cue whose reach covers `position`, if any ("no evident sign of …", "without …", "neither … nor …")."""
    before = sentence.between(sentence.start, position)
    cues = list(_CUE_BEFORE.finditer(before))
    if not cues:
        return None
    cue = cues[-1]
    gap = before[cue.end() :]
    ended = _SCOPE_END.search(gap) or len(gap.split()) > 9
    if ended or ("," in gap and _NEW_STATEMENT.search(gap.rpartition(",")[2])):
        return None
    return sentence.start + cue.start(), sentence.start + cue.end()


def _denied_inside(sentence: Sentence, start: int, end: int) -> tuple[int, int] | None:
    """The cue inside a mention of several words ("ventricles are not compressed")."""
    cue = _CUE_BEFORE.search(sentence.between(start, end))
    return (start + cue.start(), start + cue.end()) if cue else None


def _denied_after(sentence: Sentence, position: int) -> tuple[int, int] | None:
    """The denial in the predicate of a mention that ends at `position` ("… is not observed", "…: none")."""
    after = sentence.between(position, sentence.end)
    cue = _DIRECT_AFTER.match(after)
    verb = COPULA.search(after)
    if cue is None and verb is not None and _is_verb_of(after[: verb.start()], sentence, position):
        if verb.group().lower() == "cannot":
            return position + verb.start(), position + verb.end()
        if not _ACTIVE.match(after, verb.start()):
            cue = _CUE_AFTER.match(after, verb.end())
    return (position + cue.start("cue"), position + cue.end("cue")) if cue else None


def _is_verb_of(tail: str, sentence: Sentence, position: int) -> bool:
    """Whether the verb after `tail` is the verb of the mention before it."""
    if _NEW_CLAUSE.search(tail) or len(tail.split()) > 9:
        return False
    if "," not in tail:
        return True
    end = position + len(tail)
    return any(position <= token.start < end and _is_topic(token) for token in sentence.tokens)


def _is_topic(token: Token) -> bool:
    return token.kind not in {"side", "site"}
