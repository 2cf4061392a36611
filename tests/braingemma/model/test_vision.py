"""Inflation is exact, nothing is cut, and every axis is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_config
from transformers import SiglipVisionModel

from braingemma.errors import VolumeError
from braingemma.model.vision import InflatedVisionTower, inflate_kernel, middle_plane, symmetric_padding

GRID = (12, 24, 16)  # the patch (4, 8, 8) divides it


def tower(seed: int = 0, **changes: Any) -> InflatedVisionTower:
    torch.manual_seed(seed)
    vision = InflatedVisionTower(tiny_config(**{"volume": {"grid": GRID}, **changes}))
    for parameter in vision.siglip.parameters():  # biases and norms that are not trivial
        parameter.data += 0.1 * torch.randn_like(parameter)
    vision.inflate()
    return vision.eval()


def in_2d(siglip: SiglipVisionModel, picture: torch.Tensor) -> torch.Tensor:
    """(B, H, W) in [-1, 1] to the 2D model's patch features (B, h * w, C)."""
    rgb = picture[:, None].expand(-1, 3, -1, -1)
    return siglip(rgb, interpolate_pos_encoding=True).last_hidden_state


@pytest.mark.parametrize("inflation", ["center", "mean"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@torch.no_grad()
def test_a_volume_constant_along_depth_gives_the_2d_features(inflation: str, depth: int) -> None:
    vision = tower(inflation=inflation, patch_depth=depth)
    picture = torch.rand(2, *GRID[1:]) * 5 - 2.5
    volume = picture[:, None, None].expand(-1, 1, GRID[0], -1, -1)
    embedded = vision.embed(volume)
    flat = vision.siglip.embeddings.patch_embedding((picture / 3)[:, None].expand(-1, 3, -1, -1)).permute(0, 2, 3, 1)
    for plane in range(embedded.shape[1]):
        torch.testing.assert_close(embedded[:, plane], flat, rtol=0, atol=1e-4)
    vision.depth_position.zero_()  # the one thing that tells the planes apart
    features = vision(volume).flatten(2, 3)
    expected = in_2d(vision.siglip, picture / 3)
    for plane in range(features.shape[1]):
        torch.testing.assert_close(features[:, plane], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_permuting_slices_changes_the_features() -> None:
    vision = tower(patch_depth=1)
    volume = torch.randn(1, 1, *GRID)
    order = torch.randperm(GRID[0], generator=torch.Generator().manual_seed(1))
    straight, permuted = vision(volume), vision(volume[:, :, order])
    # Without depth positions the planes' features would only change places.
    assert (straight[:, order] - permuted).abs().max() > 1e-2


@pytest.mark.parametrize("axis", [1, 2, 3])
@torch.no_grad()
def test_every_axis_has_positions_of_comparable_size(axis: int) -> None:
    positions = tower().positions()[None]
    along = (positions.roll(1, dims=axis) - positions).square().mean().sqrt()
    assert along > 0.3 * positions.square().mean().sqrt()


@torch.no_grad()
def test_the_depth_term_is_as_large_as_the_pretrained_table() -> None:
    vision = tower()
    table = vision.siglip.embeddings.position_embedding.weight.square().mean().sqrt()
    torch.testing.assert_close(vision.depth_position.square().mean().sqrt(), table)


def test_the_middle_of_an_even_kernel_is_the_upper_of_the_two() -> None:
    assert [middle_plane(n) for n in (1, 2, 3, 4, 5)] == [0, 1, 1, 2, 2]
    kernel = inflate_kernel(torch.ones(5, 3, 2, 2), 4, "center")
    assert kernel.shape == (5, 1, 4, 2, 2)
    assert kernel.sum(dim=(0, 1, 3, 4)).tolist() == [0, 0, 60, 0]


def test_the_middle_plane_is_what_the_patch_reads() -> None:
    vision = tower(patch_depth=2)
    volume = torch.randn(1, 1, *GRID)
    lower, upper = volume.clone(), volume.clone()
    lower[:, :, 0::2] = 0  # index 0 of each patch: the lower (inferior) plane
    upper[:, :, 1::2] = 0
    torch.testing.assert_close(vision.embed(lower), vision.embed(volume))
    assert (vision.embed(upper) - vision.embed(volume)).abs().max() > 0.1


def test_a_grid_that_the_patch_does_not_divide_is_padded_on_both_sides() -> None:
    assert symmetric_padding(128, 14) == (6, 6)
    assert symmetric_padding(20, 8) == (2, 2)
    assert symmetric_padding(25, 8) == (3, 4)
    vision = tower(volume={"grid": (10, 20, 25)})
    assert vision.patch_grid == (3, 3, 4)
    padded = vision.pad(torch.zeros(1, 1, 10, 20, 25), -1.0)
    assert padded.shape == (1, 1, 12, 24, 32)
    assert padded[0, 0, 0, 0, 0] == -1, "new voxels are background"
    for corner in ((0, 0, 0), (9, 19, 24)):  # voxels at both ends reach the features
        volume = torch.zeros(1, 1, 10, 20, 25)
        volume[(0, 0, *corner)] = 3.0
        changed = (vision(volume) - vision(torch.zeros_like(volume))).abs().amax()
        # The centre-frame kernel reads one plane in four: look at that plane where the corner is not on it.
        volume[:, :, :, corner[1], corner[2]] = 3.0
        changed = max(changed, (vision(volume) - vision(torch.zeros(1, 1, 10, 20, 25))).abs().amax())
        assert changed > 1e-3


def test_a_map_of_overhanging_patches_lies_where_the_patches_lie() -> None:
    vision = InflatedVisionTower(tiny_config(volume={"grid": (10, 20, 25)}))
    values = torch.zeros(1, *vision.patch_grid)
    values[0, :, :, -1] = 1  # 8 columns, 4 of them (25 to 32 less 3 in front) beyond the grid
    boxes = vision.on_grid(values)
    assert boxes.shape == values.shape
    columns = boxes[0, 0, 0]
    assert columns[:-1].max() < 0.05
    assert 0.5 < columns[-1] < 0.7  # the last box is 6 or 7 columns wide, the patch covers 4 of them
    whole = tower()
    values = torch.rand(1, *whole.patch_grid)
    assert whole.on_grid(values) is values


def test_zscores_are_mapped_to_the_range_of_siglip() -> None:
    mapped = tower().to_siglip_range(torch.tensor([-9.0, -3.0, 0.0, 1.5, 3.0, 7.0]))
    assert mapped.tolist() == [-1, -1, 0, 0.5, 1, 1]


def test_another_shape_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"expected a volume tensor of shape .*12, 24, 16"):
        tower()(torch.zeros(1, 1, 12, 24, 24))
