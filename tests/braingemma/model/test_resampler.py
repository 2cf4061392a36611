"""The Perceiver keeps where things are; the projector is a 2-layer MLP."""

from __future__ import annotations

import torch
from tiny_models import tiny_config
from torch import nn

from braingemma.model.projector import Projector
from braingemma.model.resampler import PerceiverResampler, sincos_positions_3d


def test_the_defaults_are_the_cards() -> None:
    from braingemma.configuration import BrainGemmaConfig

    config = BrainGemmaConfig()
    assert (config.resampler_layers, config.num_visual_tokens, config.lora_rank) == (2, 32, 4)
    assert config.grid == (64, 128, 128)
    assert config.lora_targets == ["q_proj", "k_proj", "v_proj", "o_proj"]


@torch.no_grad()
def test_any_grid_becomes_the_same_number_of_tokens() -> None:
    resampler = PerceiverResampler(tiny_config())
    assert len(resampler.layers) == 2
    for shape in ((3, 3, 3), (2, 5, 4)):
        assert resampler(torch.randn(2, *shape, 32)).shape == (2, 8, 32)


@torch.no_grad()
def test_moving_a_patch_changes_the_tokens() -> None:
    """Without positions in keys and values, a Perceiver sees patches as a bag."""
    torch.manual_seed(0)
    resampler = PerceiverResampler(tiny_config())
    features = torch.zeros(3, 3, 3, 3, 32)
    patch = torch.randn(32)
    for row, place in enumerate(((1, 1, 0), (1, 1, 2), (1, 1, 0))):
        features[(row, *place)] = patch
    left, right, again = resampler(features)
    torch.testing.assert_close(left, again)
    assert (left - right).abs().max() > 1e-3


def test_each_axis_has_its_own_channels() -> None:
    table = sincos_positions_3d(2, 3, 4, 32)
    assert table.shape == (2, 3, 4, 32)
    assert len({tuple(row) for row in table.view(-1, 32).tolist()}) == 24
    torch.testing.assert_close(table[0, :, :, :10], table[0, :1, :1, :10].expand(3, 4, 10))


def test_the_projector_is_linear_gelu_linear_times_scale() -> None:
    projector = Projector(6, 10)
    assert [type(m) for m in projector.mlp] == [nn.Linear, nn.GELU, nn.Linear]
    tokens = torch.randn(1, 4, 6)
    before = projector(tokens)
    projector.scale.data.fill_(3.0)
    torch.testing.assert_close(projector(tokens), 3 * before)
