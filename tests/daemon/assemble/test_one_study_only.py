"""A study can hurt only itself: whatever it is made of, the assembler lives, stays small, and hands the others over."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from ingest_support import Bench, encode, make_instance, make_series, meta_of, wait_until
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag
from pydicom.uid import BasicTextSRStorage, DeflatedExplicitVRLittleEndian, MRImageStorage, generate_uid

from daemon.assemble import assembler as module
from daemon.assemble.assembler import Assembler
from daemon.assemble.gaps import TAGS
from daemon.assemble.handover import HandOver
from daemon.database.tables import UNDER_WAY
from daemon.spool.writer import SpoolWriter
from dicom_io.content.equipment import TELLING

MB = 1 << 20
LEAST = 13


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def break_hand_over(monkeypatch, study_uid, error):
    """One study's hand-over fails; the others' are as ever."""
    real = HandOver.hand_over

    def hand_over(self, uid):
        if uid == study_uid:
            raise error
        return real(self, uid)

    monkeypatch.setattr(HandOver, "hand_over", hand_over)


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), RecursionError("deep"), OverflowError("1e308")])
def test_a_study_that_cannot_be_handed_over_is_set_aside_and_the_next_goes_on(bench, monkeypatch, error):
    bad, good = make_series(2), make_series(2)
    bench.receive([*bad, *good])
    break_hand_over(monkeypatch, bad[0].StudyInstanceUID, error)
    [arrival] = bench.assembler.step(1010.0)
    assert arrival.study_uid == good[0].StudyInstanceUID
    assert bench.assembler.step(1011.0) == (), "tried once more, but not at once"
    [aside] = bench.assembler.step(1041.0)
    assert aside.study_uid == bad[0].StudyInstanceUID
    assert type(error).__name__ in aside.set_aside
    assert aside.instances == 0
    assert bench.assembler.step(9000.0) == ()
    assert bench.rows(UNDER_WAY) == []


def test_a_study_that_was_set_aside_is_kept_and_tried_again_with_what_comes(bench, monkeypatch):
    series = make_series(3)
    bench.receive(series[:2])
    with monkeypatch.context() as broken:
        break_hand_over(broken, series[0].StudyInstanceUID, ValueError("odd"))
        bench.assembler.step(1010.0)
        [aside] = bench.assembler.step(1041.0)
    bench.writer.close()
    bench.assembler.step(1042.0)
    assert bench.assembler.reclaim() == 0, "the bytes are kept"
    restarted = bench.new_assembler(at=1043.0)
    assert restarted.step(2000.0) == ()
    bench.writer = SpoolWriter(bench.folder / "spool")
    bench.receive(series[2:], at=3000.0, association="a2")
    [arrival] = restarted.step(3010.0)
    assert (arrival.instances, arrival.set_aside, arrival.supersedes) == (3, "", aside.job_id)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_study_that_killed_the_service_twice_is_set_aside(bench, monkeypatch):
    bad, good = make_series(2), make_series(2)
    bench.receive([*bad, *good])
    break_hand_over(monkeypatch, bad[0].StudyInstanceUID, Killed())
    for number in range(2):
        with pytest.raises(Killed):
            bench.assembler.step(1010.0 + number)
        bench.new_assembler(at=1000.0)
    arrivals = {arrival.study_uid: arrival for arrival in (*bench.arrivals, *bench.assembler.step(1020.0))}
    assert "killed 2 times" in arrivals[bad[0].StudyInstanceUID].set_aside
    assert arrivals[good[0].StudyInstanceUID].set_aside == ""
    assert bench.assembler.step(9000.0) == ()


def test_a_job_that_the_pipeline_cannot_begin_is_set_aside(bench):
    bad, good = make_series(2), make_series(2)
    taken = []

    def submit(arrival):
        if arrival.study_uid == bad[0].StudyInstanceUID and not arrival.set_aside:
            raise ValueError("A string literal cannot contain NUL (0x00) characters.")
        taken.append(arrival)

    bench.assembler = Assembler(bench.settings, bench.engine, submit)
    bench.assembler.recover(0.0)
    bench.receive([*bad, *good])
    bench.assembler.step(1010.0)
    bench.assembler.step(1041.0)
    assert [arrival.study_uid for arrival in taken] == [good[0].StudyInstanceUID, bad[0].StudyInstanceUID]
    assert "NUL" in taken[1].set_aside


def test_a_job_folder_that_cannot_be_read_is_left_alone(bench):
    for name, text in (("jbroken", "{"), ("jother", "[]"), ("jempty", '{"job_id": "jempty"}')):
        folder = bench.folder / "jobs" / name
        folder.mkdir()
        (folder / "arrival.json").write_text(text)
    bench.receive(make_series(2))
    assert len(bench.new_assembler(at=1000.0).step(1010.0)) == 1


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("a fault in the follower")])
def test_a_round_that_fails_is_not_the_end(bench, monkeypatch, error):
    """Where it is a fault of ours, health turns red: there is no sign of life."""
    beats, rounds = [], []
    monkeypatch.setattr(module, "TROUBLE_SECONDS", 0.01)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    bench.assembler.beat = lambda: beats.append(1)
    stop = threading.Event()

    def follow():
        rounds.append(1)
        if len(rounds) < 5:
            raise error
        return set()

    monkeypatch.setattr(bench.assembler._follower, "follow", follow)
    thread = threading.Thread(target=bench.assembler.run, args=(stop,))
    thread.start()
    wait_until(lambda: len(rounds) > 8)
    assert thread.is_alive()
    stop.set()
    thread.join(10)
    assert beats


def test_a_place_beyond_all_numbers_is_no_reason_to_stop(bench):
    series = make_series(LEAST)
    for number, dataset in enumerate(series):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 5.0 * number]
    series[-1].ImagePositionPatient = [0, 0, "1e308"]
    bench.receive(series)
    [arrival] = bench.assembler.step(1040.0)
    assert (arrival.instances, arrival.set_aside) == (LEAST, "")


# --- random headers and size bombs through the real assembler, in a process of its own whose memory is watched

ODD = (b"", b" ", b"abc", b"1e999", b"1e308", b"-1e308", b"nan", b"-inf", b"0", b"1\\2", b"1\\0\\0\\0\\1\\nan")
ODD += (b"9" * 20, b"\\\\", b"1\\0\\0\\0\\1", b"1e308\\-1e308\\1e308", b"0\\0\\1e308", b"\0", b"\xff\xfe", b"1" * 5000)
VRS = (b"DS", b"IS", b"LO", b"SQ", b"UN", b"??", b"OB", b"FD", b"US", b"UT", b"AT")
ODD_TAGS = (*TAGS, *TELLING, "BodyPartExamined", "SeriesDescription", "PatientName", "SpecificCharacterSet")


def odd_header(chance: random.Random, number: int) -> bytes:
    """Elements in the order of their tags, each with a usual or an odd value, in its VR or another one."""
    usual = {
        "ImagePositionPatient": b"0\\0\\%d" % number,
        "ImageOrientationPatient": b"1\\0\\0\\0\\1\\0",
        "ImagesInAcquisition": b"8",
    }
    out = b""
    for tag in sorted(Tag(keyword) for keyword in ODD_TAGS):
        keyword = next(k for k in ODD_TAGS if Tag(k) == tag)
        value = chance.choice(ODD) if chance.random() < 0.3 else usual.get(keyword, b"1")
        vr = chance.choice(VRS) if chance.random() < 0.1 else dictionary_VR(keyword).encode()
        value += b" " * (len(value) % 2)
        length = chance.choice((0, 3, 0xFFFE, 0xFFFFFFFF)) if chance.random() < 0.02 else len(value)
        long = vr in (b"SQ", b"UN", b"OB", b"UT")
        head = struct.pack("<2x" if long else "") + struct.pack(
            "<L" if long else "<H", length & (0xFFFFFFFF if long else 0xFFFF)
        )
        out += struct.pack("<HH", tag.group, tag.element) + vr + head + value
    return out


def deep_sequence(depth: int) -> bytes:
    """Contributing Equipment within itself, undefined lengths."""
    tag = struct.pack("<HH2s2xL", 0x0018, 0xA001, b"SQ", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return tag * depth


def inflates_to(head: bytes, megabytes: int) -> bytes:
    """A raw deflate stream of the head and so many zeros."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = deflater.compress(head) + deflater.flush(zlib.Z_FULL_FLUSH)
    zeros = deflater.compress(bytes(16 * MB)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return start + zeros * (megabytes // 16) + deflater.flush()


def bomb(number: int) -> tuple[object, bytes]:
    """An instance of few bytes that comes to many where somebody inflates, decodes or nests it."""
    kind = number % 4
    sop_class = (BasicTextSRStorage, MRImageStorage)[number // 4 % 2]
    dataset = make_instance(generate_uid(), generate_uid(), 1, rows=4, sop_class=sop_class)
    raw = encode(dataset)
    if kind == 0:  # 1 GB behind the header
        raw = inflates_to(raw, 1024)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif kind == 1:  # 1 GB before what is looked for
        raw = inflates_to(struct.pack("<HH2s2xL", 0x0009, 0x0010, b"OB", 1024 * MB), 1024)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif kind == 2:
        raw = deep_sequence(5000) + raw
    else:
        raw = raw[:-200] + struct.pack("<HH2s2xL", 0x0018, 0xA001, b"UN", 0xFFFFFFF0) + b"\0" * 100
    return dataset, raw


def fuzz(folder: Path, headers: int, bombs: int) -> None:
    """The other process: every study is handed over or set aside, in less than 1 GB."""
    module.sync_files = lambda _folder: None  # durability is not the question here
    bench = Bench(folder, max_waiting_jobs=10**9)
    sa.event.listen(bench.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    bench.engine.dispose()
    bench.writer.sync = lambda _descriptor: None
    chance = random.Random(headers)
    packed: dict[int, tuple[object, bytes]] = {}
    sent = set()
    for number in range(headers // 8):
        for position, dataset in enumerate(make_series(8, rows=4)):
            raw = encode(dataset)
            place = raw.index(b"\x28\0\x02\0US")
            bench.writer.append(
                meta_of(dataset, association=str(number)), [raw[:place] + odd_header(chance, position) + raw[place:]]
            )
            sent.add(str(dataset.StudyInstanceUID))
        bench.writer.end_association(str(number))
    for number in range(bombs):
        kind = number % 8
        if kind not in packed:
            packed[kind] = bomb(number)
        dataset, raw = packed[kind]
        dataset.StudyInstanceUID = generate_uid()
        bench.writer.append(meta_of(dataset, association=f"b{number}"), [raw])
        sent.add(str(dataset.StudyInstanceUID))
        bench.writer.end_association(f"b{number}")
    good = make_series(3)
    bench.receive(good)
    for now in (1001.0, 1040.0, 1080.0, 1120.0):
        bench.assembler.step(now)
    found = {arrival.study_uid for arrival in bench.arrivals}
    assert found == {*sent, str(good[0].StudyInstanceUID)}, f"{len(found)} of {len(sent) + 1} studies came through"
    assert not [a for a in bench.arrivals if a.study_uid == good[0].StudyInstanceUID and a.set_aside]
    # VmHWM, not ru_maxrss: that one is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) >> 10
    print(f"{len(sent) + 1} studies, at most {peak} MB")  # noqa: T201 - `pytest -s` shows it
    assert peak < 1000, f"{peak} MB"
    bench.close()


def run_fuzz(folder: Path, headers: int, bombs: int) -> None:
    code = (
        f"from pathlib import Path; import test_one_study_only as t; t.fuzz(Path({str(folder)!r}), {headers}, {bombs})"
    )
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    environment = {"PYTHONPATH": ":".join(path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    print(ended.stdout)  # noqa: T201


def test_random_headers_and_size_bombs(tmp_path):
    run_fuzz(tmp_path, 2000, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_headers_and_size_bombs(tmp_path):
    run_fuzz(tmp_path, 50_000, 500)
