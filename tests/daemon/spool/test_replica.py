"""The second copy of the spool: there before anything is acknowledged, and refused where it cannot be."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from ingest_support import encode, instances_in, make_series, meta_of

from daemon.spool.writer import NotDurable, SpoolFull, SpoolWriter


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    second = tmp_path / "second"
    second.mkdir()
    return tmp_path / "first", second


@pytest.mark.parametrize("reserve", [0, 1])
def test_both_copies_hold_the_same_records_in_the_same_places(folders: tuple[Path, Path], reserve: int) -> None:
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        os.fdatasync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    writer = SpoolWriter(folders[0], sync=sync, reserve=reserve, segment_bytes=64 << 10, replica=folders[1])
    for dataset in make_series(5, rows=128):
        synced.clear()
        writer.append(meta_of(dataset), [encode(dataset)])
        latest = [max(folder.glob("*.seg")) for folder in folders]
        assert {path.stat().st_ino for path in latest} <= set(synced), "both are durable when it returns"
    writer.end_association("a1")
    writer.close()
    names = [sorted(path.name for path in folder.glob("*.seg")) for folder in folders]
    assert names[0] == names[1]
    assert len(names[0]) > 1
    first, second = (instances_in(folder) for folder in folders)
    assert first == second
    assert len(first) == 5
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folders[1].glob("*"))


@pytest.mark.parametrize(("code", "expected"), [(errno.EIO, NotDurable), (errno.ENOSPC, SpoolFull)])
def test_what_the_second_disk_does_not_take_is_refused(
    folders: tuple[Path, Path], code: int, expected: type[Exception]
) -> None:
    failing: list[bool] = []

    def sync(descriptor: int) -> None:
        if failing and Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folders[1]):
            raise OSError(code, os.strerror(code))
        os.fdatasync(descriptor)

    writer = SpoolWriter(folders[0], sync=sync, replica=folders[1])
    first, second, third = make_series(3)
    writer.append(meta_of(first), [encode(first)])
    failing.append(True)
    for _ in range(3):
        with pytest.raises(expected):
            writer.append(meta_of(second), [encode(second)])
    failing.clear()
    writer.append(meta_of(third), [encode(third)])
    writer.close()
    assert len(list(folders[0].glob("*.seg"))) == 2, "attempts leave nothing behind"
    held = [record.meta["sop_instance_uid"] for record, _ in instances_in(folders[1])]
    assert [held[0], held[-1]] == [first.SOPInstanceUID, third.SOPInstanceUID]


def test_a_second_copy_that_was_taken_away_acknowledges_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    writer = SpoolWriter(folders[0], replica=folders[1])
    first, second = make_series(2)
    writer.append(meta_of(first), [encode(first)])
    [path] = folders[1].glob("*.seg")
    path.rename(tmp_path / path.name)
    with pytest.raises(NotDurable):
        writer.append(meta_of(second), [encode(second)])
    writer.append(meta_of(second), [encode(second)])
    writer.close()
    assert [r.meta["sop_instance_uid"] for r, _ in instances_in(folders[1])] == [second.SOPInstanceUID]
