"""The grounding map's lesion: size, side, place."""

from __future__ import annotations

from dataclasses import replace

import explain_support as support
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from braingemma.configuration import VolumeSettings
from braingemma.explain.grounding import (
    LesionEstimate,
    estimate_lesion,
    grounding_on_grid,
    lesion_mask,
    within_brain,
)
from braingemma.volume.preprocess import PreparedVolume, prepare_image

GRID = (16, 24, 20)


def box_of_a_head(affine: np.ndarray) -> PreparedVolume:
    """140 x 176 x 146 mm."""
    data = np.zeros((80, 100, 84), np.float32)
    data[5:75, 6:94, 5:78] = np.random.default_rng(0).uniform(1, 2, (70, 88, 73))
    image = nib.Nifti1Image(data, affine)
    return prepare_image(image, VolumeSettings(grid=GRID, crop="brain", brain_extraction="none"))


@pytest.fixture
def prepared() -> PreparedVolume:
    """LPS in the file."""
    return box_of_a_head(np.diag([-2.0, -2.0, 2.0, 1.0]))


@pytest.mark.parametrize("axis", [1, 2], ids=["roll", "yaw"])
@pytest.mark.parametrize("degrees", [-20, 20])
@pytest.mark.parametrize(("column", "side"), [(3, "left"), (6, "right")])
def test_the_side_is_told_along_slices_that_are_turned_with_the_head(
    axis: int, degrees: int, column: int, side: str
) -> None:
    """The scanner's axes lie across the head then: in front, or above, what is left lies on the right of them."""
    turned = box_of_a_head(support.turned(np.diag([-2.0, -2.0, 2.0, 1.0]), axis, degrees))
    shares = np.full((4, 6, 10), 0.02, np.float32)
    shares[3, 5, column] = 0.8
    found = estimate_lesion(shares, turned)
    assert (found.laterality, found.left_share) == (side, float(side == "left"))
    assert found.sites == ("frontal",)


def patches(*places: tuple[int, int, int], share: float = 0.8) -> np.ndarray:
    """(4, 6, 5) map: (d bottom to top, h back to front, w left to right)."""
    found = np.full((4, 6, 5), 0.02, np.float32)
    for place in places:
        found[place] = share
    return found


def test_side_and_lobe_follow_the_patch(prepared: PreparedVolume) -> None:
    front_left = estimate_lesion(patches((3, 5, 0)), prepared)
    assert (front_left.laterality, front_left.sites) == ("left", ("frontal",))
    back_right = estimate_lesion(patches((2, 0, 4)), prepared)
    assert (back_right.laterality, back_right.sites) == ("right", ("occipital",))
    assert estimate_lesion(patches((3, 5, 0), (3, 5, 4)), prepared).laterality == "bilateral"


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_the_volume_is_the_share_of_the_field_and_that_of_the_mask(prepared: PreparedVolume, share: float) -> None:
    """However blurred the map is: a threshold would give nothing at 0.4 and too much or too little at 0.9."""
    field_ml = np.prod([n * s for n, s in zip(GRID[::-1], np.diag(prepared.grid_affine)[:3], strict=True)]) / 1000
    shares = patches((1, 2, 1), (1, 3, 1), share=share) - np.float32(0.02)
    one, mask = estimate_lesion(shares, prepared), lesion_mask(shares, prepared)
    assert one.volume_ml == pytest.approx(float(shares.sum()) * abs(field_ml) / shares.size, rel=0.03)
    assert mask.sum() * 8 / 1000 == pytest.approx(one.volume_ml)
    assert one.peak == pytest.approx(share - 0.02)


def test_the_mask_lies_where_the_map_is_highest(prepared: PreparedVolume) -> None:
    """Left and right, front and back, bottom and top: the patient's, whatever order the file has."""
    mask = lesion_mask(patches((3, 5, 0)), prepared)
    right, front, top = np.argwhere(mask).mean(axis=0) / mask.shape
    assert right < 0.35
    assert front > 0.65
    assert top > 0.65


def test_a_flat_map_is_no_lesion(prepared: PreparedVolume) -> None:
    assert estimate_lesion(patches(), prepared) == LesionEstimate(pytest.approx(0.02), 0.0, None, ())


def test_patches_outside_the_brain_never_count(prepared: PreparedVolume) -> None:
    """A map that is brightest in scalp or orbit has no lesion there."""
    half = np.zeros_like(prepared.foreground)
    half[:, :, : half.shape[2] // 2] = True  # the patient's left half
    left_only = replace(prepared, foreground=half)
    inside = within_brain(patches((2, 3, 0), share=0.6) + patches((2, 3, 4), share=0.9), left_only)
    assert inside[2, 3, 4] == 0
    assert estimate_lesion(inside, left_only).peak == pytest.approx(0.62)


def test_the_map_ends_with_its_field_and_the_lesion_with_the_brain(prepared: PreparedVolume) -> None:
    """Between the last patches' centres and the border the map stays as it is; beyond it there is none."""
    edge = patches((2, 3, 0), share=0.9)
    image = nib.Nifti1Image(np.zeros(prepared.source_shape, np.float32), prepared.source_affine)
    values = grounding_on_grid(edge, prepared.foreground.shape, prepared.grid_affine, image)
    to_grid = np.linalg.inv(prepared.grid_affine) @ prepared.source_affine
    shown = apply_affine(to_grid, np.argwhere(values > 0))
    assert shown.min(axis=0) == pytest.approx([-0.5, -0.5, -0.5], abs=0.4)
    assert (shown.max(axis=0) <= np.array(GRID[::-1]) - 0.5).all()
    half = prepared.brain.copy()
    half[:12] = False  # the brain begins within the patch
    mask = lesion_mask(edge, replace(prepared, brain=half))
    assert mask.any()
    assert not (mask & ~half).any()
    assert mask.sum() == pytest.approx(lesion_mask(edge, prepared).sum(), rel=0.01), "its volume is the map's"
