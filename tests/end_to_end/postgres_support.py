"""A PostgreSQL of our own from Debian's binaries, on loopback, for one test; it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from daemon.trial.pacs import LOOPBACK, free_port

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres"


def missing() -> str:
    """Why PostgreSQL cannot be started here; empty where it can."""
    if not BINARIES:
        return "Debian's postgresql is not installed"
    if os.getuid() == 0 and shutil.which("runuser") is None:
        return "PostgreSQL refuses to run as root, and there is no runuser"
    return ""


needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing() or "PostgreSQL is there")


class Postgres:
    """Started in a folder of its own; `url` is what `[engine] database_url` takes."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="braingemma-postgres-"))
        self.port = free_port()
        if os.getuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "--auth=trust", "--username=braingemma", "--encoding=UTF8", "--no-sync")
        self.come_back()
        self.url = f"postgresql://braingemma@{LOOPBACK}:{self.port}/postgres"

    def come_back(self) -> None:
        """Start it."""
        settings = f"-p {self.port} -k {self.folder} -c listen_addresses={LOOPBACK} -c fsync=off"
        self._run("pg_ctl", "--wait", "--log", str(self.folder / "log"), "-o", settings, "start")

    def go_away(self) -> None:
        """End it as a crash would, with what clients have open."""
        self._run("pg_ctl", "--wait", "-m", "immediate", "stop")

    def stop(self) -> None:
        """End it and remove its folder."""
        self.go_away()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(BINARIES[-1] / program), "-D", str(self.folder / "data"), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", USER, "--", *command]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, check=False, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")
