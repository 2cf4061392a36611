"""Step "convert": the chosen series, or a NIfTI file, to `volume_ras.nii.gz`."""

from __future__ import annotations

from pathlib import Path

import nibabel

from braingemma.volume.source import read_image
from daemon.files import whole
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Conversion, SourceFile
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.select import chosen_series
from dicom_io.volume.nifti import convert_series


def convert(context: Context, folder: JobFolder) -> None:
    """The chosen series to `volume_ras.nii.gz` and `geometry.json`."""
    series = chosen_series(folder)
    conversion = convert_series(series, _target(context, folder))
    conversion.geometry.save(folder.geometry)
    files = tuple(file.relative_to(folder.input).as_posix() for file in series.files)
    Conversion(warnings=conversion.warnings, files=files).write(folder.conversion)


def import_nifti(context: Context, folder: JobFolder) -> None:
    """The NIfTI file `source` to `volume_ras.nii.gz`: same voxels, axes in RAS order by the header alone."""
    path = folder.input
    image, warnings = read_image(path)
    with whole(_target(context, folder)) as draft:
        nibabel.save(image, draft)
    folder.source_facts.unlink(missing_ok=True)
    if not context.settings.results.deidentify:
        SourceFile(file=path.name).write(folder.source_facts)
    Conversion(warnings=warnings).write(folder.conversion)


def _target(context: Context, folder: JobFolder) -> Path:
    """Where the volume goes: with `[results] deface` nothing but the report step sees it before its face is gone."""
    target, other = folder.volume, folder.whole_head
    if context.settings.results.deface:
        target, other = other, target
    other.unlink(missing_ok=True)
    return target
