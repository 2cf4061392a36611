"""Step "explain": the saliency volume and its pictures, beside the report."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from braingemma.explain.record import ExplanationRecord
from braingemma.explain.run import run_interpretability
from braingemma.volume.brain import BrainMask
from daemon.files import whole
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Report, ReportExplanation
from daemon.jobs.report import read_report, write_report
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.report import voxel_digest


def explain(context: Context, folder: JobFolder) -> None:
    """The saliency volume and its pictures, beside the report."""
    report = read_report(folder)
    with whole(folder.explain) as draft:
        draft.mkdir(mode=0o700)
        _draw(context, folder, report, draft)
    made = ExplanationRecord.read(folder.explain)
    facts = made.model_dump(mode="json", include=set(ReportExplanation.model_fields))
    digest = voxel_digest(nibabel.load(folder.explain / "saliency.nii.gz"))
    explanation = ReportExplanation(**facts, saliency_sha256=digest)
    # A step that was interrupted begins again: what the report says of an explanation before this one is not kept.
    before = report.explain.warnings if report.explain is not None else ()
    kept = (warning for warning in report.warnings if warning not in before)
    said = {"explain": explanation, "warnings": (*kept, *made.warnings)}
    write_report(folder, report.model_copy(update=said), named=not context.settings.results.deidentify)


def _draw(context: Context, folder: JobFolder, report: Report, out: Path) -> None:
    """Maps, weights and pictures into the folder `out`."""
    settings = context.settings.explain
    run_interpretability(
        model=context.model,
        mri_path=folder.volume,
        report=report.report,
        output_dir=out,
        lime_samples=settings.samples,
        n_segments=settings.segments,
        cpu_minutes=settings.cpu_minutes,
        seed=settings.seed,
        method=settings.method,
        replacement=settings.replacement,
        target=settings.target,
        batch_size=settings.batch_size or None,
        banner=context.weights.banner,
        brain=_brain(folder),
        progress=lambda done, total: context.progress(done, total, "explaining, volume"),
    )


def _brain(folder: JobFolder) -> BrainMask | None:
    """The mask that the report was made with; None for a folder of an earlier version."""
    if not folder.brain_mask.exists():
        return None
    image = nibabel.load(folder.brain_mask)
    return BrainMask.of(np.asarray(image.dataobj) > 0, image.header.get_zooms()[:3])
