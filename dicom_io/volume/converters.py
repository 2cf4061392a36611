"""Two independent converters behind one signature: dicom2nifti first, highdicom's `Volume` as the second way.

Both are imported lazily, and with care: importing dicom2nifti rewrites pydicom's table of character sets.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nibabel as nib
import numpy as np
import pydicom.charset
from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.errors import ConversionError
from dicom_io.volume.geometry import LPS_TO_RAS
from dicom_io.volume.stack import ORIENTATION_TOLERANCE, SPACING_TOLERANCE, TILT_TOLERANCE
from dicom_io.volume.values import DECODING_ERRORS

REFUSALS = (*DECODING_ERRORS, AssertionError, ArithmeticError, OSError)
"""What the converters raise on a series that they cannot take."""

_OF_CODE = (AttributeError, KeyError, TypeError, IndexError, AssertionError, sqlite3.Error)
"""Errors whose text speaks of the converter's own code, which a reader of warnings cannot make use of."""

_settings_lock = threading.Lock()


def by_dicom2nifti(datasets: list[Dataset]) -> nib.Nifti1Image:
    """Convert by dicom2nifti.

    Args:
        datasets: All instances of one series whose geometry has been validated, in native little endian.

    Returns:
        The image on whatever axes dicom2nifti chose; its voxel values are rescaled.

    Raises:
        ConversionError: dicom2nifti refused.
    """
    with quiet_dicom2nifti() as package:
        try:
            result = package.convert_dicom.dicom_array_to_nifti(datasets, None, reorient_nifti=False)
        except (*REFUSALS, package.exceptions.ConversionError, package.exceptions.ConversionValidationError) as error:
            raise ConversionError(f"dicom2nifti: {_reason(error)}") from error
    return result["NII"]


@contextmanager
def quiet_dicom2nifti() -> Iterator[Any]:
    """dicom2nifti without its log noise, its own validations (ours are stricter) or its change to pydicom."""
    with _settings_lock:
        encodings = dict(pydicom.charset.python_encoding)
        import dicom2nifti
        import dicom2nifti.convert_dicom
        import dicom2nifti.exceptions
        import dicom2nifti.settings

        pydicom.charset.python_encoding.clear()
        pydicom.charset.python_encoding.update(encodings)
        switched = ("slicecount", "orientation", "orthogonal", "slice_increment")
        for name in switched:
            getattr(dicom2nifti.settings, f"disable_validate_{name}")()
        try:
            with header.quiet("dicom2nifti", "pydicom"):
                yield dicom2nifti
        finally:
            for name in switched:
                getattr(dicom2nifti.settings, f"enable_validate_{name}")()


def by_highdicom(datasets: list[Dataset]) -> nib.Nifti1Image:
    """Convert by highdicom's `Volume`; same arguments, result and error as `by_dicom2nifti`."""
    import highdicom as hd

    options: dict[str, Any] = {
        "dtype": np.float64,
        "apply_real_world_transform": False,
        "apply_voi_transform": False,
        "apply_presentation_lut": False,
        "rtol": 2 * SPACING_TOLERANCE,
        "perpendicular_tol": 1 - float(np.sqrt(1 - TILT_TOLERANCE**2)),
    }
    try:
        with header.quiet("highdicom", "pydicom"):
            if "PerFrameFunctionalGroupsSequence" not in datasets[0]:
                volume = hd.get_volume_from_series(datasets, orientation_tol=ORIENTATION_TOLERANCE, **options)
            elif len(datasets) == 1:
                volume = hd.Image.from_dataset(datasets[0], copy=False).get_volume(**options)
            else:
                raise ConversionError(f"highdicom: expected one multi-frame instance, got {len(datasets)}")
    except (*REFUSALS, sqlite3.Error) as error:  # it keeps what it reads of frames in a table
        raise ConversionError(f"highdicom: {_reason(error)}") from error
    return nib.Nifti1Image(np.asarray(volume.array), LPS_TO_RAS @ volume.affine)


def _reason(error: Exception) -> str:
    return "it cannot take headers like these" if isinstance(error, _OF_CODE) else str(error)
