"""Does the model know when it is wrong? Each statement of a report beside its truth, its certainty and its warning.

A statement is the presence of a finding, or the side of a finding that truly is there. Its certainty is one less the
chance of an error that the weights bring with them, in which every disagreement is weighed. Without that it is the
findings head's probability that it is so, and a statement with a warning (`braingemma.reading.doubts`), of which
that probability knows nothing, is less certain than any that carries none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from scipy.stats import rankdata

from braingemma.findings.vocabulary import FINDINGS, Finding
from training.evaluation.metrics import Findings, calibration_error, finding

WITHHELD: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the statements that are withheld, the least certain first."""


@dataclass(frozen=True)
class Witnesses:
    """What beside the text is known of a case.

    Attributes:
        presence: Probability of each finding.
        sides: Probabilities of its left and right.
        doubted: Statements (finding, about) on which a warning was given.
        chances: That each statement (finding, about) is wrong, where the weights tell.
    """

    presence: Mapping[str, float]
    sides: Mapping[str, tuple[float, float]]
    doubted: frozenset[tuple[str, str]]
    chances: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Statement:
    """One statement of a report.

    Attributes:
        finding: Of which finding.
        about: What about.
        wrong: Whether the truth is another.
        certainty: Probability that it is right, as the head tells; None without one.
        warned: Whether it carries a warning; one on the presence is none on the side.
        fitted: Whether the certainty is of the fitted chance of an error, which knows of the disagreements.
    """

    finding: str
    about: Literal["presence", "side"]
    wrong: bool
    certainty: float | None
    warned: bool
    fitted: bool = False

    @property
    def doubt(self) -> float | None:
        """The higher, the less sure: from 0 to 1; by the head alone above 1 with a warning."""
        if self.certainty is None:
            return None
        return 1 - self.certainty + (self.warned and not self.fitted)


def statements(truth: Findings, stated: Findings, known: Witnesses) -> list[Statement]:
    """Everything that a report states of findings whose truth is known."""
    result = []
    for name in FINDINGS:
        true, said = finding(truth, name), finding(stated, name)
        if "undetermined" in (true.presence, said.presence):
            continue
        by_head = _presence_certainty(said, known.presence.get(name))
        result.append(_statement(known, name, "presence", true.presence != said.presence, by_head))
        if true.presence == said.presence == "present" and true.laterality and said.laterality:
            by_head = _side_certainty(said, known.sides.get(name))
            result.append(_statement(known, name, "side", true.laterality != said.laterality, by_head))
    return result


def _statement(
    known: Witnesses, name: str, about: Literal["presence", "side"], wrong: bool, by_head: float | None
) -> Statement:
    chance = known.chances.get((name, about))
    certainty = by_head if chance is None else 1 - chance
    return Statement(name, about, wrong, certainty, (name, about) in known.doubted, fitted=chance is not None)


def _presence_certainty(said: Finding, probability: float | None) -> float | None:
    if probability is None:
        return None
    return probability if said.presence == "present" else 1 - probability


def _side_certainty(said: Finding, known: tuple[float, float] | None) -> float | None:
    """That both sides are as stated, as if they were independent."""
    if known is None:
        return None
    left, right = known
    return (left if said.laterality != "right" else 1 - left) * (right if said.laterality != "left" else 1 - right)


def risk_coverage(all_of: Sequence[Statement]) -> dict[str, Any] | None:
    """Share of wrong statements among those that are left when the least certain are withheld.

    Returns:
        `{"statements": n, "wrong": k, "risk": {"0.0": r, ...}}` by the share withheld (Geifman & El-Yaniv, 2017); None
        where no certainty is known.
    """
    rated = [(s.doubt, s.wrong) for s in all_of if s.doubt is not None]
    if not rated:
        return None
    doubt, wrong = np.array([d for d, _ in rated]), np.array([w for _, w in rated], float)
    # Among equals the wrong ones are kept: ties never flatter.
    order = np.lexsort((-wrong, doubt))
    kept = {share: max(1, len(rated) - int(share * len(rated))) for share in WITHHELD}
    risk = {f"{share:.1f}": float(wrong[order[:count]].mean()) for share, count in kept.items()}
    return {"statements": len(rated), "wrong": int(wrong.sum()), "risk": risk}


def auroc_wrong(all_of: Sequence[Statement]) -> float | None:
    """Chance that a wrong statement is less certain than a right one, ties half; None without both kinds."""
    rated = [(s.doubt, s.wrong) for s in all_of if s.doubt is not None]
    wrong = np.array([w for _, w in rated], bool)
    positive, negative = int(wrong.sum()), int((~wrong).sum())
    if not positive or not negative:
        return None
    ranks = rankdata([d for d, _ in rated])
    return float((ranks[wrong].sum() - positive * (positive + 1) / 2) / (positive * negative))


def silent_errors(all_of: Sequence[Statement]) -> dict[str, Any]:
    """Wrong statements on presence or side that carried no warning, of all statements; and how many warnings were idle.

    `false_alarms`: share of the right statements that carry a warning.
    """
    wrong = [s for s in all_of if s.wrong]
    right = [s for s in all_of if not s.wrong]
    silent = [s for s in wrong if not s.warned]
    return {
        "statements": len(all_of),
        "wrong": len(wrong),
        "silent": len(silent),
        "share": len(silent) / len(all_of) if all_of else None,
        "lesion_silent": sum(s.finding == "lesion" for s in silent),
        "false_alarms": sum(s.warned for s in right) / len(right) if right else None,
    }


def expected_calibration_error(known: Mapping[str, tuple[list[float], list[bool]]]) -> dict[str, float | None]:
    """ECE of each finding's presence, and of all together ("all")."""
    pooled: tuple[list[float], list[bool]] = ([], [])
    for probabilities, truths in known.values():
        pooled[0].extend(probabilities)
        pooled[1].extend(truths)
    return {**{name: calibration_error(*answers) for name, answers in known.items()}, "all": calibration_error(*pooled)}
