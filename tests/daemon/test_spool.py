from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_support import encode, instances_in, make_series, meta_of

from daemon.spool import (
    SEGMENT_MAGIC,
    Damage,
    NotDurable,
    Record,
    RecordKind,
    SpoolFull,
    SpoolWriter,
    is_alive,
    read_data,
    read_records,
    segment_receiver,
)


@pytest.fixture
def writer(tmp_path):
    writer = SpoolWriter(tmp_path / "spool")
    yield writer
    writer.close()


def segments(writer: SpoolWriter) -> list[Path]:
    return sorted(writer.folder.glob("*.seg"))


def test_what_is_appended_is_read_back_byte_for_byte(writer):
    series = make_series(5)
    for dataset in series:
        writer.append(meta_of(dataset), [encode(dataset)])
    writer.end_association("a1")
    records = list(read_records(segments(writer)[0], final=True))
    assert [record.kind for record in records] == [RecordKind.INSTANCE] * 5 + [RecordKind.ASSOCIATION_END]
    for dataset, record in zip(series, records, strict=False):
        assert record.meta["sop_instance_uid"] == dataset.SOPInstanceUID
        assert read_data(segments(writer)[0], record.data_offset, record.data_length) == encode(dataset)


def test_a_data_set_in_pieces_is_one_data_set(writer):
    dataset = make_series(1)[0]
    data = encode(dataset)
    writer.append(meta_of(dataset), [data[:100], memoryview(data)[100:101], data[101:]])
    [(record, found)] = instances_in(writer.folder)
    assert found == data
    assert record.data_length == len(data)


def test_folder_and_files_are_for_the_user_alone(writer):
    dataset = make_series(1)[0]
    writer.append(meta_of(dataset), [encode(dataset)])
    assert stat.S_IMODE(writer.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in writer.folder.iterdir()} == {0o600}


