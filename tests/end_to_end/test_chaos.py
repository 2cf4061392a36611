"""Everything at once, in random order from a printed seed: every valid study is reported and delivered, none twice.

Senders, hostile senders, kills of every process, restarts of the database, a full disk, steps of the clock, a PACS that
goes away. `BRAINGEMMA_CHAOS_SECONDS` (600) and `BRAINGEMMA_CHAOS_SEED` (random) make it longer, or the same again;
`pytest -s -m slow tests/end_to_end/test_chaos.py` shows what happened. The steps need no time and leave one object. In
the last third nothing is killed any more, so that memory and handles of one life can be compared. The full disk needs
root, the clock a C compiler; without them the rest is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import threading
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from clock_support import COMPILER, FakeClock
from e2e_support import processes_of, say, sections
from ingest_sender import MR, RawSender, associate_request, message, store_request
from ingest_support import encode, make_series, save
from objects_support import OBJECT_STEPS
from postgres_support import Postgres, needs_postgres
from pydicom import Dataset
from steps_support import replace_steps

from daemon.database.tables import FINAL_STATES, JobState
from daemon.errors import DaemonError
from daemon.jobs.store import Job
from daemon.observe.audit import check_chain
from daemon.pipeline.actions import retry
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs

SECONDS = float(os.environ.get("BRAINGEMMA_CHAOS_SECONDS", "600"))
SEED = int(os.environ.get("BRAINGEMMA_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
PATIENCE = 1200.0
"""How long all may stand still at the end before it counts as hung, s."""
CALM_SHARE = 1 / 3
DISK_BYTES = (600 << 20) + int(SECONDS * (200 << 10))
"""Room for all that comes: nothing is removed. It is full when the test fills it."""
HOUR = 3600
BAD_SHARE = 0.2
MODULES = {
    "receiver": "daemon.receive.processes", "model": "daemon.pipeline.step_process", "page": "daemon.service.page",
}  # fmt: skip

pytestmark = [
    pytest.mark.e2e, pytest.mark.slow, needs_postgres, pytest.mark.timeout(SECONDS + 3 * PATIENCE),
    # Senders of this process whose connections break leave sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own where that can be had, else a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    mounted = os.getuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class Sent:
    """The studies that were acknowledged: how many images each has."""

    valid: dict[str, int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Chaos:
    """The service with all around it, and what may befall them."""

    def __init__(self, folder: Path, disk: Path, postgres: Postgres) -> None:
        self.folder, self.disk, self.postgres = folder, disk, postgres
        self.draw = random.Random(SEED)
        self.pacs: EmbeddedPacs | None = EmbeddedPacs(folder / "pacs")
        self.pacs_port = self.pacs.port
        self.clock = FakeClock(folder / "clock") if COMPILER else None
        configuration = sections(
            self.pacs_port, engine={"database_url": postgres.url, "lease_seconds": 4, "step_seconds": 120},
            assembly={"quiet_seconds": 4, "max_waiting_jobs": 20}, storage={"folder": str(disk / "data")},
        )  # fmt: skip
        configuration["listener"] |= {"reserve_mb": 0, "idle_seconds": 20}
        configuration["destinations"][0]["max_attempts"] = 1000
        self.service = TrialService(folder / "daemon", configuration)
        self.service.data = disk / "data"
        self.sent, self.over, self.quiet = Sent(), threading.Event(), threading.Event()
        self.lives, self.events, self.failures = 0, Counter[str](), list[str]()
        self.ends, self._listened = Counter[int | None](), False
        """Exit statuses of lives that listened."""
        self.looks: list[tuple[int, dict[str, tuple[float, int]]]] = []
        self._calm = threading.Event()

    # What goes on all the time

    def keep_service(self) -> None:
        """As systemd does: started again whenever it ends, however that happens."""
        environment = {**os.environ, **(self.clock.environment if self.clock else {})}
        while not self.over.is_set():
            if self.service.process is None or self.service.process.poll() is not None:
                status = None if self.service.process is None else self.service.process.poll()
                if self.lives and self._listened:
                    self.ends[status] += 1
                self._listened = False
                try:
                    self.service.start(environment=environment)
                    self.lives += 1
                    self._listened = True
                    say(f"life {self.lives} (the one before ended with {status})")
                except DaemonError as error:
                    say(f"it did not start, tried again: {str(error)[-600:]}")
            self.over.wait(0.5)

    def send(self, number: int) -> None:
        """A sender: studies one after the other, each sent again until it is acknowledged as a whole."""
        draw = random.Random(f"{SEED} {number}")
        while not self.quiet.is_set():
            bad = draw.random() < BAD_SHARE
            series = make_series(draw.randint(2, 8))
            for dataset in series if bad else ():
                dataset.ImagePositionPatient = [0, 0, draw.choice([1e308, -1e300, 0])]
                dataset.BodyPartExamined = draw.choice(["BRA\0IN", "x" * 64, ""])
            folder = self.folder / f"sender{number}"
            folder.mkdir(exist_ok=True)
            files = [save(dataset, folder / f"{n}.dcm") for n, dataset in enumerate(series)]
            if self._send_until_acknowledged(files, f"SENDER{number}"):
                uid = str(series[0].StudyInstanceUID)
                with self.sent.lock:
                    self.sent.bad.add(uid) if bad else self.sent.valid.update({uid: len(series)})
            self.quiet.wait(draw.uniform(0, 4))

    def _send_until_acknowledged(self, files: list[Path], title: str) -> bool:
        while not self.over.is_set():
            with contextlib.suppress(DaemonError, OSError, ValueError):
                self.service.send(files, title)
                return True
            self.over.wait(1)
        return False

    def be_hostile(self) -> None:
        """Associations that hang, garbage, sizes that lie, bombs, floods; at listener and page."""
        draw = random.Random(f"{SEED} hostile")
        held: list[socket.socket] = []
        acts = (self._garbage, self._bomb, self._half_an_instance, self._flood, self._ask_the_page)
        while not self.quiet.is_set():
            with contextlib.suppress(DaemonError, OSError, ValueError, KeyError):
                held += draw.choice(acts)(draw)
            while len(held) > 200 or (held and draw.random() < 0.3):
                held.pop(0).close()
            self.quiet.wait(draw.uniform(0, 1))
        for connection in held:
            connection.close()

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.service.peer.port), timeout=5)

    def _garbage(self, draw: random.Random) -> list[socket.socket]:
        connection = self._connect()
        connection.sendall(draw.randbytes(draw.randint(0, 5000)))
        return [connection]

    def _flood(self, draw: random.Random) -> list[socket.socket]:
        return [self._connect() for _ in range(draw.randint(1, 40))]

    def _half_an_instance(self, draw: random.Random) -> list[socket.socket]:
        connection = self._connect()
        connection.sendall(associate_request({1: MR}, calling="HOSTILE"))
        connection.recv(1000)
        pdus = b"".join(message(1, store_request("1.2.3", 1), draw.randbytes(100_000)))
        connection.sendall(pdus[: draw.randint(1, len(pdus))])
        return [connection]

    def _bomb(self, draw: random.Random) -> list[socket.socket]:
        """A data set of megabytes of zeros, or of headers nested without end."""
        sender = RawSender(("127.0.0.1", self.service.peer.port), calling="HOSTILE", timeout=20)
        with sender:
            sender.associate()
            dataset = make_series(1)[0]
            raw = encode(dataset)
            nested = b"\x08\x00\x99\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000
            [more] = draw.choices([nested, zlib.compress(bytes(50 << 20)), bytes(6 << 20)], (5, 5, 1))
            sender.store(str(dataset.SOPInstanceUID), raw + more)
        return []

    def _ask_the_page(self, draw: random.Random) -> list[socket.socket]:
        port = int(self.service.web_url.rsplit(":", 1)[1])
        connections = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(draw.randint(1, 60))]
        connections[0].sendall(
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n" + bytes(999)
        )
        return connections

    def watch(self) -> None:
        """Memory and handles by kind of process, and the page, now and then."""
        browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self.over.wait(3):
            with contextlib.suppress(DaemonError, psutil.Error, OSError, ValueError, KeyError):
                found = {
                    kind: (process.memory_info().rss / 1e6, process.num_fds())
                    for kind, process in self.processes().items()
                }
                self.looks.append((self.lives, found))
                with browser.open(f"{self.service.web_url}/", timeout=30) as answer:
                    answer.read()

    def processes(self) -> dict[str, psutil.Process]:
        running = processes_of(self.service)
        modules = {"service": "service", **MODULES}
        return {kind: running[module] for kind, module in modules.items() if module in running}

    # What befalls them

    def befall(self) -> None:
        """One thing after the other, until the time is over."""
        calm_things = {
            self.restart_database: 2, self.send_pacs_away: 2, self.set_clock: 3, self.fill_disk: 2,
            self.kill_model: 2, self.kill_page: 2,
        }  # fmt: skip
        all_things = {**calm_things, self.kill_service: 2, self.kill_receiver: 3, self.end_service: 1}
        started = time.monotonic()
        while (passed := time.monotonic() - started) < SECONDS:
            calm = passed > (1 - CALM_SHARE) * SECONDS
            things = calm_things if calm else all_things
            if calm and not self._calm.is_set():
                self._calm.set()
                say("nothing that is counted for flatness is killed from now on")
            if self.draw.random() < 0.9:  # one thing in ten befalls a service that may be starting just now
                self.wait_until_it_listens()
            [thing] = self.draw.choices(list(things), list(things.values()))
            self.events[thing.__name__] += 1
            say(f"{passed:.0f} s: {thing.__name__}; {len(self.sent.valid)} valid studies acknowledged")
            with contextlib.suppress(psutil.Error, OSError):
                thing()
            time.sleep(self.draw.uniform(1, 8))

    def wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.service.settings.data.status.exists() and self.lives and self._runs()):
            assert time.monotonic() < deadline, "the service does not start any more"
            time.sleep(0.2)

    def _runs(self) -> bool:
        return self.service.process is not None and self.service.process.poll() is None

    def kill(self, kind: str) -> None:
        process = self.processes().get(kind)
        if process is not None:
            process.send_signal(signal.SIGKILL)

    def kill_service(self) -> None:
        self.kill("service")

    def end_service(self) -> None:
        self.processes()["service"].send_signal(signal.SIGTERM)

    def kill_receiver(self) -> None:
        self.kill("receiver")

    def kill_model(self) -> None:
        if not self._calm.is_set():
            self.kill("model")

    def kill_page(self) -> None:
        if not self._calm.is_set():
            self.kill("page")

    def restart_database(self) -> None:
        self.postgres.go_away()
        time.sleep(self.draw.uniform(0, 6))
        self.postgres.come_back()

    def send_pacs_away(self) -> None:
        if self.pacs is not None:
            self.pacs.stop()
            time.sleep(self.draw.uniform(1, 15))
            self.pacs = EmbeddedPacs(self.folder / "pacs", port=self.pacs_port)

    def set_clock(self) -> None:
        if self.clock is not None:
            self.clock.set(self.clock.offset + self.draw.choice([-HOUR, HOUR, -60, 60]))

    def fill_disk(self) -> None:
        """All of it, and a moment later none of it."""
        if not os.path.ismount(self.disk):
            return
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        time.sleep(self.draw.uniform(1, 10))
        ballast.unlink()

    # How it ends

    def drain(self) -> list[Job]:
        """Wait until all that was acknowledged has ended; jobs that ended by trouble are retried, as a person would."""
        moved, before = time.monotonic(), None
        while True:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                jobs = self.service.store.recent(limit=1_000_000)
                self.retry_troubled(jobs)
                known = {job.study_uid for job in jobs if job.state in FINAL_STATES}
                state = Counter((str(job.state), job.step) for job in jobs)
                waiting = [job for job in jobs if job.state not in FINAL_STATES]
                if not waiting and known >= {*self.sent.valid, *self.sent.bad}:
                    return jobs
                if state != before:
                    moved, before = time.monotonic(), state
                assert time.monotonic() - moved < PATIENCE, (state, len(self.sent.valid), waiting[:3])
            time.sleep(2)

    def retry_troubled(self, jobs: list[Job]) -> None:
        for job in jobs:
            troubled = job.state is JobState.FAILED or (job.state is JobState.SET_ASIDE and job.deaths > 0)
            if troubled:
                self.failures.append(f"{job.job_id}: {job.state} in {job.step!r}: {job.reason}")
                say(f"retried by hand: {self.failures[-1]}")
                retry(self.service.store, self.service.store.engine, job.job_id)

    def trend(self, kind: str, which: Callable[[tuple[float, int]], float]) -> tuple[float, float] | None:
        """Medians of the first and the last third of the last life, its first fifth left out."""
        values = [which(found[kind]) for life, found in self.looks if life == self.lives and kind in found]
        values = values[len(values) // 5 :]
        third = len(values) // 3
        return (statistics.median(values[:third]), statistics.median(values[-third:])) if third >= 5 else None


def test_chaos(tmp_path: Path, disk: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    say(f"BRAINGEMMA_CHAOS_SEED={SEED} BRAINGEMMA_CHAOS_SECONDS={SECONDS:g}")
    replace_steps(tmp_path / "overlay", OBJECT_STEPS, monkeypatch)
    chaos = Chaos(tmp_path, disk, postgres)
    works: list[Callable[[], None]] = [chaos.keep_service, chaos.be_hostile, chaos.watch]
    works += [lambda number=number: chaos.send(number) for number in range(3)]  # type: ignore[misc]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        chaos.befall()
        say("it is over; what was acknowledged must end")
        assert all(thread.is_alive() for thread in threads), "one of what goes on all the time has ended"
        chaos.quiet.set()
        for thread in threads[3:]:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a sender is never acknowledged"
        jobs = chaos.drain()
        held = [] if chaos.pacs is None else chaos.pacs.instances()
        measured = {
            "seed": SEED, "valid": len(chaos.sent.valid), "bad": len(chaos.sent.bad), "jobs": len(jobs),
            "lives": chaos.lives, "ended with": {str(k): n for k, n in chaos.ends.items()},
            "events": dict(chaos.events), "retried by hand": len(chaos.failures),
            **{f"{kind}: MB, handles": (chaos.trend(kind, lambda v: v[0]), chaos.trend(kind, lambda v: v[1]))
               for kind in ("service", *MODULES)},
        }  # fmt: skip
        say(json.dumps(measured, indent=1))
        assert chaos._runs()
        check_each_reported_once(chaos.sent, jobs, held)
        check_flat(chaos)
        assert all(check_chain(path) for path in (chaos.service.data / "audit").glob("*.jsonl"))
        assert set(chaos.ends) <= {-signal.SIGKILL, 0}, "it ends by kills and in order alone"
    finally:
        chaos.quiet.set()
        chaos.over.set()
        threads[0].join(400)
        chaos.service.stop()
        if chaos.pacs is not None:
            chaos.pacs.stop()


def check_each_reported_once(sent: Sent, jobs: list[Job], held: list[Dataset]) -> None:
    """Of each valid study one result of all its images; of a part of it, where a sender was cut off, at most an earlier
    one, which the later one names."""
    of_study: dict[str, list[Dataset]] = {}
    for dataset in held:
        of_study.setdefault(str(dataset.StudyInstanceUID), []).append(dataset)
    for uid, images in sent.valid.items():
        mine = [job for job in jobs if job.study_uid == uid]
        whole = [d for d in of_study.get(uid, []) if int(d.InstanceNumber) == images]
        assert len(whole) == 1, (uid, images, [int(d.InstanceNumber) for d in of_study.get(uid, [])], mine)
        latest = {job.job_id for job in mine} - {job.supersedes for job in mine}
        assert len(latest) == 1, mine
        assert all(job.state is JobState.DONE for job in mine), mine
    assert len({str(d.SOPInstanceUID) for d in held}) == len(held)


def check_flat(chaos: Chaos) -> None:
    """In the last life memory and handles stay within a tenth, and a little, of what they were."""
    for kind in ("service", *MODULES):
        for which, slack in ((lambda v: v[0], 30.0), (lambda v: v[1], 40.0)):
            trend = chaos.trend(kind, which)
            if trend is not None:  # a short run is too short to tell
                assert trend[1] <= 1.1 * trend[0] + slack, (kind, trend)
