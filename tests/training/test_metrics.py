"""Measures that cannot be gamed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from braingemma.findings import FINDINGS, Finding
from training.metrics import calibration_error, constant_baselines, kappa, measure
from training.text import draw_findings


@pytest.fixture(scope="module")
def truths() -> list[tuple[Finding, ...]]:
    rng = np.random.default_rng(0)
    return [draw_findings(rng) for _ in range(400)]


def test_the_truth_itself_is_perfect(truths) -> None:
    result = measure(list(zip(truths, truths, strict=True)))
    for name in ("side_accuracy", "site_f1", "presence_f1", "healthy_specificity", "side_kappa", "edema_informedness"):
        assert result[name] == 1.0


@pytest.mark.parametrize("baseline", ["constant", "majority", "shuffled"])
def test_reports_that_never_look_agree_by_chance_only(truths, baseline: str) -> None:
    reports = constant_baselines(truths)[baseline]
    result = measure(list(zip(truths, reports, strict=True)))
    for name in ("lesion_kappa", "edema_kappa", "necrosis_kappa", "side_kappa"):
        assert result[name] is None or abs(result[name]) < 0.1, name
    limit = 0.12 if baseline == "shuffled" else 1e-9
    for name in ("edema_informedness", "necrosis_informedness"):
        assert abs(result[name]) <= limit


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
