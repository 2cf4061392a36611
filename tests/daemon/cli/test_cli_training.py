"""`braingemma train`, `evaluate` and what they write, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from daemon.cli.app import app
from tests.braingemma.tiny_models import tiny_model
from training.errors import DataError, SettingsError
from training.evaluation import evaluate
from training.phantoms.phantom import make_phantom, write_phantom

RUN = CliRunner()


def report(side: str) -> str:
    return f"The lesion area is in the {side} frontal lobe. Edema is not observed."


def test_folders_of_phantoms_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "meteor", lambda writers: (dict.fromkeys(writers, 0.25), ""))  # a Java program
    short = {"max_new_tokens": 24}  # it would write without an end
    tiny_model(findings_head=True, grounding_head=True, decoding=short).save_pretrained(tmp_path / "weights")
    for seed in (1, 2, 3):
        write_phantom(tmp_path / "cases" / f"case-{seed}", make_phantom(seed, spacing=5.0, stripped=True))
    (tmp_path / "cases" / "case-2" / "flair.nii.gz").write_bytes(b"cut off")
    options = [
        "--weights",
        str(tmp_path / "weights"),
        "--cases",
        str(tmp_path / "cases"),
        "--out",
        str(tmp_path / "out"),
    ]
    result = RUN.invoke(app, ["evaluate", *options, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["cases"], facts["failed"], list(facts["failures"])) == (3, 1, ["case-2"])
    assert list(facts["table"]) == [
        "model", "constant report", "majority report", "shuffled images", "left-right flip",
    ]  # fmt: skip
    assert facts["table"]["model"]["meteor"] == 0.25
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"evaluation.json", "evaluation.md", "evaluation.png", "reliability.png", "cases.csv"}


def test_a_baseline_needs_its_checkpoint(tmp_path: Path) -> None:
    assert RUN.invoke(app, ["evaluate", "--out", str(tmp_path), "--baseline", "medgemma-2d"]).exit_code == 2
    slices = RUN.invoke(app, ["evaluate", "--out", str(tmp_path), "--slices", "8"])
    assert slices.exit_code == 2
    assert "--slices goes with" in slices.output
    result = RUN.invoke(
        app, ["evaluate", "--out", str(tmp_path), "--baseline", "nobody", "--checkpoint", str(tmp_path)]
    )
    assert isinstance(result.exception, SettingsError)


def test_a_manifest_of_the_cards_data_is_written(tmp_path: Path) -> None:
    picture = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    lines = []
    for number in range(1, 11):
        case = f"BraTS20_Training_{number:03d}"
        (tmp_path / "brats" / case).mkdir(parents=True)
        for kind in ("flair", "seg"):
            nib.save(picture, tmp_path / "brats" / case / f"{case}_{kind}.nii.gz")
        lines.append(json.dumps({"id": case, "report": report("left" if number % 2 else "right")}))
    (tmp_path / "reports.jsonl").write_text("\n".join(lines))
    for number in range(10):
        folder = tmp_path / "controls" / f"sub-{number:06d}" / "anat"
        folder.mkdir(parents=True)
        nib.save(picture, folder / f"sub-{number:06d}_FLAIR.nii.gz")
    options = ["--brats", "brats", "--reports", "reports.jsonl", "--controls", "controls", "--out", "manifest.jsonl"]
    command = [str(tmp_path / o) if not o.startswith("--") else o for o in options]
    result = RUN.invoke(app, ["train", "manifest", *command])
    assert result.exit_code == 0, result.output
    assert "train 14, val 2, test 4" in result.stdout
    entries = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len({entry["report"] for entry in entries if entry["id"].startswith("sub-")}) > 1
    (tmp_path / "brats" / "BraTS20_Training_003" / "BraTS20_Training_003_seg.nii.gz").write_bytes(b"cut off")
    again = RUN.invoke(app, ["train", "manifest", *command])
    assert isinstance(again.exception, DataError)


@pytest.mark.parametrize("command", ["run", "phase1", "phase2a", "phase2b", "all", "ablation", "manifest"])
def test_every_command_explains_itself(command: str) -> None:
    assert RUN.invoke(app, ["train", command, "--help"]).exit_code == 0
