"""Left stays left: a bright mark in the left hemisphere, followed from the received slices to the overlay."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray

from braingemma.explain.explanation import ExplainSettings, explain_prepared
from braingemma.explain.supervoxels import segment
from braingemma.explain.targets import Target
from braingemma.volume.preprocess import prepare_volume
from dicom_io.content.report import FindingRecord, ModelIdentity, ReportContent
from dicom_io.pack.encode import encode_pack, wanted
from dicom_io.select.selection import judge
from dicom_io.series.group import scan_folder
from dicom_io.series_writer import write_series
from dicom_io.volume.nifti import convert_series

MARK = np.array([-36.0, 10.0, 20.0])
"""RAS mm, in the left hemisphere."""


def head() -> nib.Nifti1Image:
    """An ellipsoid head of 3 mm voxels with a bright ball of 16 mm radius at MARK."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-90, -108, -84)
    points = np.moveaxis(np.indices((61, 73, 57)), 0, -1) * 3.0 + affine[:3, 3]
    inside = ((points / [68.0, 86.0, 64.0]) ** 2).sum(-1) < 1
    rng = np.random.default_rng(3)
    volume = np.where(inside, 900 + rng.normal(0, 25, inside.shape), 0)
    volume[((points - MARK) ** 2).sum(-1) < 16**2] = 2600
    return nib.Nifti1Image(np.clip(np.rint(volume), 0, 4000).astype(np.int16), affine)


class BrightestVoxels:
    """A scorer that depends on the mark and on nothing else."""

    def score(self, volumes: torch.Tensor) -> NDArray[np.floating]:
        return np.asarray((volumes - 1.5).clamp(min=0).flatten(1).sum(1).numpy(), dtype=float)[:, None] / 1000


def bright_centre(image: nib.Nifti1Image) -> NDArray[np.float64]:
    voxels = np.asarray(image.dataobj, dtype=float)
    return np.asarray((image.affine @ np.append(np.argwhere(voxels > 0.8 * voxels.max()).mean(0), 1))[:3])


def content() -> ReportContent:
    return ReportContent(
        report_text="The lesion area is in the left frontal lobe.",
        findings=(FindingRecord("lesion", "present", "left", ("frontal",)),),
        warnings=(),
        banner=None,
        intended_use="Research use only.",
        model=ModelIdentity("test", "1", "0" * 64, "test"),
    )


def _slice_area(overlay: pydicom.Dataset) -> NDArray[np.uint8]:
    """The middle of the picture: letters and legend stand at its edges."""
    pixels = overlay.pixel_array
    rows, columns = pixels.shape[:2]
    return pixels[rows // 6 : -rows // 6, columns // 6 : -columns // 6]


def _position(overlay: pydicom.Dataset) -> NDArray[np.float64]:
    """Centre of the picture, LPS mm, from its own geometry."""
    along_row, along_column = np.array(overlay.ImageOrientationPatient, dtype=float).reshape(2, 3)
    spacing = [float(v) for v in overlay.PixelSpacing]
    return np.asarray(
        np.array(overlay.ImagePositionPatient, dtype=float)
        + along_row * spacing[1] * overlay.Columns / 2
        + along_column * spacing[0] * overlay.Rows / 2
    )


def red(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    values = pixels.astype(int)
    return np.asarray((values[..., 0] - values[..., 1] > 60) & (values[..., 0] - values[..., 2] > 60))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_a_left_mark_stays_left_from_slices_to_overlay(tmp_path: Path, plane: str, degrees: float) -> None:
    files = write_series(head(), tmp_path / "series", plane=plane, oblique_degrees=degrees)
    [series] = scan_folder(tmp_path / "series").series
    assert judge(series).accepted

    # conversion
    conversion = convert_series(series, tmp_path / "volume.nii.gz")
    volume = nib.load(conversion.volume_path)
    assert np.linalg.norm(bright_centre(volume) - MARK) < 4

    # tensor: the width axis runs from the patient's left to the right
    prepared = prepare_volume(conversion.volume_path, target_size=(32, 64, 48))
    bright = (prepared.tensor[0, 0] > 0.9 * prepared.tensor.max()).nonzero().float().mean(0).flip(0).numpy()
    in_patient = (prepared.grid_affine @ np.append(bright, 1))[:3]
    assert np.linalg.norm(in_patient - MARK) < 6
    assert in_patient[0] < 0

    # saliency
    supervoxels = segment(np.asarray(volume.dataobj, dtype=np.float32), volume.affine, 16)
    found = explain_prepared(
        supervoxels, prepared.tensor, prepared.grid_affine, BrightestVoxels(),
        ExplainSettings(method="leave_one_out", segments=16, replacement="constant"), (Target("lesion", (0,)),),
    )  # fmt: skip
    top = supervoxels.regions[int(found.weights.argmax())]
    assert top.side == "left"
    assert top.centroid_mm[0] < 0
    saliency = tmp_path / "saliency.nii.gz"
    nib.save(nib.Nifti1Image(supervoxels.paint(np.maximum(found.weights, 0)), volume.affine), saliency)

    # overlay
    pack = encode_pack(
        source_files=files, geometry=conversion.geometry, volume_path=conversion.volume_path, saliency_path=saliency,
        lesion_path=None, content=content(), kinds=wanted(sr=False, pm=False, seg=False),
        identity="sides", out=tmp_path / "dicom",
    )  # fmt: skip
    overlays = [pydicom.dcmread(item.path) for item in pack.of_kind("sc")]
    assert len(overlays) == len(files)
    amounts = [int(red(_slice_area(o)).sum()) for o in overlays]
    strongest = overlays[int(np.argmax(amounts))]
    if plane == "sagittal":
        middle = _position(strongest)[0]
        assert middle > 0  # LPS: the slice lies in the patient's left half
    else:
        area = red(_slice_area(strongest))
        columns = np.argwhere(area)[:, 1]
        assert np.median(columns) > area.shape[1] / 2  # radiological: left on the right-hand side
