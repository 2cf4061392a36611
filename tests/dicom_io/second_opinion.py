"""dcm2niix as the second opinion, and a comparison that shares no code with what it judges."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np


def converted_by_dcm2niix(binary: str, folder: Path, out: Path, precise: str = "n") -> nib.Nifti1Image:
    """The one image that dcm2niix makes of a folder; `-p n`: scaled by RescaleSlope, as Philips displays it."""
    out.mkdir()
    subprocess.run(
        [binary, "-p", precise, "-z", "n", "-b", "n", "-m", "2", "-f", "volume", "-o", str(out), str(folder)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    [path] = [p for p in out.glob("*.nii") if "_Eq" not in p.name]
    return nib.load(path)


def assert_same_voxels(got: nib.Nifti1Image, expected: nib.Nifti1Image, tolerance_mm: float = 0.01) -> None:
    """Every voxel of both images lies at the same place in RAS mm and holds the same value.

    Written for the tests alone, so that it shares no code with what it judges.
    """
    expected = nib.squeeze_image(expected)
    to_other = np.linalg.inv(expected.affine) @ got.affine
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(got.shape) - 1
    partners = np.rint(corners @ to_other.T)
    apart = (corners @ got.affine.T - partners @ expected.affine.T)[:, :3]
    assert np.linalg.norm(apart, axis=1).max() < tolerance_mm
    assert partners[:, :3].min(axis=0).tolist() == [0, 0, 0]
    assert tuple(int(n) + 1 for n in partners[:, :3].max(axis=0)) == expected.shape
    index = np.indices(got.shape).reshape(3, -1)
    there = np.rint(to_other[:3, :3] @ index + to_other[:3, 3:]).astype(int)
    theirs = np.asanyarray(expected.dataobj)[tuple(there)].astype(np.float64)
    ours = np.asanyarray(got.dataobj).reshape(-1).astype(np.float64)
    scale = max(float(np.abs(theirs).max()), 1.0)
    assert np.abs(ours - theirs).max() <= 1e-5 * scale


def decompressed_by_gdcm(path: Path) -> None:
    """Put a compressed file's pixels into native cells, in place, by GDCM."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def displayed_by_dcmtk(path: Path) -> np.ndarray:
    """(rows, columns) in [0, 1]: what dcmtk shows of a native image, black the lowest value and white the highest."""
    shown = subprocess.run(
        ["dcmj2pnm", "--no-overlays", "--min-max-window", "--write-16-bit-pnm", str(path)],
        check=True, capture_output=True, timeout=60,
    ).stdout.split()  # fmt: skip
    columns, rows, white = (int(n) for n in shown[1:4])
    return np.array(shown[4:], dtype=np.float64).reshape(rows, columns) / white