def test_append_returns_only_after_a_sync_that_covers_it(tmp_path):
    """The file holds the whole record when the sync begins, and the sync ends before append returns."""
    sizes = []
    writer = SpoolWriter(tmp_path, sync=lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    for dataset in make_series(3):
        writer.append(meta_of(dataset), [encode(dataset)])
        assert sizes[-1] == segments(writer)[0].stat().st_size
    writer.close()


def test_associations_share_a_sync(tmp_path):
    """While one sync runs, everything that arrives waits for the next one, together."""
    entered, leave = threading.Event(), threading.Event()
    syncs = []

    def sync(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) == 2:  # the first makes the segment, the second covers the first instance
            entered.set()
            leave.wait(10)

    writer = SpoolWriter(tmp_path, sync=sync)
    series = make_series(8)
    threads = [threading.Thread(target=writer.append, args=(meta_of(d), [encode(d)])) for d in series]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(writer._waiting) < 7:
        pass
    leave.set()
    for thread in threads:
        thread.join(10)
    assert len(syncs) == 3
    assert len(instances_in(tmp_path)) == 8
    writer.close()


@pytest.mark.parametrize(("code", "expected"), [(errno.EIO, NotDurable), (errno.ENOSPC, SpoolFull)])
def test_a_failed_sync_fails_the_instance_and_poisons_the_segment(tmp_path, code, expected):
    failing = False

    def sync(descriptor: int) -> None:
        if failing:
            raise OSError(code, os.strerror(code))
        os.fdatasync(descriptor)

    writer = SpoolWriter(tmp_path, sync=sync)
    first, second, third = make_series(3)
    writer.append(meta_of(first), [encode(first)])
    failing = True
    with pytest.raises(expected):
        writer.append(meta_of(second), [encode(second)])
    failing = False
    size = segments(writer)[0].stat().st_size
    writer.append(meta_of(third), [encode(third)])
    assert len(segments(writer)) == 2
    assert segments(writer)[0].stat().st_size == size, "a poisoned segment is never written again"
    kept = {record.meta["sop_instance_uid"] for record, _ in instances_in(tmp_path)}
    assert {first.SOPInstanceUID, third.SOPInstanceUID} <= kept
    writer.close()


def test_every_member_of_a_failed_group_fails(tmp_path):
    calls = 0
    entered, leave = threading.Event(), threading.Event()

    def sync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            entered.set()
            leave.wait(10)
        if calls == 3:
            raise OSError(errno.EIO, "disk failed")

    writer = SpoolWriter(tmp_path, sync=sync)
    results: dict[int, str] = {}

    def send(number: int, dataset) -> None:
        try:
            writer.append(meta_of(dataset), [encode(dataset)])
            results[number] = "stored"
        except NotDurable:
            results[number] = "failed"

    threads = [threading.Thread(target=send, args=(n, d)) for n, d in enumerate(make_series(4))]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(writer._waiting) < 3:
        pass
    leave.set()
    for thread in threads:
        thread.join(10)
    assert results == {0: "stored", 1: "failed", 2: "failed", 3: "failed"}
    writer.close()


def test_too_little_free_space_refuses(tmp_path):
    writer = SpoolWriter(tmp_path, min_free_bytes=1 << 60)
    dataset = make_series(1)[0]
    with pytest.raises(SpoolFull, match="expected at least"):
        writer.append(meta_of(dataset), [encode(dataset)])
    assert segments(writer) == []
    writer.close()


def test_a_full_segment_is_followed_by_a_new_one(tmp_path):
    writer = SpoolWriter(tmp_path, segment_bytes=10_000)
    series = make_series(12)
    for dataset in series:
        writer.append(meta_of(dataset), [encode(dataset)])
    assert len(segments(writer)) > 2
    assert [record.meta["sop_instance_uid"] for record, _ in instances_in(tmp_path)] == [
        dataset.SOPInstanceUID for dataset in series
    ]
    writer.close()


def test_after_close_nothing_is_taken(tmp_path):
    writer = SpoolWriter(tmp_path)
    writer.close()
    dataset = make_series(1)[0]
    with pytest.raises(NotDurable):
        writer.append(meta_of(dataset), [encode(dataset)])


def test_a_receiver_is_alive_as_long_as_it_holds_its_lock(tmp_path):
    writer = SpoolWriter(tmp_path)
    assert is_alive(tmp_path, writer.receiver)
    writer.close()
    assert not is_alive(tmp_path, writer.receiver)
    assert not is_alive(tmp_path, "never-was")


def test_the_segment_names_its_receiver(writer):
    dataset = make_series(1)[0]
    writer.append(meta_of(dataset), [encode(dataset)])
    assert segment_receiver(segments(writer)[0].name) == writer.receiver


@pytest.fixture(scope="module")
def sound_segment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    writer = SpoolWriter(folder)
    for dataset in make_series(4, rows=16):
        writer.append(meta_of(dataset), [encode(dataset)])
    writer.close()
    [segment] = folder.glob("*.seg")
    return segment.read_bytes(), list(read_records(segment, final=True))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_tail_costs_only_the_torn_record(tmp_path, sound_segment, data):
    """Cut anywhere: every record that ends before the cut is served, the rest is damage when nobody writes any more."""
    raw, records = sound_segment
    cut = data.draw(st.integers(len(SEGMENT_MAGIC), len(raw)))
    path = tmp_path / "cut.seg"
    path.write_bytes(raw[:cut])
    whole = [record for record in records if record.end <= cut]
    found = list(read_records(path, final=True))
    assert [entry for entry in found if isinstance(entry, Record)] == whole
    damage = [entry for entry in found if isinstance(entry, Damage)]
    last = whole[-1].end if whole else len(SEGMENT_MAGIC)
    assert sum(entry.end - entry.offset for entry in damage) == cut - last
    assert list(read_records(path, final=False)) == whole, "a record still being written is waited for"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_costs_only_its_record(tmp_path, sound_segment, data):
    raw, records = sound_segment
    place = data.draw(st.integers(len(SEGMENT_MAGIC), len(raw) - 1))
    changed = bytearray(raw)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.seg"
    path.write_bytes(changed)
    found = list(read_records(path, final=True))
    untouched = [record for record in records if not record.offset <= place < record.end]
    kept = [entry for entry in found if isinstance(entry, Record)]
    # The three spare bytes of the header are covered by the check, too: nothing changes unseen.
    assert kept == untouched
    assert any(isinstance(entry, Damage) for entry in found)


def test_a_file_that_is_no_segment_is_damage(tmp_path):
    path = tmp_path / "x.seg"
    path.write_bytes(b"something else entirely")
    [damage] = read_records(path, final=True)
    assert damage == Damage(0, path.stat().st_size, "not a spool segment")
    path.write_bytes(b"")
    assert list(read_records(path, final=True)) == []
