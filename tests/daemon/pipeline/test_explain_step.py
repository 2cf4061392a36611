"""The step "explain" around the explanation itself, which `braingemma.explain` makes: here it is written by hand."""

from __future__ import annotations

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from record_support import a_report

from braingemma.explain.record import AskedRecord, ExplanationRecord, ShownRecord, SupervoxelRecord
from daemon.config.sections import Settings
from daemon.jobs import report as forms
from daemon.jobs.folder import JobFolder
from daemon.jobs.report import read_report, write_report
from daemon.pipeline.steps import encode
from daemon.pipeline.steps import explain as step
from daemon.pipeline.steps.context import Context

ASKED = AskedRecord(segments=2, replacement="mirror", target="finding", contrast=True, batch_size=1, alpha=1, clip_q=1)


def explanation(*warnings: str) -> ExplanationRecord:
    return ExplanationRecord(
        method="lime", description="d", samples=1, samples_at_most=1, segments=2, evaluations=1, seed=0, settings=ASKED,
        explained=None, finding_present=True, drawn=True, unit="nats", score=None, base_score=None, r2=None,
        faithfulness=None, grounding=None, weights=(), supervoxels=(), warnings=warnings,
    )  # fmt: skip


def test_begun_again_it_says_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while the page is written, after `report.json` was."""
    folder, told = JobFolder(tmp_path), explanation("the map lies on the right")

    def draw(_context: Context, _folder: JobFolder, _report: object, out: Path) -> None:
        told.write(out)
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), out / "saliency.nii.gz")

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_report(folder, a_report(warnings=["two slices were lost"]))
    monkeypatch.setattr(step, "_draw", draw)
    with monkeypatch.context() as patch:
        patch.setattr(forms, "report_html", full)
        with pytest.raises(OSError, match="No space"):
            step.explain(Context(Settings(), pytest.fail), folder)
    step.explain(Context(Settings(), pytest.fail), folder)
    assert read_report(folder).warnings == ("two slices were lost", "the map lies on the right")
    told = explanation("the map is flat")  # of other settings
    step.explain(Context(Settings(), pytest.fail), folder)
    assert read_report(folder).warnings == ("two slices were lost", "the map is flat")
    assert folder.report_html.read_text(encoding="utf-8").count("the map is flat") == 1


def test_what_the_explanation_shows_is_handed_to_the_encoders(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.explain.mkdir()
    assert encode.display_of(folder) is None
    explanation().write(folder.explain)  # as of before it was kept
    assert encode.display_of(folder) is None
    regions = tuple(
        SupervoxelRecord(
            weight=1, by_target={}, label=n, size_ml=1, centroid_mm=(0, 0, 0), right_mm=0, side=side, site="frontal"
        )
        for n, side in ((1, "right"), (2, "left"))
    )
    shown = ShownRecord(limit=0.3, least_share=0.4, regions=(2, 1))
    explanation().model_copy(update={"supervoxels": regions, "shown": shown}).write(folder.explain)
    display = encode.display_of(folder)
    assert display is not None
    assert (display.limit, display.least_share) == (0.3, 0.4)
    assert display.regions == ((2, "left"), (1, "right"))
    assert display.labels_path == folder.explain / "supervoxels.nii.gz"
