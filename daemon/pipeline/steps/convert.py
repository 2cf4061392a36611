"""Step "convert": the chosen series, or a NIfTI file, to `volume_ras.nii.gz`."""

from __future__ import annotations

import nibabel

from braingemma.volume.source import read_image
from daemon.files import whole
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Conversion, SourceFile
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.select import chosen_series
from dicom_io.volume.nifti import convert_series


def convert(_context: Context, folder: JobFolder) -> None:
    """The chosen series to `volume_ras.nii.gz` and `geometry.json`."""
    conversion = convert_series(chosen_series(folder), folder.volume)
    conversion.geometry.save(folder.geometry)
    Conversion(warnings=conversion.warnings).write(folder.conversion)


def import_nifti(_context: Context, folder: JobFolder) -> None:
    """The NIfTI file `source` to `volume_ras.nii.gz`: same voxels, axes in RAS order by the header alone."""
    path = folder.input
    image, warnings = read_image(path)
    with whole(folder.volume) as draft:
        nibabel.save(image, draft)
    SourceFile(file=path.name).write(folder.source_facts)
    Conversion(warnings=warnings).write(folder.conversion)
