"""Received FLAIR series, made up, for tests of the result objects: any plane, any header."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from dicom_io.content.report import FindingRecord, MeasurementRecord, ModelIdentity, ReportContent
from dicom_io.content.uids import digest_uid
from dicom_io.pack.encode import Pack, encode_pack, wanted
from dicom_io.volume.geometry import SeriesGeometry, SourceSlice

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# Source axes (column, row, slice) of each plane as (RAS axis, sign along it).
PLANES = {
    "axial": ((0, -1), (1, -1), (2, 1)),  # columns run to the left, rows to the back, slices upward
    "coronal": ((0, -1), (2, -1), (1, -1)),  # columns to the left, rows downward, slices to the back
    "sagittal": ((1, -1), (2, -1), (0, 1)),  # columns to the back, rows downward, slices to the right
}
VOLUME = MeasurementRecord("lesion_volume", 0.0, "mL", "lesion map of the model", "left")
TILT = np.array([[0.94, -0.342, 0.0], [0.334, 0.917, -0.217], [0.074, 0.204, 0.976]])


@dataclass(frozen=True)
class Case:
    """A received series and what the model made of it, in the arguments of `encode_pack`."""

    files: list[Path]
    geometry: SeriesGeometry
    volume_path: Path
    saliency_path: Path | None
    lesion_path: Path | None
    content: ReportContent

    def arguments(self, **changes: object) -> dict[str, object]:
        arguments: dict[str, object] = {
            "source_files": self.files,
            "geometry": self.geometry,
            "volume_path": self.volume_path,
            "saliency_path": self.saliency_path,
            "lesion_path": self.lesion_path,
            "content": self.content,
            "identity": "case",
        }
        return arguments | changes


@cache
def default_pack() -> tuple[Case, Pack]:
    """The pack of the default case with every kind of object, encoded once for each test process; do not change it."""
    folder = Path(tempfile.mkdtemp(prefix="pack-"))
    atexit.register(shutil.rmtree, folder)
    case = make_case(folder)
    return case, encode_pack(**case.arguments(kinds=wanted(tid1500=True), out=folder / "dicom"))


def content(**changes: object) -> ReportContent:
    fields: dict[str, object] = {
        "report_text": (
            "The lesion area is in the left frontal and parietal lobes with a mixed pattern of high and low signals.\n"
            "Edema is mainly observed around the lesion. Ventricular compression is not observed."
        ),
        "findings": (
            FindingRecord("lesion", "present", "left", ("frontal", "parietal"), 0.93),
            FindingRecord("edema", "present", "left", ("frontal",)),
            FindingRecord("necrosis", "undetermined"),
            FindingRecord("ventricular_compression", "absent"),
        ),
        "warnings": ("2 slices were repeated by the sender.",),
        "banner": "Demo weights: trained on synthetic images only. Their text says nothing about any patient.",
        "intended_use": "Research use only; not a medical device.",
        "model": ModelIdentity(
            "BrainGemma3D demo", "1", "ab" * 32, "BrainGemma3D for PACS", {"prompt": "Generate a report", "seed": "42"}
        ),
        "explain": {"method": "lime", "samples": 100, "r2": 0.8},
        "measurements": (VOLUME,),
    }
    return ReportContent(**(fields | changes))  # type: ignore[arg-type]


def head(shape: tuple[int, int, int] = (40, 48, 36)) -> np.ndarray:
    """An ellipsoid head (R, A, S) with a bright ball in the left hemisphere, in front and above the middle."""
    grid = [
        np.linspace(-1, 1, n)[tuple(slice(None) if a == b else None for b in range(3))] for a, n in enumerate(shape)
    ]
    r, a, s = grid
    texture = np.random.default_rng(0).integers(200, 400, shape)
    volume = np.where(r**2 + a**2 + s**2 < 0.6, texture, 0).astype(np.int16)
    volume[left_mark(shape)] = 1000
    return volume


def left_mark(shape: tuple[int, int, int] = (40, 48, 36)) -> np.ndarray:
    """Mask of the bright ball: RAS x < 0 is the patient's left."""
    r, a, s = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.asarray((r + 0.4) ** 2 + (a - 0.3) ** 2 + (s - 0.2) ** 2 < 0.05)


