"""Power cuts, failing syncs and full disks, on a file system that drops what was not synced."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_fuse import Mounted
from ingest_sender import RawSender
from ingest_support import Bench, InProcess, data_set_bytes, encode, instances_in, make_series, meta_of

from daemon.config.sections import Storage
from daemon.receive.store import Status
from daemon.spool.writer import SpoolWriter
from tests.daemon.receive.test_ingest_durability import Load, endless_instances, start_driver


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mounted]:
    if not os.access("/dev/fuse", os.W_OK) or os.geteuid() != 0:
        pytest.skip("needs /dev/fuse and the right to mount")
    mounted = Mounted(tmp_path / "mnt")
    if not mounted.works:
        pytest.skip("may not mount here")
    yield mounted
    mounted.close()


@pytest.fixture
def receiver(disk: Mounted) -> Iterator:
    """Starts a receiver whose spool is on the disk; gives its port."""
    drivers: list[subprocess.Popen[str]] = []

    def start(*options: str) -> int:
        driver, port = start_driver(disk.path / "spool", *options)
        drivers.append(driver)
        return port

    yield start
    for driver in drivers:
        driver.communicate(timeout=20)


def test_the_disk_keeps_what_was_synced_and_only_that(disk, tmp_path):
    """The tool itself: bytes, names and renames that were not synced are gone."""
    folder = disk.path / "f"
    folder.mkdir()
    for name in ("synced", "grown", "unnamed", "renamed"):
        (folder / name).write_bytes(b"first ")
    for name in ("synced", "grown", "renamed"):
        sync(folder / name)
    sync(folder)
    sync(disk.path)
    with (folder / "grown").open("ab") as file:
        file.write(b"second")
    (folder / "renamed").rename(folder / "elsewhere")
    (folder / "new").write_bytes(b"new")
    sync(folder / "new")
    assert (folder / "grown").read_bytes() == b"first second"
    disk.tell("cut", tmp_path / "after")
    found = {path.name: path.read_bytes() for path in (tmp_path / "after" / "f").iterdir()}
    assert found == {"synced": b"first ", "grown": b"first ", "unnamed": b"", "renamed": b"first "}
    with pytest.raises(OSError, match="Input/output error"):
        (folder / "synced").read_bytes()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def lost_after_cut(disk: Mounted, port: int, after: Path, seed: int, *, tear: bool = False) -> tuple[int, int]:
    """Cut under load; acknowledged instances, and those of them that are lost or changed."""
    if tear:
        disk.tell("tear", seed)
    with Load(port, endless_instances()) as load:
        deadline = time.monotonic() + 20
        while len(load.acknowledged) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        disk.tell("cut", after)
    spool = after / "spool"
    stored = {r.meta["sop_instance_uid"]: hashlib.sha256(d).hexdigest() for r, d in instances_in(spool)}
    lost = [uid for uid, digest in load.acknowledged.items() if stored.get(uid) != digest]
    return len(load.acknowledged), len(lost)


SEEDS = [1, 2, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 21))]


@pytest.mark.parametrize("seed", SEEDS)
def test_power_cut_under_load_loses_nothing_acknowledged(disk, receiver, tmp_path, seed):
    """With and without prepared room; losing all that was not synced, or just some of it."""
    port = receiver(*(("--reserve",) if seed & 2 else ()))
    acknowledged, lost = lost_after_cut(disk, port, tmp_path / "after", seed, tear=bool(seed & 1))
    assert acknowledged >= 20
    assert lost == 0
    assembler_serves(tmp_path / "after", acknowledged)


def assembler_serves(folder: Path, acknowledged: int) -> None:
    """After the cut the index is built from what is there, and every study with its instances is handed over."""
    bench = Bench(folder)
    bench.assembler.step(9e9)
    assert sum(arrival.instances for arrival in bench.arrivals) >= acknowledged
    bench.close()


@pytest.mark.parametrize("options", [("--no-sync",), ("--no-sync", "--reserve")])
def test_without_the_sync_the_power_cut_loses_instances(disk, receiver, tmp_path, options):
    """The negative control."""
    acknowledged, lost = lost_after_cut(disk, receiver(*options), tmp_path / "after", 1)
    assert acknowledged >= 20
    assert lost == acknowledged


def test_a_failing_disk_is_never_answered_with_success(disk, receiver, tmp_path):
    port = receiver()
    instances = endless_instances()
    acknowledged = {}
    with RawSender(("127.0.0.1", port)) as sender:
        assert sender.associate() == 2
        for code, expected in ((0, Status.SUCCESS), (errno.EIO, Status.PROCESSING_FAILURE), (0, Status.SUCCESS)):
            disk.tell("fail_sync", code)
            for _ in range(5):
                uid, data = next(instances)
                assert sender.store(uid, data) == expected
                if expected == Status.SUCCESS:
                    acknowledged[uid] = data
    disk.tell("cut", tmp_path / "after")
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(tmp_path / "after" / "spool")}
    assert {uid: stored.get(uid) for uid in acknowledged} == acknowledged


def test_a_full_disk_is_answered_out_of_resources_and_room_mends_it(disk, receiver, tmp_path):
    port = receiver()
    instances = endless_instances()
    acknowledged = {}
    disk.tell("capacity", 100_000)
    with RawSender(("127.0.0.1", port)) as sender:
        assert sender.associate() == 2
        statuses = []
        for _ in range(20):
            uid, data = next(instances)
            statuses.append(sender.store(uid, data))
            if statuses[-1] == 0:
                acknowledged[uid] = data
        assert set(statuses) == {Status.SUCCESS, Status.OUT_OF_RESOURCES}
        disk.tell("capacity", 10_000_000)
        uid, data = next(instances)
        assert sender.store(uid, data) == Status.SUCCESS, "without a restart"
        acknowledged[uid] = data
    disk.tell("cut", tmp_path / "after")
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(tmp_path / "after" / "spool")}
    assert {uid: stored.get(uid) for uid in acknowledged} == acknowledged


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("watermark", [0, 1 << 20], ids=["until it is full", "at the watermark"])
def test_a_real_disk_that_fills_up_and_gets_room_again(small_disk, watermark):
    """The kernel's own ENOSPC, and the watermark; no restart between."""
    receiver = InProcess(small_disk, min_free_bytes=watermark)
    instances = endless_instances()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(700_000))
    acknowledged = {}
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2

        def store() -> int:
            uid, data = next(instances)
            status = sender.store(uid, data)
            if status == Status.SUCCESS:
                acknowledged[uid] = data
            return status

        statuses = [store() for _ in range(250)]
        assert set(statuses) == {Status.SUCCESS, Status.OUT_OF_RESOURCES}
        assert statuses[-20:] == [Status.OUT_OF_RESOURCES] * 20
        before = len(acknowledged)
        filler.unlink()
        assert [store() for _ in range(5)] == [Status.SUCCESS] * 5
        assert len(acknowledged) == before + 5
    receiver.stop(0.5)
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(small_disk / "spool")}
    assert {uid: stored.get(uid) for uid in acknowledged} == acknowledged
    assert len(list((small_disk / "spool").glob("*.seg"))) < 20, "a full disk is not littered with empty segments"


def test_a_power_cut_after_the_hand_over_finds_every_instance_in_the_job_folder(disk, tmp_path):
    """Segments are deleted only when the job's files would survive."""
    database = tmp_path / "database"
    database.mkdir()
    bench = Bench(database)
    bench.close()
    bench.folder = disk.path
    bench.settings = bench.settings.model_copy(update={"storage": Storage(folder=disk.path, min_free_gb=0)})
    bench.writer = SpoolWriter(disk.path / "spool")
    bench.assembler = bench.new_assembler()
    series = make_series(5)
    for dataset in series:
        bench.writer.append(meta_of(dataset), [encode(dataset)])
    bench.writer.close()
    bench.assembler.look(1000.0)
    [arrival] = bench.assembler.step(1010.0)
    assert bench.assembler.reclaim() > 0
    disk.tell("cut", tmp_path / "after")
    bench.engine.dispose()
    files = sorted((tmp_path / "after" / "jobs" / arrival.job_id / "input").iterdir())
    assert [data_set_bytes(path) for path in files] == [encode(dataset) for dataset in series]
    assert (tmp_path / "after" / "jobs" / arrival.job_id / "arrival.json").is_file()
