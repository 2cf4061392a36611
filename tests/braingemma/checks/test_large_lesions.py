"""A large bright lesion is most of a picture's variance; the brain around it is still one, and FLAIR."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from standard_head import AFFINE, lying

from braingemma.checks.input import check_input
from braingemma.checks.unnamed import looks_like_flair
from braingemma.volume.brain import BrainMask


def with_lesion(size_ml: float, brightness: float) -> tuple[np.ndarray, np.ndarray]:
    """(picture, brain) of the standard brain without skull, turned by 5 degrees, with a ball on the right."""
    picture, brain, place = lying((0, 5, 0))
    places = apply_affine(np.linalg.inv(place) @ AFFINE, np.argwhere(brain))
    radius = (size_ml * 1000 * 0.75 / np.pi) ** (1 / 3)
    lesion = np.linalg.norm(places - [36, -10, 24], axis=1) < radius
    picture[tuple(np.argwhere(brain)[lesion].T)] = brightness
    return np.where(brain, np.maximum(picture, 0.01), 0).astype(np.float32), brain


@pytest.mark.parametrize(("size_ml", "brightness"), [(0, 1.0), (100, 1.6), (150, 1.8), (220, 2.0)])
def test_a_large_lesion_does_not_unmake_the_brain(size_ml: float, brightness: float, tmp_path: Path) -> None:
    picture, brain = with_lesion(size_ml, brightness)
    nib.save(nib.Nifti1Image(picture, AFFINE), tmp_path / "flair.nii.gz")
    mask = BrainMask.of(brain, (3, 3, 3), "deepbet")
    checks = {check.name: check for check in check_input(tmp_path / "flair.nii.gz", brain=mask)}
    assert checks["brain"].passed, checks["brain"].detail
    assert looks_like_flair(picture, AFFINE[:3, :3]).flair


def test_what_has_the_size_of_a_brain_and_no_shape_is_none(tmp_path: Path) -> None:
    _, brain = with_lesion(0, 1.0)
    noise = np.where(brain, np.random.default_rng(0).uniform(0.5, 1.5, brain.shape), 0).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, AFFINE), tmp_path / "noise.nii.gz")
    [check] = check_input(tmp_path / "noise.nii.gz", brain=BrainMask.of(brain, (3, 3, 3), "deepbet"))
    assert (check.name, check.passed) == ("brain", False)
    assert not looks_like_flair(noise, AFFINE[:3, :3]).flair
