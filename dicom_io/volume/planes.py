"""Image planes of a series: where each frame lies in the patient, and what sets it apart from its neighbours.

Classic instances hold one plane each (PS3.3 C.7.6.2); enhanced ones describe each frame by functional groups
(PS3.3 C.7.6.16.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.errors import GeometryError
from dicom_io.series.group import Series
from dicom_io.series.timing import Timing, read_timing

Float = npt.NDArray[np.float64]
Lookup = Callable[[str, str], Dataset | None]

DISTINCTIONS: tuple[tuple[str, str], ...] = (
    ("MREchoSequence", "EffectiveEchoTime"),
    ("", "EchoTime"),
    ("", "EchoNumbers"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("", "TemporalPositionIdentifier"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("", "DiffusionBValue"),
    ("MRModifierSequence", "InversionTimes"),
    ("", "InversionTime"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("", "ImageType"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("", "TriggerTime"),
    ("FrameContentSequence", "StackID"),
    ("", "AcquisitionNumber"),
    ("", "AcquisitionTime"),
)
"""(functional group sequence or "" for a classic header, keyword): what may set two images at one place apart."""


@dataclass(frozen=True)
class Plane:
    """One frame of one instance.

    Attributes:
        path: The file that holds it.
        sop_class_uid: SOP Class UID of its instance.
        sop_instance_uid: SOP Instance UID of its instance.
        frame_number: 1-based; None for a single-frame instance.
        instance_number: InstanceNumber; None where absent.
        rows: Rows.
        columns: Columns.
        position: (3,) ImagePositionPatient, mm, LPS.
        orientation: (2, 3) ImageOrientationPatient: direction of increasing column index, then of row index.
        pixel_spacing: (between rows, between columns), mm.
        thickness: SliceThickness, mm; None where absent.
        distinctions: Texts of the attributes of `DISTINCTIONS` that are present.
        timing: Of its acquisition.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    instance_number: int | None
    rows: int
    columns: int
    position: Float
    orientation: Float
    pixel_spacing: tuple[float, float]
    thickness: float | None
    distinctions: Mapping[str, str]
    timing: Timing

    @property
    def name(self) -> str:
        """How messages call it."""
        number = f"image {self.instance_number}" if self.instance_number is not None else self.path.name
        return number if self.frame_number is None else f"{number} frame {self.frame_number}"


def series_planes(series: Series) -> tuple[Plane, ...]:
    """Planes of all instances of a series, in its order.

    Raises:
        GeometryError: An instance does not say where it lies, or is a mosaic.
    """
    planes: list[Plane] = []
    for path, dataset in zip(series.files, series.headers, strict=True):
        _refuse_mosaic(dataset, path)
        if header.is_multiframe(dataset):
            planes.extend(_frame_planes(path, dataset))
        else:
            planes.append(_classic_plane(path, dataset))
    return tuple(planes)


def _refuse_mosaic(dataset: Dataset, path: Path) -> None:
    """A Siemens mosaic tiles all slices into one picture, and its position is not that of any slice."""
    if "MOSAIC" in (t.upper() for t in header.texts(dataset, "ImageType")):
        raise GeometryError(f"{path.name}: a Siemens mosaic (many slices tiled into one picture) is not supported")


def _classic_plane(path: Path, dataset: Dataset) -> Plane:
    frames = header.whole_number(dataset, "NumberOfFrames") or 1
    if frames > 1:
        raise GeometryError(f"{path.name}: expected functional groups for its {frames} frames, got none")
    return _plane(path, dataset, None, lambda _sequence, _keyword: dataset)


def _frame_planes(path: Path, dataset: Dataset) -> list[Plane]:
    frames = header.whole_number(dataset, "NumberOfFrames") or 1
    described = len(header.items(dataset, "PerFrameFunctionalGroupsSequence"))
    if described != frames:
        raise GeometryError(f"{path.name}: expected functional groups for {frames} frames, got {described}")

    def groups_of(index: int) -> Lookup:
        def look_up(sequence: str, keyword: str) -> Dataset | None:
            if not sequence:
                return None
            found = header.functional_group(dataset, index, sequence)
            return found if found is not None and keyword in found else None

        return look_up

    return [_plane(path, dataset, index + 1, groups_of(index)) for index in range(frames)]


def _plane(path: Path, dataset: Dataset, frame_number: int | None, look_up: Lookup) -> Plane:
    name = path.name if frame_number is None else f"{path.name} frame {frame_number}"

    def vector(sequence: str, keyword: str, count: int) -> Float:
        holder = look_up(sequence, keyword)
        found = header.vector(holder, keyword, count) if holder is not None else ()
        if not found:
            got = len(header.numbers(holder, keyword)) if holder is not None else 0
            beyond = " beyond all measure" if got == count else ""
            raise GeometryError(f"{name}: expected {count} numbers in {keyword}, got {got}{beyond}")
        return np.array(found, dtype=np.float64)

    spacing = vector("PixelMeasuresSequence", "PixelSpacing", 2)
    orientation = vector("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(orientation @ orientation.T, np.eye(2), atol=1e-3):
        raise GeometryError(
            f"{name}: expected two orthogonal unit vectors in ImageOrientationPatient, "
            f"got {orientation.ravel().tolist()}"
        )
    measures = look_up("PixelMeasuresSequence", "SliceThickness")
    return Plane(
        path=path,
        sop_class_uid=header.uid(dataset, "SOPClassUID"),
        sop_instance_uid=header.uid(dataset, "SOPInstanceUID"),
        frame_number=frame_number,
        instance_number=header.whole_number(dataset, "InstanceNumber"),
        rows=header.whole_number(dataset, "Rows") or 0,
        columns=header.whole_number(dataset, "Columns") or 0,
        position=vector("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=orientation,
        pixel_spacing=(float(spacing[0]), float(spacing[1])),
        thickness=header.number(measures, "SliceThickness") if measures is not None else None,
        distinctions=_distinctions(look_up, classic=frame_number is None),
        timing=read_timing(dataset, (frame_number or 1) - 1),
    )


def _distinctions(look_up: Lookup, *, classic: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for sequence, keyword in DISTINCTIONS:
        if classic != (sequence == ""):
            continue
        holder = look_up(sequence, keyword)
        if holder is not None and (text := header.text(holder, keyword)):
            found[keyword] = text
    return found
