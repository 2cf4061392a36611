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
from ingest_support import Bench, data_set_bytes, encode, instances_in, make_series, meta_of
from test_ingest_durability import Load, endless_instances, start_driver

from daemon.receiver_store import Status
from daemon.spool import SpoolWriter


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


def lost_after_cut(disk: Mounted, port: int, after: Path, seed: int) -> tuple[int, int]:
    """Cut under load; acknowledged instances, and those of them that are lost or changed."""
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


@pytest.mark.parametrize(
    "seed", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_power_cut_under_load_loses_nothing_acknowledged(disk, receiver, tmp_path, seed):
    acknowledged, lost = lost_after_cut(disk, receiver(), tmp_path / "after", seed)
    assert acknowledged >= 20
    assert lost == 0


def test_without_the_sync_the_power_cut_loses_instances(disk, receiver, tmp_path):
    """The negative control."""
    acknowledged, lost = lost_after_cut(disk, receiver("--no-sync"), tmp_path / "after", 1)
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


def test_a_power_cut_after_the_hand_over_finds_every_instance_in_the_job_folder(disk, tmp_path):
    """Segments are deleted only when the job's files would survive."""
    database = tmp_path / "database"
    database.mkdir()
    bench = Bench(database)
    bench.close()
    bench.folder = disk.path
    bench.writer = SpoolWriter(disk.path / "spool")
    bench.assembler = bench.new_assembler()
    series = make_series(5)
    for dataset in series:
        bench.writer.append(meta_of(dataset), [encode(dataset)])
    bench.writer.close()
    [arrival] = bench.assembler.step(1010.0)
    assert bench.assembler.reclaim() > 0
    disk.tell("cut", tmp_path / "after")
    bench.engine.dispose()
    files = sorted((tmp_path / "after" / "jobs" / arrival.job_id / "input").iterdir())
    assert [data_set_bytes(path) for path in files] == [encode(dataset) for dataset in series]
    assert (tmp_path / "after" / "jobs" / arrival.job_id / "arrival.json").is_file()
