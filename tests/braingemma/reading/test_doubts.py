"""The text held against classifier, lesion map and second look: who is named, about what, and what stays silent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from braingemma.explain.grounding import LesionEstimate
from braingemma.findings.vocabulary import FINDINGS, Finding
from braingemma.measure.sizes import shift, ventricle
from braingemma.reading.doubts import STEPS, doubts, printed, with_verdicts
from braingemma.reading.second_look import LesionLook

LEFT_SHARE = {"left": 0.97, "right": 0.03, "bilateral": 0.5, None: None}


def look(peak: float, side: str | None = None, second: float = 0.0, left_share: float | None = None) -> LesionLook:
    """A map with this peak on this side; `second`: the peak with brightness stretched."""
    share = LEFT_SHARE[side] if left_share is None else left_share
    first = LesionEstimate(peak, 20.0 if side else 0.0, side, (), share)
    stretched = LesionEstimate(max(peak, second), 20.0, side, (), share)
    return LesionLook(np.zeros((4, 6, 5), np.float32), first, stretched)


def known(presence: float, left: float = 0.0, right: float = 0.0) -> dict:
    return {name: {"presence": presence, "left": left, "right": right, "sites": {}} for name in FINDINGS}


@pytest.mark.parametrize(
    ("presence", "side", "seen", "witness", "about"),
    [
        ("present", "left", look(0.9, "left"), None, None),
        ("present", "left", look(0.9, "right"), "lesion map", "side"),
        ("present", "right", look(0.9, "left"), "lesion map", "side"),
        ("present", "bilateral", look(0.9, "left"), "lesion map", "side"),
        ("present", "bilateral", look(0.9, "bilateral"), None, None),
        ("present", "left", look(0.9, "bilateral", left_share=0.7), None, None),
        ("present", "left", look(0.9, "bilateral", left_share=0.3), "lesion map", "side"),
        ("present", "right", look(0.9, "bilateral", left_share=0.7), "lesion map", "side"),
        ("present", "left", look(0.49, "left"), "lesion map", "presence"),
        ("present", "left", look(0.05), "lesion map", "presence"),
        ("present", "left", look(0.3, "left", second=0.8), "second look", "presence"),
        ("absent", None, look(0.9, "left"), "lesion map", "presence"),
        ("absent", None, look(0.1, "left", second=0.8), "second look", "presence"),
        ("absent", None, look(0.3, "left", second=0.4), None, None),
        ("undetermined", None, look(0.9, "left"), "lesion map", "presence"),
        ("undetermined", None, look(0.3, "left"), None, None),
        ("undetermined", None, look(0.05, "left", second=0.7), "second look", "presence"),
    ],
)
def test_the_text_is_held_against_the_map(presence, side, seen, witness, about) -> None:
    said = doubts([Finding("lesion", presence, side)], None, seen)
    assert [(d.witness, d.about) for d in said] == ([(witness, about)] if witness else [])
    assert all(d.witness in d.text or "lesion map" in d.text for d in said)


@pytest.mark.parametrize(
    ("presence", "side", "seen", "about"),
    [
        ("present", "left", known(0.9, left=0.9), None),
        ("present", "left", known(0.9, right=0.9), "side"),
        ("present", "bilateral", known(0.9, right=0.9), "side"),
        ("present", "right", known(0.9, 0.9, 0.9), "side"),
        ("present", "right", known(0.9), None),
        ("present", "left", known(0.3, left=0.9), "presence"),
        ("absent", None, known(0.8, left=0.9), "presence"),
        ("absent", None, known(0.2), None),
    ],
)
@pytest.mark.parametrize("name", FINDINGS)
def test_the_text_is_held_against_the_classifier(name, presence, side, seen, about) -> None:
    said = doubts([Finding(name, presence, side)], seen, None)
    assert [(d.finding, d.witness, d.about) for d in said] == ([(name, "classifier", about)] if about else [])


def test_a_finding_is_undetermined_where_all_who_can_tell_deny_the_text() -> None:
    stated = [Finding("lesion", "present", "left", ("frontal",)), Finding("edema", "present", "left")]
    by_one = with_verdicts(stated, known(0.2), look(0.9, "left"))
    assert [f.presence for f in by_one] == ["present", "undetermined"]
    by_both = with_verdicts(stated, known(0.2), look(0.1))
    assert [f.presence for f in by_both] == ["undetermined", "undetermined"]
    assert (by_both[0].laterality, by_both[0].sites) == ("left", ("frontal",))
    assert [f.presence for f in with_verdicts(stated, None, None)] == ["present", "present"]


@pytest.mark.parametrize(
    ("stated", "seen", "mapped"), [("absent", known(0.97), look(0.9, "left")), ("present", known(0.03), look(0.05))]
)
def test_an_undetermined_finding_has_no_probability(stated, seen, mapped) -> None:
    """That of the text's word would read the same whether a lesion is likely or not."""
    [finding] = with_verdicts([Finding("lesion", stated)], seen, mapped)
    assert (finding.presence, finding.confidence) == ("undetermined", None)
    [unlikely] = with_verdicts([Finding("edema", stated)], known(0.5), None, (), {("edema", "presence"): 0.6})
    assert (unlikely.presence, unlikely.confidence) == ("undetermined", None)


