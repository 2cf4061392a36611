"""Guesses from a table of phrases: the same tokens as without, whatever the table says and whatever changes logits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from transformers import Gemma3ForCausalLM

from braingemma.model import speculation
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.language import GenerationSettings, decode
from braingemma.model.speculation import PhraseTable

LENGTH = 60


def language_model(dtype: torch.dtype = torch.float32, window: int = 512, seed: int = 0) -> Gemma3ForCausalLM:
    torch.manual_seed(seed)
    config = tiny_config().text_config
    config.sliding_window = window
    model = Gemma3ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # so that what is written does not repeat
    return model.to(dtype)


def count_passes(model: Gemma3ForCausalLM) -> list[int]:
    rows: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[1]))
    return rows


def tables(written: tuple[int, ...]) -> dict[str, PhraseTable]:
    """One that knows the report, one that knows half of it, one that is always wrong, and an empty one."""
    right, half, wrong = PhraseTable(), PhraseTable(), PhraseTable()
    right.learn(written)
    half.learn(written[: len(written) // 2])
    for a, b in itertools.pairwise(written):
        wrong.learn([a, b, (written[-1] + 1) % 100, 5, 6])
    return {"right": right, "half": half, "wrong": wrong, "empty": PhraseTable()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 10},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"max_new_tokens": 7},
    ],
)
def test_the_tokens_are_the_same(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    model, prefix = language_model(dtype), torch.randn(1, 5, 32, dtype=dtype)
    plain = GenerationSettings(**{"max_new_tokens": LENGTH, **settings})
    expected = decode(model, prefix, plain, ends=[1])
    guessing = GenerationSettings(**{**vars(plain), "speculate": 4})
    for name, table in tables(expected.token_ids[0]).items():
        told: list[int] = []
        decoded = decode(model, prefix, guessing, ends=[1], phrases=table, progress=told.append)
        assert decoded.token_ids == expected.token_ids, name
        assert told[: len(expected.token_ids[0])] == list(range(1, len(expected.token_ids[0]) + 1))
        assert decoded.token_logprobs == expected.token_logprobs, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_what_rounding_decides_is_decided_as_without_guesses(dtype: torch.dtype, seed: int) -> None:
    """Every fourth token has a twin that differs by less than what several rows at once would round otherwise."""
    model, prefix = language_model(dtype, seed=seed), torch.randn(1, 5, 32, dtype=dtype)
    weights = model.lm_head.weight.data
    noise = 1 + torch.finfo(dtype).eps * torch.randn(32, weights.shape[1])
    weights[2::4] = (weights[::4].float() * noise).to(dtype)
    plain = GenerationSettings(max_new_tokens=LENGTH, repetition_penalty=1.2)
    expected = decode(model, prefix, plain, ends=())
    guessing = GenerationSettings(**{**vars(plain), "speculate": 4})
    for name, table in tables(expected.token_ids[0]).items():
        assert decode(model, prefix, guessing, ends=(), phrases=table) == expected, name


def test_right_guesses_spare_passes_and_wrong_ones_cost_no_more_than_one_each() -> None:
    model, prefix = language_model(), torch.randn(1, 5, 32)
    plain = GenerationSettings(max_new_tokens=LENGTH, no_repeat_ngram_size=3)
    expected = decode(model, prefix, plain, ends=())
    guessing = GenerationSettings(max_new_tokens=LENGTH, no_repeat_ngram_size=3, speculate=4)
    passes = {}
    for name, table in tables(expected.token_ids[0]).items():
        rows = count_passes(model)
        assert decode(model, prefix, guessing, ends=(), phrases=table).token_ids == expected.token_ids
        passes[name] = len(rows)
    assert passes["right"] < LENGTH / 2
    assert passes["right"] < passes["half"] < passes["empty"] == LENGTH
    assert passes["wrong"] == LENGTH


@pytest.mark.parametrize("bits", [16, 8])
def test_packed_weights_with_adapters_give_the_same_bits(bits: int) -> None:
    """Where two tokens are nearly as likely, any other rounding would write another text."""
    demo = BrainGemma3D.from_pretrained("demo", device="cpu", quantization="4bit", dtype=torch.bfloat16, head_bits=bits)
    assert any("lora" in name for name, _ in demo.language_model.named_modules())
    prefix = torch.randn(1, 40, demo.config.text_config.hidden_size, dtype=torch.bfloat16)
    expected = decode(demo.language_model, prefix, GenerationSettings(max_new_tokens=30), ends=())
    for name, table in tables(expected.token_ids[0]).items():
        settings = GenerationSettings(max_new_tokens=30, speculate=11)
        decoded = decode(demo.language_model, prefix, settings, ends=(), phrases=table)
        assert decoded == expected, name


def test_where_rows_do_not_stay_apart_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, table = language_model(), PhraseTable()
    settings = GenerationSettings(max_new_tokens=8, speculate=4)
    table.learn(decode(model, torch.ones(1, 5, 32), settings, ends=()).token_ids[0])
    rows = count_passes(model)
    monkeypatch.setattr(speculation, "few_rows", lambda: None)
    decode(model, torch.ones(1, 5, 32), settings, ends=(), phrases=table)
    assert rows == [5, *[1] * 7]


def test_ends_and_stops_are_kept_and_the_window_is_not_left() -> None:
    model, prefix = language_model(window=24), torch.randn(1, 5, 32)
    free = decode(model, prefix, GenerationSettings(max_new_tokens=LENGTH), ends=())
    table, ids = PhraseTable(), free.token_ids[0]
    table.learn(ids)
    settings = GenerationSettings(max_new_tokens=LENGTH, speculate=5)
    guessed = decode(model, prefix, settings, ends=(), phrases=table)
    assert (guessed.token_ids, guessed.ended) == (free.token_ids, (False,))
    end = ids[11]
    ended = decode(model, prefix, settings, ends=[end], phrases=table)
    assert ended.token_ids[0] == ids[: ids.index(end)]
    stopped = decode(model, prefix, settings, ends=(), phrases=table, stop=lambda written: len(written) >= 9)
    assert stopped.token_ids[0] == ids[:9]
    assert ended.ended == stopped.ended == (True,)


def test_drawing_and_batches_take_no_guesses() -> None:
    model, table = language_model(), PhraseTable()
    table.learn(range(4, 60))
    settings = {"max_new_tokens": 8, "speculate": 4}
    rows = count_passes(model)
    decode(model, torch.randn(2, 5, 32), GenerationSettings(**settings), ends=(), phrases=table)
    decode(model, torch.randn(1, 5, 32), GenerationSettings(**settings, temperature=1.0), ends=(), phrases=table)
    assert rows == [5, *[1] * 7] * 2


def test_a_model_learns_from_its_reports_and_writes_them_again_the_same() -> None:
    model = tiny_model()
    volume = torch.randn(1, 1, *model.config.grid, generator=torch.Generator().manual_seed(3))
    plain = model.generate(volume, max_new_tokens=30)
    assert len(model.phrases) == 0
    rows = count_passes(model.language_model)
    again = [model.generate(volume, max_new_tokens=30, speculate=4) for _ in range(2)]
    assert [a.token_ids for a in again] == [plain.token_ids] * 2
    assert len(model.phrases) > 0
    first, second = rows[: rows.index(rows[0], 1)], rows[rows.index(rows[0], 1) :]
    assert len(second) < len(first)


def test_the_table_takes_the_longest_run_and_the_likeliest_token() -> None:
    table = PhraseTable()
    table.learn_all([[1, 2, 3, 4, 5], [9, 2, 3, 7, 8], [6, 2, 3, 7, 8]])
    assert table.propose([0, 1, 2, 3], 2) == [4, 5]
    assert table.propose([0, 2, 3], 2) == [7, 8]
    assert table.propose([2], 2) == [3, 7]
    assert table.propose([5, 5], 3) == []


def test_what_is_unlikely_to_be_right_is_not_guessed() -> None:
    table = PhraseTable()
    table.learn_all([[1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 5, 9]])
    assert table.propose([1], 3) == [2], "one in three and a half, after what was once not seen"
    table.learn_all([[1, 2, 3, 9]] * 3)
    assert table.propose([1], 3) == [2, 3, 9]