def make_case(
    folder: Path,
    plane: str = "axial",
    image: nib.Nifti1Image | None = None,
    *,
    tilted: bool = False,
    weights: np.ndarray | None = None,
    lesion: np.ndarray | None = None,
    edit: Callable[[Dataset, int], None] | None = None,
    said: ReportContent | None = None,
    with_pixels: bool = False,
) -> Case:
    """Write a series of the given plane, its RAS volume, and saliency and grounding on that volume's grid.

    Args:
        folder: Where to write.
        plane: A key of `PLANES`.
        image: RAS+ volume; default: `head`.
        tilted: Whether the patient lay askew.
        weights: Saliency; default: the ball supports, a slab on the right speaks against.
        lesion: Not 0 inside the lesion, whose volume is stated where `said` states one; default: the ball.
        edit: Changes the header of the slice with that index.
        said: What the model says.
        with_pixels: Whether the instances hold pixels: the encoders do not need them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = nib.Nifti1Image(head(), np.array([[4.0, 0, 0, -78], [0, 4.0, 0, -94], [0, 0, 4.0, -70], [0, 0, 0, 1]]))
    if tilted:
        image = nib.Nifti1Image(image.get_fdata().astype(np.float32), _tilt() @ image.affine)
    array = np.asanyarray(image.dataobj)
    weights = _default_weights(array.shape) if weights is None else weights
    lesion = (left_mark(array.shape) if lesion is None else lesion > 0).astype(np.uint8)
    paths = {name: folder / f"{name}.nii.gz" for name in ("volume_ras", "saliency", "lesion")}
    for path, data in zip(paths.values(), (array, weights, lesion), strict=True):
        nib.save(nib.Nifti1Image(data, image.affine), path)
    files, geometry = _write_series(folder / "source", plane, array, image.affine, edit, with_pixels)
    said = stating(said or content(), lesion, image.affine)
    return Case(files, geometry, paths["volume_ras"], paths["saliency"], paths["lesion"], said)


def stating(said: ReportContent, lesion: np.ndarray, affine: np.ndarray) -> ReportContent:
    """The content with the volume of this lesion in place of the one that it states, where it states one."""
    value = round(float((lesion > 0).sum()) * abs(np.linalg.det(affine[:3, :3])) / 1000, 1)
    measured = (replace(m, value=value) if m.name == VOLUME.name else m for m in said.measurements)
    return replace(said, measurements=tuple(measured))


def _default_weights(shape: tuple[int, ...]) -> np.ndarray:
    weights = np.zeros(shape, dtype=np.float32)
    weights[shape[0] * 2 // 3 :] = -0.2
    weights[left_mark(shape)] = 0.4
    return weights


def _tilt() -> np.ndarray:
    left, _, right = np.linalg.svd(TILT)
    rotation = np.eye(4)
    rotation[:3, :3] = left @ right
    return rotation


def _write_series(
    folder: Path,
    plane: str,
    array: np.ndarray,
    affine: np.ndarray,
    edit: Callable[[Dataset, int], None] | None,
    with_pixels: bool,
) -> tuple[list[Path], SeriesGeometry]:
    folder.mkdir(exist_ok=True)
    axes = PLANES[plane]
    source = np.transpose(array, [axis for axis, _ in axes])
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for place, (axis, sign) in enumerate(axes):
        step[axis, place] = sign
        step[axis, 3] = 0 if sign > 0 else array.shape[axis] - 1
    to_lps = np.diag([-1.0, -1, 1, 1]) @ affine @ step
    source = source[tuple(slice(None, None, sign) for _, sign in axes)]  # (columns, rows, slices)
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    directions = to_lps[:3, :3] / spacing
    if np.dot(np.cross(directions[:, 0], directions[:, 1]), directions[:, 2]) < 0:
        raise ValueError(f"{plane}: the slices must ascend along the normal")
    files, slices = [], []
    for index in range(source.shape[2]):
        header = flair_header(index)
        header.Columns, header.Rows = source.shape[:2]
        header.PixelSpacing = [round(float(spacing[1]), 6), round(float(spacing[0]), 6)]
        header.ImageOrientationPatient = [round(float(v), 8) for v in directions[:, :2].T.ravel()]
        position = (to_lps @ [0, 0, index, 1])[:3]
        header.ImagePositionPatient = [round(float(v), 6) for v in position]
        if with_pixels:
            header.PixelData = np.ascontiguousarray(source[..., index].T).astype("<u2").tobytes()
        if edit is not None:
            edit(header, index)
        path = folder / f"{index + 1:04d}.dcm"
        header.save_as(path, enforce_file_format=True)
        files.append(path)
        slices.append(
            SourceSlice(
                file=path.name,
                sop_class_uid=str(header.SOPClassUID),
                sop_instance_uid=str(header.SOPInstanceUID),
                frame_number=None,
                position=tuple(float(v) for v in header.ImagePositionPatient),
                instance_number=index + 1,
            )
        )
    geometry = SeriesGeometry(
        series_uid=str(header.SeriesInstanceUID),
        study_uid=str(header.StudyInstanceUID),
        frame_of_reference_uid=header.get("FrameOfReferenceUID"),
        rows=int(header.Rows),
        columns=int(header.Columns),
        pixel_spacing=tuple(float(v) for v in header.PixelSpacing),
        slice_spacing=float(spacing[2]),
        orientation=tuple(float(v) for v in header.ImageOrientationPatient),
        slices=tuple(slices),
    )
    return files, geometry


def flair_header(index: int) -> Dataset:
    """A 3D FLAIR header as a Siemens scanner writes it."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = "ISO_IR 100"
    header.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
    header.SOPClassUID = MRImageStorage
    header.SOPInstanceUID = digest_uid("source", index)
    header.StudyInstanceUID = digest_uid("study")
    header.SeriesInstanceUID = digest_uid("series")
    header.FrameOfReferenceUID = digest_uid("frame")
    header.PositionReferenceIndicator = ""
    header.StudyDate, header.StudyTime = "20240131", "101112"
    header.AccessionNumber, header.StudyID = "A1", "S1"
    header.Modality, header.Manufacturer, header.ManufacturerModelName = "MR", "SIEMENS", "Prisma"
    header.ReferringPhysicianName = "Müller^Jörg"
    header.StudyDescription, header.SeriesDescription = "Schädel", "t2_space_dark-fluid_sag"
    header.PatientName, header.PatientID = "Böhm^Zoë", "P1"
    header.PatientBirthDate, header.PatientSex, header.PatientAge = "19700101", "F", "054Y"
    header.BodyPartExamined, header.PatientPosition = "HEAD", "HFS"
    header.ScanningSequence, header.SequenceVariant, header.MRAcquisitionType = ["SE", "IR"], "SK", "3D"
    header.EchoTime, header.RepetitionTime, header.InversionTime = "390", "5000", "1800"
    header.SeriesNumber, header.InstanceNumber = 4, index + 1
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    return header
