"""Files and folders of the spool: private, durable, and with a lock that says who is alive."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

Buffer = bytes | bytearray | memoryview

_IOV_MAX = 1024


def write_all(descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write the buffers one after the other from `offset` on, also where the kernel takes them in pieces.

    Returns:
        Bytes written.
    """
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


def take_lock(folder: Path, receiver: str) -> int:
    """Create the receiver's lock file; it gets its name only once it is locked."""
    draft = folder / f".{receiver}.lock"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(folder / f"{receiver}.lock")
    return descriptor


def is_alive(folder: Path, receiver: str) -> bool:
    """Whether the receiver process still holds its lock."""
    try:
        descriptor = os.open(folder / f"{receiver}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def segment_receiver(segment: str) -> str:
    """The receiver that wrote a segment, or prepared it, from the file's name."""
    return segment.rsplit("-", 1)[0].removeprefix(".")
