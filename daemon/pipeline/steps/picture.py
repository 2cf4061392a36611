"""What the picture of a series says where its headers are silent; only then are pixels looked at before conversion."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel
import numpy as np

from braingemma.checks.unnamed import looks_like_flair
from dicom_io.errors import DicomIoError
from dicom_io.select.selection import Look
from dicom_io.series.group import Series
from dicom_io.volume.nifti import convert_series


def look_at(series: Series) -> Look:
    """Judge a series by its picture; one that cannot be converted is not taken."""
    with tempfile.TemporaryDirectory(prefix="braingemma-look-") as folder:
        path = Path(folder) / "volume.nii"
        try:
            convert_series(series, path)
        except DicomIoError as error:
            return Look(False, f"the picture cannot be read: {error}")
        image = nibabel.load(path)
        volume = np.asarray(image.dataobj, dtype=np.float32)
        seen = looks_like_flair(volume, np.asarray(image.affine, dtype=np.float64)[:3, :3])
    return Look(seen.flair, seen.detail)
