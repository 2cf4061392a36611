"""Files of jobs between hosts: one archive for each step, counted under a lease."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import fsspec
import sqlalchemy as sa
from fsspec.implementations.local import LocalFileSystem

from daemon.database.tables import ARCHIVES, ARRIVALS, FINAL_STATES, JOBS, JobState
from daemon.errors import Permanent, Retryable
from daemon.files import make_private, write_json
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import now
from dicom_io.files import sync

APPLIED = ".applied.json"
"""In a job's folder: the archives that were unpacked into it or made from it."""
CHUNK = 1 << 20
PATIENCE = 60.0
"""Seconds for which a shared storage that does not answer is asked again."""
COPY_SECONDS = 3600.0
"""A worker keeps its copy of a job's files for so long after the job ended."""
UNKNOWN_SECONDS = 86400.0
"""A folder of a job that the database does not know is left alone for so long: it may be on its way in."""


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write an archive's files below `folder`; plain files and folders are let in, nothing else.

    Debian 12's Python 3.11.2 has no extraction filters yet (PEP 706), so each member is looked at here.

    Raises:
        Permanent: a member is a link or a device, or lies outside of the folder.
    """
    filters: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    for member in archive:
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not inside or not (member.isfile() or member.isdir()):
            raise Permanent(f"{member.name}: expected a plain file or folder of the archive, got something else")
        archive.extract(member, folder, **filters)


@dataclass(eq=False)
class SharedFiles:
    """Several hosts.

    Args:
        engine: The daemon's database.
        jobs: Folder on this host, for this process alone.
        url: The shared storage, as fsspec reads it.
        holds_lease: Raises, or ends the process, unless this process may still work; called inside the transaction
            that makes an archive count.
        scratch: Whether the folder holds copies only, which can be fetched again: a worker's.
        index: Where this host keeps the index of what it received (`open_index`); None: in the daemon's database.
    """

    engine: sa.Engine
    jobs: Path
    url: str
    holds_lease: Callable[[sa.Connection], None] = lambda _connection: None
    scratch: bool = False
    index: sa.Engine | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        try:
            self._storage, base = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise Permanent(f"storage.shared_url {self.url!r}: {error}") from error
        self._base = base.rstrip("/")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread of this process, and no other process on this folder, such as the page's."""
        with self._lock, (self.jobs.parent / f".{self.jobs.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def fetch(self, job_id: str) -> JobFolder:
        """The folder, with every archive that counts unpacked into it.

        Raises:
            Retryable: the shared storage does not answer, or an archive does not have its checksum.
        """
        with self._alone():
            folder = JobFolder(make_private(self.jobs / job_id))
            applied = _applied(folder)
            with self.engine.connect() as connection:
                query = sa.select(ARCHIVES).where(ARCHIVES.c.job_id == job_id).order_by(ARCHIVES.c.number)
                rows = connection.execute(query).all()
            for row in rows:
                if row.name not in applied:
                    self._unpack(job_id, row.name, row.sha256, folder.root)
                    applied.append(row.name)
                    self._note(folder.root / APPLIED, applied)
        return folder

    def keep(self, job_id: str, step: str) -> None:
        """Put what is new or gone since the last archive onto the shared storage, and make it count.

        Raises:
            Retryable: the shared storage does not take it.
        """
        with self._alone():
            folder = JobFolder(self.jobs / job_id)
            name = f"{step}-{uuid.uuid4().hex}.tar"
            digest, size = self._pack(folder.root, f"{self._base}/{job_id}", name)
            row = {
                "job_id": job_id, "step": step, "name": name, "sha256": digest, "size": size, "created": now(),
            }  # fmt: skip
            with self.engine.begin() as connection:
                self.holds_lease(connection)
                connection.execute(sa.insert(ARCHIVES).values(**row))
            self._note(folder.root / APPLIED, [*_applied(folder), name])
            self._remember(folder.root)

    def forget(self, job_id: str) -> None:
        """Remove the job's archives."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(ARCHIVES).where(ARCHIVES.c.job_id == job_id))
        path = f"{self._base}/{job_id}"
        if self._storage.exists(path):
            self._storage.rm(path, recursive=True)

    def sweep(self) -> list[str]:
        """Remove folders of jobs that were purged, here or by another host, and copies of jobs that ended a while ago.

        Returns:
            The jobs whose folders were removed.
        """
        removed = []
        for folder in sorted(self.jobs.iterdir()):
            with self._alone():  # nobody fetches it meanwhile
                if not folder.name.startswith(".") and self._is_useless(folder):
                    shutil.rmtree(folder)
                    removed.append(folder.name)
        return removed

    def _is_useless(self, folder: Path) -> bool:
        with self.engine.connect() as connection:
            job = connection.execute(sa.select(JOBS).where(JOBS.c.job_id == folder.name)).one_or_none()
        with (self.index or self.engine).connect() as connection:
            arriving = connection.execute(sa.select(ARRIVALS.c.job_id).where(ARRIVALS.c.job_id == folder.name)).all()
        if job is None:
            return not arriving and folder.stat().st_mtime < now() - UNKNOWN_SECONDS
        return self.scratch and JobState(job.state) in FINAL_STATES and job.updated < now() - COPY_SECONDS

    def _pack(self, root: Path, target: str, name: str) -> tuple[str, int]:
        """Write what changed since `_remember` into one archive, removals too; its SHA-256 and its size, bytes."""
        known = _remembered(root)
        with tempfile.TemporaryFile(dir=root.parent) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for path in sorted(root.rglob("*")):
                    relative = path.relative_to(root).as_posix()
                    if path.is_file() and not _is_private(relative) and known.get(relative) != _stamp(path):
                        archive.add(path, relative, recursive=False)
                removed = json.dumps([name for name in known if not (root / name).exists()]).encode()
                member = tarfile.TarInfo(REMOVED)
                member.size = len(removed)
                archive.addfile(member, io.BytesIO(removed))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()

            def write() -> None:
                file.seek(0)
                self._storage.makedirs(target, exist_ok=True)
                with self._storage.open(f"{target}/{name}", "wb") as out:
                    shutil.copyfileobj(file, out, CHUNK)
                if isinstance(self._storage, LocalFileSystem):  # before the row says that it counts
                    sync(Path(target) / name)
                    sync(Path(target))

            self._patiently(write, f"{target}/{name} cannot be stored")
        return digest, size

    def _unpack(self, job_id: str, name: str, sha256: str, root: Path) -> None:
        with tempfile.TemporaryFile(dir=root.parent) as file:

            def read() -> None:
                file.seek(0)
                file.truncate()
                with self._storage.open(f"{self._base}/{job_id}/{name}", "rb") as source:
                    shutil.copyfileobj(source, file, CHUNK)

            self._patiently(read, f"{job_id}/{name} cannot be read")
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise Retryable(f"{self.url}: {job_id}/{name} does not have its checksum")
            file.seek(0)
            with tarfile.open(fileobj=cast(IO[bytes], file)) as archive:
                unpack(archive, root)
        listed = root / REMOVED
        if listed.exists():
            for gone in json.loads(listed.read_text()):
                (root / gone).unlink(missing_ok=True)
            listed.unlink()
        self._remember(root)

    def _remember(self, root: Path) -> None:
        files = (p for p in root.rglob("*") if p.is_file())
        stamps = {p.relative_to(root).as_posix(): _stamp(p) for p in files}
        self._note(root / STAMPS, {name: stamp for name, stamp in stamps.items() if not _is_private(name)})

    def _note(self, path: Path, value: Any) -> None:
        """Keep what is known of a folder: durably, unless the folder is emptied at the next start in any case."""
        if not self.scratch:
            write_json(path, value)
            return
        draft = path.with_name(f"{path.name}.part")
        draft.write_text(json.dumps(value))
        draft.replace(path)

    def _patiently(self, work: Callable[[], None], what: str) -> None:
        """Try again while the shared storage does not answer, up to `PATIENCE` seconds in all."""
        waited, pause = 0.0, 0.5
        while True:
            try:
                work()
            except OSError as error:
                if waited >= PATIENCE:
                    raise Retryable(f"storage.shared_url: {what}: {error}") from error
                time.sleep(pause)
                waited, pause = waited + pause, min(2 * pause, 30.0)
            else:
                return


REMOVED = ".removed.json"
"""In an archive: the files that the step removed, which archives before it may hold."""
STAMPS = ".stamps.json"
"""In a job's folder: size and time of each file when the last archive was made or unpacked."""


def _is_private(relative: str) -> bool:
    """Whether a file is of use on this host only, or still being written."""
    return any(part.startswith(".") for part in relative.split("/"))


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _remembered(root: Path) -> dict[str, list[int]]:
    path = root / STAMPS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _applied(folder: JobFolder) -> list[str]:
    path = folder.root / APPLIED
    return list(json.loads(path.read_text())) if path.exists() else []
