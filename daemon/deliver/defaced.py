"""DICOM files without faces: each head by its own brain mask; what cannot be done for sure is not sent."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np

from braingemma.errors import BrainGemmaError
from braingemma.volume.face import brain_of_head, outside_face
from braingemma.volume.source import read_source
from daemon.files import make_private
from dicom_io.deface import deface_instances, read_instance, shows_no_face
from dicom_io.errors import DicomIoError
from dicom_io.series.group import Series, scan_files
from dicom_io.volume.nifti import convert_series


def without_faces(
    files: Sequence[Path], root: Path, out: Path, say: Callable[[str], None]
) -> tuple[dict[Path, Path], list[str]]:
    """Copies without faces of every series that is a head, and what has no picture as it is.

    Args:
        files: All below `root`.
        root: Folder of the files.
        out: Takes the copies.
        say: Told which series is worked on.

    Returns:
        The files that may be sent, each with its original, and why others may not.
    """
    scan = scan_files(root, files)
    originals: dict[Path, Path] = {}
    refused = [f"{problem.path}: not sent: {problem.reason}" for problem in scan.problems]
    for number, series in enumerate(scan.series, start=1):
        say(f"removing faces, series {number}/{len(scan.series)}")
        folder = make_private(out / f"{number:06d}")
        pictures = []
        for file in series.files:
            if shows_no_face(read_instance(file)):
                originals[file] = file
            else:
                pictures.append(file)
        if not pictures:
            continue
        try:
            written = _defaced(series, folder)
        except (DicomIoError, BrainGemmaError) as error:
            refused += [f"{file}: not sent: {error}" for file in pictures]
            continue
        originals |= written
        left = sorted(set(pictures) - set(written.values()))
        refused += [f"{file}: not sent: no slice of the volume that its series forms" for file in left]
    return originals, refused


def _defaced(series: Series, folder: Path) -> dict[Path, Path]:
    """The slices of one series without the face.

    Raises:
        DicomIoError: the series is no volume of slices.
        BrainGemmaError: it shows no whole head whose brain is found for sure.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        volume, keep = Path(scratch) / "volume.nii", Path(scratch) / "keep.nii"
        conversion = convert_series(series, volume)
        source = read_source(volume)
        outside = outside_face(source.voxels, source.affine, brain_of_head(source.voxels, source.affine))
        nibabel.save(nibabel.Nifti1Image(outside.astype(np.uint8), source.affine), keep)
        return deface_instances(series.files, conversion.geometry, keep, folder)
