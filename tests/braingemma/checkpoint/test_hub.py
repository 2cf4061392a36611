"""Downloading weights from a local stand-in of the hub: its layout, its headers, and transfers that break off."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from published_files import write_published

REPO = "praiselab-picuslab/BrainGemma3D"
COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
OLDER = "00000000000000000000000000000000000000aa"
LARGE = "language_model/model.safetensors"
FETCH = "import sys; from braingemma.checkpoint.weights import fetch_weights; print(fetch_weights(sys.argv[1]))"
DESCRIBE = (
    "import json, sys; from braingemma.checkpoint.weights import describe_weights as d; i = d(sys.argv[1]);"
    "print(json.dumps([i.version, i.format, i.sha256, str(i.folder)]))"
)


class Hub(ThreadingHTTPServer):
    """What `huggingface_hub` asks for: a revision's commit, its files, and their bytes from any place on."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.ranges: list[tuple[str, int]] = []
        self.breaks: list[int] = []
        self.stall_at: int | None = None
        self.stalled = threading.Event()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed resets its connection: nothing to report."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        info = re.fullmatch(rf"/api/models/{REPO}(?:/revision/([\w.-]+))?", path)
        tree = re.fullmatch(rf"/api/models/{REPO}/tree/({COMMIT}|{OLDER})", path)
        file = re.fullmatch(rf"/{REPO}/resolve/({COMMIT}|{OLDER})/(.+)", path)
        if info:
            commit = OLDER if info[1] in ("v1", OLDER) else COMMIT
            files = [{"rfilename": name} for name in self.server.names()]
            self._json({"id": REPO, "modelId": REPO, "sha": commit, "siblings": files, "private": False}, body=body)
        elif tree:
            self._json([self._entry(name) for name in self.server.names()], body=body)
        elif file and (self.server.root / file[2]).is_file():
            self._file(file[1], file[2], body=body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _entry(self, name: str) -> dict[str, Any]:
        data = (self.server.root / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _json(self, value: Any, *, body: bool) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _file(self, commit: str, name: str, *, body: bool) -> None:
        data = (self.server.root / name).read_bytes()
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        self.server.ranges.append((name, start))
        if name == LARGE and self.server.breaks:
            self.wfile.write(data[start : self.server.breaks.pop()])
            self.close_connection = True
            return
        if name == LARGE and self.server.stall_at is not None:
            self.wfile.write(data[start : self.server.stall_at])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data[start:])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A repository with weights in the published layout, and files that must stay there."""
    root = tmp_path / "repository"
    write_published(root)
    (root / "README.md").write_text("a card")
    (root / "modeling_code.py").write_text("raise SystemExit('code of a checkpoint must never be fetched')\n")
    server = Hub(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def environment(hub: Hub, cache: Path, **more: str) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return {**os.environ, **own, **more}


def call(code: str, ref: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, ref], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_weights_come_from_the_hub_once_and_then_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = call(DESCRIBE, REPO, environment(hub, cache))
    assert first.returncode == 0, first.stderr
    version, layout, _, folder = json.loads(first.stdout)
    assert (version, layout) == (COMMIT[:12], "published")
    fetched = {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}
    assert fetched == {n for n in hub.names() if n not in ("README.md", "modeling_code.py")}
    for name in fetched:
        assert (Path(folder) / name).read_bytes() == (hub.root / name).read_bytes()
    assert "%" in first.stderr, "no progress was shown"
    asked = len(hub.ranges)
    offline = call(DESCRIBE, REPO, environment(hub, cache, HF_HUB_OFFLINE="1"))
    assert offline.stdout == first.stdout, offline.stderr
    assert call(DESCRIBE, REPO, environment(hub, cache)).stdout == first.stdout
    assert len(hub.ranges) == asked, "what the cache holds was fetched again"


def test_a_named_revision_is_the_one_that_comes(hub: Hub, tmp_path: Path) -> None:
    run = call(DESCRIBE, f"{REPO}@v1", environment(hub, tmp_path / "cache"))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[0] == OLDER[:12]


@pytest.fixture
def large(hub: Hub) -> bytes:
    """A file of many of the pieces of 10 MB that the library writes."""
    content = random.Random(0).randbytes(25_000_000)
    (hub.root / LARGE).write_bytes(content)
    return content


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path, large: bytes) -> None:
    hub.breaks.append(12_500_000)
    done = call(FETCH, REPO, environment(hub, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    starts = [start for name, start in hub.ranges if name == LARGE]
    assert len(starts) == 2
    assert starts[0] == 0 < starts[1] <= 12_500_000
    assert (Path(done.stdout.strip()) / LARGE).read_bytes() == large


def test_a_download_that_was_killed_fetches_only_what_is_missing(hub: Hub, tmp_path: Path, large: bytes) -> None:
    env = environment(hub, tmp_path / "cache")
    hub.stall_at = 12_500_000
    with subprocess.Popen([sys.executable, "-c", FETCH, REPO], env=env, stderr=subprocess.DEVNULL) as process:
        assert hub.stalled.wait(60)
        others = len(hub.names()) - 3  # the large one, the card and the code
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(list((tmp_path / "cache").rglob("snapshots/*/**/*.*"))) < others:
            time.sleep(0.05)
        process.kill()
    hub.stall_at = None
    hub.released.set()
    hub.ranges.clear()
    with_half = call(DESCRIBE, REPO, {**env, "HF_HUB_OFFLINE": "1"})
    assert with_half.returncode, "half a download was taken for weights"
    assert LARGE in with_half.stderr.strip().splitlines()[-1]
    done = call(FETCH, REPO, env)
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in hub.ranges] == [LARGE]
    assert (Path(done.stdout.strip()) / LARGE).read_bytes() == large


def test_a_repository_that_is_not_there_is_one_clear_line(hub: Hub, tmp_path: Path) -> None:
    run = call(FETCH, "someone/nothing", environment(hub, tmp_path / "cache"))
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode
    assert last.startswith("braingemma.errors.CheckpointError: someone/nothing: download failed: 404")
