"""`process` looks for weights, device and a folder that can be written before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from series_factory import make_files

from daemon.config.sections import Settings
from daemon.errors import Permanent
from daemon.pipeline.process import process


@pytest.mark.parametrize(
    ("model", "why"),
    [({"weights": "/nowhere/weights"}, "/nowhere/weights"), ({"device": "cuda"}, "no CUDA device")],
    ids=["weights", "device"],
)
def test_what_is_missing_is_told_before_anything_is_begun(tmp_path: Path, model: dict[str, str], why: str) -> None:
    if "device" in model and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    source, out = tmp_path / "study", tmp_path / "out"
    make_files(source)
    out.mkdir()
    (out / "report.json").write_text("an earlier run's")
    steps: list[str] = []
    with pytest.raises(Permanent, match=why):
        process(source, out, Settings.model_validate({"model": model}), on_step=steps.append)
    assert steps == []
    assert [path.name for path in out.iterdir()] == ["report.json"]
    assert (out / "report.json").read_text() == "an earlier run's"
