"""Reports of one model are written again by another one, pass by pass, whatever that one would have said."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from braingemma.errors import BrainGemmaError
from daemon.bench import guesses
from daemon.bench.guesses import Written


def reports_of(guessed: int, count: int = 3) -> list[Written]:
    model = tiny_model()
    volume = torch.randn(1, 1, *model.config.grid, generator=torch.Generator().manual_seed(3))
    return guesses.write(model, [volume] * count, guessed)


def test_each_pass_has_the_rows_and_yields_the_tokens_of_the_report() -> None:
    first, *later = reports = reports_of(4)
    assert 5 in later[-1].rows, "the last token and four guesses"
    assert len(later[-1].rows) < len(first.rows) <= guesses.tokens_after_first(first)
    other = tiny_model(seed=9).language_model
    rows: list[int] = []
    other.model.layers[0].register_forward_pre_hook(lambda _layer, given: rows.append(given[0].shape[1]))
    prefix = first.passes[0].rows
    seconds = guesses.rewrite(other, torch.randn(1, prefix + 3, 32), reports, 4)
    assert rows == [n for report in reports for n in (prefix, *report.rows)]
    assert len(seconds) == len(reports)
    assert min(seconds) > 0


def test_passes_that_are_not_those_of_the_report_are_an_error() -> None:
    reports = reports_of(4)
    with pytest.raises(BrainGemmaError, match="passes are not those"):
        guesses.rewrite(tiny_model(seed=9).language_model, torch.randn(1, 99, 32), reports, 2)


def test_seconds_are_those_of_all_tokens_after_the_first_by_the_median_turn() -> None:
    whole = Written((5, 6, 7, 8), (1,), [guesses.Pass(n, torch.empty(0), torch.empty(0)) for n in (40, 1, 3)])
    found = guesses.summary([whole, whole], [[1.0, 2.0], [9.0, 4.0], [3.0, 3.0]], floor=0.5)
    assert found == {
        "reports": 2, "passes": 4, "tokens": 8, "tokens_per_pass": 2.0, "seconds_per_token": 0.75, "over_floor": 1.5,
    }  # fmt: skip
