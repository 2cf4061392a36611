"""Where the picture stands, and how tokens are chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from published_files import gemma_like_tokenizer
from tiny_models import tiny_config, tiny_tokenizer
from transformers import AutoTokenizer, Gemma3ForCausalLM

from braingemma.errors import GenerationError
from braingemma.model.language import (
    IMAGE_PLACEHOLDER,
    GenerationSettings,
    decode,
    embed_with_image,
    end_ids,
    prompt_ids,
    training_end_id,
)

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
IMAGE = [IMAGE_PLACEHOLDER] * 8


def gemma_like() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]}
    )
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


def language_model() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(tiny_config().text_config).eval()
    model.model.embed_tokens.weight.data.normal_(std=0.3)  # so that tokens differ clearly
    return model


def test_bos_first_then_the_picture_then_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, "scan", tiny_config())
    assert ids == [tokenizer.bos_token_id, *IMAGE, *tokenizer("scan", add_special_tokens=False)["input_ids"]]


def test_published_weights_get_the_picture_before_bos() -> None:
    tokenizer = gemma_like_tokenizer()
    ids = prompt_ids(tokenizer, "scan", tiny_config(weights_format="published"))
    assert ids == [*IMAGE, tokenizer.bos_token_id, *tokenizer("scan", add_special_tokens=False)["input_ids"]]
    assert len(prompt_ids(tokenizer, "scan" * 99, tiny_config(weights_format="published"))) == 8 + 256


def test_a_chat_template_says_where_the_picture_stands() -> None:
    tokenizer = gemma_like()
    ids = prompt_ids(tokenizer, "scan", tiny_config())
    shown = ["<image>" if i == IMAGE_PLACEHOLDER else tokenizer.convert_ids_to_tokens(i) for i in ids]
    text = "".join(shown).replace("\u010a", "\n").replace("<image>" * 8, "<image>")
    assert text == (
        "<bos><start_of_turn>user\n\n\n<start_of_image><image><end_of_image>\n\nscan<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert training_end_id(tokenizer, tiny_config().text_config) == tokenizer.get_vocab()["<end_of_turn>"]
    assert tokenizer.get_vocab()["<end_of_turn>"] in end_ids(tokenizer, tiny_config().text_config)


def test_visual_tokens_replace_placeholders_and_nothing_else() -> None:
    model = language_model()
    ids = torch.tensor([[2, IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER, 9], [2, 7, IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER]])
    visual = torch.randn(2, 2, 32)
    embedded = embed_with_image(model, ids, visual)
    torch.testing.assert_close(embedded[0, 1:3], visual[0])
    torch.testing.assert_close(embedded[1, 2:], visual[1])
    torch.testing.assert_close(embedded[0, 3], model.get_input_embeddings()(torch.tensor(9)))
    with pytest.raises(GenerationError, match=r"needs 3 placeholders.*\[2, 2\]"):
        embed_with_image(model, ids, torch.randn(2, 3, 32))


@pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`:UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    ],
)
def test_greedy_is_what_transformers_generate_writes(settings: dict[str, Any]) -> None:
    model, prefix = language_model(), torch.randn(2, 5, 32)
    expected = model.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(2, 5, dtype=torch.long),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=0,
        **settings,
    )
    decoded = decode(model, prefix, GenerationSettings(max_new_tokens=20, **settings), ends=[1])
    for row, ids in zip(expected.tolist(), decoded.token_ids, strict=True):
        assert row[: row.index(1) if 1 in row else None] == list(ids)


def test_sampling_is_reproducible_by_its_seed_and_follows_top_p() -> None:
    model, prefix = language_model(), torch.randn(1, 5, 32)

    def drawn(**settings: Any) -> tuple[int, ...]:
        chosen = GenerationSettings(max_new_tokens=12, temperature=1.5, **settings)
        return decode(model, prefix, chosen, ends=[1]).token_ids[0]

    assert drawn(seed=4, top_p=1.0) == drawn(seed=4, top_p=1.0)
    assert len({drawn(seed=s, top_p=1.0) for s in range(5)}) > 1
    greedy = decode(model, prefix, GenerationSettings(max_new_tokens=12), ends=[1]).token_ids[0]
    assert drawn(seed=4, top_p=1e-6) == greedy


def test_rows_end_on_their_own_and_progress_is_told() -> None:
    model, prefix, told = language_model(), torch.randn(2, 5, 32), []
    free = decode(model, prefix, GenerationSettings(max_new_tokens=6), ends=[1], progress=told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    first = next(t for t in free.token_ids[0] if t not in free.token_ids[1])
    ended = decode(model, prefix, GenerationSettings(max_new_tokens=6), ends=[first])
    assert ended.token_ids == (free.token_ids[0][: free.token_ids[0].index(first)], free.token_ids[1])
    assert (free.ended, ended.ended) == ((False, False), (True, False))
    alone = decode(model, prefix[1:], GenerationSettings(max_new_tokens=6), ends=[1])
    assert alone.token_ids[0] == free.token_ids[1]


def test_the_prefix_is_computed_once() -> None:
    model, lengths = language_model(), []
    model.model.layers[0].register_forward_pre_hook(lambda _m, args: lengths.append(args[0].shape[1]))
    decode(model, torch.randn(1, 9, 32), GenerationSettings(max_new_tokens=4), ends=[])
    assert lengths == [9, 1, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram_size": -1},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=next(iter(wrong))):
        GenerationSettings(**wrong)


def test_the_tokenizer_survives_saving(tmp_path: Any) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "The lesion area is in the left frontal lobe."
    assert again.decode(again(text, add_special_tokens=False)["input_ids"]) == text


def test_copies_share_their_prefix_and_are_drawn_as_if_it_were_given_to_each() -> None:
    model = language_model()
    prefix = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(4))
    drawing = GenerationSettings(max_new_tokens=6, temperature=1.0, seed=3)
    shared = decode(model, prefix, drawing, ends=[1], copies=3)
    apart = decode(model, prefix.repeat_interleave(3, dim=0), drawing, ends=[1])
    assert shared.token_ids == apart.token_ids
    assert len(set(shared.token_ids)) > 1
    for one, other in zip(shared.token_logprobs, apart.token_logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
