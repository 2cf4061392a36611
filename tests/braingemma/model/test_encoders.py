"""Encoders by name: registered, saved with the weights, found again; unknown ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braingemma.errors import CheckpointError
from braingemma.model import encoders
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.encoders import register_encoder
from braingemma.model.vision import InflatedVisionTower
from tests.braingemma.tiny_models import tiny_model


class Doubled(InflatedVisionTower):
    """Differs from its parent in what it gives."""

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        return 2 * super().encode(patches)


def test_a_registered_encoder_is_used_saved_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))
    register_encoder("doubled")(Doubled)
    with pytest.raises(CheckpointError, match="doubled already"):
        register_encoder("doubled")
    plain, model = tiny_model(), tiny_model(encoder="doubled")
    volume = torch.zeros(1, 1, 12, 24, 20)
    with torch.no_grad():
        assert torch.allclose(model.patch_features(volume), 2 * plain.patch_features(volume))
    model.save_pretrained(tmp_path)
    again = BrainGemma3D.from_pretrained(tmp_path, device="cpu", quantization="none", dtype="float32")
    assert isinstance(again.vision, Doubled)


def test_an_encoder_that_nobody_registered_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"no encoder is registered as 'nothing'; registered: siglip-3d"):
        tiny_model(encoder="nothing")
