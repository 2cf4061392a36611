"""The model card's Quick Start, word for word but for its two imports, on random weights in the published layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch
from public_code import public_report, public_volume
from published_files import write_published

from braingemma import run_interpretability
from braingemma.errors import CheckpointError, VolumeError
from braingemma.published import MedGemma3D, load_nifti_volume
from training.phantoms.phantom import make_phantom

SIZE = (32, 128, 128)
QUICK_START = """
import os
import torch
import sys
sys.path.append(local_dir)
from braingemma.published import MedGemma3D, load_nifti_volume, CANONICAL_PROMPT
device = "cuda" if torch.cuda.is_available() else "cpu"
model = MedGemma3D(
    vision_model_dir=f"{local_dir}/vision_model",
    language_model_dir=f"{local_dir}/language_model",
    depth=2,
    num_vision_tokens=32,
    freeze_vision=True,
    freeze_language=True,
    device_map={"": 0} if device == "cuda" else None,
)
proj_path = os.path.join(local_dir, "projector_vis_scale.pt")
ckpt = torch.load(proj_path, map_location=device)
model.vision_projector.load_state_dict(ckpt["vision_projector"])
if ckpt.get("vis_scale") is not None:
    if isinstance(ckpt["vis_scale"], torch.Tensor):
        model.vis_scale.data = ckpt["vis_scale"].to(device)
    else:
        model.vis_scale.data.fill_(ckpt["vis_scale"])
model.eval()
volume = load_nifti_volume(
    "path/to/brain_flair.nii.gz",
    target_size=(32, 128, 128)
).to(device)
if volume.ndim == 4:
    volume = volume.unsqueeze(0)
torch.manual_seed(11)
with torch.no_grad():
    report = model.generate_report(
        volume,
        prompt=CANONICAL_PROMPT,
        max_new_tokens=256,
        temperature=0.1,
        top_p=0.9,
    )
"""
INTERPRETABILITY = """
from braingemma.published import run_interpretability
weights, wvol = run_interpretability(
    model=model,
    load_nifti_volume=load_nifti_volume,
    CANONICAL_PROMPT=CANONICAL_PROMPT,
    mri_path="path/to/brain_flair.nii.gz",
    report=report,
    output_dir="./interpretability_output",
    lime_samples=100,
    n_segments=20,
    alpha=0.45,
    clip_q=0.99,
    seed=42,
)
"""


@pytest.fixture(scope="module")
def flair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `path/to/brain_flair.nii.gz`."""
    folder = tmp_path_factory.mktemp("quick_start")
    (folder / "path" / "to").mkdir(parents=True)
    nibabel.save(make_phantom(6_400_001, stripped=True).volume, folder / "path" / "to" / "brain_flair.nii.gz")
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published(tmp_path / "weights")


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "quick start", "exec"), names)  # the program of the card's reader
    return names


@pytest.mark.parametrize("scale", [None, 1.7, torch.tensor(0.6, dtype=torch.bfloat16)], ids=["none", "float", "tensor"])
def test_the_quick_start_runs_and_writes_the_public_codes_text(
    flair: Path, published: Path, monkeypatch: pytest.MonkeyPatch, scale: Any
) -> None:
    content = torch.load(published / "projector_vis_scale.pt", weights_only=True)
    torch.save({**content, "vis_scale": scale}, published / "projector_vis_scale.pt")
    monkeypatch.chdir(flair)
    expected = {
        temperature: public_report(
            published,
            public_volume(Path("path/to/brain_flair.nii.gz"), SIZE),
            seed=11,
            max_new_tokens=256,
            temperature=temperature,
        )
        for temperature in (0.1, None)
    }
    names = run(QUICK_START, {"local_dir": str(published)})
    assert names["volume"].shape == (1, 1, *SIZE)
    assert names["report"] == expected[0.1]
    greedy = re.sub(r"temperature=0\.1", "temperature=None", QUICK_START)
    assert run(greedy, {"local_dir": str(published)})["report"] == expected[None]
    assert expected[0.1] != expected[None]


def test_the_quick_starts_explanation_runs(flair: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flair)
    names = run(QUICK_START.replace("256", "12") + INTERPRETABILITY, {"local_dir": str(published)})
    out = flair / "interpretability_output"
    pictures = {"overlay_slices.png", "lime_2x3_grid.png", "lime_top_supervoxels_grid.png", "lime_weights.json"}
    assert pictures <= {path.name for path in out.iterdir()}
    shape = nibabel.load(flair / "path" / "to" / "brain_flair.nii.gz").shape
    assert names["wvol"].shape == shape
    assert len(names["weights"]) == len(json.loads((out / "lime_weights.json").read_text())["weights"])


def test_the_explanation_reads_at_the_size_and_asks_the_prompt_that_it_is_told(
    flair: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flair)
    model = MedGemma3D(published / "vision_model", published / "language_model")
    asked: set[tuple[Any, ...]] = set()

    def score(
        volumes: torch.Tensor, reports: Any, prompt: str | None = None, *, wanted: Any, encoding: str
    ) -> tuple[torch.Tensor, ...]:
        asked.add((tuple(volumes.shape[2:]), prompt))
        assert encoding == "exact"  # the volume is small
        return tuple(volumes.mean((1, 2, 3, 4))[:, None].expand(-1, len(places)) for places in wanted)

    monkeypatch.setattr(model, "score_reports", score)
    run_interpretability(
        model=model,
        load_nifti_volume=load_nifti_volume,
        CANONICAL_PROMPT="What is there?",
        mri_path="path/to/brain_flair.nii.gz",
        report="The lesion is in the left frontal lobe.",
        output_dir=tmp_path / "out",
        lime_samples=10,
        n_segments=4,
        target_size=SIZE,
    )
    assert asked == {(SIZE, "What is there?")}


def test_what_the_public_names_do_not_take_is_said(published: Path, tmp_path: Path) -> None:
    parts = {"vision_model_dir": published / "vision_model", "language_model_dir": published / "language_model"}
    with pytest.raises(CheckpointError, match="depth must be 2"):
        MedGemma3D(**parts, depth=3)
    with pytest.raises(CheckpointError, match="device_map must be"):
        MedGemma3D(**parts, device_map={"vision": 0, "language": 1})
    with pytest.raises(CheckpointError, match=r"config\.json: not readable"):
        MedGemma3D(vision_model_dir=tmp_path, language_model_dir=parts["language_model_dir"])
    with pytest.raises(VolumeError, match="no such file"):
        load_nifti_volume(tmp_path / "none.nii.gz")


def test_freezing_is_as_asked(published: Path) -> None:
    for frozen in (True, False):
        model = MedGemma3D(
            published / "vision_model", published / "language_model", freeze_vision=frozen, freeze_language=frozen
        )
        for part in ("vision", "language"):
            assert {p.requires_grad for p in model.component_parameters(part)} == {not frozen}
        assert all(p.requires_grad for p in model.component_parameters("projector"))
