"""Tiny random models of the real classes, made in milliseconds."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config, tiny_model

from braingemma.configuration import BrainGemmaConfig
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume import brain


@pytest.fixture(autouse=True)
def _brains_by_peeling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nets take seconds, and a drawn ellipsoid is no head to them: only tests marked `nets` ask them."""
    if request.node.get_closest_marker("nets") is None:
        monkeypatch.setattr(brain, "_by_nets", lambda *_: brain.NOTHING_FOUND)
        monkeypatch.setattr(brain, "_KNOWN", OrderedDict())


@pytest.fixture
def config() -> BrainGemmaConfig:
    return tiny_config()


@pytest.fixture
def model() -> BrainGemma3D:
    return tiny_model(lora=True, grounding_head=True, findings_head=True)


@pytest.fixture
def volume(config: BrainGemmaConfig) -> torch.Tensor:
    """One random z-scored volume on the tiny grid."""
    return torch.randn(1, 1, *config.grid, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny random weights with adapters and both heads; read it, do not change it."""
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    tiny_model(lora=True, grounding_head=True, findings_head=True, name="tiny", version="1").save_pretrained(folder)
    return folder
