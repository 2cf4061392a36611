"""The GPU check runs on a processor as well, small; what a GPU gives, only a GPU can tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from braingemma.errors import BrainGemmaError
from daemon.bench import gpu_check as bench
from daemon.cli.app import app


@pytest.mark.slow
def test_the_whole_check_runs_on_a_processor(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "gpu", "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "gpu-check.json").read_text())
    assert facts["passed"]
    assert set(facts["parts"]) == set(bench.PARTS)
    assert facts["parts"]["agreement"]["same_tokens"]
    assert facts["parts"]["full size"]["evaluations"] > 2
    assert facts["parts"]["full size"]["resting_gib"] <= facts["parts"]["full size"]["peak_gib"]
    assert facts["parts"]["training"]["steps"] >= 2
    table = (tmp_path / "gpu-check.md").read_text()
    assert table.count("| yes |") == 4
    assert "same findings as the CPU, 4 bit" in table


def parts(*, same: bool = True, peak: float = 9.0) -> dict[str, dict]:
    found = {"findings": "4 of 4 reports", "same": True}
    times = {"load_s": 1.0, "resting_gib": 4.0, "encode_s": 0.1, "seconds_per_token": 0.01, "explain_s": 9.0}
    return {
        "agreement": {"tokens": "4 of 4", "same_tokens": same, "findings": {"bfloat16": found, "4 bit": found}},
        "full size": {"weights": "full", "evaluations": 48, "peak_gib": peak, **times},
        "training": {"steps": 9, "seconds": 60.0, "first": 3.0, "last": 2.0, "peak_gib": 1.0},
    }


@pytest.mark.parametrize(
    ("facts", "failed"),
    [
        (parts(), []),
        (parts(same=False), ["same tokens as the CPU, float32"]),
        (parts(peak=15.5), ["peak memory"]),  # GiB: 16.6 GB
    ],
)
def test_what_did_not_hold_fails_the_check_and_stands_out(
    facts: dict, failed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_in_process", lambda part, *_: facts[part])
    result = bench.gpu_check("cpu", tmp_path)
    assert [row["name"] for row in result["rows"] if row["passed"] is False] == failed
    assert result["passed"] is not bool(failed)
    assert (tmp_path / "gpu-check.md").read_text().count("**NO**") == len(failed)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BrainGemmaError, match="sees no CUDA device"):
        bench.gpu_check("cuda", tmp_path)
    with pytest.raises(BrainGemmaError, match="must be cuda or cpu"):
        bench.gpu_check("tpu", tmp_path)  # type: ignore[arg-type]


def test_a_part_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(BrainGemmaError, match="agreement: the measuring process failed: exit status 1"):
        bench.gpu_check("cpu", tmp_path)
