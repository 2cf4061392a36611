"""A hundred mistakes, each in one line: what a user, a disk, a name or a network does to every command."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from delivery_support import certificates

from daemon.cli.__main__ import main
from daemon.cli.app import COMMANDS, load_command
from daemon.errors import DaemonError
from daemon.faults import fault_line, writing_to

NOWHERE = "no-such-host.invalid"
NOT_READABLE = "/proc/self/mem"
"""Reading it fails, for root, too."""
ONLY_USAGE = {
    "weights list": "reads what is there", "bench convert": "numbers only", "bench start": "numbers only",
    "bench generate": "numbers only", "bench gpu": "its first line is that there is no GPU",
}  # fmt: skip
"""Commands that nothing but their own options can have wrong."""


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """(exit code, standard error) of one command in this process."""
    monkeypatch.setattr(sys, "argv", ["braingemma", *arguments])
    monkeypatch.setattr(os, "nice", lambda _more: 0)  # of a batch; it would last for all later tests
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
    (tmp_path / "unknown.toml").write_text('[storage]\nfoldr = "x"\n[listner]\n[web]\nport = "many"\n')
    (tmp_path / "cases.csv").write_text("nothing,of,this\n1,2,3\n")
    (tmp_path / "cases.jsonl").write_text("{not json\n")
    return tmp_path


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound and not listened on: connections are refused."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def mistakes_of_configurations(at: Path, p: dict[str, str], _port: int) -> Iterator[list[str]]:
    """Of configurations, data folders and databases; these and all below are arguments of commands that cannot work."""
    configurations = [str(at / n) for n in ("nowhere.toml", "bad.toml", "bytes.toml", "empty")] + [NOT_READABLE]
    with_configuration = (
        ["config", "check"], ["config", "show"], ["doctor"], ["serve"], ["worker"], ["jobs", "list"],
        ["jobs", "show", "j"], ["jobs", "why", "1.2"], ["jobs", "retry", "j"], ["jobs", "cancel", "j"],
        ["jobs", "purge"], ["jobs", "reviews"], ["select", p["empty"]], ["stats"], ["pull", "list"],
        ["process", p["bad.nii.gz"], "--out", p["nowhere"]], ["batch", p["empty"], "--out", p["nowhere"]],
        ["echo", "PACS@127.0.0.1:1"],
    )  # fmt: skip
    for command in with_configuration:
        for configuration in configurations:
            yield [*command, "--config", configuration]
    for command in (
        ["jobs", "list"], ["jobs", "show", "j"], ["jobs", "purge"], ["jobs", "retry", "j"], ["jobs", "cancel", "j"],
        ["jobs", "why", "1.2"], ["jobs", "reviews"], ["stats"], ["pull", "list"], ["pull", "show", "p"],
    ):  # fmt: skip
        for configuration in ("data.toml", "database.toml", "damaged.toml"):
            yield [*command, "--config", str(at / configuration)]


def mistakes_of_pulls(at: Path, _p: dict[str, str], _port: int) -> Iterator[list[str]]:
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


def mistakes_of_many_studies(at: Path, p: dict[str, str], _port: int) -> Iterator[list[str]]:
    """Of batches and of the folders that measurements are made in."""
    for source in ("nowhere", "file", "empty", "cases.csv", "cases.jsonl"):
        yield ["batch", str(at / source), "--out", str(at / "out")]
    for out in ("file", "file/below"):
        yield ["batch", p["bad.nii.gz"], "--out", p[out]]
        for bench in ("ingest", "pipeline", "pack"):
            yield ["bench", bench, "--folder", p[out]]
    yield ["batch", p["bad.nii.gz"], "--out", str(at / "out"), "--weights", p["nowhere"]]
    yield ["batch", NOT_READABLE, "--out", str(at / "out")]
    yield ["bench", "page", "--database-url", "postgresql://nobody:x@127.0.0.1:1/none?connect_timeout=2"]
    yield ["bench", "page", "--database-url", "no address"]
    yield ["bench", "explain", "--weights", p["nowhere"]]
    yield ["bench", "explain", "--cases", p["nowhere"]]
    for option, value in (("--hours", "1,2"), ("--hours", "x"), ("--service", "soon"), ("--service", "0")):
        yield ["bench", "site", option, value]


def mistakes_of_training(at: Path, p: dict[str, str], _port: int) -> Iterator[list[str]]:
    """Of recipes, manifests and run folders."""
    for command in ("run", "phase1", "phase2a", "phase2b", "all"):
        yield ["train", command, "--config", p["nowhere"], "--out", str(at / "out")]
        yield ["train", command, "--config", str(at / "unknown.toml"), "--out", str(at / "out")]
    for command in ("run", "phase2a", "phase2b", "all", "demo", "ablation"):
        yield ["train", command, "--out", p["file/below"]]
    yield ["train", "run", "--phase", "phase9", "--out", str(at / "out")]
    for option in ("--brats", "--controls"):
        yield ["train", "manifest", option, p["nowhere"], "--out", str(at / "manifest.jsonl")]
    yield ["train", "manifest", "--out", str(at / "manifest.jsonl")]
    yield ["train", "domain", "--manifest", p["nowhere"], "--out", str(at / "domain.json")]
    yield ["weights", "fetch", "nobody/no-such-model"]
    yield ["weights", "fetch", "not an id"]
    yield ["evaluate", "--out", str(at / "out"), "--cases", p["nowhere"]]
    yield ["evaluate", "--out", str(at / "out"), "--insert", p["nowhere"]]
    yield ["evaluate", "--out", str(at / "out"), "--baseline", "none-of-them", "--checkpoint", p["empty"]]


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
    yield ["process", NOT_READABLE, "--out", str(at / "out")]
    yield ["send", NOT_READABLE, "--to", f"PACS@127.0.0.1:{port}"]
    yield ["train", "phase1", "--config", p["file"], "--out", str(at / "out")]
    yield ["evaluate", "--out", str(at / "out"), "--weights", p["nowhere"]]
    yield ["evaluate", "--out", str(at / "out"), "--manifest", p["nowhere"]]
    yield ["process", p["bad.nii.gz"], "--out", str(at / "out"), "--weights", p["nowhere"]]


MISTAKES = (
    mistakes_of_configurations, mistakes_of_pulls, other_mistakes, mistakes_of_many_studies, mistakes_of_training,
)  # fmt: skip


def all_of(kind: Callable[..., Iterator[list[str]]], at: Path, port: int) -> list[list[str]]:
    return list(
        kind(at, {name: str(at / name) for name in ("file", "empty", "nowhere", "bad.nii.gz", "file/below")}, port)
    )


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", MISTAKES)
def test_a_hundred_mistakes_give_a_hundred_lines(
    place: Path,
    closed_port: int,
    kind: Callable[..., Iterator[list[str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(place / "empty")
    wrong = []
    for arguments in all_of(kind, place, closed_port):
        code, said = run(arguments, capsys, monkeypatch)
        if not one_line(code, said):
            wrong.append((arguments, code, said))
    gc.collect()
    assert not wrong


def test_they_are_more_than_a_hundred_and_leave_out_no_command(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    asked = [arguments for kind in MISTAKES for arguments in all_of(kind, tmp_path, 1)]
    record_property("mistakes", len(asked))
    assert len({tuple(arguments) for arguments in asked}) >= 200
    without = {name for name in leaves() if not any(a[: len(name.split())] == name.split() for a in asked)}
    assert without == ONLY_USAGE.keys()


def one_line(code: int, said: str) -> bool:
    """Whether a command failed in one line; what it was doing may stand before."""
    lines = [line for line in said.splitlines() if line.startswith("braingemma: ")]
    return code in (1, 2) and len(lines) == 1 and "Traceback" not in said and len(said.splitlines()) <= 4


def leaves() -> Iterator[str]:
    """Every command by its words."""
    for name in COMMANDS:
        command = load_command(name)
        single = not hasattr(command, "commands") or (name == "pull")
        if single:
            yield name
        for inner in getattr(command, "commands", ()):
            yield f"{name} {inner}"


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection is answered like this."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.fixture
def resetting() -> Iterator[int]:
    """A port where each connection is reset as soon as it stands."""

    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with listening(reset) as port:
        yield port


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[int]:
    """A port of TLS, by a certificate of an authority that nobody knows."""
    made = certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made / "server.pem", made / "server.key")

    def wrap(connection: socket.socket) -> None:
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    with listening(wrap) as port:
        yield port


# pynetdicom leaves the socket of a broken connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_peers_do_is_one_line(
    place: Path, resetting: int, encrypted: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reset, a name that does not resolve, TLS where none is expected and TLS that nobody vouches for."""
    entries = [
        f'[[sources]]\nname = "reset"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {resetting}\n',
        f'[[sources]]\nname = "reset-web"\nurl = "http://127.0.0.1:{resetting}/dicom-web"\n',
        f'[[sources]]\nname = "lost"\nae_title = "PACS"\nhost = "{NOWHERE}"\nport = 104\n',
        f'[[sources]]\nname = "lost-web"\nurl = "https://{NOWHERE}/dicom-web"\n',
        f'[[sources]]\nname = "tls"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {encrypted}\n',
        f'[[sources]]\nname = "tls-web"\nurl = "https://127.0.0.1:{encrypted}/dicom-web"\n',
    ]
    configuration = place / "peers.toml"
    configuration.write_text(f'[storage]\nfolder = "{place / "good"}"\n' + "".join(entries))
    asked = [["echo", f"PACS@127.0.0.1:{port}"] for port in (resetting, encrypted)]
    for name in ("reset", "reset-web", "lost", "lost-web", "tls", "tls-web"):
        asked.append(["pull", "--from", name, "--study", "1.2.3", "--detach", "--config", str(configuration)])
    wrong = []
    for arguments in asked:
        code, said = run(arguments, capsys, monkeypatch)
        if not one_line(code, said):
            wrong.append((arguments, code, said))
    gc.collect()
    assert not wrong


