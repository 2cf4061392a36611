"""Files that several threads or processes write at once: one of them stays, whole."""

from __future__ import annotations

import threading
from pathlib import Path

from daemon.files import read_json, write_json

WRITERS, TIMES = 8, 20


def test_of_several_that_write_a_file_at_once_one_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    together = threading.Barrier(WRITERS)
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(TIMES):
                together.wait()
                write_json(path, [number] * 1000)
        except (OSError, threading.BrokenBarrierError) as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=write, args=[number]) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    [number] = set(read_json(path))
    assert number in range(WRITERS)
    assert [file.name for file in tmp_path.iterdir()] == ["batch.json"]
