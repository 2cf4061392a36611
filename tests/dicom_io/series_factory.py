"""Small made-up series for tests: any axes, encoding and header, classic or enhanced, with a mark on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from dicom_io.series.group import Series, scan_folder
from dicom_io.series_writer import write_series

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED_DICOM = SHARED_DATA / "dicom"
MARK_RAS = np.array([-42.0, 30.0, 18.0])
"""Left, in front, above, mm."""
Edit = Callable[[Dataset, int], None]


def brain(shape: tuple[int, int, int] = (36, 40, 21)) -> nib.Nifti1Image:
    """Noise of 4.5 x 4.5 x 6 mm, RAS, no two voxels alike in rank, with a bright mark at `MARK_RAS`."""
    affine = np.diag([4.5, 4.5, 6.0, 1.0])
    affine[:3, 3] = (-78.75, -90.0, -60.0)
    voxels = np.random.default_rng(7).permutation(np.prod(shape)).reshape(shape) % 3000
    i, j, k = np.rint(np.linalg.inv(affine) @ np.append(MARK_RAS, 1)).astype(int)[:3]
    voxels[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = 4000
    return nib.Nifti1Image(voxels.astype(np.int16), affine)


def mark_in(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of the bright mark, in the affine's space."""
    centre = np.argwhere(voxels > 0.85 * voxels.max()).mean(axis=0)
    return np.asarray((affine @ np.append(centre, 1))[:3])


def edit_files(files: Sequence[Path], edit: Edit) -> None:
    """Change each instance in place."""
    for index, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        edit(dataset, index)
        dataset.save_as(path)


def make_files(
    folder: Path, image: nib.Nifti1Image | None = None, *, edit: Edit | None = None, **options: Any
) -> list[Path]:
    """A classic series; options are `write_series`'s."""
    files = write_series(brain() if image is None else image, folder, **options)
    if edit is not None:
        edit_files(files, edit)
    return files


def only_series(folder: Path) -> Series:
    """The one series of a folder, all of whose files are sound."""
    scan = scan_folder(folder)
    assert not scan.problems
    [series] = scan.series
    return series


def recode(files: Sequence[Path], syntax: UID) -> None:
    """Change the transfer syntax of each instance in place, losslessly."""
    for path in files:
        dataset = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.byteswap().tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            fresh = Dataset()
            fresh.update(dataset)
            fresh.file_meta = dataset.file_meta
            pydicom.dcmwrite(path, fresh, implicit_vr=False, little_endian=False, enforce_file_format=True)
        elif syntax.is_compressed and not syntax.is_deflated:
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)


def as_enhanced(files: Sequence[Path], path: Path, *, scramble: bool = True, shared_rescale: bool = False) -> Path:
    """One Enhanced MR instance of a classic series; its frames are stored in another order than they lie."""
    classic = [pydicom.dcmread(f) for f in files]
    order = np.random.default_rng(3).permutation(len(classic)) if scramble else np.arange(len(classic))
    first = classic[0]
    whole = Dataset()
    whole.update(first)
    whole.file_meta = FileMetaDataset()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "EchoTime", "InversionTime",
                    "RepetitionTime", "ScanningSequence", "SliceLocation", "SliceThickness"):  # fmt: skip
        if keyword in whole:
            delattr(whole, keyword)
    whole.SOPClassUID = EnhancedMRImageStorage
    whole.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    whole.NumberOfFrames = len(classic)
    whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.SharedFunctionalGroupsSequence = Items([_shared_groups(first, shared_rescale)])
    whole.PerFrameFunctionalGroupsSequence = Items([_frame_groups(classic[i], int(i)) for i in order])
    whole.PixelData = b"".join(classic[i].PixelData for i in order)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path, enforce_file_format=True)
    return path


def _item(**values: Any) -> Items:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Items([item])


def _shared_groups(first: Dataset, rescaled: bool) -> Dataset:
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.MRTimingAndRelatedParametersSequence = _item(RepetitionTime=first.RepetitionTime)
    shared.MREchoSequence = _item(EffectiveEchoTime=float(first.EchoTime))
    shared.MRModifierSequence = _item(InversionRecovery="YES", InversionTimes=[float(first.InversionTime)])
    if rescaled:
        shared.PixelValueTransformationSequence = _item(RescaleSlope="2.5", RescaleIntercept="-10", RescaleType="US")
    return shared


def _frame_groups(classic: Dataset, index: int) -> Dataset:
    groups = Dataset()
    groups.PlanePositionSequence = _item(ImagePositionPatient=classic.ImagePositionPatient)
    groups.FrameContentSequence = _item(StackID="1", InStackPositionNumber=index + 1)
    return groups