@pytest.mark.parametrize(
    ("side", "presence"),
    [("left", "present"), ("right", "present"), ("bilateral", "undetermined"), (None, "undetermined")],
)
def test_ventricles_are_a_witness_where_one_can_be_held_against_the_other(side, presence) -> None:
    sizes = (ventricle("left", 4.0, "x"), ventricle("right", 9.0, "x"))
    stated = Finding("ventricular_compression", "present", side)
    assert with_verdicts([stated], known(0.05), None, sizes)[0].presence == presence


def test_a_warning_is_true_of_what_it_was_given_for() -> None:
    def said(presence: str, seen: dict | None, mapped: LesionLook | None) -> str:
        [doubt] = doubts([Finding("lesion", presence, None)], seen, mapped)
        return doubt.text

    for probability, limit in ((0.499, "50%"), (0.47, "50%"), (0.41, "50%"), (0.38, "40%"), (0.001, "5%")):
        assert f"gives that less than {limit}:" in said("present", known(probability), None)
    for peak, limit in ((0.497, "0.50"), (0.4999, "0.50"), (0.42, "0.43"), (0.003, "0.01")):
        assert f"stays below {limit} everywhere" in said("present", None, look(peak, "left"))
    small = look(0.9, "left")
    small = LesionLook(small.patches, replace(small.first, volume_ml=0.4), small.second)
    assert "one of less than 1 ml on the left" in said("absent", None, small)
    unmoved = (ventricle("left", 9.0, "x"), ventricle("right", 3.0, "x"))
    for sizes, told in ((unmoved, False), ((shift(0.0, "x"), *unmoved), True)):
        [doubt] = doubts([Finding("ventricular_compression", "absent")], None, None, sizes)
        assert ("a midline shift of 0.0 mm" in doubt.text) is told, "what was not measured is not said"


def test_no_probability_is_printed_as_certain() -> None:
    assert [printed(p) for p in (0.0, 0.03, 0.44, 0.46, 0.93, 1.0)] == [0.05, 0.05, 0.4, 0.5, 0.95, 0.95]
    assert max(STEPS) < 1
    [finding] = with_verdicts([Finding("lesion", "absent")], known(0.0004), None)
    assert finding.confidence == 0.95


@pytest.mark.parametrize(
    ("presence", "side", "left", "right", "moved", "about"),
    [
        ("absent", None, 9.0, 8.0, 0.5, None),
        ("absent", None, 9.0, 5.5, 0.5, None),
        ("absent", None, 9.0, 5.5, -3.0, "presence"),
        ("absent", None, 9.0, 3.0, 0.0, "presence"),
        ("present", "right", 9.0, 4.0, -3.0, None),
        ("present", "left", 4.0, 9.0, 3.0, None),
        ("present", "left", 9.0, 4.0, -3.0, "side"),
        ("present", "right", 4.0, 9.0, 3.0, "side"),
        ("present", "right", 9.0, 8.9, 0.0, "presence"),
        ("present", "bilateral", 9.0, 8.9, 0.0, None),
    ],
)
def test_compression_is_held_against_the_measured_ventricles(presence, side, left, right, moved, about) -> None:
    sizes = (shift(moved, "x"), ventricle("left", left, "x"), ventricle("right", right, "x"))
    said = doubts([Finding("ventricular_compression", presence, side)], None, None, sizes)
    assert [(d.witness, d.about) for d in said] == ([("measurement", about)] if about else [])
    assert all(f"{left:.1f} ml left and {right:.1f} ml right" in d.text for d in said)
    assert doubts([Finding("ventricular_compression", presence, side)], None, None, sizes[:2]) == ()
