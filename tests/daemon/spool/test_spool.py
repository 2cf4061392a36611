from __future__ import annotations

import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_support import encode, instances_in, make_series, meta_of, wait_until

from daemon.files import read_data
from daemon.spool.locks import is_alive, segment_receiver
from daemon.spool.segment import BLOCK_BYTES, SEGMENT_MAGIC, Damage, Record, RecordKind, read_records
from daemon.spool.writer import NotDurable, SpoolFull, SpoolWriter


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


def test_ends_of_associations_are_noted_once_there_is_room_again(tmp_path, monkeypatch):
    """Their studies would wait for an hour else: nobody says it a second time."""
    monkeypatch.setattr("daemon.spool.writer.RETRY_SECONDS", 0.01)
    full, tried = threading.Event(), threading.Semaphore(0)

    def sync(_descriptor):
        if full.is_set():
            tried.release()
            raise OSError(errno.ENOSPC, "No space left on device")

    writer = SpoolWriter(tmp_path, sync=sync)
    dataset = make_series(1)[0]
    writer.append(meta_of(dataset), [encode(dataset)])
    full.set()
    for name in ("a1", "a2"):
        writer.end_association(name)
    for _ in range(5):  # the first attempts, and later ones
        assert tried.acquire(timeout=60)
    full.clear()

    def noted() -> set[str]:
        found = [r for path in segments(writer) for r in read_records(path, final=False) if isinstance(r, Record)]
        return {record.meta["association"] for record in found if record.kind is RecordKind.ASSOCIATION_END}

    wait_until(lambda: noted() == {"a1", "a2"})
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
    """The bytes of a segment, and its records."""
    folder = tmp_path_factory.mktemp("sound")
    writer = SpoolWriter(folder)
    for dataset in make_series(4, rows=16):
        writer.append(meta_of(dataset), [encode(dataset)])
    writer.close()
    [segment] = folder.glob("*.seg")
    return segment.read_bytes(), list(read_records(segment, final=True))


def test_a_segment_is_read_on_from_where_it_was_left(sound_segment, tmp_path):
    raw, records = sound_segment
    path = tmp_path / "known.seg"
    path.write_bytes(raw)
    assert list(read_records(path, records[1].end, final=True)) == records[2:]


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
    last = -(-(whole[-1].end if whole else len(SEGMENT_MAGIC)) // BLOCK_BYTES) * BLOCK_BYTES
    assert sum(entry.end - entry.offset for entry in damage) == len(raw[last:cut].rstrip(b"\0"))
    assert list(read_records(path, final=False)) == whole, "a record still being written is waited for"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_costs_only_its_record(tmp_path, sound_segment, data):
    raw, records = sound_segment
    hit = data.draw(st.sampled_from(records))
    place = data.draw(st.integers(hit.offset, hit.end - 1))
    changed = bytearray(raw)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.seg"
    path.write_bytes(changed)
    found = list(read_records(path, final=True))
    untouched = [record for record in records if record is not hit]
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


# --- room prepared ahead


@pytest.fixture
def prepared(tmp_path):
    """A writer with prepared segments, once they are ready."""
    writer = SpoolWriter(tmp_path / "spool", segment_bytes=1 << 20, reserve=2)
    wait_until(lambda: writer._reserve.ready == 2)
    yield writer
    writer.close()


def test_prepared_room_is_used_and_holds_what_is_written(prepared):
    series = make_series(5)
    for dataset in series[:4]:
        prepared.append(meta_of(dataset), [encode(dataset)])
    [segment] = segments(prepared)
    assert segment.stat().st_size == 1 << 20, "it did not grow: the room was there"
    found = list(read_records(segment, final=False))
    assert [record.meta["sop_instance_uid"] for record in found] == [d.SOPInstanceUID for d in series[:4]]
    prepared.append(meta_of(series[4]), [encode(series[4])])
    [last] = read_records(segment, found[-1].end, final=False)
    assert last.meta["sop_instance_uid"] == series[4].SOPInstanceUID
    assert list(read_records(segment, final=True)) == [*found, last], "room that was not used is no damage"


def test_a_sync_in_prepared_room_changes_no_metadata(prepared):
    """Neither size nor number of blocks: an fdatasync need not wait for the file system's journal."""
    first, second = make_series(2)
    prepared.append(meta_of(first), [encode(first)])
    before = segments(prepared)[0].stat()
    prepared.append(meta_of(second), [encode(second)])
    after = segments(prepared)[0].stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)


