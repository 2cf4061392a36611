"""The validated geometry of one series, and the way from every voxel back to its source slice and pixel.

Coordinates: DICOM patient coordinates are LPS in mm (PS3.3 C.7.6.2.1.1); NIfTI world coordinates are RAS in mm.
The *source array* has shape (slices, rows, columns) = (k, j, i) in the order of `SeriesGeometry.slices`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.errors import FileError, GeometryError
from dicom_io.files import whole

Float = npt.NDArray[np.float64]

LPS_TO_RAS: Float = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SourceSlice:
    """One source image plane.

    Attributes:
        file: Name of the file that holds it, relative to the series' folder.
        sop_class_uid: SOP Class UID of its instance.
        sop_instance_uid: SOP Instance UID of its instance.
        frame_number: 1-based frame of a multi-frame instance; None for a single-frame instance.
        position: ImagePositionPatient, mm, LPS: centre of the first transmitted pixel.
        instance_number: InstanceNumber as received; None where absent.
    """

    file: str
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    position: tuple[float, float, float]
    instance_number: int | None = None


@dataclass(frozen=True)
class SeriesGeometry:
    """Geometry of one regular stack of parallel slices.

    Attributes:
        series_uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        frame_of_reference_uid: FrameOfReferenceUID; None where the source has none.
        rows: Rows of every slice.
        columns: Columns of every slice.
        pixel_spacing: PixelSpacing (between rows, between columns), mm.
        slice_spacing: Distance between neighbouring slice planes along the normal, mm, > 0.
        orientation: ImageOrientationPatient: direction of increasing column index, then of increasing
            row index, LPS unit vectors.
        slices: Sorted along the normal (row direction x column direction), ascending.
    """

    series_uid: str
    study_uid: str
    frame_of_reference_uid: str | None
    rows: int
    columns: int
    pixel_spacing: tuple[float, float]
    slice_spacing: float
    orientation: tuple[float, float, float, float, float, float]
    slices: tuple[SourceSlice, ...]

    def __post_init__(self) -> None:
        """Check what every later step takes for granted."""
        if not self.slices:
            raise GeometryError(f"series {self.series_uid}: expected at least one slice, got none")
        if min(self.rows, self.columns) < 1:
            raise GeometryError(f"series {self.series_uid}: expected a picture, got {self.rows}x{self.columns}")
        spacings = (*self.pixel_spacing, self.slice_spacing)
        if not all(np.isfinite(s) and s > 0 for s in spacings):
            raise GeometryError(f"series {self.series_uid}: spacings must be finite and > 0 mm, got {spacings}")
        axes = np.array(self.orientation, dtype=np.float64).reshape(2, 3)
        if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
            raise GeometryError(
                f"series {self.series_uid}: ImageOrientationPatient must hold two orthogonal unit vectors, "
                f"got {self.orientation}"
            )

    @property
    def normal(self) -> Float:
        """Unit vector (3,), LPS, from each slice to the next."""
        column_step, row_step = np.array(self.orientation, dtype=np.float64).reshape(2, 3)
        return np.asarray(np.cross(column_step, row_step), dtype=np.float64)

    @property
    def affine_lps(self) -> Float:
        """(4, 4): source voxel (column i, row j, slice k, 1) to LPS mm (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1)."""
        column_step, row_step = np.array(self.orientation, dtype=np.float64).reshape(2, 3)
        affine = np.eye(4)
        affine[:3, 0] = column_step * self.pixel_spacing[1]
        affine[:3, 1] = row_step * self.pixel_spacing[0]
        affine[:3, 2] = self._slice_step()
        affine[:3, 3] = self.slices[0].position
        return affine

    @property
    def affine_ras(self) -> Float:
        """(4, 4): source voxel (column i, row j, slice k, 1) to RAS mm."""
        return LPS_TO_RAS @ self.affine_lps

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the source array: (slices, rows, columns)."""
        return (len(self.slices), self.rows, self.columns)

    def _slice_step(self) -> Float:
        """Vector (3,), LPS mm, from one slice's origin to the next one's."""
        if len(self.slices) == 1:
            return self.normal * self.slice_spacing
        first, last = (np.array(s.position, dtype=np.float64) for s in (self.slices[0], self.slices[-1]))
        return np.asarray((last - first) / (len(self.slices) - 1), dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write as JSON, durably."""
        with whole(path) as draft:
            draft.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> SeriesGeometry:
        """Read what `save` wrote.

        Raises:
            FileError: the file cannot be read, or is no geometry.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            slices = tuple(SourceSlice(**{**s, "position": tuple(s["position"])}) for s in raw.pop("slices"))
            return cls(
                **{**raw, "pixel_spacing": tuple(raw["pixel_spacing"]), "orientation": tuple(raw["orientation"])},
                slices=slices,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{path}: expected the geometry of a series: {error!r}") from error
