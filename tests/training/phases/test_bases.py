"""A model composed of a SigLIP tower and a Gemma 3 on disk, as the card builds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, SiglipVisionModel

from tests.braingemma.tiny_models import tiny_config, tiny_tokenizer
from training.errors import SettingsError
from training.phases.bases import compose_model
from training.settings import TrainingSettings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> TrainingSettings:
    torch.manual_seed(0)
    config = tiny_config()
    SiglipVisionModel(config.vision_config).save_pretrained(tmp_path / "vision")
    Gemma3ForCausalLM(config.text_config).save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    model = {"vision": str(tmp_path / "vision"), "text": str(tmp_path / "text"), "volume": {"grid": [12, 24, 20]},
             "patch_depth": 4, "resampler_heads": 4, "num_visual_tokens": 8, "lora_rank": 4}  # fmt: skip
    return dataclasses.replace(load_settings("card"), quantization="none", precision="no", model=model)


def test_both_parts_keep_their_weights(settings: TrainingSettings, tmp_path: Path) -> None:
    model = compose_model(settings, torch.device("cpu"))
    tower = SiglipVisionModel.from_pretrained(tmp_path / "vision")
    mine = dict(model.vision.siglip.named_parameters())
    assert all(
        torch.equal(mine[n.removeprefix("vision_model.")], p) for n, p in tower.named_parameters() if "head" not in n
    )
    kernel = tower.get_input_embeddings().weight
    inflated = model.vision.patch_embedding.weight.detach()
    assert inflated.shape[2] == 4
    assert inflated.abs().sum() > 0
    assert kernel.shape[-2:] == inflated.shape[-2:]
    text = Gemma3ForCausalLM.from_pretrained(tmp_path / "text")
    assert torch.equal(model.language_model.model.layers[1].mlp.up_proj.weight, text.model.layers[1].mlp.up_proj.weight)
    assert model.resampler.latents.shape[0] == 8
    assert isinstance(model.generate_report(torch.zeros(1, 1, 12, 24, 20), max_new_tokens=3), str)


def test_a_model_that_nobody_gives_is_named(settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = dataclasses.replace(settings, model={**settings.model, "text": "no such/model at all"})
    with pytest.raises(SettingsError, match="no such/model at all is neither"):
        compose_model(wrong, torch.device("cpu"))
