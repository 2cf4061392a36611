"""The grounding map's lesion: size, side, place, and what is said where the text differs."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from braingemma.configuration import VolumeSettings
from braingemma.explain.grounding import LesionEstimate, disagreements, estimate_lesion
from braingemma.findings.vocabulary import Finding
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


@pytest.mark.parametrize(
    ("presence", "side", "peak", "seen", "words"),
    [
        ("present", "left", 0.9, "right", "check the side"),
        ("present", "left", 0.9, "left", None),
        ("present", "left", 0.9, "bilateral", None),
        ("present", "left", 0.05, None, "shows none"),
        ("present", "left", 0.3, "right", None),
        ("absent", None, 0.9, "left", "denies a lesion"),
        ("absent", None, 0.3, "left", None),
        ("undetermined", None, 0.9, "left", None),
    ],
)
def test_text_is_held_against_the_map(presence, side, peak, seen, words) -> None:
    said = disagreements([Finding("lesion", presence, side)], LesionEstimate(peak, 20.0, seen, ()))
    assert [words in text for text in said] == ([True] if words else [])
