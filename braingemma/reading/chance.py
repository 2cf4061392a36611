"""The chance that a statement of the report is wrong, from everything that is known of it.

A statement is the presence of a finding, or the side of a present one. What speaks against it is weighed by a logistic
regression that training fits on held-out drawn heads and keeps in the weights' configuration (`doubt`); weights
without it give no such chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from braingemma.findings.vocabulary import FINDINGS, Finding
from braingemma.measure.sizes import Measured
from braingemma.reading.doubts import Doubt, Probabilities, doubts, side_probability, stated_probability
from braingemma.reading.second_look import LesionLook

About = Literal["presence", "side"]

FEATURES: Final = ("constant", "classifier", "lesion map", "second look", "text", "disagreement")
"""What is weighed, each the higher the more it speaks against the statement: a constant; log-odds of the classifier
against it; of the lesion map; of the second look; nats a token that the text is unsure; whether somebody
disagrees; then one for each kind of statement."""
KINDS: Final = (*FINDINGS, "side")
_MARGIN: Final = 0.02
"""Probabilities are kept this far from 0 and 1."""


@dataclass(frozen=True)
class ChanceOfError:
    """A fitted regression.

    Attributes:
        weights: One for each of `FEATURES`, then of `KINDS`.
        limit: A finding is doubted where the chance of an error is above it.
    """

    weights: tuple[float, ...]
    limit: float

    def of(self, features: npt.ArrayLike) -> float:
        """The chance, in [0, 1], for features as `features_of` gives them."""
        return float(1 / (1 + np.exp(-(np.asarray(features) @ np.asarray(self.weights)))))

    def to_json(self) -> dict[str, Any]:
        """As `doubt` in the weights' configuration."""
        names = (*FEATURES, *KINDS)
        return {"weights": dict(zip(names, map(float, self.weights), strict=True)), "limit": float(self.limit)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any] | None) -> ChanceOfError | None:
        """None where the weights hold none."""
        if entry is None:
            return None
        return cls(tuple(float(entry["weights"].get(n, 0.0)) for n in (*FEATURES, *KINDS)), float(entry["limit"]))


def features_of(
    finding: Finding,
    about: About,
    probabilities: Probabilities | None,
    look: LesionLook | None,
    unsure: float,
    found: Sequence[Doubt],
) -> list[float]:
    """What speaks against one statement, in the order of `FEATURES` and `KINDS`.

    Args:
        finding: As the text states it.
        about: Its presence or its side.
        probabilities: As for `doubts`.
        look: As for `doubts`.
        unsure: Mean of the negative log-probabilities of the text's tokens, nats.
        found: The doubts about this report.
    """
    known = (probabilities or {}).get(finding.finding)
    sure = stated_probability(finding, known) if about == "presence" else side_probability(finding, known)
    first = second = 0.0
    if look is not None and finding.finding == "lesion":
        if about == "presence":
            sign = 1.0 if finding.presence == "present" else -1.0
            first, second = -sign * _odds(look.first.peak), -sign * _odds(look.second.peak)
        elif look.estimate.left_share is not None:
            left = look.estimate.left_share
            own = {"left": left, "right": 1 - left}.get(str(finding.laterality), 2 * min(left, 1 - left))
            first = -_odds(own)
    disagreed = any(d.finding == finding.finding and d.about == about for d in found)
    kind = "side" if about == "side" else finding.finding
    values = [1.0, 0.0 if sure is None else -_odds(sure), first, second, min(unsure, 2.0), float(disagreed)]
    return [*values, *(float(kind == name) for name in KINDS)]


def weighed(
    fitted: ChanceOfError | None,
    findings: Sequence[Finding],
    probabilities: Probabilities | None,
    look: LesionLook | None,
    measured: Sequence[Measured],
    unsure: float,
) -> tuple[tuple[Doubt, ...], dict[tuple[str, About], float]]:
    """All doubts of a report, and the chance of an error of each statement; without `fitted` no chance.

    Arguments are those of `doubts` and `features_of`.
    """
    found = doubts(findings, probabilities, look, measured)
    if fitted is None:
        return found, {}
    chance = {
        (f.finding, about): fitted.of(features_of(f, about, probabilities, look, unsure, found))
        for f in findings
        for about in statements_of(f)
    }
    return (*found, *_doubted(fitted, chance, found)), chance


def statements_of(finding: Finding) -> tuple[About, ...]:
    """What a finding of the text states."""
    if finding.presence == "undetermined":
        return ()
    return ("presence", "side") if finding.presence == "present" and finding.laterality else ("presence",)


def _doubted(fitted: ChanceOfError, chance: Mapping[tuple[str, About], float], found: Sequence[Doubt]) -> list[Doubt]:
    """A doubt of each statement whose chance of an error is above the limit and that nobody doubts yet.

    A doubt about the presence says nothing of the side.
    """
    known = {(doubt.finding, doubt.about) for doubt in found}
    result = []
    for (name, about), value in chance.items():
        if value > fitted.limit and (name, about) not in known:
            what = name.replace("_", " ")
            said = (
                f"what the text says of {what}" if about == "presence" else f"the side that the text gives for {what}"
            )
            text = f"On drawn heads {said} was wrong in {_percent(value)} of cases like this one: check {what}."
            result.append(Doubt(name, "calibration", about, text))
    return result


def _percent(chance: float) -> str:
    """In steps of 5 %; in whole ones below 10 %, where 5 % more would be twice as much."""
    if chance < 0.01:
        return "less than 1 %"
    return f"about {round(100 * chance) if chance < 0.1 else min(95, 5 * round(20 * chance))} %"


def _odds(probability: float) -> float:
    p = min(max(float(probability), _MARGIN), 1 - _MARGIN)
    return float(np.log(p / (1 - p)))


def fit_chance(
    features: npt.ArrayLike, wrong: npt.ArrayLike, warned: npt.ArrayLike, silent: float = 0.005, price: float = 1.0
) -> ChanceOfError:
    """Fit weights and limit on statements whose truth is known.

    Args:
        features: (N, F).
        wrong: (N,) whether each is wrong.
        warned: (N,) whether somebody disagrees anyway.
        silent: Share of all statements that may be wrong without a doubt.
        price: Of squared weights, the constant apart: few errors are known.

    Raises:
        ValueError: no statement.
    """
    x, y = np.asarray(features, float), np.asarray(wrong, float)
    if not len(x):
        raise ValueError("expected statements to fit the chance of an error on, got none")
    weights = np.zeros(x.shape[1])
    ridge = np.full(x.shape[1], price)
    ridge[0] = 1e-3
    for _ in range(30):
        p = 1 / (1 + np.exp(-(x @ weights)))
        slope = x.T @ (y - p) - ridge * weights
        curve = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-6:
            break
    p = 1 / (1 + np.exp(-(x @ weights)))
    quiet = ~np.asarray(warned, bool)
    # The largest limit that leaves few enough errors unsaid: from the least likely error upward.
    order = np.argsort(p[quiet])
    errors = np.cumsum(y[quiet][order])
    allowed = np.flatnonzero(errors <= silent * len(y))
    ranked = p[quiet][order]
    limit = float(ranked[allowed[-1]]) if len(allowed) else 0.0
    return ChanceOfError(tuple(float(w) for w in weights), min(limit, 0.5))
