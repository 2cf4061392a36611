"""The ablation at a size that proves it runs: both compressors, after every phase, on the same data."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.training.run_support import tiny_settings, write_config
from training.data.patches import patch_share
from training.evaluation.ablation import VARIANTS, ablation_markdown, run_ablation
from training.settings import DataSettings, LanguageSettings


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_variant_is_judged_after_every_phase(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        tiny_settings(write_config(tmp_path, Path("unused.jsonl"))),
        data=DataSettings(count=6, seed=910_000, validation=2),
        language=LanguageSettings(steps=2, batch=2),
    )
    results = run_ablation(settings, tmp_path, seeds=2, count=4)
    assert [(r.variant, r.seed) for r in results[::3]] == [(v, s) for s in (0, 1) for v in VARIANTS]
    assert {r.phase for r in results} == {"phase1", "phase2a", "phase2b"}
    digests = {json.loads(p.read_text())["data_sha256"] for p in tmp_path.glob("*-seed*/run.json")}
    assert len(digests) == 1
    with (tmp_path / "ablation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    text = (tmp_path / "ablation.md").read_text()
    assert text.count("| Perceiver |") == text.count("| published pooling and positions |") == 3
    again = run_ablation(settings, tmp_path, seeds=2, count=4)
    assert ablation_markdown(again, 4) == text


def test_overlapping_patches_have_the_share_that_they_cover() -> None:
    masks = torch.zeros(1, 4, 4, 8, 8)
    masks[0, 0, 1] = 1  # one plane of four
    assert patch_share(masks, (2, 8, 8)).flatten().tolist() == [0.5, 0.0]
    assert patch_share(masks, (2, 8, 8), (5, 1, 1)).flatten().tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]
