"""Files and folders: private, whole or not at all, durable where it is said."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_io.files import whole as whole  # the same helper on both floors

PRIVATE = 0o077
"""umask of every process of the service: what it writes is for its own user only."""


def make_private(folder: Path) -> Path:
    """Make a folder that only this user can enter; it may exist."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def write_durably(path: Path, data: bytes) -> None:
    """Write a file durably, whole or not at all; of several that write it at once the last one stays."""
    with whole(path, alone=False) as draft:
        draft.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably; NaN is an error, since other languages cannot read it. What UTF-8 cannot have becomes "?"."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_durably(path, text.encode("utf-8", "replace"))  # names of files may be of any bytes


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


Buffer = bytes | bytearray | memoryview
_IOV_MAX = 1024
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class FileBytes:
    """Bytes of an open file, in the place of a buffer that would be too large."""

    descriptor: int
    length: int
    offset: int = 0

    def __len__(self) -> int:
        return self.length

    def pieces(self) -> Iterator[bytes]:
        """What it holds.

        Raises:
            OSError: it cannot be read, or is shorter than it should be.
        """
        done = 0
        while done < self.length:
            piece = os.pread(self.descriptor, min(_COPY_BYTES, self.length - done), self.offset + done)
            if not piece:
                raise OSError(errno.EIO, f"a file ends after {done} of {self.length} bytes")
            done += len(piece)
            yield piece


def write_all(descriptor: int, parts: Sequence[Buffer | FileBytes], offset: int) -> int:
    """Write the parts one after the other from `offset` on, also where the kernel takes them in pieces.

    Returns:
        Bytes written.
    """
    total = 0
    buffers: list[Buffer] = []
    for part in parts:
        if isinstance(part, FileBytes):
            total += _write_buffers(descriptor, buffers, offset + total)
            buffers = []
            for piece in part.pieces():
                total += _write_buffers(descriptor, [piece], offset + total)
        else:
            buffers.append(part)
    return total + _write_buffers(descriptor, buffers, offset + total)


def _write_buffers(descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
    left = [memoryview(part) for part in buffers]
    total = 0
    while left:
        written = os.pwritev(descriptor, left[:_IOV_MAX], offset + total)
        total += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
    return total


def read_data(path: Path, offset: int, length: int) -> bytes:
    """The bytes of one data set.

    Raises:
        OSError: the segment cannot be read.
        EOFError: it is too short.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise EOFError(f"{path.name}: expected {length} bytes at {offset}, got {len(data)}")
    return data


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no room, or came while one that does was handled."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def free_bytes(folder: Path) -> int:
    """Free space for this user on the file system of `folder`, bytes."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter, durably."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
    folder.chmod(0o700)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
