"""The second copy of a segment, on another disk: the same bytes at the same places, durable before anything counts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from daemon.files import sync_folder, write_all
from daemon.spool.segment import Part, segment_head


class Replica:
    """One file beside the segment of the same name; it is written at the same time, by a thread of its own.

    Args:
        path: The file; it must not exist.
        sync: Makes the file behind a descriptor durable.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, sync: Callable[[int], None]) -> None:
        self._path = path
        self._sync = sync
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(self._file, [segment_head()], 0)
            self._sync(self._file)
            sync_folder(path.parent)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="replica")

    def write(self, parts: Sequence[Part], offset: int) -> Future[None]:
        """Begin to write; the result is there once it is durable, and an OSError where it is not."""
        return self._thread.submit(self._write, parts, offset)

    def _write(self, parts: Sequence[Part], offset: int) -> None:
        write_all(self._file, parts, offset)
        self._sync(self._file)
        try:
            there = self._path.stat().st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            there = False
        if not there:  # another receiver took it, as this one seemed dead: what is written now may be read by nobody
            raise OSError(errno.ESTALE, f"the second copy {self._path.name} was taken over")

    def close(self) -> None:
        """Write no more."""
        self._thread.shutdown()
        os.close(self._file)
