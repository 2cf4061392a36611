"""The bundled weights see: judged from the text of their reports on phantoms of seeds that were never trained on."""

from __future__ import annotations

import pytest
import torch

from braingemma.checkpoint.weights import DEMO_FOLDER
from braingemma.findings.text import findings_from_text
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.preprocess import prepare_image
from training.evaluation.evaluate import evaluate_phantoms
from training.evaluation.metrics import measure
from training.phantoms.phantom import make_phantom, mirror

pytestmark = pytest.mark.skipif(not DEMO_FOLDER.exists(), reason="the demo weights are not bundled here")
UNSEEN = 800_000


@pytest.fixture(scope="module")
def model() -> BrainGemma3D:
    return BrainGemma3D.from_pretrained("demo", device="cpu")


def test_reports_tell_lesions_and_their_side(model: BrainGemma3D) -> None:
    """Ten lesions and their mirror images: the stated sides follow the picture."""
    cases = []
    for seed in range(UNSEEN, UNSEEN + 10):
        phantom = make_phantom(seed, spacing=3.0, stripped=True, with_lesion=True)
        cases += [phantom, mirror(phantom)]
    volumes = torch.cat([prepare_image(case.volume, model.config).tensor for case in cases])
    reports = model.generate_report(volumes, max_new_tokens=120)
    result = measure([(c.findings, findings_from_text(r)) for c, r in zip(cases, reports, strict=True)])
    assert result["lesion_sensitivity"] >= 0.9
    assert result["wrong_side"] == 0
    assert result["side_kappa"] is not None
    assert result["side_kappa"] >= 0.8


def test_the_weights_say_that_they_are_synthetic(model: BrainGemma3D) -> None:
    assert model.config.synthetic_only
    assert model.config.banner
    size = sum(file.stat().st_size for file in DEMO_FOLDER.rglob("*") if file.is_file())
    assert size <= 20 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_unseen_phantoms(model: BrainGemma3D) -> None:
    """What the README promises of the bundled weights."""
    table = evaluate_phantoms(model, range(UNSEEN + 1000, UNSEEN + 1060), flip=False).table["model"]
    assert table["lesion_presence_accuracy"] >= 0.95
    assert table["side_accuracy"] >= 0.92
    assert table["wrong_side"] <= 0.02
    assert table["site_f1"] >= 0.85
    assert table["presence_f1"] >= 0.85
