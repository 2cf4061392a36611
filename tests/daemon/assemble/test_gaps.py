from __future__ import annotations

import pytest
from ingest_support import Bench, make_series
from pydicom import Dataset

from daemon.assemble.gaps import find_gaps
from daemon.files import read_json

AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]


def slices(positions, orientation=AXIAL) -> list[Dataset]:
    headers = []
    axis = 2 if orientation == AXIAL else 0
    for position in positions:
        header = Dataset()
        header.ImageOrientationPatient = orientation
        place = [0.0, 0.0, 0.0]
        place[axis] = position
        header.ImagePositionPatient = place
        headers.append(header)
    return headers


@pytest.mark.parametrize(
    ("positions", "missing"),
    [
        ([0, 5, 10, 15, 20], 0),
        ([20, 0, 15, 5, 10], 0),
        ([0, 5, 15, 20], 1),
        ([0, 5, 10, 25, 30, 35], 2),
        ([0.0, 5.01, 9.99, 15.02], 0),
        ([0, 0, 5, 5, 10, 10, 15, 15], 0),
        ([0, 5, 50], 0),
    ],
    ids=["whole", "out of order", "one", "two", "uneven within tolerance", "two volumes", "too few to tell"],
)
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_missing_slices_are_counted(positions, missing, orientation):
    gaps = find_gaps("1.2", slices(positions, orientation))
    assert sum(gap.missing for gap in gaps) == missing


def test_orientations_are_judged_apart():
    assert find_gaps("1.2", slices([0, 5, 10, 15]) + slices([100, 107, 114, 121], SAGITTAL)) == ()


def test_images_in_acquisition_counts():
    headers = slices([0, 5, 10, 15])
    for header in headers:
        header.ImagesInAcquisition = 6
    [gap] = find_gaps("1.2", headers)
    assert (gap.present, gap.missing) == (4, 2)
    headers[0].AcquisitionNumber = 2
    assert find_gaps("1.2", headers) == ()


def test_headers_without_geometry_have_no_gaps():
    assert find_gaps("1.2", [Dataset()] * 5) == ()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def placed_series(count: int) -> list[Dataset]:
    series = make_series(count)
    for number, dataset in enumerate(series):
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = AXIAL, [0, 0, 5.0 * number]
    return series


def test_a_series_with_a_gap_gets_more_time_and_is_then_handed_over_with_the_gap(bench):
    series = placed_series(8)
    del series[3]
    bench.receive(series)
    assert bench.assembler.step(1010.0) == ()
    assert bench.assembler.step(1029.0) == ()
    [arrival] = bench.assembler.step(1030.0)
    [gap] = read_json(arrival.folder / "arrival.json")["gaps"]
    assert (gap["series_uid"], gap["present"], gap["missing"]) == (series[0].SeriesInstanceUID, 7, 1)


def test_the_missing_slice_ends_the_waiting(bench):
    series = placed_series(8)
    bench.receive([*series[:3], *series[4:]])
    assert bench.assembler.step(1010.0) == ()
    bench.receive([series[3]], at=1012.0, association="a2")
    assert bench.assembler.step(1021.0) == ()
    [arrival] = bench.assembler.step(1022.0)
    assert arrival.instances == 8
    assert read_json(arrival.folder / "arrival.json")["gaps"] == []


def test_a_late_slice_that_leaves_no_gap_is_not_held_back(bench):
    """The earlier slices are read from the job's folder."""
    series = placed_series(8)
    bench.receive(series[:6])
    [early] = bench.assembler.step(1010.0)
    bench.receive(series[6:], at=2000.0, association="a2")
    [late] = bench.assembler.step(2010.0)
    assert (late.supersedes, late.instances) == (early.job_id, 8)
