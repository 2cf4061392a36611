"""A NIfTI volume as a classic MR series with a realistic FLAIR header: for the demo, for phantoms and for tests."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy import ndimage

from dicom_io.errors import GeometryError
from dicom_io.volume.geometry import LPS_TO_RAS

Plane = Literal["axial", "coronal", "sagittal"]

AXES: dict[Plane, str] = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIR"}
"""Where column index, row index and slice index grow to: as scanners store each plane, looked at in the usual way."""

FLAIR_HEADER: dict[str, Any] = {
    "SeriesDescription": "t2_flair_tra",
    "ProtocolName": "t2_flair_tra",
    "ScanningSequence": ["SE", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "ScanOptions": "PFP",
    "MRAcquisitionType": "2D",
    "SequenceName": "*tir2d1_16",
    "RepetitionTime": "9000",
    "EchoTime": "89",
    "InversionTime": "2500",
    "EchoTrainLength": "16",
    "FlipAngle": "150",
    "MagneticFieldStrength": "3",
    "NumberOfAverages": "1",
    "ImagingFrequency": "123.25",
    "ImagedNucleus": "1H",
    "EchoNumbers": "1",
    "InPlanePhaseEncodingDirection": "ROW",
    "Manufacturer": "SYNTHETIC",
    "ManufacturerModelName": "Series writer",
    "BodyPartExamined": "BRAIN",
    "PatientName": "Phantom^Synthetic",
    "PatientID": "PHANTOM",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "StudyDescription": "Brain MRI",
    "StudyID": "1",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "SeriesNumber": "5",
}
"""A plain 2D FLAIR at 3 T; any attribute may be overridden."""

BITS_STORED = 12
LARGEST = 2**BITS_STORED - 1


def write_series(
    source: Path | nib.Nifti1Image,
    folder: Path,
    *,
    plane: Plane = "axial",
    axes: str | None = None,
    oblique_degrees: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a volume as single-frame MR Image Storage instances.

    Args:
        source: NIfTI file or image; its axes may be stored in any order.
        folder: Made where it is missing; files are called `0001.dcm` ... in slice order.
        plane: Of the slices, stored as scanners do. Without obliquity the voxels are exactly the volume's
            (permuted and flipped).
        axes: Where column, row and slice index grow to instead, such as "RAS" (prone, feet first, odd tools).
        oblique_degrees: Turns the slices about two axes; the voxels are then interpolated.
        overrides: DICOM keyword to value; None removes the attribute. UIDs may be given too.

    Returns:
        The files.

    Raises:
        GeometryError: the volume's axes are sheared, which no MR series can say.
    """
    image = source if isinstance(source, nib.Nifti1Image) else nib.load(source)
    image = _stored_along(image, axes or AXES[plane])
    if oblique_degrees:
        image = _tilted(image, oblique_degrees)
    pixels = _as_stored(np.asanyarray(image.dataobj))
    affine = LPS_TO_RAS @ np.asarray(image.affine, dtype=np.float64)  # RAS and LPS are each other's mirror
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
        raise GeometryError(f"expected a volume with orthogonal axes, got vectors {directions.round(4).tolist()}")
    shared = _shared(pixels, spacing, directions, plane, overrides or {})
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(pixels.shape[2]):
        path = folder / f"{index + 1:04d}.dcm"
        position = affine[:3, :3] @ (0, 0, index) + affine[:3, 3]
        _slice(shared, pixels[..., index], index, position, directions).save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def _stored_along(image: nib.Nifti1Image, axes: str) -> nib.Nifti1Image:
    stored = nib.orientations.io_orientation(image.affine)
    wanted = nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(stored, wanted))


def _tilted(image: nib.Nifti1Image, degrees: float) -> nib.Nifti1Image:
    """The same field of view with the slices turned about the first two of its axes; what was outside is 0."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    affine = np.asarray(image.affine, dtype=np.float64)
    centre = affine @ np.append((np.array(image.shape) - 1) / 2, 1)
    turned = affine.copy()
    turned[:3, :3] = turn @ affine[:3, :3]
    turned[:3, 3] = centre[:3] + turn @ (affine[:3, 3] - centre[:3])
    to_source = np.linalg.inv(affine) @ turned
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    return nib.Nifti1Image(ndimage.affine_transform(voxels, to_source, order=1), turned)


def _as_stored(voxels: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Unsigned 12-bit pixels: integers that fit stay as they are, everything else is scaled to the full range."""
    if voxels.dtype.kind in "iu" and voxels.min() >= 0 and voxels.max() <= LARGEST:
        return voxels.astype(np.uint16)
    low, high = float(voxels.min()), float(voxels.max())
    return np.rint((voxels - low) / max(high - low, 1e-12) * LARGEST).astype(np.uint16)


def _shared(
    pixels: npt.NDArray[np.uint16],
    spacing: npt.NDArray[np.float64],
    axes: npt.NDArray[np.float64],
    plane: Plane,
    overrides: Mapping[str, Any],
) -> Dataset:
    """Everything that all slices have in common."""
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    seed = [plane, content, str(axes), str(spacing), str(sorted((k, str(v)) for k, v in overrides.items()))]
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.SOPClassUID = MRImageStorage
    dataset.Modality = "MR"
    moment = datetime.datetime(2026, 1, 2, 9, 30, tzinfo=datetime.UTC)
    for name in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{name}Date", moment.strftime("%Y%m%d"))
        setattr(dataset, f"{name}Time", moment.strftime("%H%M%S"))
    dataset.PatientPosition = "HFS"
    dataset.PositionReferenceIndicator = ""
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", *seed])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", *seed])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", *seed])
    dataset.AcquisitionNumber = "1"
    dataset.SliceThickness = _decimal(spacing[2])
    dataset.SpacingBetweenSlices = _decimal(spacing[2])
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*axes[:, 0], *axes[:, 1])]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = int(pixels.shape[1]), int(pixels.shape[0])
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS_STORED, BITS_STORED - 1
    dataset.PixelRepresentation = 0
    low, high = np.percentile(pixels[pixels > 0], (1, 99)) if np.any(pixels) else (0.0, 1.0)
    dataset.WindowCenter, dataset.WindowWidth = _decimal((low + high) / 2), _decimal(max(high - low, 1.0))
    for keyword, value in {**FLAIR_HEADER, **overrides}.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def _slice(
    shared: Dataset,
    pixels: npt.NDArray[np.uint16],
    index: int,
    position: npt.NDArray[np.float64],
    axes: npt.NDArray[np.float64],
) -> Dataset:
    dataset = Dataset()
    dataset.update(shared)
    dataset.InstanceNumber = str(index + 1)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(shared.SeriesInstanceUID), str(index)])
    dataset.ImagePositionPatient = [_decimal(v) for v in position]
    dataset.SliceLocation = _decimal(float(position @ axes[:, 2]))
    dataset.PixelData = np.ascontiguousarray(pixels.T).tobytes()  # rows first
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def _decimal(value: float) -> str:
    """A Decimal String: 16 characters at most (PS3.5 6.2)."""
    text = f"{float(value):.10g}"
    return text if len(text) <= 16 else f"{float(value):.8g}"
