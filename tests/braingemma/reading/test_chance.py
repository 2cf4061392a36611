"""The chance that a statement is wrong: fitted, kept, and said where it is too high."""

from __future__ import annotations

import numpy as np
import pytest

from braingemma.explain.grounding import LesionEstimate
from braingemma.findings.vocabulary import FINDINGS, Finding
from braingemma.reading.chance import FEATURES, KINDS, ChanceOfError, features_of, fit_chance, weighed
from braingemma.reading.doubts import with_verdicts
from braingemma.reading.second_look import LesionLook


def look(peak: float, side: str) -> LesionLook:
    seen = LesionEstimate(peak, 20.0, side, (), {"left": 0.97, "right": 0.03}[side])  # type: ignore[arg-type]
    return LesionLook(np.zeros((4, 6, 5), np.float32), seen, seen)


def known(presence: float, left: float = 0.0, right: float = 0.0) -> dict:
    return {name: {"presence": presence, "left": left, "right": right, "sites": {}} for name in FINDINGS}


def fitted(classifier: float = 1.0, constant: float = 0.0, limit: float = 0.3) -> ChanceOfError:
    return ChanceOfError((constant, classifier, *[0.0] * (len(FEATURES) + len(KINDS) - 2)), limit)


def test_a_statement_that_is_too_likely_wrong_is_doubted_by_name() -> None:
    said = [Finding("edema", "present", "left"), Finding("necrosis", "absent")]
    found, chance = weighed(fitted(), said, known(0.6, left=0.95), None, (), 0.0)
    assert chance[("edema", "presence")] == pytest.approx(0.4, abs=0.01)
    assert chance[("edema", "side")] == pytest.approx(0.05, abs=0.01)
    assert ("necrosis", "side") not in chance
    # The classifier itself contradicts "necrosis absent": one warning is enough.
    assert [(d.finding, d.witness) for d in found] == [("necrosis", "classifier"), ("edema", "calibration")]
    assert "edema" in found[1].text
    assert "40 %" in found[1].text


def test_a_side_has_a_doubt_of_its_own() -> None:
    found, _ = weighed(fitted(), [Finding("lesion", "present", "right")], known(0.95, left=0.4, right=0.6), None, (), 0)
    assert [(d.witness, d.about) for d in found] == [("calibration", "side")]
    assert "side" in found[0].text


def test_a_doubt_of_the_presence_excuses_no_side() -> None:
    seen = known(0.3, left=0.6, right=0.0)
    found, _ = weighed(fitted(), [Finding("lesion", "present", "left")], seen, None, (), 0)
    assert [(d.witness, d.about) for d in found] == [("classifier", "presence"), ("calibration", "side")]


@pytest.mark.parametrize(
    ("chance", "said"),
    [(0.004, "less than 1 %"), (0.026, "about 3 %"), (0.074, "about 7 %"), (0.12, "about 10 %"), (0.999, "about 95 %")],
)
def test_a_chance_is_said_about_as_it_is(chance: float, said: str) -> None:
    constant = float(np.log(chance / (1 - chance)))
    found, _ = weighed(fitted(0.0, constant, 0.0), [Finding("edema", "absent")], None, None, (), 0.0)
    assert f"was wrong in {said} of cases" in found[0].text


def test_weights_without_a_fit_give_no_chance() -> None:
    found, chance = weighed(None, [Finding("edema", "present", "left")], known(0.6, left=0.9), None, (), 0.0)
    assert (found, chance) == ((), {})


def test_what_is_more_likely_wrong_than_right_is_undetermined() -> None:
    said = [Finding("edema", "present", "left")]
    assert with_verdicts(said, known(0.9), None, (), {("edema", "presence"): 0.6})[0].presence == "undetermined"
    assert with_verdicts(said, known(0.9), None, (), {("edema", "presence"): 0.4})[0].presence == "present"


def test_the_map_speaks_against_the_other_side_only() -> None:
    place = FEATURES.index("lesion map")

    def against(side: str, seen: LesionLook) -> float:
        return features_of(Finding("lesion", "present", side), "side", known(0.9), seen, 0.0, ())[place]  # type: ignore[arg-type]

    assert against("left", look(0.9, "left")) == pytest.approx(against("right", look(0.9, "right")))
    assert against("left", look(0.9, "right")) > 0 > against("left", look(0.9, "left"))


def test_the_fit_finds_what_predicts_errors_and_leaves_few_unsaid() -> None:
    rng = np.random.default_rng(0)
    count = 4000
    signal = rng.normal(0, 2, count)
    features = np.zeros((count, len(FEATURES) + len(KINDS)))
    features[:, 0], features[:, 1], features[:, 2] = 1, signal, rng.normal(0, 2, count)
    wrong = rng.random(count) < 1 / (1 + np.exp(-(signal - 3)))
    found = fit_chance(features, wrong, np.zeros(count, bool))
    assert found.weights[1] == pytest.approx(1.0, abs=0.15)
    assert abs(found.weights[2]) < 0.1
    chance = np.array([found.of(row) for row in features])
    assert (wrong & (chance <= found.limit)).sum() <= 0.007 * count + 1
    assert (chance > found.limit).mean() < 0.7
    assert ChanceOfError.from_json(found.to_json()) == found


def test_the_weights_say_what_they_weigh() -> None:
    assert set(fitted().to_json()["weights"]) == {*FEATURES, *KINDS}
    assert ChanceOfError.from_json(None) is None
