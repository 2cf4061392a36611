"""Files and folders of the spool: private, durable, and with a lock that says who is alive."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


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
