from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from series_factory import as_enhanced, brain, make_files, only_series

from dicom_io.errors import GeometryError
from dicom_io.select.selection import judge
from dicom_io.volume.geometry import SeriesGeometry, SourceSlice
from dicom_io.volume.grids import axis_map, ras_grid
from dicom_io.volume.stack import series_geometry


def refused(folder: Path, message: str) -> None:
    """Both the geometry and the verdict give this reason."""
    series = only_series(folder)
    with pytest.raises(GeometryError, match=message):
        series_geometry(series)
    verdict = judge(series)
    assert not verdict.accepted
    assert any(r.rule == "geometry" and str(r).startswith("REFUSED") for r in verdict.reasons)


def moved(step: float, axis: int = 2):
    """Moves the last slices along an axis."""

    def edit(dataset, index):
        if index >= 10:
            position = [float(v) for v in dataset.ImagePositionPatient]
            position[axis] += step
            dataset.ImagePositionPatient = position

    return edit


def test_a_sound_stack(flair_files) -> None:
    geometry = series_geometry(only_series(flair_files[0].parent))
    assert geometry.shape == (21, 40, 36)
    assert geometry.slice_spacing == pytest.approx(6.0)
    assert [s.instance_number for s in geometry.slices] == list(range(1, 22))
    # voxel (0, 0, 0) is the left-most, front-most, lowest one: RAS (78.75, 85.5, -60) stored LPS
    assert np.allclose((geometry.affine_ras @ [0, 0, 0, 1])[:3], [78.75, 85.5, -60.0])


def test_missing_slices_are_named_by_position(flair_files) -> None:
    for index in (7, 8, 15):
        flair_files[index].unlink()
    refused(flair_files[0].parent, r"missing slices: a stack every 6\.000 mm lacks 3 of 21, at "
            r"\(-78\.75, -85\.50, -18\.00\), \(-78\.75, -85\.50, -12\.00\), \(-78\.75, -85\.50, 30\.00\)")  # fmt: skip


def test_a_shifted_block_is_unequal_spacing(tmp_path) -> None:
    make_files(tmp_path, edit=moved(2.5))
    refused(
        tmp_path, r"unequal slice spacing: expected one distance, got 6\.000 to 8\.500 mm, largest between image 10"
    )


def test_a_slice_that_slipped_sideways_is_named(tmp_path) -> None:
    make_files(tmp_path, edit=lambda ds, i: i == 5 and setattr(ds, "ImagePositionPatient", [-70, -85.5, -30]))
    refused(tmp_path, r"unequal slice positions: image 6 at \(-70\.00, -85\.50, -30\.00\) lies 8\.75 mm off")


def test_gantry_tilt(tmp_path) -> None:
    def shear(dataset, index):
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y + 1.5 * index, z]

    make_files(tmp_path, edit=shear)
    refused(tmp_path, r"gantry tilt: the slices are stacked 14\.0 degrees off their normal")


def test_mixed_orientations(tmp_path) -> None:
    def turn(dataset, index):
        if index % 3 == 0:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    make_files(tmp_path, edit=turn)
    refused(tmp_path, r"mixed orientations: expected parallel slices, got 2 orientations: 7 at .*; 14 at ")


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("EchoTime", ("89", "120")), ("TemporalPositionIdentifier", ("1", "2")), ("InversionTime", ("2500", "450"))],
)
def test_two_images_at_each_position_are_told_apart(tmp_path, keyword, values) -> None:
    for number, value in enumerate(values):
        uids = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2.5"}

        def number_on(dataset, index, number=number):
            dataset.InstanceNumber = 2 * index + number + 1
            dataset.SOPInstanceUID = f"1.2.3.{dataset.InstanceNumber}"

        make_files(tmp_path / value, overrides={keyword: value, **uids}, edit=number_on)
    refused(tmp_path, rf"got 42 images at 21 positions that differ in {keyword} \({values[0]}, {values[1]}\)")


def test_different_images_at_one_place_are_duplicates(tmp_path) -> None:
    def stack_up(dataset, index):
        if index == 11:
            dataset.ImagePositionPatient = [-78.75, -85.5, 0.0]

    make_files(tmp_path, edit=stack_up)
    refused(tmp_path, r"got 21 images at 20 positions, duplicates by their headers; several lie at "
            r"\(-78\.75, -85\.50, 0\.00\)")  # fmt: skip


def test_all_in_one_place_is_no_volume(tmp_path) -> None:
    make_files(tmp_path, edit=lambda ds, _: setattr(ds, "ImagePositionPatient", [0, 0, 0]))
    refused(tmp_path, "not a volume: all 21 images lie at")


