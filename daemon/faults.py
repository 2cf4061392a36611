"""What the world does to a command, in one line: files, disks, names, connections, certificates, databases."""

from __future__ import annotations

import errno
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from braingemma.errors import BrainGemmaError
from daemon.errors import ConfigurationError, DaemonError
from dicom_io.errors import DicomIoError
from training.errors import TrainingError

FORESEEN = (DaemonError, DicomIoError, BrainGemmaError, TrainingError)
"""Errors whose text is fit for a user."""
_ADVICE = {
    errno.EACCES: "give this user the right to it, or name another",
    errno.EPERM: "give this user the right to it, or name another",
    errno.EROFS: "the file system is read-only: name another",
    errno.ENOSPC: "the disk is full: make room, or name a folder on another disk",
    errno.EDQUOT: "the quota is used up: make room, or name a folder elsewhere",
    errno.EFBIG: "the file is larger than is allowed here",
    errno.ENOTDIR: "expected a folder, found a file on the way to it: name another",
    errno.EEXIST: "expected a folder, found a file there: name another",
    errno.EISDIR: "expected a file, found a folder: name a file",
    errno.ENOENT: "nothing is there: check the spelling",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EADDRINUSE: "the port is in use: stop what uses it, or configure another",
    errno.EADDRNOTAVAIL: "this machine has no such address: check host",
    errno.ECONNREFUSED: "nothing listens there: check host and port, and that the peer runs",
    errno.ECONNRESET: "the peer closed the connection",
    errno.EPIPE: "the peer closed the connection",
    errno.EHOSTUNREACH: "the host cannot be reached: check the address and the network",
    errno.ENETUNREACH: "the network cannot be reached: check the address",
    errno.ETIMEDOUT: "no answer in time: check the address and the firewall",
}
_LEAST_FREE = 1 << 20


def ending(error: BaseException) -> tuple[int, str] | None:
    """Exit status of a command that an error ends, and the line that it says; None: our fault, to be shown whole."""
    if isinstance(error, ConfigurationError):
        return 2, str(error)
    line = str(error) if isinstance(error, FORESEEN) else fault_line(error)
    return None if line is None else (1, line)


def fault_line(error: BaseException) -> str | None:
    """One line for a failure that a user, a disk or a network can cause; None for every other, which is our fault."""
    if isinstance(error, OSError):
        return _os_line(error)
    if isinstance(error, MemoryError):
        return "not enough memory: close other programs, or process a smaller volume"
    if isinstance(error, sqlite3.Error):
        return _database_line(error)
    return _library_line(error)


def _library_line(error: BaseException) -> str | None:
    """Failures that libraries wrap in classes of their own; these are loaded where the failure comes from them."""
    module = type(error).__module__.partition(".")[0]
    if module == "sqlalchemy":
        cause = getattr(error, "orig", None)
        return _database_line(cause if cause is not None else error)
    if module == "safetensors_rust":
        return _first_line(error)
    if module in ("requests", "httpx", "urllib3"):
        return f"network: {_first_line(error)}"
    return None


def _database_line(error: BaseException) -> str:
    return f"database: {_first_line(error)}: check [engine] database_url and that the server runs; `braingemma doctor`"


def _os_line(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"{_named(error)}the name does not resolve ({error.strerror}): check the spelling, or use an address"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or _first_line(error)
        return f"{_named(error)}TLS: {reason}: check cert, key and ca on both sides"
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"{_named(error)}no answer in time: check the address and the firewall"
    what = error.strerror or _first_line(error)
    advice = _ADVICE.get(error.errno or 0)
    return f"{_named(error)}{what}" + (f": {advice}" if advice else "")


def _named(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


@contextmanager
def writing_to(folder: Path) -> Iterator[Path]:
    """Make a folder for results before long work starts, and name it where writing to it fails later.

    Raises:
        DaemonError: it cannot be made or written, or its disk became full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".braingemma-probe"
        probe.write_bytes(bytes(_LEAST_FREE))
        probe.unlink()
        yield folder
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise DaemonError(_os_line(error)) from error
