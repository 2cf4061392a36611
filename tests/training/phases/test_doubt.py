"""The chance of an error, fitted with the bundled weights on a few hard phantoms as training does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
from nibabel.affines import apply_affine

from braingemma.configuration import VolumeSettings
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.chance import FEATURES, KINDS, ChanceOfError
from braingemma.volume.brain import BrainMask
from braingemma.volume.preprocess import PreparedVolume, prepare_image
from training.data.cases import Cases
from training.data.phantom_cases import prepare_case, training_phantom
from training.phases import calibration


def test_the_chance_of_an_error_is_fitted_on_the_reports_of_held_out_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CANDIDATES", 1)
    model = BrainGemma3D.from_pretrained("demo").eval()
    cases = Cases.join(
        [prepare_case(training_phantom(s, "any", "hard"), model.config) for s in (603001, 603002, 603003)]
    )
    fitted = calibration.fit_doubt(model, cases)
    assert fitted is not None
    assert len(fitted.weights) == len(FEATURES) + len(KINDS)
    assert 0 <= fitted.limit <= 0.5
    assert ChanceOfError.from_json(fitted.to_json()) == fitted


def test_cases_without_a_known_truth_fit_nothing() -> None:
    model = BrainGemma3D.from_pretrained("demo").eval()
    cases = prepare_case(training_phantom(603001, "any", "hard"), model.config).select([])
    assert calibration.fit_doubt(model, cases) is None


@pytest.mark.parametrize("crop", ["brain", "field"])
def test_a_prepared_case_has_the_sides_of_serving(crop: Literal["brain", "field"]) -> None:
    """Its size is not kept with it, or only where the grid is a field of view."""
    phantom = training_phantom(603001, "any", "hard")
    settings = VolumeSettings(grid=(32, 60, 48), crop=crop, normalization="zscore")
    config = SimpleNamespace(volume_settings=settings)
    serving = prepare_image(phantom.volume, settings, brain=BrainMask.of(phantom.extracted, (1, 1, 1), "deepbet"))
    kept = calibration._prepared(SimpleNamespace(config=config), serving.tensor[0].half().float())
    assert serving.frame.laid
    inside = np.argwhere(serving.foreground)[:, ::-1]
    one, other = (p.frame.right_mm(apply_affine(p.grid_affine, inside)) for p in (serving, kept))
    plain = np.abs(one) > 6
    assert (np.sign(one) == np.sign(other))[plain].all()
    if crop == "field":
        assert kept.brain_volume_ml == pytest.approx(
            float(serving.foreground.sum()) * volume_of(serving), rel=0.25
        )  # its border counts whole


def volume_of(prepared: PreparedVolume) -> float:
    """Of one voxel of the grid, ml."""
    return abs(float(np.linalg.det(prepared.grid_affine[:3, :3]))) / 1000
