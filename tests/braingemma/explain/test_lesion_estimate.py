"""The grounding map's lesion: size, side, place."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from braingemma.configuration import VolumeSettings
from braingemma.explain.grounding import LesionEstimate, estimate_lesion, within_brain
from braingemma.volume.preprocess import PreparedVolume, prepare_image

GRID = (16, 24, 20)


@pytest.fixture
def prepared() -> PreparedVolume:
    """A box of a head of 140 x 176 x 146 mm, LPS in the file."""
    data = np.zeros((80, 100, 84), np.float32)
    data[5:75, 6:94, 5:78] = np.random.default_rng(0).uniform(1, 2, (70, 88, 73))
    image = nib.Nifti1Image(data, np.diag([-2.0, -2.0, 2.0, 1.0]))
    return prepare_image(image, VolumeSettings(grid=GRID, crop="brain", brain_extraction="none"))


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


def test_volume_is_share_times_patch(prepared: PreparedVolume) -> None:
    field_ml = np.prod([n * s for n, s in zip(GRID[::-1], np.diag(prepared.grid_affine)[:3], strict=True)]) / 1000
    one = estimate_lesion(patches((3, 5, 0), share=0.5), prepared)
    assert one.volume_ml == pytest.approx(0.5 * abs(field_ml) / (4 * 6 * 5), rel=1e-3)
    assert one.peak == pytest.approx(0.5)


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
