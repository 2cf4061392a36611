"""The bench runs both ways on the same files and says how they compare; how fast they are is not for a test."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from daemon.cli.app import app


def test_the_bench_compares_both_ways() -> None:
    result = CliRunner().invoke(app, ["bench", "convert", "--slices", "6", "--rounds", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    seconds = found["seconds"]
    assert set(seconds) == {"braingemma", "dicom2nifti", "dicom2nifti_not_reoriented"}
    assert min(seconds.values()) > 0
    assert abs(found["ratios"]["vs_dicom2nifti"] - seconds["braingemma"] / seconds["dicom2nifti"]) < 0.05
