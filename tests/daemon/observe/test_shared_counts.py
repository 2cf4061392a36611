"""A process that counts on a full disk goes on; it is a real disk, as the kernel ends it elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.observe.shared_counts import SHARED_FOLDER

COUNTS = "from daemon.receive.counters import count; count('0x0000', 10, 0.1); print('alive')"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def counting(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, SHARED_FOLDER: str(folder)}
    return subprocess.run([sys.executable, "-c", COUNTS], env=environment, capture_output=True, text=True, check=False)


def test_a_process_that_finds_no_room_to_count_goes_on(small_disk: Path) -> None:
    assert counting(small_disk).stdout == "alive\n"
    made = sorted(path.name.split("_")[0] for path in small_disk.iterdir())
    assert made == ["counter", "histogram"]
    filled = subprocess.run(
        ["dd", "if=/dev/zero", f"of={small_disk}/full", "bs=4096"], capture_output=True, check=False
    )
    assert b"No space" in filled.stderr
    done = counting(small_disk)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    assert "stands in no metric" in done.stderr
    assert len(list(small_disk.iterdir())) == 3
