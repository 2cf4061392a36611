from __future__ import annotations

import explain_support as support
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from tiny_models import tiny_config, tiny_tokenizer

from braingemma.errors import ExplainError
from braingemma.model.braingemma3d import BrainGemma3D
from training.evaluation.explanations import BenchCase, bench_explain, format_table

REPORT = "The lesion area is in the left parietal lobe. Edema is present in the left parietal lobe."


class SeeingModel(BrainGemma3D):
    """Writes one report and finds its words the likelier, the more bright voxels there are on the left."""

    sees = True

    def generate_report(self, *_: object, **__: object) -> str:  # type: ignore[override]
        return REPORT

    def score_reports(self, volumes: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        left = volumes[..., : volumes.shape[-1] // 2]
        evidence = (left - 1.5).clamp(min=0).flatten(1).sum(dim=1, keepdim=True) / 500
        score = -2 + evidence if self.sees else volumes.flatten(1)[:, :1] * 0 - 2
        return (score.expand(-1, len(REPORT)),)


def case() -> BenchCase:
    image = support.head((5.0, 5.0, 5.0), mark=support.LEFT_MARK)
    points = apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    return BenchCase(image, ((points - support.LEFT_MARK) ** 2).sum(axis=-1) < 20.0**2)


def test_a_model_that_sees_the_lesion_scores_high_on_every_measure() -> None:
    torch.manual_seed(0)
    model = SeeingModel(tiny_config(), tiny_tokenizer()).eval()
    variants = (("lime", "mirror"), ("balanced", "mirror"), ("leave_one_out", "constant"))
    result = bench_explain(model, [case()], variants=variants, samples=50, segments=(10, 7))
    assert result["cases"] == 1
    names = ["lime/mirror", "balanced/mirror", "leave_one_out/constant"]
    assert list(result["methods"]) == [*names, *(f"{name}, 7" for name in names)]
    assert result["methods"]["balanced/mirror, 7"]["volumes"] == 16
    for means in result["methods"].values():
        assert means["pointing_dilated"] == 1
        assert means["mass_ratio"] > 4
        assert means["deletion_auc"] < means["insertion_auc"]
    own = result["methods"]["balanced/mirror"]
    assert own["seed_agreement"] == pytest.approx(1)
    assert own["volumes"] == 24
    assert own["top_overlaps"] == 1
    assert result["targets"]["pointing"] == {"found": 1.0, "needed": "at least 0.85", "met": True}
    assert (
        result["targets"]["speed_ratio"]["found"] == own["speed_ratio"] == result["ratios"]["speed_vs_lime_one_by_one"]
    )
    assert result["methods"]["lime/mirror"]["volumes"] <= 50
    table = format_table(result).splitlines()
    assert len(table) == 2 + len(result["methods"]) + len(result["targets"])
    assert "pointing" in table[0]
    assert any(line.startswith("met") and "pointing" in line for line in table)


def test_a_blind_model_points_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeeingModel, "sees", False)
    model = SeeingModel(tiny_config(), tiny_tokenizer()).eval()
    result = bench_explain(model, [case()], variants=(("kernelshap", "blur"),), samples=30, segments=(6,))
    means = result["methods"]["kernelshap/blur"]
    assert means["pointing_dilated"] == 0
    assert means["mass_ratio"] is None
    assert "-" in format_table(result)


def test_reports_without_a_finding_are_counted_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeeingModel, "generate_report", lambda *_, **__: "No lesion is seen.")
    model = SeeingModel(tiny_config(), tiny_tokenizer()).eval()
    with pytest.raises(ExplainError, match="got none of 1"):
        bench_explain(model, [case()], segments=(6,))


def test_a_case_needs_its_lesion() -> None:
    image = support.head((5.0, 5.0, 5.0))
    model = SeeingModel(tiny_config(), tiny_tokenizer()).eval()
    with pytest.raises(ExplainError, match="lesion mask"):
        bench_explain(model, [BenchCase(image, np.zeros(image.shape, bool))])
