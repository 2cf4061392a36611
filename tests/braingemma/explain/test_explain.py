from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import explain_support as support
import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from PIL import Image
from tiny_models import tiny_config, tiny_tokenizer

from braingemma.configuration import VolumeSettings
from braingemma.errors import ExplainError, VolumeError
from braingemma.explain import run
from braingemma.explain.attribution import METHODS, whole_levels
from braingemma.explain.explanation import (
    FEWEST_SAMPLES,
    ExplainSettings,
    Explanation,
    Size,
    _doubts,
    explain_prepared,
    fitting,
)
from braingemma.explain.faithfulness import curve_steps
from braingemma.explain.grounding import grounding_on_grid
from braingemma.explain.perturbation import FILLINGS, ExplainCancelled, MaskScorer, ScoringSettings, filling_for
from braingemma.explain.pictures import to_picture
from braingemma.explain.record import LEAST_COLOUR, SUPERVOXELS, ExplanationRecord, ShownRecord
from braingemma.explain.run import (
    affordable,
    default_batch_size,
    grounding_agreement,
    other_side,
    run_interpretability,
    with_rounding,
)
from braingemma.explain.supervoxels import segment
from braingemma.explain.targets import Target, TargetPlan, plan_targets
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.preprocess import prepare_image

LESION = "The lesion area is in the left frontal lobe. Edema is present in the left frontal lobe. Necrosis is absent."
HEALTHY = "No lesion is seen. There is no edema. Necrosis is absent. Ventricular compression is absent."
MARK = Target("mark", (0,))
NOTHING = ShownRecord(limit=0, least_share=LEAST_COLOUR, regions=())
GRID = VolumeSettings(grid=(20, 28, 24))


def explain_mark(image: nib.Nifti1Image, scoring: ScoringSettings | None = None, **changes: Any) -> Explanation:
    """Explain a score that depends on the bright mark alone."""
    canonical = nib.as_closest_canonical(image)
    supervoxels = segment(np.asarray(canonical.dataobj), canonical.affine, 12)
    prepared = prepare_image(image, GRID)
    settings = ExplainSettings(**{"segments": 12, "samples": 60, **changes})
    scorer = support.BrightScorer(level=1.5)
    return explain_prepared(supervoxels, prepared.tensor, prepared.grid_affine, scorer, settings, (MARK,), scoring)


def seen(found: Explanation) -> Explanation:
    """The same with the finding counted as present, as for a report that states it."""
    return Explanation(**{**vars(found), "finding_present": True})


@pytest.fixture(scope="module")
def marked() -> nib.Nifti1Image:
    return support.head((4.0, 4.0, 4.0), mark=support.LEFT_MARK)


@pytest.fixture(scope="module")
def model() -> BrainGemma3D:
    torch.manual_seed(0)
    return BrainGemma3D(tiny_config(grounding_head=True), tiny_tokenizer()).eval()


# ---- as large as a processor can afford

LEAST = {"lime": FEWEST_SAMPLES, "balanced": 16, "kernelshap": 2 + 2 * 7, "leave_one_out": 2 + 7}
"""Volumes of the smallest whole design of seven regions."""


@pytest.mark.parametrize("name", [*METHODS])
def test_fewer_regions_where_volumes_take_long_and_no_design_is_cut_short(name: str) -> None:
    settings = ExplainSettings(method=name)
    before = 0
    for volumes in range(1, 140):
        size = fitting(settings, volumes)
        assert before <= size.segments <= 20
        before = size.segments
        masks = METHODS[name].masks(size.segments, size.samples, 0)
        taken = len(np.unique(masks, axis=0)) + 2 * len(curve_steps(size.segments, size.curve_points)) - 4
        if name == "kernelshap":
            assert size.samples in whole_levels(size.segments, 100)
        elif name != "lime":
            assert len(masks) == len(METHODS[name].masks(size.segments, 100, 0)), "the whole design"
        assert taken <= max(volumes, LEAST[name] + 4)
    assert size == Size(20, 42 if name == "kernelshap" else 100)


def test_kernelshap_leaves_out_levels_before_it_takes_longer() -> None:
    """Seven regions have 16 volumes of one level, 58 of two and 128 of all three."""
    settings = ExplainSettings(method="kernelshap", samples=130, segments=7)
    assert [fitting(settings, n) for n in (5, 20, 61, 62, 131, 132)] == [
        Size(7, 16, 2), Size(7, 16, 2), Size(7, 16, 8), Size(7, 58, 2), Size(7, 58, 8), Size(7, 128, 2),
    ]  # fmt: skip


