"""Rules that objects of several kinds keep; each yields the faults it finds, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydicom import Dataset

from dicom_io.volume.geometry import SeriesGeometry

Faults = Iterator[str]


def value_faults(dataset: Dataset, expected: Mapping[str, object]) -> Faults:
    """Attributes, by keyword, that must have a value."""
    for keyword, value in expected.items():
        if dataset.get(keyword) != value:
            yield f"{keyword}: expected {value}, found {dataset.get(keyword)}"


def orientation_faults(orientation: Sequence[float] | None, geometry: SeriesGeometry) -> Faults:
    """ImageOrientationPatient must be the source's."""
    found = np.array(orientation or [0] * 6, dtype=np.float64)
    if not np.allclose(found, geometry.orientation, atol=2e-3):
        yield f"ImageOrientationPatient: expected {geometry.orientation}, found {found.tolist()}"


def volume_faults(dataset: Dataset, geometry: SeriesGeometry) -> Faults:
    """A multi-frame object lies on the grid of its source."""
    yield from value_faults(
        dataset,
        {
            "FrameOfReferenceUID": geometry.frame_of_reference_uid,
            "Rows": geometry.rows,
            "Columns": geometry.columns,
        },
    )
    shared = dataset.SharedFunctionalGroupsSequence[0]
    yield from orientation_faults(shared.PlaneOrientationSequence[0].ImageOrientationPatient, geometry)