def test_at_the_end_room_that_was_not_used_is_given_back(prepared):
    dataset = make_series(1)[0]
    prepared.append(meta_of(dataset), [encode(dataset)])
    prepared.close()
    assert segments(prepared)[0].stat().st_size < 20_000
    assert list(prepared.folder.glob(".*.spare")) == []
    assert len(instances_in(prepared.folder)) == 1


def test_without_prepared_room_the_file_grows_and_the_next_is_a_prepared_one(tmp_path):
    series = make_series(2)
    writer = SpoolWriter(tmp_path, segment_bytes=1 << 20, reserve=1)
    wait_until(lambda: writer._reserve.ready == 1)
    spare = writer._reserve.take()
    writer.append(meta_of(series[0]), [encode(series[0])])
    assert segments(writer)[0].stat().st_size < 20_000
    spare.unlink()
    wait_until(lambda: writer._reserve.ready == 1)
    writer.append(meta_of(series[1]), [encode(series[1])])
    assert segments(writer)[1].stat().st_size == 1 << 20
    assert len(instances_in(tmp_path)) == 2
    writer.close()


def test_prepared_room_leaves_the_free_space_that_was_asked_for(tmp_path):
    writer = SpoolWriter(tmp_path, min_free_bytes=1 << 60, reserve=1)
    time.sleep(0.2)
    assert list(tmp_path.glob(".*.spare")) == []
    writer.close()


def test_a_torn_record_in_prepared_room_is_damage_and_the_zeros_behind_it_are_not(prepared):
    series = make_series(2)
    for dataset in series:
        prepared.append(meta_of(dataset), [encode(dataset)])
    [segment] = segments(prepared)
    first, second = read_records(segment, final=True)
    with segment.open("r+b") as file:
        file.seek(second.offset + 30)
        file.write(bytes(second.end - second.offset - 30))
    found = list(read_records(segment, final=True))
    assert found[0] == first
    [damage] = found[1:]
    assert second.offset < damage.end <= second.offset + 30
    assert damage.offset == second.offset
    assert list(read_records(segment, final=False)) == [first]


def test_acknowledged_blocks_are_never_written_again(tmp_path):
    """Each write begins with a block of its own, so that a torn write cannot reach what was acknowledged."""
    ends = []
    writer = SpoolWriter(tmp_path, sync=lambda descriptor: ends.append(os.fstat(descriptor).st_size))
    for dataset in make_series(3):
        writer.append(meta_of(dataset), [encode(dataset)])
    assert all(end % BLOCK_BYTES == 0 for end in ends)
    offsets = [record.offset for record in read_records(segments(writer)[0], final=True)]
    assert offsets == ends[:3]
    writer.close()


def test_a_sector_that_cannot_be_read_costs_its_record_and_not_the_process(tmp_path, monkeypatch):
    writer = SpoolWriter(tmp_path)
    for dataset in make_series(3):
        writer.append(meta_of(dataset), [encode(dataset)])
    writer.close()
    [segment] = segments(writer)
    whole = list(read_records(segment, final=True))
    real = os.pread
    bad = whole[1].offset

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if offset <= bad < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    found = list(read_records(segment, final=True))
    assert [entry for entry in found if isinstance(entry, Record)] == [whole[0], whole[2]]
    [damage] = [entry for entry in found if isinstance(entry, Damage)]
    assert "cannot be read" in damage.reason
