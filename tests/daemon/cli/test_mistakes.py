"""A hundred mistakes, each in one line: what a user, a disk, a name or a network does to every command."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from daemon.cli.__main__ import main
from daemon.errors import DaemonError
from daemon.faults import fault_line, writing_to

NOWHERE = "no-such-host.invalid"


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """(exit code, standard error) of one command in this process."""
    monkeypatch.setattr(sys, "argv", ["braingemma", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with everything that may be named by mistake."""
    (tmp_path / "file").write_text("neither DICOM nor NIfTI nor TOML")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("[listener\n")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.nii.gz").write_text("not an image")
    (tmp_path / "data.toml").write_text(f'[storage]\nfolder = "{tmp_path / "file"}"\n')
    (tmp_path / "database.toml").write_text(
        f'[storage]\nfolder = "{tmp_path / "data"}"\n'
        '[engine]\ndatabase_url = "postgresql://nobody:x@127.0.0.1:1/none?connect_timeout=2"\n'
    )
    (tmp_path / "damaged.toml").write_text(f'[storage]\nfolder = "{tmp_path / "damaged"}"\n')
    (tmp_path / "damaged").mkdir(mode=0o700)
    (tmp_path / "damaged" / "daemon.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(4096))
    (tmp_path / "source.toml").write_text(
        f'[storage]\nfolder = "{tmp_path / "good"}"\n'
        '[[sources]]\nname = "archive"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
        '[[sources]]\nname = "web"\nurl = "http://127.0.0.1:1/dicom-web"\n'
    )
    (tmp_path / "good.toml").write_text(f'[storage]\nfolder = "{tmp_path / "good"}"\n')
    return tmp_path


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound and not listened on: connections are refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def mistakes(at: Path, port: int) -> Iterator[list[str]]:
    """Arguments of commands that cannot work."""
    p = {name: str(at / name) for name in ("file", "empty", "nowhere", "bad.nii.gz", "file/below")}
    configurations = [str(at / n) for n in ("nowhere.toml", "bad.toml", "bytes.toml", "empty")]
    with_configuration = (
        ["config", "check"], ["config", "show"], ["doctor"], ["serve"], ["worker"], ["jobs", "list"],
        ["jobs", "show", "j"], ["jobs", "why", "1.2"], ["jobs", "retry", "j"], ["jobs", "cancel", "j"],
        ["jobs", "purge"], ["jobs", "reviews"], ["select", p["empty"]],
        ["process", p["bad.nii.gz"], "--out", p["nowhere"]],
    )  # fmt: skip
    for command in with_configuration:
        for configuration in configurations:
            yield [*command, "--config", configuration]
    for command in (["jobs", "list"], ["jobs", "show", "j"], ["jobs", "purge"], ["jobs", "retry", "j"]):
        for configuration in ("data.toml", "database.toml", "damaged.toml"):
            yield [*command, "--config", str(at / configuration)]
    yield from mistakes_of_pulls(at)
    yield from other_mistakes(at, p, port)


def mistakes_of_pulls(at: Path) -> Iterator[list[str]]:
    """Of sources, queries, lists and pulls."""
    configured = ["--config", str(at / "source.toml")]
    one = ["--study", "1.2.3", *configured]
    yield ["pull", "--from", "archive", "--study", "1.2.3", "--config", str(at / "good.toml")]
    for source in ("archiv", "nobody", ""):
        yield ["pull", "--from", source, *one]
    for source in ("archive", "web"):
        yield ["pull", "--from", source, "--detach", *one]
    yield ["pull", "--from", "archive", *one]
    yield ["pull", "--from", "archive", "--report", str(at / "report.txt"), *one]
    yield ["pull", "--from", "archive", *configured]
    for query in ("StudyDat=1", "Modality=MR", "StudyDate=yesterday", "StudyDate", "PatientID=*", "PatientID='1"):
        yield ["pull", "--from", "archive", "--query", query, *configured]
    for listed in ("nowhere", "empty", "bytes.toml", "file"):
        yield ["pull", "--from", "archive", "--list", str(at / listed), *configured]
    for value in (["--study", "1.2.x"], ["--study", ""], ["--accession", "A*"], ["--patient", " "]):
        yield ["pull", "--from", "archive", *value, *configured]
    for change in ("show", "pause", "resume", "cancel"):
        yield ["pull", change, "p0", *configured]


def other_mistakes(at: Path, p: dict[str, str], port: int) -> Iterator[list[str]]:
    """Of jobs, sources, folders and peers."""
    for job in ("show", "retry", "cancel"):
        yield ["jobs", job, "no-such-job", "--config", str(at / "good.toml")]
    yield ["jobs", "why", "1.2.3", "--config", str(at / "good.toml")]
    for source in ("file", "empty", "nowhere", "bad.nii.gz"):
        yield ["process", p[source], "--out", str(at / "out"), "--no-explain"]
    for out in ("file", "file/below"):
        yield ["process", p["bad.nii.gz"], "--out", p[out]]
        yield ["phantom", "--out", p[out]]
        yield ["evaluate", "--out", p[out], "--count", "1"]
        yield ["train", "phase1", "--out", p[out]]
        yield ["demo", "--out", p[out]]
    for out in ("file", "empty", "file/below", "nowhere/below"):
        yield ["config", "init", "--out", str(at / out)]
    for source in ("file", "nowhere", "empty"):
        yield ["select", p[source]]
        yield ["weights", "verify", p[source]]
        yield ["send", p[source], "--to", f"PACS@127.0.0.1:{port}"]
    for peer in (
        "PACS",
        "PACS@h",
        "PACS@h:x",
        "@h:1",
        f"PACS@{NOWHERE}:104",
        f"PACS@127.0.0.1:{port}",
        "A" * 17 + "@h:1",
    ):
        yield ["echo", peer]
    yield ["train", "phase1", "--config", p["nowhere"], "--out", str(at / "out")]
    yield ["train", "phase1", "--config", p["file"], "--out", str(at / "out")]
    yield ["evaluate", "--out", str(at / "out"), "--weights", p["nowhere"]]
    yield ["evaluate", "--out", str(at / "out"), "--manifest", p["nowhere"]]
    yield ["process", p["bad.nii.gz"], "--out", str(at / "out"), "--weights", p["nowhere"]]


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hundred_mistakes_give_a_hundred_lines(
    place: Path, closed_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(place / "empty")
    asked = list(mistakes(place, closed_port))
    assert len(asked) >= 100
    wrong = []
    for arguments in asked:
        code, said = run(arguments, capsys, monkeypatch)
        lines = [line for line in said.splitlines() if line.startswith("braingemma: ")]
        if code not in (1, 2) or len(lines) != 1 or "Traceback" in said or len(said.splitlines()) > 4:
            wrong.append((arguments, code, said))
    assert not wrong


FAULTS = {
    "full": (OSError(errno.ENOSPC, "No space left on device", "/d/f"), "/d/f: No space left"),
    "unreadable": (PermissionError(errno.EACCES, "Permission denied", "/d/f"), "/d/f: Permission denied"),
    "name": (socket.gaierror(-2, "Name or service not known"), "does not resolve"),
    "refused": (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "nothing listens"),
    "reset": (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "closed the connection"),
    "timeout": (TimeoutError("timed out"), "no answer in time"),
    "certificate": (ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] expired"), "TLS"),
    "sqlite": (sqlite3.DatabaseError("file is not a database"), "database: file is not a database"),
    "sql": (sa.exc.OperationalError("SELECT 1", {}, Exception("server closed\nmore")), "database: server closed"),
    "memory": (MemoryError(), "not enough memory"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_world_does_is_one_line(name: str) -> None:
    error, expected = FAULTS[name]
    line = fault_line(error)
    assert line is not None
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), AssertionError()])
def test_our_own_faults_keep_their_traceback(error: Exception) -> None:
    assert fault_line(error) is None


def test_a_disk_that_becomes_full_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match=f"{tmp_path}: No space left on device: .*make room"), writing_to(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_interrupt_while_the_commands_load_is_one_line() -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'daemon.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from daemon.cli.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "braingemma: interrupted\n")
