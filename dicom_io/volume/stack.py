"""From image planes to one validated `SeriesGeometry`, or the reason why they are no regular stack.

The checks run before any converter sees the series: converters differ in what they silently accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dicom_io import header
from dicom_io.errors import GeometryError, SeriesError
from dicom_io.series.group import Series
from dicom_io.volume.geometry import Float, SeriesGeometry, SourceSlice
from dicom_io.volume.planes import DISTINCTIONS, Plane, series_planes

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference between direction cosines of two slices that count as parallel."""
TILT_TOLERANCE = 0.02
"""Largest sine of the angle between the slices' normal and the direction in which they are stacked (1.1 degrees)."""
SPACING_TOLERANCE = 0.03
"""How far a slice may lie off the regular grid, as a share of the slice spacing."""
POSITION_TOLERANCE = 0.02
"""How far a slice may lie off the regular grid in any case, mm: positions are often rounded to 0.01 mm."""
MOST_MISSING = 10
"""Slices that a gap may hold, over those that came; larger ones are no gaps but another place."""
NAMED_AT_MOST = 8
"""Positions that a message lists before it only counts the rest."""


def series_geometry(series: Series) -> SeriesGeometry:
    """Geometry of a series whose planes form one regular stack.

    Args:
        series: As scanned.

    Raises:
        SeriesError: The instances come from several patients or studies.
        GeometryError: The planes form no regular stack; the text names the planes or positions at fault.
    """
    check_one_patient(series)
    return stack_geometry(series, series_planes(series))


def check_one_patient(series: Series) -> None:
    """Refuse a series that mixes patients, studies or frames of reference.

    Raises:
        SeriesError: It does.
    """
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        found = {header.text(h, keyword) for h in series.headers}
        if keyword == "FrameOfReferenceUID":
            found.discard("")  # said by some of the slices, it holds for the stack that they form
        if len(found) > 1:
            shown = ", ".join(repr(v) for v in sorted(found))
            raise SeriesError(f"series {series.series_uid}: expected one {keyword}, got {len(found)}: {shown}")


def stack_geometry(series: Series, planes: Sequence[Plane]) -> SeriesGeometry:
    """Geometry of planes that form one regular stack; see `series_geometry`."""
    _check_orientation(planes)
    _check_same_grid(planes)
    ordered = sort_planes(planes)
    _check_repeats(ordered)
    spacing = _slice_spacing(ordered)
    _check_one_contrast(ordered)
    first = ordered[0]
    return SeriesGeometry(
        series_uid=series.series_uid,
        study_uid=series.study_uid,
        frame_of_reference_uid=next((u for h in series.headers if (u := header.uid(h, "FrameOfReferenceUID"))), None),
        rows=first.rows,
        columns=first.columns,
        pixel_spacing=first.pixel_spacing,
        slice_spacing=spacing,
        orientation=_six(first.orientation),
        slices=tuple(_source_slice(series.folder, p) for p in ordered),
    )


def plane_normal(plane: Plane) -> Float:
    """Unit vector (3,), LPS, along which slices are sorted."""
    normal = np.cross(plane.orientation[0], plane.orientation[1])
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def sort_planes(planes: Sequence[Plane]) -> list[Plane]:
    """Planes by their distance along the first one's normal, ascending."""
    normal = plane_normal(planes[0])
    return sorted(planes, key=lambda p: (float(p.position @ normal), p.instance_number or 0, p.frame_number or 0))


def _six(orientation: Float) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = (float(v) for v in orientation.ravel())
    return (a, b, c, d, e, f)


def _source_slice(folder: Path, plane: Plane) -> SourceSlice:
    x, y, z = (float(v) for v in plane.position)
    return SourceSlice(
        file=plane.path.relative_to(folder).as_posix() if plane.path.is_relative_to(folder) else str(plane.path),
        sop_class_uid=plane.sop_class_uid,
        sop_instance_uid=plane.sop_instance_uid,
        frame_number=plane.frame_number,
        position=(x, y, z),
        instance_number=plane.instance_number,
    )


def _check_same_grid(planes: Sequence[Plane]) -> None:
    sizes = {(p.rows, p.columns) for p in planes}
    if len(sizes) > 1:
        shown = ", ".join(f"{r}x{c}" for r, c in sorted(sizes))
        raise GeometryError(f"expected slices of one size, got {shown}")
    spacings = np.array([p.pixel_spacing for p in planes])
    if (spacings <= 0).any() or not np.allclose(spacings, spacings[0], rtol=1e-3, atol=0):
        shown = ", ".join(f"{r:g}x{c:g}" for r, c in sorted({p.pixel_spacing for p in planes}))
        raise GeometryError(f"expected one PixelSpacing > 0 mm, got {shown}")


def _check_orientation(planes: Sequence[Plane]) -> None:
    groups: list[tuple[Float, int]] = []
    for plane in planes:
        for index, (orientation, count) in enumerate(groups):
            if np.abs(plane.orientation - orientation).max() <= ORIENTATION_TOLERANCE:
                groups[index] = (orientation, count + 1)
                break
        else:
            groups.append((plane.orientation, 1))
    if len(groups) > 1:
        shown = "; ".join(f"{count} at {np.round(o.ravel(), 3).tolist()}" for o, count in groups[:NAMED_AT_MOST])
        raise GeometryError(f"mixed orientations: expected parallel slices, got {len(groups)} orientations: {shown}")


