"""Doubt against truth: withheld statements, silent errors, calibration, and lesions that fade."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from braingemma.findings.vocabulary import Finding
from training.errors import DataError
from training.evaluation.cases import INSERTED_RATIOS, EvaluationCase, inserted_cases
from training.evaluation.fade import RATIOS, FadedReading, fade_case, fade_curve, faded
from training.evaluation.metrics import crg_score
from training.evaluation.uncertainty import (
    Statement,
    Witnesses,
    auroc_wrong,
    expected_calibration_error,
    risk_coverage,
    silent_errors,
    statements,
)
from training.phantoms.insertion import insert_lesion
from training.phantoms.phantom import make_phantom

LEFT = (Finding("lesion", "present", "left", ("frontal",)), Finding("edema", "absent"))
RIGHT = (Finding("lesion", "present", "right", ("frontal",)), Finding("edema", "present", "right", ()))


def statement(wrong: bool, certainty: float | None, warned: bool = False) -> Statement:
    return Statement("lesion", "presence", wrong, certainty, warned)


def test_statements_are_presence_and_side_with_the_heads_certainty() -> None:
    known = Witnesses(
        {"lesion": 0.9, "edema": 0.3},
        {"lesion": (0.8, 0.1)},
        frozenset({("edema", "presence"), ("lesion", "presence")}),
    )
    found = {(s.finding, s.about): s for s in statements(LEFT, RIGHT, known)}
    assert set(found) == {("lesion", "presence"), ("lesion", "side"), ("edema", "presence")}
    assert not found["lesion", "presence"].wrong
    assert found["lesion", "presence"].certainty == pytest.approx(0.9)
    assert found["lesion", "side"].wrong, "right is stated of a lesion on the left"
    assert found["lesion", "side"].certainty == pytest.approx(0.2 * 0.1), "right and not left"
    assert found["edema", "presence"].certainty == pytest.approx(0.3)
    assert found["edema", "presence"].warned
    assert (found["lesion", "presence"].warned, found["lesion", "side"].warned) == (True, False), "no word of the side"
    right = statements(LEFT, LEFT, known)[1]
    assert (right.wrong, right.certainty) == (False, pytest.approx(0.8 * 0.9))


def test_what_is_undetermined_is_no_statement() -> None:
    open_truth = (Finding("lesion", "undetermined"), Finding("edema", "undetermined"))
    nothing = Witnesses({}, {}, frozenset())
    assert statements(open_truth, LEFT, nothing) == []
    assert statements(LEFT, open_truth, nothing) == []
    assert [s.certainty for s in statements(LEFT, LEFT, nothing)] == [None] * 3
    assert risk_coverage(statements(LEFT, LEFT, nothing)) is None


def test_withholding_the_least_certain_lowers_the_risk_where_doubt_is_right() -> None:
    sure = [statement(False, 0.9 + n / 1000) for n in range(8)]
    doubted = [statement(True, 0.4), statement(True, 0.5)]
    found = risk_coverage([*sure, *doubted])
    assert found is not None
    assert found["risk"]["0.0"] == pytest.approx(0.2)
    assert found["risk"]["0.1"] == pytest.approx(1 / 9)
    assert found["risk"]["0.2"] == 0
    assert (found["statements"], found["wrong"]) == (10, 2)
    assert auroc_wrong([*sure, *doubted]) == 1
    assert auroc_wrong([statement(True, 0.9), statement(False, 0.5)]) == 0
    assert auroc_wrong(sure) is None


def test_ties_never_flatter() -> None:
    same = [statement(n < 2, 0.5) for n in range(4)]
    found = risk_coverage(same)
    assert found is not None
    assert found["risk"]["0.5"] == 1, "of equals the wrong ones are kept"
    assert auroc_wrong(same) == 0.5


def test_a_warning_comes_before_any_probability_but_is_part_of_a_fitted_chance() -> None:
    assert auroc_wrong([statement(True, 0.99, warned=True), statement(False, 0.02)]) == 1
    presence = {"lesion": 0.9, "edema": 0.9}
    chances = {("lesion", "presence"): 0.1, ("edema", "presence"): 0.3}
    found = statements(LEFT, RIGHT, Witnesses(presence, {}, frozenset({("lesion", "presence")}), chances))
    by_name = {s.finding: s for s in found if s.about == "presence"}
    assert (by_name["edema"].wrong, by_name["edema"].warned) == (True, False)
    assert by_name["lesion"].warned
    assert by_name["edema"].doubt == pytest.approx(0.3)
    assert by_name["lesion"].doubt == pytest.approx(0.1), "the chance knows of the warning"


def test_silent_errors_are_wrong_and_not_warned_of() -> None:
    found = silent_errors(
        [
            statement(True, 0.9),
            statement(True, 0.9, warned=True),
            statement(False, 0.9, warned=True),
            statement(False, 0.9),
        ]
    )
    assert found == {
        "statements": 4, "wrong": 2, "silent": 1, "share": 0.25, "lesion_silent": 1, "false_alarms": 0.5,
    }  # fmt: skip
    assert silent_errors([])["share"] is None


def test_calibration_error_of_each_finding_and_of_all() -> None:
    found = expected_calibration_error(
        {"lesion": ([0.9] * 10, [True] * 9 + [False]), "edema": ([0.9] * 10, [False] * 10)}
    )
    assert found["lesion"] == pytest.approx(0)
    assert found["edema"] == pytest.approx(0.9)
    assert found["all"] == pytest.approx(0.45)


def test_crg_is_one_for_the_truth_and_a_third_for_denial() -> None:
    names = ("lesion", "edema", "necrosis", "ventricular_compression")
    absent = tuple(Finding(name, "absent") for name in names)
    ill = (Finding("lesion", "present"), *absent[1:])
    truths = [ill, absent, absent]
    assert crg_score([(truth, truth) for truth in truths]) == pytest.approx(1)
    assert crg_score([(truth, absent) for truth in truths]) == pytest.approx(1 / 3)
    false_alarm = crg_score([(truth, ill) for truth in truths])
    missed = crg_score([(truth, absent) for truth in truths])
    assert false_alarm is not None
    assert missed is not None
    assert missed < false_alarm < 1, "the rare positive weighs more than a false alarm"
    assert crg_score([(absent, absent)]) is None


# ---- fading


def test_a_faded_lesion_is_as_bright_as_asked_and_its_necrosis_stays() -> None:
    phantom = make_phantom(3, spacing=5.0, stripped=True, with_lesion=True)
    voxels = np.asarray(phantom.volume.dataobj, np.float32)
    lesion, brain = phantom.parts > 0, voxels > 0
    middle = float(np.median(voxels[brain & ~lesion]))
    dark = lesion & (voxels <= middle)
    for ratio in RATIOS:
        changed = faded(voxels, lesion, brain, ratio)
        bright = lesion & (voxels > middle)
        assert float(np.median(changed[bright])) == pytest.approx(middle * ratio, rel=0.01)
        assert np.array_equal(changed[~lesion | dark], voxels[~lesion | dark])
    with pytest.raises(DataError, match="a lesion that is brighter than the brain"):
        faded(voxels, dark, brain, 1.2)


def test_the_curve_tells_misses_and_what_was_silent() -> None:
    readings = [
        FadedReading(1.6, stated=True, right_side=True, warned=False),
        FadedReading(1.1, stated=False, right_side=None, warned=True),
        FadedReading(1.1, stated=False, right_side=None, warned=False),
        FadedReading(1.1, stated=True, right_side=False, warned=False),
    ]
    curve = fade_curve(readings)
    assert curve is not None
    assert curve["1.6"] == {"lesions": 1, "stated": 1.0, "right_side": 1.0, "silent": 0.0}
    assert curve["1.1"]["lesions"] == 3
    assert curve["1.1"]["stated"] == pytest.approx(1 / 3)
    assert curve["1.1"]["silent"] == pytest.approx(2 / 3)
    assert fade_curve([]) is None


def test_inserted_lesions_are_as_bright_as_asked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scan = make_phantom(11, spacing=5.0, stripped=True, with_lesion=False).volume
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    shown = []
    for ratio in (1.2, 1.8):
        found = insert_lesion(scan, 4, region="frontal", side="left", brightness=ratio)
        core = found.parts == 2
        shown.append(float(np.median(np.asarray(found.volume.dataobj)[core])))
    assert shown[1] > shown[0] * 1.3
    cases = list(inserted_cases([tmp_path / "scan.nii.gz"], each=2, hard=True))
    assert len(cases) == 3
    assert INSERTED_RATIOS[0] == 1.2
    assert max(INSERTED_RATIOS) == 1.8


def test_a_lesion_without_a_mask_cannot_be_faded() -> None:
    phantom = make_phantom(3, spacing=5.0, stripped=True, with_lesion=True)
    case = EvaluationCase("x", phantom.findings, "", lambda: (phantom.volume, None))
    with pytest.raises(DataError, match="x: expected a lesion mask to fade by, got none"):
        fade_case(None, case)  # type: ignore[arg-type]
