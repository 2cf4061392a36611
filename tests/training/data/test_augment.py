"""Moving a case: the same as sampling all of it, the lesion with its brain, and each case by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from braingemma.configuration import VolumeSettings
from training.data.augment import Augmentation, case_generator, move_masks

GRID = (24, 32, 40)
STILL = Augmentation(gain=0.0, noise=0.0)


def head(background: float) -> torch.Tensor:
    drawn = torch.rand(1, 12, 15, 22, generator=torch.Generator().manual_seed(0))
    volume = torch.full((1, *GRID), background)
    volume[:, 6:18, 5:20, 8:30] = background + 0.1 + 0.8 * drawn
    return volume.half()


def sampled(values: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(theta[None], [1, 1, *GRID], align_corners=False)
    return F.grid_sample(values.float()[None], grid, align_corners=False)[0]


@pytest.mark.parametrize("settings", [VolumeSettings(grid=GRID), VolumeSettings(grid=GRID, normalization="unit")])
@pytest.mark.parametrize("flip", [False, True])
def test_only_what_holds_the_brain_is_sampled_and_nothing_else_is_lost(settings: VolumeSettings, flip: bool) -> None:
    volume, masks = head(settings.background), torch.zeros(4, *GRID, dtype=torch.bool)
    masks[1, 10:14, 8:12, 10:14] = True
    for seed in range(12):
        rng = case_generator(seed)
        theta = STILL.draw(rng, flip=flip)
        moved = STILL.volume(volume, theta, settings, rng)
        whole = sampled(volume.float() - settings.background, theta) + settings.background
        torch.testing.assert_close(moved, whole, atol=2e-3, rtol=0)
        torch.testing.assert_close(move_masks(masks, theta), sampled(masks, theta), atol=1e-5, rtol=0)


def test_a_mirrored_case_lies_on_the_other_side() -> None:
    still = Augmentation(shift=0, scale=0, turn=0, gain=0, noise=0)
    volume, settings = head(-3.0), VolumeSettings(grid=GRID)
    for flip in (False, True):
        rng = case_generator(1)
        moved = still.volume(volume, still.draw(rng, flip=flip), settings, rng)
        torch.testing.assert_close(moved, (volume.flip(-1) if flip else volume).float(), atol=2e-3, rtol=0)


def test_brightness_changes_the_brain_alone_within_its_limits() -> None:
    volume, settings = head(-3.0), VolumeSettings(grid=GRID)
    rng = case_generator(2)
    still = Augmentation(shift=0, scale=0, turn=0, gain=2.0)
    moved = still.volume(volume, still.draw(rng, flip=False), settings, rng)
    outside = (volume < -2.95).float() == 1
    assert torch.allclose(moved[outside], torch.tensor(-3.0), atol=1e-3)
    assert moved.abs().max() <= 3.0
    assert (moved - volume.float())[~outside].abs().mean() > 0.1


def test_a_case_that_is_empty_stays_empty() -> None:
    rng = case_generator(3)
    empty = torch.full((1, *GRID), -3.0)
    assert torch.equal(STILL.volume(empty, STILL.draw(rng, flip=True), VolumeSettings(grid=GRID), rng), empty)
