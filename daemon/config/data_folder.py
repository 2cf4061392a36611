"""The data folder: where each thing lies, said once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFolder:
    """Where the service, or one worker, keeps its files.

    Attributes:
        root: The folder itself, private to the service's user (`[storage] folder`).
    """

    root: Path

    @property
    def database(self) -> Path:
        """The daemon's database, where that is SQLite."""
        return self.root / "daemon.sqlite"

    @property
    def received_index(self) -> Path:
        """The index of this host's spool, where several hosts share one database."""
        return self.root / "received.sqlite"

    @property
    def receiver(self) -> Path:
        """The name by which other receivers know this one."""
        return self.root / "receiver"

    @property
    def spool(self) -> Path:
        """Segments of what was acknowledged."""
        return self.root / "spool"

    @property
    def damaged(self) -> Path:
        """Stretches of segments that could not be read."""
        return self.root / "damaged"

    @property
    def conflicts(self) -> Path:
        """Instances that came with the UID of another one and other bytes."""
        return self.root / "conflicts"

    @property
    def commitment_reports(self) -> Path:
        """What PACSs said on storage commitment, until the service has taken it."""
        return self.root / "commitments"

    @property
    def jobs(self) -> Path:
        """Folders of jobs."""
        return self.root / "jobs"

    def job(self, job_id: str) -> Path:
        """The folder of one job."""
        return self.jobs / job_id

    @property
    def audit(self) -> Path:
        """The audit log's files."""
        return self.root / "audit"

    @property
    def metrics(self) -> Path:
        """What the receiver processes count."""
        return self.root / "metrics"

    @property
    def status(self) -> Path:
        """Process and ports of the running service, JSON."""
        return self.root / "service.json"

    @property
    def lock(self) -> Path:
        """Held by the one process that works in the folder."""
        return self.root / "lock"

    @property
    def pseudonym_key(self) -> Path:
        """The secret from which pseudonyms follow, where the configuration names no other."""
        return self.root / "pseudonyms.key"

    def worker(self, name: str) -> DataFolder:
        """The folder of a worker of this name: copies only, emptied at its start."""
        return DataFolder(self.root / f"worker-{name}")
