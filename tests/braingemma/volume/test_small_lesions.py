"""A bright lesion of 4 to 40 ml after the preprocessing of the bundled weights: what is left of it to be seen.

The upper clip lies at a percentile of the brain: a lesion of less than its share of the brain is cut down to the
brightness of the brightest normal tissue. It stays the brightest there is, but its contrast is that of the clip.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

import braingemma
from braingemma.configuration import VolumeSettings
from braingemma.volume.brain import BrainMask
from braingemma.volume.preprocess import prepare_image

SPACING = 2.0
CONFIG = Path(braingemma.__file__).with_name("weights") / "demo" / "config.json"


def settings() -> VolumeSettings:
    """Of the bundled weights; the brain is given, so that none is looked for."""
    stated = json.loads(CONFIG.read_text(encoding="utf-8"))["volume"]
    return VolumeSettings(**{**stated, "brain_extraction": "none"})


def contrast(millilitres: float) -> tuple[float, float]:
    """(mean of a lesion on the left over normal tissue, in its standard deviations; place of its middle, RAS x mm)."""
    shape = np.array((80, 96, 76))
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * SPACING for n in shape], indexing="ij")
    brain = (axes[0] / 62) ** 2 + (axes[1] / 80) ** 2 + (axes[2] / 68) ** 2 < 1  # 1.4 litres
    radius = (3 * 1000 * millilitres / (4 * np.pi)) ** (1 / 3)
    lesion = (axes[0] + 30) ** 2 + (axes[1] - 20) ** 2 + (axes[2] - 10) ** 2 < radius**2
    normal = np.random.default_rng(3).normal(550, 45, shape)
    voxels = np.where(lesion, 1050, np.where(brain, normal, 0)).astype(np.float32)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * SPACING
    mask = BrainMask(brain, "peeling", float(brain.sum() * SPACING**3 / 1000))
    prepared = prepare_image(nibabel.Nifti1Image(voxels, affine), settings(), brain=mask)
    tensor = prepared.tensor[0, 0].numpy()
    grid = np.indices(tensor.shape)[::-1].reshape(3, -1)  # (w, h, d)
    places = prepared.grid_affine[:3, :3] @ grid + prepared.grid_affine[:3, 3:]
    distance = np.linalg.norm(places - np.array([[-30.0], [20.0], [10.0]]), axis=0).reshape(tensor.shape)
    inside = distance < radius - SPACING
    outside = prepared.foreground & (distance > radius + 3 * SPACING)
    bright = tensor >= tensor[inside].mean() - 1e-3
    return (
        float((tensor[inside].mean() - tensor[outside].mean()) / tensor[outside].std()),
        float(places[0][(bright & inside).ravel()].mean()),
    )


@pytest.mark.parametrize("millilitres", [4.0, 8.0, 14.0, 20.0, 40.0])
def test_a_bright_lesion_stays_far_above_normal_tissue_and_on_its_side(millilitres: float) -> None:
    seen, x = contrast(millilitres)
    assert seen > 4.0  # 5.8 at 4 ml, 18 at 20 ml
    assert x == pytest.approx(-30, abs=4)
