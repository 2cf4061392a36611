"""Overlap of texts: known answers, and a second library's opinion."""

from __future__ import annotations

import shutil

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from training.evaluation.text.text_measures import keyword_f1, meteor, text_intervals, text_measures, tokens

REFERENCES = [
    "The lesion area is in the left frontal lobe, with mixed signal. Edema is not observed.",
    "No lesion area is seen. Edema is absent.",
    "The lesion area lies in the right parietal and occipital lobes. Edema is marked.",
]
REPORTS = [
    "The lesion area is in the right frontal lobe, with patchy signal. Edema is not observed.",
    "No lesion area is observed. Edema is absent.",
    "The lesion area lies in the right temporal lobe. Edema is marked there.",
]


def test_equal_texts_are_perfect_and_disjoint_texts_are_nothing() -> None:
    same = text_measures(REFERENCES, REFERENCES)
    assert [same[name] for name in ("bleu_1", "bleu_4", "rouge_l")] == pytest.approx([1.0, 1.0, 1.0])
    assert same["cider"] == pytest.approx(10.0, abs=0.01)
    other = text_measures(REFERENCES, ["xx yy zz ww"] * 3)
    assert other["bleu_1"] == pytest.approx(0.0, abs=0.02)
    assert other["rouge_l"] == 0.0
    assert other["cider"] == pytest.approx(0.0, abs=1e-9)


def test_another_library_agrees_on_the_same_tokens() -> None:
    truth = {i: [tokens(t)] for i, t in enumerate(REFERENCES)}
    stated = {i: [tokens(t)] for i, t in enumerate(REPORTS)}
    bleu, _ = Bleu(4).compute_score(truth, stated, verbose=0)
    mine = text_measures(REFERENCES, REPORTS)
    assert mine["bleu_1"] == pytest.approx(bleu[0], abs=1e-4)
    assert mine["bleu_4"] == pytest.approx(bleu[3], abs=1e-4)
    rouge, _ = Rouge().compute_score(truth, stated)  # weighs recall more: close, not equal
    assert mine["rouge_l"] == pytest.approx(rouge, abs=0.03)


def test_case_and_punctuation_do_not_count() -> None:
    assert tokens("Edema, left.") == tokens("edema , left .") == "edema , left ."


def test_an_empty_report_shares_nothing() -> None:
    found = text_measures(REFERENCES, ["", *REFERENCES[1:]])
    assert found["rouge_l"] == pytest.approx(2 / 3)
    assert text_measures([], [])["cider"] is None
    assert text_measures(REFERENCES[:1], REPORTS[:1])["cider"] is None


def test_intervals_hold_the_figure() -> None:
    figure = text_measures(REFERENCES * 5, REPORTS * 5)
    for name, (low, high) in text_intervals(REFERENCES * 5, REPORTS * 5, samples=60).items():
        assert low <= high
        assert low - 0.02 <= figure[name] <= high + 0.02


def test_keywords_reward_words_and_not_truth() -> None:
    denied = ["There is no edema, no necrosis, no lesion."]
    stated = ["Edema, necrosis, lesion."]
    assert keyword_f1(denied, stated)["keyword_pathology_f1"] == 1.0
    assert keyword_f1(["Normal."], ["Normal."])["keyword_anatomy_f1"] == 1.0


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_is_one_for_the_same_words_and_lower_for_others() -> None:
    references = ["The lesion area is in the left frontal lobe.", "No lesion is seen."]
    values, reason = meteor({
        "same": (references, references),
        "other": (references, ["The lesion is in the right temporal lobe.", ""]),
        "one": (references[:1], references[:1]),
    })  # fmt: skip
    assert reason == ""
    assert values["same"] == values["one"] == pytest.approx(1.0)
    assert 0 < values["other"] < 0.6


def test_meteor_is_empty_with_a_reason_where_java_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert meteor({"model": (["a"], ["a"])}) == ({}, "METEOR needs Java, and there is none on this machine")
