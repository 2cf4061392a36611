"""Where a job's files are: in the data folder, or on storage that several hosts share.

Shared: what each step wrote becomes one archive with a name of its own, which is never written again; a row in the
database, inserted only while the writer holds its lease, says that it counts. So a worker that was frozen, and whose
work another took over, can spoil nothing. Whoever needs the job unpacks the archives in their order into a folder of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon.jobs.folder import JobFolder

RECEIVED = "received"
"""The step before all others: the instances, and where they came from."""


class JobFiles(Protocol):
    """Where a job's files are."""

    def fetch(self, job_id: str) -> JobFolder:
        """The folder with everything that counts."""

    def keep(self, job_id: str, step: str) -> None:
        """Make what the step wrote count."""

    def forget(self, job_id: str) -> None:
        """Remove what lies outside the data folder."""

    def sweep(self) -> list[str]:
        """Remove folders of jobs on this host that are of no use any more; their names."""


@dataclass(frozen=True)
class LocalFiles:
    """One host: the data folder is all there is."""

    jobs: Path

    def fetch(self, job_id: str) -> JobFolder:
        """The folder."""
        return JobFolder(self.jobs / job_id)

    def keep(self, job_id: str, step: str) -> None:
        """Nothing to do: it counts by lying there."""

    def forget(self, job_id: str) -> None:
        """Nothing to do: the caller removes the folder."""

    def sweep(self) -> list[str]:
        """Nothing to do: each folder is its job's only one."""
        return []
