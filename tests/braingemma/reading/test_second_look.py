"""A lesion too faint for the map is told as possible; nothing else of the picture changes."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from braingemma.configuration import VolumeSettings
from braingemma.reading.second_look import STRETCH, look_twice, stretched
from braingemma.volume.preprocess import PreparedVolume, prepare_image

GRID = (16, 24, 20)


@pytest.fixture(scope="module")
def prepared() -> PreparedVolume:
    """A head whose patient's left front is 1.2 times as bright as the rest."""
    data = np.zeros((80, 100, 84), np.float32)
    data[5:75, 6:94, 5:78] = np.random.default_rng(0).uniform(0.9, 1.1, (70, 88, 73))
    data[52:66, 20:34, 40:54] *= 1.2  # LPS: high x is left, low y is front
    image = nibabel.Nifti1Image(data, np.diag([-2.0, -2.0, 2.0, 1.0]))
    return prepare_image(image, VolumeSettings(grid=GRID, crop="brain", brain_extraction="none"))


class BrightMap:
    """A map of what is at least `level` bright, in the model's units; counts how often it is asked."""

    grounding_head = compute_device = "cpu"

    def __init__(self, level: float) -> None:
        self.level, self.batches = level, 0

    def ground(self, volumes: torch.Tensor) -> Any:
        self.batches += 1
        shares = (volumes >= self.level).float()
        return torch.nn.functional.avg_pool3d(shares, 2).squeeze(1)


def test_only_what_is_brighter_than_the_median_is_stretched(prepared) -> None:
    before, after = prepared.tensor, stretched(prepared)
    inside = torch.from_numpy(prepared.foreground)[None, None]
    middle = before[inside].median()
    assert torch.equal(after[before <= middle], before[before <= middle])
    raised = (before > middle) & (before < middle + 0.5)
    torch.testing.assert_close(after[raised] - middle, STRETCH * (before[raised] - middle))
    assert float(after.max()) <= prepared.settings.zscore_clip


def test_a_faint_lesion_is_possible_on_its_side(prepared) -> None:
    faint = float(prepared.tensor.max()) * 1.1
    model = BrightMap(faint)
    found = look_twice(model, prepared)
    assert found is not None
    assert model.batches == 1
    assert (found.first.peak, found.certainty) == (0.0, "possible")
    assert (found.estimate.laterality, found.estimate.sites) == ("left", ("frontal",))
    assert found.to_json()["certainty"] == "possible"
    assert found.to_json()["peak"] == 0.0
    assert found.to_json()["second_look_peak"] >= 0.5


def test_what_the_map_shows_at_once_needs_no_second_look(prepared) -> None:
    plain = look_twice(BrightMap(float(prepared.tensor.max()) * 0.7), prepared)
    assert plain is not None
    assert plain.certainty == "likely"
    assert plain.estimate == plain.first


def test_weights_without_a_map_have_no_look(prepared) -> None:
    model = BrightMap(0.0)
    model.grounding_head = None
    assert look_twice(model, prepared) is None
