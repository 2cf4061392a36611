"""The published layout gives what the public code gives: compared with a straight reimplementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published_files import GRID, write_published
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    SiglipVisionModel,
)

from braingemma.checkpoint.weights import describe_weights
from braingemma.configuration import CANONICAL_PROMPT
from braingemma.errors import CheckpointError
from braingemma.model.braingemma3d import BrainGemma3D


@torch.no_grad()
def straight_encode(folder: Path, volume: torch.Tensor) -> torch.Tensor:
    """The public forward, written down from its description, sharing no code with the package."""
    siglip = SiglipVisionModel.from_pretrained(folder / "vision_model").eval()
    content = torch.load(folder / "projector_vis_scale.pt", weights_only=True)
    kernel = siglip.embeddings.patch_embedding.weight.mean(1, keepdim=True)  # RGB averaged
    kernel = torch.stack((kernel, kernel), dim=2) / 2  # repeated over depth 2, divided by it
    bias = siglip.embeddings.patch_embedding.bias
    x = F.conv3d(volume, kernel, bias, stride=(1, 14, 14), padding=(1, 0, 0))  # (B, C, 65, 9, 9)
    assert x.shape[2:] == (65, 9, 9)
    _, channels, planes, rows, columns = x.shape
    tokens = x.permute(0, 2, 3, 4, 1).clone()
    for z in range(planes):
        tokens[:, z] += -1 + 2 * z / (planes - 1)
    for y in range(rows):
        tokens[:, :, y, :, 0] += -1 + 2 * y / (rows - 1)
    for i in range(columns):
        tokens[:, :, :, i, 1] += -1 + 2 * i / (columns - 1)
    hidden = siglip.encoder(inputs_embeds=tokens.reshape(-1, planes * rows * columns, channels)).last_hidden_state
    hidden = siglip.post_layernorm(hidden)
    pooled = F.adaptive_avg_pool1d(hidden.transpose(1, 2), 32).transpose(1, 2)
    p = {k: v.float() for k, v in content["vision_projector"].items()}
    hidden = F.gelu(F.linear(pooled, p["0.weight"], p["0.bias"]))
    return F.linear(hidden, p["2.weight"], p["2.bias"]) * float(content["vis_scale"])


@torch.no_grad()
def straight_generate(folder: Path, volume: torch.Tensor, count: int) -> list[int]:
    """[32 visual tokens][<bos> + prompt], greedy, without a cache."""
    whole = Gemma3ForConditionalGeneration.from_pretrained(folder / "language_model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "language_model")
    prompt = [tokenizer.bos_token_id, *tokenizer(CANONICAL_PROMPT, add_special_tokens=False)["input_ids"]]
    embed = whole.get_input_embeddings()
    sequence = torch.cat((straight_encode(folder, volume), embed(torch.tensor([prompt]))), dim=1)
    written: list[int] = []
    for _ in range(count):
        states = whole.model.language_model(inputs_embeds=sequence).last_hidden_state
        token = int(whole.lm_head(states)[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
        sequence = torch.cat((sequence, embed(torch.tensor([[token]]))), dim=1)
    return written


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def unit_volume() -> torch.Tensor:
    return torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(11))


def test_visual_tokens_and_report_equal_the_public_code(published: Path, unit_volume: torch.Tensor) -> None:
    model = BrainGemma3D.from_pretrained(published, quantization="none", dtype=torch.float32)
    assert model.config.published
    with torch.no_grad():
        tokens = model.encode_volume(unit_volume)
    torch.testing.assert_close(tokens, straight_encode(published, unit_volume), atol=1e-5, rtol=0)
    written = model.generate(unit_volume, max_new_tokens=24)
    assert list(written.token_ids) == straight_generate(published, unit_volume, 24)
    assert len(set(written.token_ids)) > 1


def test_the_format_is_detected_and_preprocessing_is_the_public_codes(published: Path) -> None:
    info = describe_weights(str(published))
    assert (info.format, info.synthetic_only, info.banner) == ("published", False, None)
    assert info.name == published.name
    model = BrainGemma3D.from_pretrained(published, dtype="float32")
    settings = model.config.volume_settings
    assert (settings.normalization, settings.grid, settings.brain_extraction) == ("unit", GRID, "auto")
    assert model.ground(torch.rand(1, 1, *GRID)) is None


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
    import shutil

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
    import shutil

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
    import shutil

    folder = tmp_path / "wrong"
    shutil.copytree(published, folder)
    content = torch.load(folder / "projector_vis_scale.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "projector_vis_scale.pt")
    with pytest.raises(CheckpointError, match=message):
        BrainGemma3D.from_pretrained(folder)