def test_side_by_side_is_no_volume(tmp_path) -> None:
    make_files(tmp_path, edit=lambda ds, i: setattr(ds, "ImagePositionPatient", [10.0 * i, 0, 0]))
    refused(tmp_path, "not a volume: images lie beside each other")


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("ImagePositionPatient", None, "expected 3 numbers in ImagePositionPatient, got 0"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.5, 0], "expected two orthogonal unit vectors"),
        ("PixelSpacing", [0, 4.5], "expected one PixelSpacing > 0 mm, got 0x4.5"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], "Siemens mosaic"),
    ],
)
def test_headers_that_do_not_say_where(tmp_path, keyword, value, message) -> None:
    def edit(dataset, _):
        delattr(dataset, keyword)
        if value is not None:
            setattr(dataset, keyword, value)

    make_files(tmp_path, edit=edit)
    refused(tmp_path, message)


def test_rounded_positions_are_one_stack(tmp_path) -> None:
    def round_off(dataset, _):
        dataset.ImagePositionPatient = [round(float(v), 2) for v in dataset.ImagePositionPatient]

    make_files(tmp_path, edit=round_off, oblique_degrees=17)
    geometry = series_geometry(only_series(tmp_path))
    assert geometry.slice_spacing == pytest.approx(6.0, abs=1e-3)


def test_frames_are_sorted_by_place_not_by_number(tmp_path) -> None:
    files = make_files(tmp_path / "classic")
    whole = series_geometry(only_series(as_enhanced(files, tmp_path / "enhanced" / "e.dcm").parent))
    classic = series_geometry(only_series(tmp_path / "classic"))
    assert np.allclose(whole.affine_ras, classic.affine_ras)
    assert [s.position for s in whole.slices] == [s.position for s in classic.slices]
    assert [s.frame_number for s in whole.slices] != list(range(1, 22))


@given(
    order=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3), turn=st.floats(-0.7, 0.7),
    spacing=st.tuples(*[st.floats(0.4, 7)] * 3),
)  # fmt: skip
def test_axis_maps_move_voxels_to_where_their_millimetres_are(order, flips, turn, spacing) -> None:
    c, s = np.cos(turn), np.sin(turn)
    source = np.eye(4)
    source[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    source[:3, 3] = (-50, 20, 3)
    shape = (4, 5, 6)
    array = np.arange(120).reshape(shape)
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for axis in range(3):
        step[order[axis], axis] = -1 if flips[axis] else 1
        step[order[axis], 3] = shape[order[axis]] - 1 if flips[axis] else 0
    target, sizes = source @ step, tuple(shape[o] for o in order)
    found = axis_map(source, shape, target, sizes)
    assert found is not None
    moved_array = found.apply(array)
    for index in np.ndindex(*sizes):
        there = np.rint(step @ [*index, 1]).astype(int)[:3]
        assert moved_array[index] == array[tuple(there)]
    assert axis_map(source, shape, target + _nudge(0.5), sizes) is None


def _nudge(distance: float) -> np.ndarray:
    nudge = np.zeros((4, 4))
    nudge[0, 3] = distance
    return nudge


def test_the_ras_grid_is_the_closest_one(tmp_path) -> None:
    for plane in ("axial", "coronal", "sagittal"):
        make_files(tmp_path / plane, plane=plane)
        affine, shape = ras_grid(series_geometry(only_series(tmp_path / plane)))
        assert np.allclose(affine, brain().affine, atol=1e-6)
        assert shape == brain().shape


def test_geometry_survives_its_file(tmp_path, flair_files) -> None:
    geometry = series_geometry(only_series(flair_files[0].parent))
    geometry.save(tmp_path / "g.json")
    assert SeriesGeometry.load(tmp_path / "g.json") == geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": ()}, "at least one slice"),
        ({"rows": 0}, "expected a picture"),
        ({"slice_spacing": float("nan")}, "finite and > 0"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "orthogonal"),
    ],
)
def test_an_impossible_geometry_cannot_be_made(change, message) -> None:
    values = {
        "series_uid": "1", "study_uid": "2", "frame_of_reference_uid": None, "rows": 4, "columns": 4,
        "pixel_spacing": (1.0, 1.0), "slice_spacing": 1.0, "orientation": (1.0, 0, 0, 0, 1, 0),
        "slices": (SourceSlice("a", "1", "2", None, (0, 0, 0)),),
    }  # fmt: skip
    SeriesGeometry(**values)
    with pytest.raises(GeometryError, match=message):
        SeriesGeometry(**(values | change))
