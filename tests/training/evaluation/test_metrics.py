"""Measures that cannot be gamed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from braingemma.findings.vocabulary import FINDINGS, Finding
from training.evaluation.metrics import (
    Counts,
    calibration_error,
    fixed_case,
    kappa,
    majority_findings,
    measure,
    permuted,
    pooled_kappa,
    reliability,
    side_counts,
)
from training.phases.tokenizer import draw_findings


@pytest.fixture(scope="module")
def truths() -> list[tuple[Finding, ...]]:
    rng = np.random.default_rng(0)
    return [draw_findings(rng) for _ in range(400)]


def test_the_truth_itself_is_perfect(truths) -> None:
    result = measure(list(zip(truths, truths, strict=True)))
    for name in ("side_accuracy", "site_f1", "presence_f1", "healthy_specificity", "side_kappa", "edema_informedness"):
        assert result[name] == 1.0


@pytest.mark.parametrize("baseline", ["constant", "majority"])
def test_answers_that_never_look_agree_by_chance_only(truths, baseline: str) -> None:
    same = truths[fixed_case(truths)] if baseline == "constant" else majority_findings(truths)
    result = measure([(truth, same) for truth in truths])
    for name in [n for n in result if n.endswith(("_kappa", "_informedness"))]:
        assert result[name] is None or abs(result[name]) < 1e-9, name
    assert result["pathology_kappa"] is not None
    if baseline == "constant":
        assert result["pathology_f1"] > 0.4  # what F1 alone makes of it


def test_shuffled_answers_agree_by_chance_only(truths) -> None:
    result = permuted([(truth, truth) for truth in truths])
    for name in [n for n in result if n.endswith("_kappa")]:
        assert abs(result[name]) < 0.05, name


def test_pooled_kappa_gives_no_credit_for_knowing_what_is_common() -> None:
    """Asked whether 90 % and 10 % of cases have something, "yes" and "no" are right in 90 %: by chance."""
    often, seldom = [True] * 9 + [False], [False] * 9 + [True]
    strata = [[(t, True) for t in often], [(t, False) for t in seldom]]
    assert pooled_kappa(strata) == pytest.approx(0.0)
    assert kappa([pair for stratum in strata for pair in stratum]) > 0.7
    assert pooled_kappa([[(t, t) for t in often], [(t, t) for t in seldom]]) == pytest.approx(1.0)
    assert pooled_kappa([]) is None


def test_bilateral_counts_as_both_sides() -> None:
    truth, both = (Finding("lesion", "present", "left"),), (Finding("lesion", "present", "bilateral"),)
    assert side_counts([(truth, both)], "lesion") == Counts(tp=1, fp=1)
    assert side_counts([(both, truth)], "lesion") == Counts(tp=1, fn=1)


def test_a_fully_negated_report_scores_at_or_below_zero(truths) -> None:
    other = {"present": "absent", "absent": "present"}
    negated = [tuple(dataclasses.replace(f, presence=other[f.presence]) for f in t) for t in truths]
    result = measure(list(zip(truths, negated, strict=True)))
    for name in FINDINGS:
        assert result[f"{name}_kappa"] <= 0
        assert result[f"{name}_informedness"] == -1.0


def test_wrong_sides_are_counted() -> None:
    truth = (Finding("lesion", "present", "left", ("frontal",)),)
    wrong = (Finding("lesion", "present", "right", ("frontal",)),)
    silent = (Finding("lesion", "undetermined"),)
    result = measure([(truth, wrong), (truth, silent), (truth, truth)])
    assert result["wrong_side"] == pytest.approx(1 / 3)
    assert result["side_accuracy"] == pytest.approx(1 / 3)


def test_nothing_to_count_is_none_and_never_one() -> None:
    healthy = tuple(Finding(name, "absent") for name in FINDINGS)
    result = measure([(healthy, healthy)] * 3)
    assert result["site_f1"] is None
    assert result["edema_presence_f1"] is None
    assert result["side_accuracy"] is None
    assert kappa([]) is None


def test_calibration_error_of_known_answers() -> None:
    assert calibration_error([1.0, 0.0], [True, False]) == pytest.approx(0.0)
    assert calibration_error([0.95] * 4, [True, False, False, False]) == pytest.approx(0.7)
    assert calibration_error([], []) is None
    low, high = reliability([0.1, 0.2, 0.9, 0.95], [False, True, True, True], bins=2)
    assert (low.count, low.frequency, high.count, high.frequency) == (2, 0.5, 2, 1.0)
