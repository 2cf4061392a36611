"""The chance of an error, fitted with the bundled weights on a few hard phantoms as training does."""

from __future__ import annotations

import pytest

from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.chance import FEATURES, KINDS, ChanceOfError
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
