"""Explanations of the bundled weights find the lesions of phantoms that were never trained on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from braingemma.checkpoint.weights import DEMO_FOLDER
from braingemma.explain.explanation import ExplainSettings, Explanation
from braingemma.explain.run import explain_report
from braingemma.model import large_volume
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.preprocess import prepare_image
from training.errors import DataError
from training.evaluation.explanations import bench_explain, explain_cases
from training.phantoms.phantom import Phantom, make_phantom, mirror, write_phantom

pytestmark = pytest.mark.skipif(not DEMO_FOLDER.exists(), reason="the demo weights are not bundled here")
REAL = sorted((Path(__file__).parents[4] / "shared/data/nifti").rglob("*.nii.gz"))


@pytest.fixture(scope="module")
def model() -> BrainGemma3D:
    return BrainGemma3D.from_pretrained("demo", device="cpu")


def explained(model: BrainGemma3D, phantom: Phantom, **settings: float) -> Explanation:
    prepared = prepare_image(phantom.volume, model.config)
    report = model.generate_report(prepared.tensor, max_new_tokens=120)
    return explain_report(model, phantom.volume, prepared, report, ExplainSettings(batch_size=32), **settings)


@pytest.mark.parametrize("costly", [False, True])
def test_the_map_follows_the_lesion_to_the_other_side(
    costly: bool, model: BrainGemma3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as with weights of which a volume takes half a minute: few regions, and eight bits where there are any."""
    if costly:
        monkeypatch.setattr(large_volume, "FEWEST_TOKENS", 1)
    phantom = make_phantom(820_001, spacing=3.0, stripped=True, with_lesion=True)
    sides = []
    for case in (phantom, mirror(phantom)):
        found = explained(model, case, cpu_minutes=1e-6 if costly else 8)
        assert (len(found.weights), found.samples) == ((7, 16) if costly else (20, 48))
        eight_bits = costly and large_volume.is_large(model, model.config.grid)
        assert (found.rounding is not None) == eight_bits
        assert not found.warnings
        top = found.supervoxels.regions[int(np.argmax(found.weights))]
        share = (np.asarray(case.lesion.dataobj)[found.supervoxels.labels == top.label] > 0).mean()
        assert share > (0.2 if costly else 0.3)
        lesion = next(f for f in case.findings if f.finding == "lesion")
        assert top.side == lesion.laterality
        assert found.by_target["side"][top.label - 1] > 0, "it is also why the report says that side"
        sides.append(top.side)
    assert set(sides) == {"left", "right"}


def test_cases_from_folders_and_their_errors(tmp_path: Path) -> None:
    with_lesion, without = (make_phantom(3, spacing=4.0, with_lesion=present) for present in (True, False))
    write_phantom(tmp_path / "a", with_lesion)
    write_phantom(tmp_path / "b", without)
    (case,) = explain_cases(seed=0, count=1, folder=tmp_path)
    assert (case.lesion == (np.asarray(with_lesion.lesion.dataobj) > 0)).all()
    assert case.image.shape == case.lesion.shape
    with pytest.raises(DataError, match="got both"):
        explain_cases(seed=0, count=1, folder=tmp_path, insert=(tmp_path / "a/flair.nii.gz",))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_an_explanation_must_reach(model: BrainGemma3D) -> None:
    """All but speed, which `braingemma bench explain` measures."""
    variants = (("balanced", "mirror"), ("lime", "mirror"))
    result = bench_explain(model, explain_cases(seed=830_000, count=20), variants=variants)
    own, lime = result["methods"]["balanced/mirror"], result["methods"]["lime/mirror"]
    # The speed is measured elsewhere; the others are ties within the noise of 20 phantoms.
    tied = {"speed_ratio", "deletion_auc", "pointing_against_lime"}
    missed = [name for name, target in result["targets"].items() if not target["met"]]
    assert set(missed) <= tied, result["targets"]
    assert own["deletion_auc"] <= lime["deletion_auc"] + 0.01
    assert own["pointing"] >= lime["pointing"] - 1.01 / result["cases"]
    assert own["random_strength"] < 0.1


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not REAL, reason="no real volumes beside the checkout")
def test_lesions_drawn_into_real_scans_are_pointed_at(model: BrainGemma3D) -> None:
    cases = explain_cases(seed=5, count=4, insert=tuple(REAL))
    result = bench_explain(model, cases, variants=(("balanced", "mirror"),), samples=42)
    assert result["cases"] >= 12
    assert result["methods"]["balanced/mirror"]["top_overlaps"] >= 0.8


def test_the_explanation_is_on_the_grid_of_a_sagittal_scan(model: BrainGemma3D) -> None:
    phantom = make_phantom(820_001, spacing=(5.0, 2.0, 2.0), stripped=True, with_lesion=True)
    found = explained(model, phantom)
    peak = np.unravel_index(int(found.saliency.argmax()), found.saliency.shape)
    position = nib.affines.apply_affine(phantom.volume.affine, peak)
    centre = nib.affines.apply_affine(phantom.volume.affine, np.argwhere(np.asarray(phantom.lesion.dataobj)).mean(0))
    assert np.linalg.norm(position - centre) < 35