WRITERS = (
    ["process", "bad.nii.gz", "--out", "out"], ["batch", "bad.nii.gz", "--out", "out"], ["phantom", "--out", "out"],
    ["evaluate", "--out", "out", "--count", "1"], ["train", "run", "--config", "demo", "--out", "out"],
    ["demo", "--out", "out"],
)  # fmt: skip


def test_a_full_disk_is_one_line_before_work_begins(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.chdir(place)
    monkeypatch.setattr(Path, "write_bytes", full)
    for arguments in WRITERS:
        code, said = run(list(arguments), capsys, monkeypatch)
        assert one_line(code, said), (arguments, code, said)
        assert "No space left on device: the disk is full: make room" in said


INTERRUPTED = {
    ("process", "bad.nii.gz", "--out", "out"): "daemon.pipeline.process.process",
    ("batch", "bad.nii.gz", "--out", "out"): "daemon.cohort.cases.find_cases",
    ("select", "empty"): "dicom_io.series.group.scan_folder",
    ("send", "file", "--to", "PACS@h:1"): "daemon.deliver.dimse.DimseClient.store",
    ("echo", "PACS@h:1"): "daemon.deliver.dimse.DimseClient.echo",
    ("demo", "--out", "out"): "daemon.trial.demo.demo",
    ("doctor", "--config", "good.toml"): "daemon.service.doctor.examine",
    ("jobs", "list", "--config", "good.toml"): "daemon.database.engine.make_engine",
    ("stats", "--config", "good.toml"): "daemon.database.engine.make_engine",
    ("pull", "--from", "archive", "--study", "1.2", "--detach", "--config", "source.toml"):
        "daemon.cli.pull.client_of",
    ("phantom", "--out", "out"): "training.phantoms.phantom.make_phantom",
    ("config", "check", "--config", "good.toml"): "daemon.cli.configuration.load_settings",
}  # fmt: skip
"""What is at work when Ctrl-C comes."""


@pytest.mark.parametrize("arguments", INTERRUPTED, ids=lambda arguments: arguments[0])
def test_an_interrupt_at_work_is_one_line(
    place: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = []

    def interrupt(*_: object, **__: object) -> None:
        interrupted.append(True)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.chdir(place)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs behind
    monkeypatch.setattr(INTERRUPTED[arguments], interrupt)
    try:
        code, said = run(list(arguments), capsys, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted
    assert code == 130
    assert said.splitlines()[-1] == "braingemma: interrupted"
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 3


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
