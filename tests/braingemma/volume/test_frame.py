"""Sides and places in heads that lie askew: the truth is where the standard brain was put."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from standard_head import AFFINE, lying

from braingemma.configuration import VolumeSettings
from braingemma.explain.grounding import estimate_lesion
from braingemma.explain.supervoxels import site_of
from braingemma.volume.brain import BrainMask
from braingemma.volume.frame import BrainFrame, find_frame
from braingemma.volume.preprocess import prepare_image

PLACES = np.array([[x, y, z] for x in (-8, 8) for y in (-70, -30, 10, 45) for z in (0, 30, 60)], float)
"""MNI mm, 8 mm beside the midsagittal plane."""
POSES = [(0, 0, 0), (0, 10, 0), (0, -10, 0), (0, 0, 8), (0, 0, -8), (12, 6, -6)]
"""Degrees of pitch, roll and yaw."""


@pytest.mark.parametrize("degrees", POSES)
def test_places_beside_the_midline_are_on_their_side_however_the_head_is_turned(
    degrees: tuple[float, float, float],
) -> None:
    picture, brain, place = lying(degrees)
    frame = find_frame(picture, brain, AFFINE)
    assert frame.laid
    beside = frame.right_mm(apply_affine(place, PLACES))
    np.testing.assert_allclose(beside, 0.95 * PLACES[:, 0], atol=3)
    assert (np.sign(beside) == np.sign(PLACES[:, 0])).all()
    np.testing.assert_allclose(frame.standard(apply_affine(place, PLACES)), PLACES, atol=8)


def test_the_box_alone_would_call_some_of_them_the_other_side() -> None:
    """So that the test above shows something: a picture without contrast has only its box."""
    _, brain, place = lying((0, 10, 0))
    frame = find_frame(brain.astype(np.float32), brain, AFFINE)
    assert not frame.laid
    assert (np.sign(frame.right_mm(apply_affine(place, PLACES))) != np.sign(PLACES[:, 0])).any()


@pytest.mark.parametrize("degrees", [(0, 12, 0), (0, -12, 0), (0, 0, 10)])
def test_a_lesion_on_the_map_beside_the_midline_is_on_its_side(degrees: tuple[float, float, float]) -> None:
    picture, brain, place = lying(degrees)
    image = nib.Nifti1Image(picture, AFFINE)
    settings = VolumeSettings(grid=(36, 44, 35), crop="brain")
    prepared = prepare_image(image, settings, brain=BrainMask(brain, "deepbet", 1300.0))
    where = np.rint(apply_affine(np.linalg.inv(prepared.grid_affine) @ place, PLACES * [1.25, 1, 1])).astype(int)
    for (column, row, slice_), (x, _, _) in zip(where, PLACES, strict=True):
        shares = np.zeros(settings.grid, np.float32)
        shares[slice_, row, column] = 0.9
        assert estimate_lesion(shares, prepared).laterality == ("left" if x < 0 else "right")


@pytest.mark.parametrize("degrees", [(0, 12, 0), (0, 8, 5)])
@pytest.mark.parametrize(("size_ml", "brightness"), [(56, 1.6), (150, 1.8), (220, 2.0)])
def test_a_large_lesion_does_not_keep_the_standard_brain_from_being_laid(
    degrees: tuple[float, float, float], size_ml: float, brightness: float
) -> None:
    """It is most of the picture's variance, and the box alone has every sixth of the places on the wrong side."""
    picture, brain, place = lying(degrees)
    places = apply_affine(np.linalg.inv(place) @ AFFINE, np.argwhere(brain))
    radius = (size_ml * 1000 * 0.75 / np.pi) ** (1 / 3)
    lesion = np.linalg.norm(places - [38, -20, 25], axis=1) < radius
    picture[tuple(np.argwhere(brain)[lesion].T)] = brightness
    frame = find_frame(picture, brain, AFFINE)
    assert frame.laid
    beside = frame.right_mm(apply_affine(place, PLACES))
    np.testing.assert_allclose(beside, 0.95 * PLACES[:, 0], atol=3)


def test_the_standard_brain_is_laid_anew_for_other_axes() -> None:
    picture, brain, _ = lying((0, 0, 0))
    thick = AFFINE @ np.diag([1, 1, 5 / 3, 1])
    one, other = (find_frame(picture, brain, affine).to_standard for affine in (AFFINE, thick))
    assert not np.allclose(one, other, atol=0.05)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_field_of_view_that_cuts_one_side_does_not_move_the_midline(side: int) -> None:
    picture, brain, place = lying((0, 0, 0))
    lateral = apply_affine(AFFINE, np.argwhere(brain))[:, 0] * side
    brain[tuple(np.argwhere(brain)[lateral > 35].T)] = False
    frame = find_frame(picture, brain, AFFINE)
    beside = frame.right_mm(apply_affine(place, PLACES))
    assert (np.sign(beside) == np.sign(PLACES[:, 0])).all()


def test_sites_follow_the_head_that_is_bent_forward() -> None:
    """A chin on the chest turns the precentral gyrus forward and the cerebellum up."""
    picture, brain, place = lying((-18, 0, 0))
    frame = find_frame(picture, brain, AFFINE)
    known = {
        "frontal": (-35, 40, 20),
        "occipital": (20, -88, 8),
        "cerebellum": (-25, -68, -38),
        "parietal": (38, -50, 48),
    }
    told = {name: site_of(frame.standard(apply_affine(place, where))) for name, where in known.items()}
    assert told == {name: name for name in known}


def box_frame(low: tuple[int, int, int], high: tuple[int, int, int]) -> BrainFrame:
    """The frame of a block of one brightness at 2 mm."""
    brain = np.zeros((100, 120, 160), bool)
    brain[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return find_frame(brain.astype(np.float32), brain, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_a_neck_in_the_field_of_view_does_not_move_the_places() -> None:
    head, long = box_frame((10, 10, 70), (80, 98, 143)), box_frame((10, 10, 20), (80, 98, 143))
    top = np.array([[60.0, 110.0, 270.0]])
    np.testing.assert_allclose(long.standard(top), head.standard(top), atol=4)


def test_a_single_voxel_far_off_does_not_move_the_box() -> None:
    brain = np.zeros((100, 120, 100), bool)
    brain[20:80, 20:100, 20:90] = True
    stray = brain.copy()
    stray[99, 60, 60] = True
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    middle = np.array([[100.0, 120.0, 110.0]])
    one, other = (find_frame(m.astype(np.float32), m, affine).right_mm(middle) for m in (brain, stray))
    np.testing.assert_allclose(one, other, atol=0.5)
