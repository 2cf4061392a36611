"""Step "convert": the chosen series, or a NIfTI file, to `volume_ras.nii.gz`."""

from __future__ import annotations

import nibabel

from braingemma.volume.preprocess import check_volume
from daemon.files import write_json
from daemon.jobs.folder import JobFolder
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.select import chosen_series
from dicom_io.volume.nifti import convert_series


def convert(_context: Context, folder: JobFolder) -> None:
    """The chosen series to `volume_ras.nii.gz` and `geometry.json`."""
    conversion = convert_series(chosen_series(folder), folder.volume)
    conversion.geometry.save(folder.geometry)
    write_json(folder.conversion, {"warnings": list(conversion.warnings)})


def import_nifti(_context: Context, folder: JobFolder) -> None:
    """The NIfTI file `source` to `volume_ras.nii.gz`: same voxels, axes in RAS order by the header alone."""
    path = folder.input
    check_volume(path)  # says what is wrong with the file, in the words that the report step would use
    temporary = folder.root / ".volume_ras.part.nii.gz"
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), temporary)
    temporary.rename(folder.volume)
    write_json(folder.source_facts, {"file": path.name})