def test_sizes_of_the_balanced_design() -> None:
    found = {n: fitting(ExplainSettings(), n) for n in (10, 20, 27, 28, 38, 61, 62)}
    assert [(s.segments, s.curve_points) for s in found.values()] == [
        (7, 2), (7, 2), (7, 2), (11, 2), (11, 8), (20, 2), (20, 8),
    ]  # fmt: skip
    assert fitting(ExplainSettings(segments=4), 5).segments == 4
    assert curve_steps(7, 2) == (0, 1, 2, 7)


def test_the_time_on_a_processor_decides_and_nothing_else(model: BrainGemma3D, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, grid = plan_targets(LESION, tiny_tokenizer(), contrast=True), model.config.grid
    asked = []
    monkeypatch.setattr(run, "volume_seconds", lambda *arguments: asked.append(arguments) or 20.0)
    assert affordable(model, plan, ExplainSettings(), 10, grid) == fitting(ExplainSettings(), 30)
    own, mirrored = plan.reports
    assert own[-1] == plan.token_ids[plan.asked[0][-1]]
    assert asked == [(model, grid, len(own) + len(mirrored) - LESION.index("left"))]
    monkeypatch.setattr(run, "is_large", lambda *_: True)  # one more is read, in bfloat16
    assert affordable(model, plan, ExplainSettings(), 10, grid) == fitting(ExplainSettings(), 28)
    assert affordable(model, plan, ExplainSettings(), 0, grid) == Size(20, 100)


@pytest.mark.parametrize(("score", "told"), [(-0.99, False), (-0.6, True), (-1.4, True)])
def test_a_rounding_that_matters_is_told(marked: nib.Nifti1Image, score: float, told: bool) -> None:
    found = replace(explain_mark(marked), score=-1.0, base_score=-2.0)
    judged = with_rounding(found, score)
    assert judged.rounding == pytest.approx(-1.0 - score)
    assert any("eight bits" in warning for warning in judged.warnings) is told
    assert not told or "by 40% of what replacing the whole brain does" in judged.warnings[-1]
    assert judged.record(alpha=1, clip_q=1, shown=NOTHING).rounding == judged.rounding


def test_warnings_are_in_words_and_numbers_in_the_record(marked: nib.Nifti1Image) -> None:
    found = explain_mark(marked)
    told = [
        *with_rounding(replace(found, score=-1.0, base_score=-1.1), -0.6).warnings,
        *_doubts(replace(found, score=-1.0, base_score=-1.0, weights=0 * found.weights, r2=0.1)),
    ]
    assert len(told) == 3
    assert not re.search(r"nats|R²|[+-]\d", " ".join(told))


# ---- left and right


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PSR", "IAL"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_mark_on_the_left_is_explained_on_the_left(marked: nib.Nifti1Image, codes: str, method: str) -> None:
    found = seen(explain_mark(support.reoriented(marked, codes), method=method))
    top = found.supervoxels.regions[int(np.argmax(found.weights))]
    assert top.side == "left"
    saliency = found.saliency
    peak = apply_affine(found.supervoxels.affine, np.argwhere(saliency == saliency.max())).mean(axis=0)
    assert peak[0] < -15
    assert np.linalg.norm(peak - support.LEFT_MARK) < 25
    axial = to_picture(saliency[:, :, int(np.argwhere(saliency == saliency.max())[:, 2].mean())])
    assert np.argwhere(axial == axial.max())[:, 1].mean() > axial.shape[1] / 2, "the left is on the right of a picture"


@pytest.mark.parametrize(
    ("stated", "target", "warned"),
    [("left", "findings", False), ("right", "findings", True), ("right", "lesion", True), ("right", "edema", False)],
)
def test_a_saliency_on_the_other_side_than_the_text_is_told(
    marked: nib.Nifti1Image, stated: str, target: str, warned: bool
) -> None:
    found = seen(explain_mark(marked, method="leave_one_out", target=target))
    report = f"The lesion area is in the {stated} frontal lobe. Edema is present in the left frontal lobe."
    said = other_side(found, report)
    assert [f"on the {stated}, but" in text and "(saliency) lies on the left" in text for text in said] == [
        True
    ] * warned
    assert other_side(found, "The lesion area is in both frontal lobes.") == ()
    assert other_side(Explanation(**{**vars(found), "finding_present": False}), report) == ()


def test_a_mark_on_the_right_is_explained_on_the_right() -> None:
    x, y, z = support.LEFT_MARK
    found = explain_mark(support.head((4.0, 4.0, 4.0), mark=(-x, y, z)))
    assert found.supervoxels.regions[int(np.argmax(found.weights))].side == "right"


@pytest.mark.parametrize("replacement", list(FILLINGS))
def test_each_replacement_takes_the_mark_away(marked: nib.Nifti1Image, replacement: str) -> None:
    found = explain_mark(marked, replacement=replacement, method="leave_one_out")
    top = found.supervoxels.regions[int(np.argmax(found.weights))]
    assert top.side == "left"
    assert found.score is not None
    assert found.weights.max() > 0


# ---- scoring


def test_nothing_is_scored_twice_and_memory_is_bounded(marked: nib.Nifti1Image) -> None:
    canonical = nib.as_closest_canonical(marked)
    supervoxels = segment(np.asarray(canonical.dataobj), canonical.affine, 12)
    prepared = prepare_image(marked, GRID)
    scorer = support.BrightScorer(1.5)
    steps: list[tuple[int, int]] = []
    scoring = ScoringSettings(5, lambda done, total: steps.append((done, total)))
    settings = ExplainSettings(method="leave_one_out", segments=12)
    found = explain_prepared(supervoxels, prepared.tensor, prepared.grid_affine, scorer, settings, (MARK,), scoring)
    assert scorer.largest <= 5
    assert found.evaluations == steps[-1][0] <= steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    # 12 left out, the two ends, and of both curves at most what is new.
    assert found.evaluations <= 14 + 2 * 7


def test_batches_are_bounded_by_the_grid() -> None:
    assert default_batch_size((64, 128, 128)) == 8
    assert default_batch_size((32, 64, 48)) == 32
    assert default_batch_size((512, 512, 512)) == 1


def test_cancelling_stops_before_the_next_batch(marked: nib.Nifti1Image) -> None:
    done: list[int] = []
    scoring = ScoringSettings(4, lambda n, _: done.append(n), cancelled=lambda: len(done) >= 2)
    with pytest.raises(ExplainCancelled, match="after 8 of about"):
        explain_mark(marked, scoring)


def test_scores_are_the_same_whatever_the_batch(marked: nib.Nifti1Image) -> None:
    one, many = (explain_mark(marked, ScoringSettings(size)).weights for size in (1, 16))
    assert one == pytest.approx(many, abs=1e-9)


def test_a_scorer_that_gives_no_numbers_is_refused() -> None:
    class Broken:
        def score(self, volumes: torch.Tensor) -> np.ndarray:
            return np.full(len(volumes), np.nan)

    volume = torch.zeros(1, 1, 2, 2, 2)
    ask = MaskScorer(volume, volume, torch.ones(2, 2, 2, dtype=torch.long), Broken())
    with pytest.raises(ExplainError, match="finite"):
        ask(np.ones((1, 1), bool))
    with pytest.raises(ExplainError, match="one grid"):
        MaskScorer(volume, volume, torch.ones(3, 2, 2, dtype=torch.long), Broken())


def test_replaced_voxels_are_those_of_the_supervoxel_and_no_others() -> None:
    labels = torch.tensor([[[0, 1, 2, 2]]])
    volume, filling = torch.arange(4.0).reshape(1, 1, 1, 1, 4), torch.full((1, 1, 1, 1, 4), 9.0)
    ask = MaskScorer(volume, filling, labels, support.BrightScorer(0))
    perturbed = ask.perturbed(np.array([[True, True], [False, True], [True, False], [False, False]]))
    assert perturbed.reshape(4, 4).tolist() == [[0, 1, 2, 3], [0, 9, 2, 3], [0, 1, 9, 9], [0, 9, 9, 9]]


def test_constant_filling_and_unknown_ones() -> None:
    volume = np.arange(7, dtype=np.float32).reshape(1, 1, 7)
    labels = np.array([[[0, 1, 1, 1, 1, 1, 0]]], dtype=np.int16)
    assert filling_for("constant", volume, labels, np.eye(4)).ravel().tolist() == [0, 3, 3, 3, 3, 3, 6]
    with pytest.raises(ExplainError, match="blur, mirror, constant"):
        filling_for("zeros", volume, labels, np.eye(4))
    with pytest.raises(ExplainError, match="do not overlap"):
        filling_for("blur", volume, labels * 0, np.eye(4))


@pytest.mark.parametrize("places", [(slice(4, 12),), (slice(28, 36),), (slice(16, 24),), (slice(4, 12), slice(28, 36))])
def test_mirrored_filling_takes_a_lesion_away_and_puts_none_into_the_healthy_side(places: tuple[slice, ...]) -> None:
    rng = np.random.default_rng(0)
    healthy = rng.normal(0, 0.2, (12, 30, 40)).astype(np.float32)
    labels = np.ones(healthy.shape, np.int16)
    labels[:, :, [0, 39]] = 0
    ill = healthy.copy()
    for place in places:
        ill[2:10, 8:20, place] += 3
    filled = filling_for("mirror", ill, labels, np.diag([3.0, 3.0, 3.0, 1.0]))
    assert filled[..., 1:39].max() < 1, "neither where it was nor anywhere else"
    assert filled[:, :6].mean() == pytest.approx(healthy[:, :6].mean(), abs=0.15)


# ---- what is explained


def words_of(target: Target, text: str) -> set[str]:
    """The tiny tokenizer knows single characters: back from positions to words."""
    marked_text = "".join(c if n in target.tokens else "." for n, c in enumerate(text))
    return {w for w in marked_text.split(".") if w.strip()}


def test_the_words_that_carry_present_findings_are_explained() -> None:
    plan = plan_targets(LESION, tiny_tokenizer(), contrast=True)
    assert [t.name for t in plan.targets] == ["findings", "lesion", "edema", "side"]
    assert words_of(plan.targets[0], LESION) >= {"left", "frontal"}
    assert not words_of(plan.targets[0], LESION) & {"The", "area", "Necrosis", "absent"}
    assert words_of(plan.targets[3], LESION) == {"left"}
    assert len(plan.mirrored_ids) == len(LESION.replace("left", "right"))


def test_other_targets_can_come_first() -> None:
    tokenizer = tiny_tokenizer()
    assert plan_targets(LESION, tokenizer, "edema").targets[0].name == "edema"
    assert plan_targets(LESION, tokenizer, "side").targets[0].name == "side"
    whole = plan_targets(HEALTHY, tokenizer, "report").targets
    assert [t.name for t in whole] == ["report"]
    assert len(whole[0].tokens) == len(HEALTHY)
    with pytest.raises(ExplainError, match="necrosis"):
        plan_targets(LESION, tokenizer, "necrosis")
    with pytest.raises(ExplainError, match="empty"):
        plan_targets("  ", tokenizer)


def test_a_report_without_a_finding_has_nothing_to_explain() -> None:
    assert plan_targets(HEALTHY, tiny_tokenizer()).targets == ()


def test_no_side_is_contrasted_where_both_are_stated() -> None:
    both = "The lesion area is in the left frontal and the right parietal lobe."
    assert "side" not in {t.name for t in plan_targets(both, tiny_tokenizer(), contrast=True).targets}


# ---- files


def saved(image: nib.Nifti1Image, folder: Path) -> Path:
    path = folder / "flair.nii.gz"
    nib.save(image, path)
    return path


def test_all_files_are_written_on_the_grid_of_the_volume(
    model: BrainGemma3D, marked: nib.Nifti1Image, tmp_path: Path
) -> None:
    path = saved(marked, tmp_path)
    weights, saliency = run_interpretability(
        model=model,
        mri_path=path,
        report=LESION,
        output_dir=tmp_path / "out",
        lime_samples=20,
        n_segments=10,
        method="lime",
    )
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {
        "overlay_slices.png",
        "lime_2x3_grid.png",
        "lime_top_supervoxels_grid.png",
        "lime_weights.json",
        "saliency.nii.gz",
        "supervoxels.nii.gz",
        "grounding.nii.gz",
    }
    for name in ("saliency.nii.gz", "grounding.nii.gz"):
        stored = nib.load(tmp_path / "out" / name)
        assert stored.shape == marked.shape
        assert (stored.affine == nib.load(path).affine).all()
        assert stored.get_data_dtype() == np.float32
    assert np.asarray(nib.load(tmp_path / "out/saliency.nii.gz").dataobj) == pytest.approx(saliency)
    record = json.loads((tmp_path / "out/lime_weights.json").read_text())
    assert record["method"] == "lime"
    run = len(np.unique(METHODS["lime"].masks(len(weights), 20, 42), axis=0))  # equal draws are scored once
    assert record["samples"] == run <= record["samples_at_most"] == 20
    assert record["description"] == f"LIME, random samples, {run} volumes"
    assert record["seed"] == 42
    assert record["settings"]["alpha"] == 0.45
    assert record["weights"] == pytest.approx(weights.tolist())
    assert 0 < record["faithfulness"]["deletion_auc"] < 1
    assert set(record["grounding"]) == {"peak", "side", "site", "rank_correlation", "same_top"}
    assert len(record["supervoxels"]) == record["segments"] == len(weights)
    assert {"weight", "size_ml", "centroid_mm", "side", "site", "by_target"} <= set(record["supervoxels"][0])
    assert set(record["supervoxels"][0]["by_target"]) == {"findings", "lesion", "edema", "side"}
    # A random model does not look at the image: the record must say so, and nothing may be drawn as if it did.
    assert any("hardly depend on the image" in w for w in record["warnings"])
    assert weights.any()
    assert not record["drawn"]
    assert not saliency.any()
    assert ShownRecord.read_if_there(tmp_path / "out") == NOTHING
    with Image.open(tmp_path / "out/overlay_slices.png") as picture:
        assert min(picture.size) > 500


class BothSides:
    """Needs the contrast of all of the brain, that of the left half most."""

    def __init__(self, _model: object, plan: TargetPlan, *_: object) -> None:
        self._columns = len(plan.targets)

    def score(self, volumes: torch.Tensor) -> np.ndarray:
        half = volumes.shape[-1] // 2  # the width grows to the right
        parts = (volumes[..., :half] ** 2).flatten(1).sum(1) + (volumes[..., half:] ** 2).flatten(1).sum(1) / 2
        return np.repeat(parts.numpy()[:, None] / 1000, self._columns, axis=1)


def test_the_record_says_what_all_pictures_show(
    model: BrainGemma3D, marked: nib.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left and right stated: the strongest region of each, by labels that lie on the volume's grid."""
    monkeypatch.setattr(run, "ModelScorer", BothSides)
    report = "The lesion area is in both frontal lobes. Edema is present in both frontal lobes."
    weights, saliency = run_interpretability(
        model=model, mri_path=saved(marked, tmp_path), report=report, output_dir=tmp_path / "out", n_segments=10,
        replacement="constant",
    )  # fmt: skip
    shown = ShownRecord.read_if_there(tmp_path / "out")
    assert shown is not None
    regions = ExplanationRecord.read(tmp_path / "out").supervoxels
    assert shown.limit == pytest.approx(np.quantile(np.abs(saliency[saliency != 0]), 0.99), rel=0.02)
    labels = nib.load(tmp_path / "out" / SUPERVOXELS)
    assert (labels.affine == marked.affine).all()
    voxels = np.asarray(labels.dataobj)
    assert ((voxels > 0) == (saliency != 0)).mean() > 0.9
    places = [apply_affine(labels.affine, np.argwhere(voxels == label)).mean(axis=0) for label in shown.regions]
    assert [place[0] < 0 for place in places] == [True, False]
    for label, side in zip(shown.regions, ("left", "right"), strict=True):
        assert weights[label - 1] == max(region.weight for region in regions if region.side == side)
    strength = shown.strength(saliency)
    assert strength.max() == 1
    assert not strength[np.abs(saliency) < 0.39 * shown.limit].any()
    assert ShownRecord.read_if_there(tmp_path) is None


def test_effects_that_are_not_told_from_noise_are_shown_nowhere(marked: nib.Nifti1Image) -> None:
    """The brain as a whole changes the words, no region does: no map, by which nobody's picture can have a hot spot."""
    found = seen(explain_mark(marked))
    faint = replace(found, weights=found.weights / found.weights.max() * 0.005, score=-1.0, base_score=-1.05)
    assert found.drawn
    assert not faint.drawn
    assert not faint.saliency.any()
    assert not faint.blind
    assert _doubts(faint) == ("No region (saliency) speaks for the words by more than noise does: no map is drawn.",)


def test_a_healthy_report_costs_nothing_and_shows_nothing(
    model: BrainGemma3D, marked: nib.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "score_reports", lambda *_: pytest.fail("nothing should be scored"))
    weights, saliency = run_interpretability(
        model=model,
        mri_path=saved(marked, tmp_path),
        report=HEALTHY,
        output_dir=tmp_path / "out",
        n_segments=10,
    )
    assert not weights.any()
    assert not saliency.any()
    record = json.loads((tmp_path / "out/lime_weights.json").read_text())
    assert record["drawn"] is False
    assert record["faithfulness"] is None
    assert record["grounding"]["same_top"] is None
    assert record["grounding"]["peak"] > 0
    assert record["finding_present"] is False
    assert record["warnings"] == [], "a healthy report is nothing to be warned of"


def test_a_volume_in_another_order_is_answered_in_canonical_order(
    model: BrainGemma3D, marked: nib.Nifti1Image, tmp_path: Path
) -> None:
    path = saved(support.reoriented(marked, "PSR"), tmp_path)
    run_interpretability(
        model=model,
        mri_path=path,
        report=LESION,
        output_dir=tmp_path / "out",
        method="leave_one_out",
        n_segments=6,
        target="side",
    )
    stored = nib.load(tmp_path / "out/saliency.nii.gz")
    assert nib.aff2axcodes(stored.affine) == ("R", "A", "S")
    assert stored.shape == marked.shape
    record = json.loads((tmp_path / "out/lime_weights.json").read_text())
    assert record["explained"]["target"] == "side"
    assert record["r2"] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "gradcam"}, "method"),
        ({"replacement": "zeros"}, "replacement"),
        ({"lime_samples": 1}, "samples"),
        ({"n_segments": 1}, "segments"),
        ({"report": " "}, "empty"),
        ({"alpha": 3.0}, "alpha"),
    ],
)
def test_senseless_arguments_leave_nothing_behind(
    model: BrainGemma3D, marked: nib.Nifti1Image, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    arguments = {"report": HEALTHY, "n_segments": 6, **changes}
    with pytest.raises(ExplainError, match=reason):
        run_interpretability(model=model, mri_path=saved(marked, tmp_path), output_dir=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_missing_volume_is_named(model: BrainGemma3D, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="nowhere"):
        run_interpretability(
            model=model, mri_path=tmp_path / "nowhere.nii.gz", report=LESION, output_dir=tmp_path / "out"
        )


# ---- the model's own lesion map


def test_grounding_lands_on_the_patients_side_and_keeps_its_values() -> None:
    image = support.head((4.0, 4.0, 4.0))
    prepared = prepare_image(image, GRID)
    patches = np.zeros((5, 7, 6), np.float32)
    patches[:, :, :3] = 1  # the left half: W grows to the right
    mapped = grounding_on_grid(patches, GRID.grid, prepared.grid_affine, image)
    assert mapped.shape == image.shape
    for x, expected in ((-40, 1), (40, 0)):
        voxel = np.rint(apply_affine(np.linalg.inv(image.affine), (x, 0, 0))).astype(int)
        assert mapped[tuple(voxel)] == pytest.approx(expected, abs=1e-5)


def test_grounding_centres_are_exact() -> None:
    """A field that is linear in mm stays the same field between the patches' centres."""
    grid, affine = (8, 8, 8), np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-7, 5, 11]
    centres = np.stack(np.meshgrid(*(np.arange(4) * 2 + 0.5,) * 3, indexing="ij"), axis=-1)  # (w, h, d)
    millimetres = apply_affine(affine, centres)
    field = (millimetres @ [0.1, 0.2, 0.3]).astype(np.float32)
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), affine)
    mapped = grounding_on_grid(field.transpose(2, 1, 0), grid, affine, image)
    voxels = np.argwhere(np.ones((6, 6, 6))) + 1
    expected = apply_affine(affine, voxels) @ [0.1, 0.2, 0.3]
    assert mapped[tuple(voxels.T)] == pytest.approx(expected, abs=1e-4)


def test_agreement_with_the_grounding_map(marked: nib.Nifti1Image) -> None:
    found = replace(explain_mark(marked, method="kernelshap"), finding_present=True)
    agreeing = grounding_agreement(found, found.supervoxels.paint(found.weights))
    assert agreeing.rank_correlation > 0.9
    assert agreeing.same_top is True
    assert agreeing.side == "left"
    opposed = grounding_agreement(found, -found.supervoxels.paint(found.weights))
    assert opposed.rank_correlation < -0.9
    assert opposed.same_top is False