def _check_repeats(ordered: Sequence[Plane]) -> None:
    """Several images at one place: say what sets them apart."""
    places = group_by_position(ordered)
    crowded = [place for place in places if len(place) > 1]
    if not crowded:
        return
    where = _listed([_at(place[0].position) for place in crowded])
    differing = _first_distinction(crowded)
    if len(places) == 1:
        raise GeometryError(f"not a volume: all {len(ordered)} images lie at {where}{differing}")
    raise GeometryError(
        f"expected one image at each slice position, got {len(ordered)} images at {len(places)} positions{differing}; "
        f"several lie at {where}"
    )


def _check_one_contrast(ordered: Sequence[Plane]) -> None:
    """Refuse a regular stack whose slices are of two acquisitions, such as frames of two echoes side by side."""
    known = ordered[0].timing
    for plane in ordered[1:]:
        if known.conflicts(plane.timing):
            raise GeometryError(
                f"two contrasts in one stack: {ordered[0].name} has {known.described}, {plane.name} "
                f"{plane.timing.described}"
            )
        known = known.filled_by(plane.timing)


def group_by_position(ordered: Sequence[Plane]) -> list[list[Plane]]:
    """Sorted planes, those at the same place together."""
    places: list[list[Plane]] = []
    for plane in ordered:
        if places and np.linalg.norm(plane.position - places[-1][0].position) < POSITION_TOLERANCE:
            places[-1].append(plane)
        else:
            places.append([plane])
    return places


def _first_distinction(crowded: Sequence[Sequence[Plane]]) -> str:
    for _, keyword in DISTINCTIONS:
        values = list(dict.fromkeys(p.distinctions.get(keyword, "absent") for place in crowded for p in place))
        if all(len({p.distinctions.get(keyword) for p in place}) > 1 for place in crowded):
            return f" that differ in {keyword} ({', '.join(values[:NAMED_AT_MOST])})"
    return ", duplicates by their headers"


def _slice_spacing(ordered: Sequence[Plane]) -> float:
    """Distance between neighbouring slices, mm, after checking that it is one distance, along the normal."""
    if len(ordered) == 1:
        return ordered[0].thickness or 1.0
    positions = np.array([p.position for p in ordered])  # (slices, 3)
    normal = plane_normal(ordered[0])
    along = positions @ normal
    steps = np.diff(along)
    if steps.min() < POSITION_TOLERANCE:
        raise GeometryError(f"not a volume: images lie beside each other in one plane, such as {ordered[0].name}")
    spacing = float(np.median(steps))
    tolerance = max(SPACING_TOLERANCE * spacing, POSITION_TOLERANCE)
    if np.abs(steps - spacing).max() > 2 * tolerance:
        _refuse_steps(ordered, steps)
    _check_tilt(positions, normal)
    grid = np.linspace(positions[0], positions[-1], len(ordered))
    off = np.linalg.norm(positions - grid, axis=1)
    if off.max() > tolerance:
        worst = int(off.argmax())
        raise GeometryError(
            f"unequal slice positions: {ordered[worst].name} at {_at(ordered[worst].position)} lies "
            f"{off[worst]:.2f} mm off a regular stack of {spacing:.3f} mm"
        )
    return float((along[-1] - along[0]) / (len(ordered) - 1))


def _check_tilt(positions: Float, normal: Float) -> None:
    direction = positions[-1] - positions[0]
    sine = float(np.linalg.norm(np.cross(direction / np.linalg.norm(direction), normal)))
    if sine > TILT_TOLERANCE:
        raise GeometryError(
            f"gantry tilt: the slices are stacked {np.degrees(np.arcsin(min(sine, 1.0))):.1f} degrees off their normal"
        )


def _refuse_steps(ordered: Sequence[Plane], steps: Float) -> None:
    """Tell missing slices (steps that are multiples of the smallest common one) from unequal spacing."""
    spacing = _common_step(steps)
    counts = np.rint(steps / spacing)
    regular = np.abs(steps - counts * spacing) <= np.maximum(SPACING_TOLERANCE * steps, POSITION_TOLERANCE)
    if not regular.all() or counts.max() < 2 or counts.min() < 1 or counts.sum() > MOST_MISSING * len(counts):
        raise GeometryError(
            f"unequal slice spacing: expected one distance, got {steps.min():.3f} to {steps.max():.3f} mm, largest "
            f"between {ordered[int(steps.argmax())].name} and {ordered[int(steps.argmax()) + 1].name}"
        )
    missing: list[str] = []
    for index, count in enumerate(counts.astype(int)):
        start, end = ordered[index].position, ordered[index + 1].position
        missing += [_at(start + (end - start) * part / count) for part in range(1, count)]
    raise GeometryError(
        f"missing slices: a stack every {spacing:.3f} mm lacks {len(missing)} of {len(ordered) + len(missing)}, "
        f"at {_listed(missing)}"
    )


def _common_step(steps: Float) -> float:
    """The most frequent step; of equally frequent ones the smallest."""
    near = np.abs(steps[:, None] - steps[None, :]) <= np.maximum(SPACING_TOLERANCE * steps, POSITION_TOLERANCE)
    votes = near.sum(axis=1)
    return float(steps[votes == votes.max()].min())


def _at(position: Float) -> str:
    x, y, z = position
    return f"({x:.2f}, {y:.2f}, {z:.2f})"


def _listed(named: Sequence[str]) -> str:
    shown = ", ".join(named[:NAMED_AT_MOST])
    rest = len(named) - NAMED_AT_MOST
    return f"{shown} and {rest} more" if rest > 0 else shown
