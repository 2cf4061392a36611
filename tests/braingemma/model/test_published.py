"""The published layout gives what the public code gives: compared with a straight reimplementation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from public_code import public_report, public_tokens
from published_files import GRID, write_published
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from braingemma.checkpoint.load import read_config
from braingemma.checkpoint.weights import describe_weights
from braingemma.configuration import PUBLISHED_VOLUME
from braingemma.errors import CheckpointError
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.language import GenerationSettings


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def unit_volume() -> torch.Tensor:
    return torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(11))


@pytest.fixture(scope="module")
def exact(published: Path) -> BrainGemma3D:
    return BrainGemma3D.from_pretrained(published, quantization="none", dtype=torch.float32)


@pytest.mark.parametrize("size", [GRID, (32, 128, 128), (9, 56, 71)])
def test_tokens_equal_the_public_codes_at_any_size(exact: BrainGemma3D, published: Path, size: tuple[int, ...]) -> None:
    volume = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        tokens = exact.encode_volume(volume)
    torch.testing.assert_close(tokens, public_tokens(published, volume), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"max_new_tokens": 24, "temperature": 0.9, "top_p": 0.95}])
def test_drawn_text_equals_the_public_codes_under_one_seed(
    exact: BrainGemma3D, published: Path, unit_volume: torch.Tensor, settings: dict[str, Any]
) -> None:
    expected = public_report(published, unit_volume, seed=3, **settings)
    torch.manual_seed(3)
    assert exact.generate_report(unit_volume, **settings) == expected
    torch.manual_seed(4)
    assert settings == {} or exact.generate_report(unit_volume, **settings) != expected


@pytest.mark.parametrize("temperature", [None, 0.0])
def test_greedy_text_equals_the_public_codes(
    exact: BrainGemma3D, published: Path, unit_volume: torch.Tensor, temperature: float | None
) -> None:
    written = exact.generate_report(unit_volume, temperature=temperature)
    assert written == public_report(published, unit_volume, temperature=temperature)
    assert len(set(written)) > 10, "the fabricated model writes more than one token again and again"


@pytest.mark.parametrize(
    "off", [{"repetition_penalty": 1.0}, {"no_repeat_ngram_size": 0}, {"min_new_tokens": 0}, {"max_new_tokens": 7}]
)
def test_each_setting_does_what_it_does_there(
    exact: BrainGemma3D, published: Path, unit_volume: torch.Tensor, off: dict[str, Any]
) -> None:
    assert exact.generate_report(unit_volume, temperature=0, **off) == public_report(
        published, unit_volume, temperature=0, **off
    )


def test_no_end_token_comes_before_the_shortest_report(exact: BrainGemma3D, unit_volume: torch.Tensor) -> None:
    head, end = exact.language_model.lm_head, exact.tokenizer.eos_token_id
    weight = head.weight.data.clone()
    try:
        states: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _m, args: states.append(args[0][:, -1]))
        exact.generate(unit_volume, temperature=0, max_new_tokens=1)
        hook.remove()
        head.weight = torch.nn.Parameter(weight.clone())
        head.weight.data[end] = 100 * states[0][0]  # the end is the likeliest token from the start
        assert exact.generate(unit_volume, temperature=0, min_new_tokens=0).token_ids == ()
        assert len(exact.generate(unit_volume, temperature=0).token_ids) >= 10
    finally:
        head.weight = exact.language_model.model.embed_tokens.weight
        assert torch.equal(head.weight, weight)


def test_the_format_brings_its_reading_and_writing(published: Path, exact: BrainGemma3D) -> None:
    info = describe_weights(str(published))
    assert (info.format, info.synthetic_only, info.banner) == ("published", False, None)
    assert info.name == published.name
    assert exact.config.volume_settings == PUBLISHED_VOLUME
    assert exact.generation_settings() == GenerationSettings(
        max_new_tokens=128,
        min_new_tokens=10,
        temperature=0.1,
        top_k=50,
        top_p=0.9,
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
    )
    assert exact.ground(torch.rand(1, 1, *GRID)) is None


def test_top_k_is_the_checkpoints_where_it_states_one(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "top_k"
    shutil.copytree(published, folder)
    (folder / "language_model" / "generation_config.json").write_text('{"top_k": 64, "do_sample": true}')
    assert read_config(folder).decoding["top_k"] == 64
    (folder / "language_model" / "generation_config.json").write_text('{"top_k": "many"}')
    with pytest.raises(CheckpointError, match="expected top_k as a whole number"):
        read_config(folder)


def test_our_own_weights_write_greedily_as_before(model: BrainGemma3D) -> None:
    assert model.generation_settings() == GenerationSettings()
    assert model.generation_settings().facts() == {
        "decoding": "greedy",
        "max_new_tokens": 256,
        "min_new_tokens": 0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }


def test_a_published_model_saved_here_is_the_same_model(
    published: Path, unit_volume: torch.Tensor, tmp_path: Path
) -> None:
    model = BrainGemma3D.from_pretrained(published, quantization="none", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = BrainGemma3D.from_pretrained(tmp_path, quantization="none", dtype=torch.float32)
    assert describe_weights(str(tmp_path)).format == "published"
    with torch.no_grad():
        assert torch.equal(model.encode_volume(unit_volume), again.encode_volume(unit_volume))


@pytest.mark.parametrize("multimodal", [True, False])
def test_the_text_stack_of_either_kind_loads_whole(tmp_path: Path, multimodal: bool) -> None:
    folder = write_published(tmp_path, multimodal)
    model = BrainGemma3D.from_pretrained(folder, quantization="none", dtype=torch.float32)
    kind = Gemma3ForConditionalGeneration if multimodal else Gemma3ForCausalLM
    reference = kind.from_pretrained(folder / "language_model").eval()
    ids = torch.randint(4, 90, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(model.language_model(ids).logits, reference(ids).logits, atol=1e-5, rtol=1e-5)


def test_keys_of_older_multimodal_checkpoints_load_too(published: Path, tmp_path: Path) -> None:
    """Before transformers 4.52 the text stack lay under `language_model.model.`."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "old"
    shutil.copytree(published, folder)
    file = folder / "language_model" / "model.safetensors"
    renamed = {}
    for key, value in load_file(file).items():
        old_key = key.replace("model.language_model.", "language_model.model.")
        renamed[old_key.removeprefix("model.") if old_key.startswith("model.vision") else old_key] = value
    assert any(key.startswith("language_model.model.layers.") for key in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    old = BrainGemma3D.from_pretrained(folder, quantization="none", dtype=torch.float32)
    new = BrainGemma3D.from_pretrained(published, quantization="none", dtype=torch.float32)
    ids = torch.randint(4, 90, (1, 12))
    with torch.no_grad():
        assert torch.equal(old.language_model(ids).logits, new.language_model(ids).logits)


def test_a_pickle_with_code_is_refused(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(published, folder)
    torch.save({"vision_projector": np.random.default_rng}, folder / "projector_vis_scale.pt")
    with pytest.raises(CheckpointError, match=r"projector_vis_scale\.pt: not readable as tensors alone"):
        BrainGemma3D.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["vision_projector"].pop("2.bias"), r"missing keys: projector\.mlp\.2\.bias"),
        (lambda c: c["vision_projector"].update({"4.bias": torch.zeros(3)}), r"key mlp\.4\.bias is unexpected"),
        (lambda c: c["vision_projector"].update({"2.bias": torch.zeros(3)}), r"expected shape \(64,\), got \(3,\)"),
        (lambda c: c.pop("vision_projector"), "expected a vision_projector"),
    ],
)
def test_a_projector_that_does_not_fit_is_named(published: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(published, folder)
    content = torch.load(folder / "projector_vis_scale.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "projector_vis_scale.pt")
    with pytest.raises(CheckpointError, match=message):
        BrainGemma3D.from_pretrained(folder)
