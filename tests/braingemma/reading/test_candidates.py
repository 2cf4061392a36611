"""Which of several texts becomes the report, and that every word stays the model's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from braingemma.findings.text import findings_from_text
from braingemma.model.braingemma3d import GeneratedReport
from braingemma.model.language import GenerationSettings
from braingemma.reading.candidates import Candidate, chosen, write_candidates
from braingemma.reading.doubts import doubts

LEFT = "The lesion area is in the left frontal lobe."
RIGHT = "The lesion area is in the right frontal lobe."


def candidate(text: str, score: float, *, agrees: bool) -> Candidate:
    return Candidate(text, tuple(findings_from_text(text)), score, 9, ended=True, agrees=agrees)


def taken(*candidates: Candidate) -> int:
    [best] = [n for n, c in enumerate(chosen(candidates)) if c.taken]
    return best


def test_the_most_probable_that_agrees_is_taken() -> None:
    greedy = candidate(RIGHT, -3.0, agrees=False)
    assert taken(greedy, candidate(LEFT, -9.0, agrees=True), candidate(LEFT, -7.0, agrees=True)) == 2
    assert taken(greedy, candidate(RIGHT, -2.0, agrees=False)) == 0, "none agrees: the greedy one stays"
    assert taken(candidate(LEFT, -9.0, agrees=True), candidate(LEFT, -1.0, agrees=True)) == 0


@pytest.fixture
def contradicted(model, volume, monkeypatch):
    """A model whose greedy text says right and whose drawn ones say left; what it was asked for."""
    asked = []
    generate = type(model).generate_batch

    def said(self, *args, **settings):
        written = generate(self, *args, **settings)
        asked.append(len(written))
        words = RIGHT if len(asked) == 1 else LEFT
        return [replace(w, text=words, ended=True) for w in written]

    monkeypatch.setattr(type(model), "generate_batch", said)
    return model, volume, asked


PROBABILITIES = {"lesion": {"presence": 0.9, "left": 0.9, "right": 0.1, "sites": {}}}


def test_further_texts_are_drawn_only_where_the_first_is_contradicted(contradicted) -> None:
    model, volume, asked = contradicted
    torch.manual_seed(0)
    found = write_candidates(model, volume, PROBABILITIES, None, count=5, settings=GenerationSettings(max_new_tokens=3))
    assert asked == [1, 4]
    assert [c.agrees for c in found] == [False, True, True, True, True]
    [report] = [c for c in found if c.taken]
    assert report.text == LEFT
    assert report.score == max(c.score for c in found if c.agrees)
    assert doubts(report.findings, PROBABILITIES, None) == ()
    torch.manual_seed(1)
    asked.clear()
    again = write_candidates(model, volume, PROBABILITIES, None, count=5, settings=GenerationSettings(max_new_tokens=3))
    assert [c.score for c in again] == [c.score for c in found], "one study has one report"


@pytest.mark.parametrize(("count", "side"), [(1, "left"), (5, "right")])
def test_one_candidate_or_an_uncontradicted_text_costs_nothing(contradicted, count, side) -> None:
    model, volume, asked = contradicted
    seen = {"lesion": {"presence": 0.9, "left": float(side == "left"), "right": float(side == "right"), "sites": {}}}
    [only] = write_candidates(model, volume, seen, None, count=count, settings=GenerationSettings(max_new_tokens=3))
    assert asked == [1]
    assert only.taken
    assert only.text == RIGHT
    assert only.cut == ()


WHOLE = " No edema is seen. No necrosis is seen. Ventricular compression is present on the left."


@pytest.mark.parametrize(
    ("first", "drawn", "taken"),
    [
        (f"{RIGHT}{WHOLE}", [(LEFT, -1.0, True), (f"{LEFT}{WHOLE}", -9.0, True)], 2),
        (RIGHT, [("There is a lesion.", -1.0, True), (LEFT, -9.0, True)], 2),
        (RIGHT, [("There is a lesion.", -1.0, True)], 0),
        (
            f"{RIGHT}{WHOLE}",
            [(f"{LEFT}{WHOLE}".replace(" on the left", ""), -1.0, True), (f"{LEFT}{WHOLE}", -9.0, True)],
            2,
        ),
        ("There is a lesion.", [(LEFT, -1.0, False), (LEFT, -9.0, True)], 0),
        (RIGHT, [(LEFT, -1.0, False), (LEFT, -9.0, True)], 2),
        (RIGHT, [(LEFT, -1.0, False)], 0),
    ],
    ids=["presence", "side", "only one without a side", "side of another finding", "nothing denied", "cut", "only cut"],
)
def test_no_text_is_taken_for_what_it_leaves_out(model, volume, monkeypatch, first, drawn, taken) -> None:
    said = [[(first, -5.0, True)], drawn]

    def written(_self, *_args, **_settings):
        return [GeneratedReport(text, (1,), (score,), ended) for text, score, ended in said.pop(0)]

    monkeypatch.setattr(type(model), "generate_batch", written)
    found = write_candidates(model, volume, PROBABILITIES, None, count=3, settings=GenerationSettings())
    assert [c.taken for c in found].index(True) == taken


def test_a_cut_text_asks_for_another_one_and_says_so_where_it_stays(model, volume, monkeypatch) -> None:
    def written(_self, *_args, **settings):
        return [GeneratedReport(LEFT, (1, 2, 3), (-1.0,) * 3, ended=False)] * settings.get("copies", 1)

    monkeypatch.setattr(type(model), "generate_batch", written)
    found = write_candidates(model, volume, PROBABILITIES, None, count=3, settings=GenerationSettings())
    assert [(c.taken, c.ended, c.agrees) for c in found] == [
        (True, False, False), (False, False, False), (False, False, False),
    ]  # fmt: skip
    assert "cut after 3 tokens" in found[0].cut[0]
    assert found[0].to_json()["ended"] is False
