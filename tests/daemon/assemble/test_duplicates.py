"""Instances that share UIDs: every one that was acknowledged ends in a job, or as a duplicate that can be seen."""

from __future__ import annotations

import copy

import pytest
from ingest_support import Bench, data_set_bytes, encode, make_series
from pydicom import dcmread
from pydicom.uid import generate_uid
from record_support import an_arrival

from daemon.assemble.arrival import warnings_of
from daemon.assemble.index import arrival_of_series, notes_on_study
from daemon.database.tables import INSTANCES, InstanceState
from daemon.jobs.records import Arrival


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def with_uids_of(series, count):
    """Another patient's study whose first instances have the SOP Instance UIDs of `series`."""
    other = make_series(len(series))
    for mine, theirs in zip(other[:count], series[:count], strict=True):
        mine.SOPInstanceUID = mine.file_meta.MediaStorageSOPInstanceUID = theirs.SOPInstanceUID
        mine.PatientID = "SOMEONE ELSE"
    return other


def inputs(arrival):
    return sorted(data_set_bytes(path) for path in (arrival.folder / "input").iterdir())


@pytest.mark.parametrize("shared", [4, 2], ids=["all", "half"])
@pytest.mark.parametrize("together", [True, False])
def test_another_study_with_the_same_sop_uids_is_a_study_like_any_other(bench, shared, together):
    first = make_series(4)
    second = with_uids_of(first, shared)
    bench.receive(first)
    arrivals = [] if together else list(bench.assembler.step(1010.0))
    bench.receive(second, at=1011.0, association="a2")
    arrivals += bench.assembler.step(1025.0)
    assert [inputs(a) for a in arrivals] == [sorted(map(encode, first)), sorted(map(encode, second))]
    assert {row.state for row in bench.rows(INSTANCES)} == {InstanceState.HANDED_OVER}
    [warning] = warnings_of(Arrival.read(arrivals[1].folder / "arrival.json"), (second[0].SeriesInstanceUID,))
    assert f"{shared} images" in warning
    assert first[0].StudyInstanceUID in warning
    for mine, other in ((first, second), (second, first)):  # the first job may be over: its page says it
        [note] = notes_on_study(bench.engine, mine[0].StudyInstanceUID)
        assert other[0].StudyInstanceUID in note


def test_two_series_of_a_study_that_share_sop_uids_are_both_handed_over(bench):
    first = make_series(3)
    second = copy.deepcopy(first)
    uid = generate_uid()
    for dataset in second:
        dataset.SeriesInstanceUID = uid
    bench.receive([*first, *second])
    [arrival] = bench.assembler.step(1010.0)
    assert inputs(arrival) == sorted(map(encode, [*first, *second]))
    record = Arrival.read(arrival.folder / "arrival.json")
    assert len(warnings_of(record, (uid,))) == len(warnings_of(record, (first[0].SeriesInstanceUID,))) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: setattr(d, "PixelData", bytes(reversed(d.PixelData))), "other pixels"),
        (lambda d: setattr(d, "InstitutionName", "Elsewhere"), "another header"),
    ],
)
def test_a_duplicate_by_its_uids_is_named_in_the_report(bench, change, said):
    series = make_series(3)
    others = copy.deepcopy(series[:2])
    for dataset in others:
        change(dataset)
    bench.receive([*series, *others])
    [arrival] = bench.assembler.step(1010.0)
    assert inputs(arrival) == sorted(map(encode, series)), "those that came first"
    uid = series[0].SeriesInstanceUID
    [warning] = warnings_of(Arrival.read(arrival.folder / "arrival.json"), (uid,))
    assert "2 images" in warning
    assert said in warning
    assert "2 duplicates" in arrival_of_series(bench.engine, uid)
    assert {dcmread(path).SOPInstanceUID for path in (bench.folder / "conflicts").iterdir()} == {
        d.SOPInstanceUID for d in others
    }


def test_a_duplicate_after_the_job_can_be_seen(bench):
    series = make_series(3)
    bench.receive(series)
    bench.assembler.step(1010.0)
    other = copy.deepcopy(series[1])
    other.PatientID = "SOMEONE ELSE"
    bench.receive([other, series[0]], at=2000.0, association="a2")
    assert bench.assembler.step(3000.0) == ()
    notes = " ".join(notes_on_study(bench.engine, series[0].StudyInstanceUID))
    assert "1 instances are duplicates" in notes
    assert "1 instances came again" in notes


def test_instances_lost_on_the_disk_are_named_in_the_report(bench):
    series = make_series(3)
    bench.receive(series)
    victim = next(row for row in bench.rows(INSTANCES) if row.sop_uid == series[1].SOPInstanceUID)
    with (bench.folder / "spool" / victim.segment).open("r+b") as file:
        file.seek(victim.data_offset + victim.data_length - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    [arrival] = bench.assembler.step(1010.0)
    [warning] = warnings_of(Arrival.read(arrival.folder / "arrival.json"), (series[0].SeriesInstanceUID,))
    assert "1 images" in warning
    assert "lost" in warning


def test_what_became_of_any_slice_is_said_where_each_came_as_a_series_of_its_own():
    conflict = {"sop_uid": "9", "sha256": "x", "calling_aet": "A", "received": 0.0, "same_pixels": False}
    record = an_arrival(
        series_uids=["1.1", "1.2", "1.4", "1.7"],
        conflicts=[{"series_uid": uid, **conflict} for uid in ("1.2", "1.7")],
        damaged=[{"series_uid": uid, "sop_uid": "8"} for uid in ("1.3", "1.4", "1.7")],
    )
    changed, lost, alone = warnings_of(record, ("1.1", "1.2", "1.4"))
    assert "1 images of the series were sent a second time" in changed
    assert "1 images of the series were lost" in lost
    assert "1 images were lost on the disk of which nothing else came" in alone
    assert warnings_of(record, ("1.1",)) == []
