"""Nothing that was answered with Success is lost: by kill, by trace, and by power cut."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from ingest_sender import RawSender
from ingest_support import Bench, encode, instances_in, make_series
from pydicom import Dataset

from daemon.database.tables import INSTANCES

HERE = Path(__file__).parents[1]


class Load:
    """Four senders that send new instances until they are told to stop, and note what was acknowledged."""

    def __init__(self, port: int, instances: Iterator[tuple[str, bytes]]) -> None:
        self.port = port
        self.instances = instances
        self.acknowledged: dict[str, str] = {}
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(30)

    def _send(self) -> None:
        while not self.stop.is_set():
            try:
                with RawSender(("127.0.0.1", self.port), timeout=2) as sender:
                    if sender.associate() != 2:
                        continue
                    while not self.stop.is_set():
                        with self._lock:
                            uid, data = next(self.instances)
                        if sender.store(uid, data) == 0:
                            self.acknowledged[uid] = hashlib.sha256(data).hexdigest()
            except (ConnectionError, TimeoutError):
                continue


def endless_instances(*, rows: int = 64) -> Iterator[tuple[str, bytes]]:
    """Instances that differ in UID and number, from one template so that making them costs nothing."""
    return variants(make_series(1, rows=rows)[0], 10**9)


def variants(template: Dataset, count: int) -> Iterator[tuple[str, bytes]]:
    """(SOP Instance UID, data set) of instances that differ in their UIDs."""
    raw, uid = encode(template), str(template.SOPInstanceUID).encode()
    for number in range(count):
        new = uid[:-9] + b"%09d" % number
        yield new.decode(), raw.replace(uid, new)


def kill_rounds(folder: Path, moments: int, seed: int, *, second: bool) -> tuple[int, int]:
    """Kill two receivers under load at random moments; instances acknowledged, and kills.

    With a `second` copy of the spool each of the two must hold all of them.
    """
    import ingest_receiver

    spool, replica = folder / "spool", folder / "replica" if second else None
    if replica is not None:
        replica.mkdir()
    listening = ingest_receiver.bind()
    moment = random.Random(seed)
    receivers: list[int] = []
    try:
        receivers = [ingest_receiver.fork_receiver(listening, spool, replica) for _ in range(2)]
        with Load(listening.getsockname()[1], endless_instances()) as load:
            for _ in range(moments):
                under_load(load)
                time.sleep(moment.uniform(0.0, 0.3))
                victim = moment.randrange(len(receivers))
                os.kill(receivers[victim], signal.SIGKILL)
                os.waitpid(receivers[victim], 0)
                receivers[victim] = ingest_receiver.fork_receiver(listening, spool, replica)
        for copy in (spool, replica) if replica is not None else (spool,):
            stored = {record.meta["sop_instance_uid"]: data for record, data in instances_in(copy)}
            for uid, digest in load.acknowledged.items():
                assert uid in stored, f"{uid} was acknowledged and is lost in {copy.name}"
                assert hashlib.sha256(stored[uid]).hexdigest() == digest
    finally:
        for pid in receivers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        listening.close()
    return len(load.acknowledged), moments


def under_load(load: Load) -> None:
    """Wait until more is acknowledged than after the last kill, so that each one hits a receiver at work."""
    before, deadline = len(load.acknowledged), time.monotonic() + 30
    while len(load.acknowledged) < before + 6 and time.monotonic() < deadline:
        time.sleep(0.005)


def run_kills(folder: Path, moments: int, *, second: bool = False) -> tuple[int, int]:
    """In a process of its own: forking beside pytest's threads would not be sound."""
    code = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]\n"
        f"from pathlib import Path\nfrom tests.daemon.receive.test_ingest_durability import kill_rounds\n"
        f"print(*kill_rounds(Path({str(folder)!r}), {moments}, 7, second={second}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    acknowledged, kills = map(int, done.stdout.split()[-2:])
    return acknowledged, kills


def test_killed_at_twenty_moments_under_load_nothing_acknowledged_is_lost(tmp_path):
    acknowledged, kills = run_kills(tmp_path, 20)
    assert kills == 20
    assert acknowledged > 100
    index_holds_all(tmp_path, acknowledged)


def index_holds_all(folder: Path, acknowledged: int) -> None:
    """The assembler indexes every instance, torn tails notwithstanding."""
    bench = Bench(folder)
    bench.assembler.recover(0.0)
    assert len(bench.rows(INSTANCES)) >= acknowledged
    bench.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("second", [False, True])
def test_killed_at_two_hundred_moments(tmp_path, second):
    acknowledged, kills = run_kills(tmp_path, 200, second=second)
    print(f"{kills} kills, {acknowledged} instances acknowledged")  # noqa: T201 - `pytest -s` shows it
    assert kills == 200
    assert acknowledged > 1000
    index_holds_all(tmp_path, acknowledged)


def start_driver(spool: Path, *options: str, prefix: Sequence[object] = ()) -> tuple[subprocess.Popen[str], int]:
    """A receiver process of its own that ends with its input; and its port."""
    process = subprocess.Popen(
        [*map(str, prefix), sys.executable, str(HERE / "ingest_receiver.py"), str(spool), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    first = process.stdout.readline()
    if not first:
        process.communicate()
        pytest.skip("strace may not trace here")
    return process, int(first)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_instances_in_a_hundred_series_from_eight_senders(tmp_path):
    """All there, and the memory of a receiver stays flat and under 300 MB."""
    process, port = start_driver(tmp_path / "spool", "--reserve")
    series = [make_series(1, rows=64)[0] for _ in range(100)]
    work = iter(series)
    resident: list[float] = []
    failures: list[BaseException] = []
    sent: dict[str, str] = {}
    lock = threading.Lock()

    def send() -> None:
        while True:
            with lock:
                template = next(work, None)
                resident.append(resident_mb(process.pid))
            if template is None:
                return
            batch = list(variants(template, 200))
            sent.update((uid, hashlib.sha256(data).hexdigest()) for uid, data in batch)
            try:
                send_batch(port, batch)
            except (AssertionError, OSError) as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    resident.append(resident_mb(process.pid))
    process.communicate(timeout=60)
    assert failures == []
    print(f"at most {max(resident):.0f} MB, {max(resident[20:40]):.0f} MB early, {max(resident[-20:]):.0f} MB late")  # noqa: T201 - `pytest -s` shows it
    assert max(resident) < 300
    assert max(resident[-20:]) < 1.2 * max(resident[20:40]), "flat"
    bench = Bench(tmp_path)
    bench.assembler.recover(0.0)
    rows = bench.rows(INSTANCES)
    assert len(sent) == 20_000
    assert {row.sop_uid: row.sha256 for row in rows} == sent
    assert len({row.series_uid for row in rows}) == 100
    bench.close()


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


# --- trace


@dataclass(frozen=True)
class Call:
    """One system call of a trace."""

    name: str
    descriptor: str
    begin: float
    end: float
    data: bytes
    """The bytes among its arguments, as far as they were recorded."""
    result: str


def trace(folder: Path, batches: list[list[tuple[str, bytes]]], *options: str) -> list[Call]:
    """System calls of a receiver that takes the batches, each on its own association."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    log = folder / "trace.txt"
    prefix = [
        "strace",
        "-f",
        "-ttt",
        "-T",
        "-s",
        "600",
        "-xx",
        "-e",
        "trace=pwritev,pwritev2,fdatasync,sendto",
        "-o",
        log,
    ]
    process, port = start_driver(folder / "spool", *options, prefix=prefix)
    threads = [threading.Thread(target=send_batch, args=(port, batch)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    process.communicate(timeout=60)  # closes its input, at which it ends
    return parse_trace(log.read_text().splitlines())


def send_batch(port: int, batch: list[tuple[str, bytes]]) -> None:
    with RawSender(("127.0.0.1", port)) as sender:
        assert sender.associate() == 2
        for uid, data in batch:
            assert sender.store(uid, data) == 0
        sender.release()


def parse_trace(lines: list[str]) -> list[Call]:
    """Join calls that strace shows in two halves, since another thread came in between."""
    calls, begun = [], {}
    for line in lines:
        match = re.match(r"(\d+)\s+(\d+\.\d+) (.*)", line)
        if not match:
            continue
        thread, at, text = match[1], float(match[2]), match[3]
        if text.endswith("<unfinished ...>"):
            begun[thread] = (at, text)
            continue
        begin = at
        if text.startswith("<..."):
            begin, first = begun.pop(thread)
            text = first + text
        name = re.match(r"\w+", text)
        tail = re.search(r"= (\S+).*?(?:<([\d.]+)>)?$", text)
        if name and tail and tail[2]:
            strings = re.findall(r'"((?:\\x[0-9a-f]{2})+)"', text)
            data = b"".join(bytes.fromhex(part.replace("\\x", "")) for part in strings)
            argument = re.match(r"\w+\((\d+)", text)
            descriptor = argument[1] if argument else ""
            calls.append(Call(name[0], descriptor, begin, begin + float(tail[2]), data, tail[1]))
    return calls


def count_successes(calls: list[Call], uids: set[str]) -> tuple[int, int]:
    """Responses with Success, and those that no fdatasync covers.

    An fdatasync covers an instance when it began after the write to the same file that holds the instance's UID had
    ended, and had itself ended, with result 0, before the response began.
    """
    known = {uid.encode() for uid in uids}
    syncs = [call for call in calls if call.name == "fdatasync" and call.result == "0"]
    written: dict[bytes, Call] = {}
    for call in calls:
        if call.name.startswith("pwritev"):
            written |= {uid: call for uid in known if uid in call.data}
    successes = uncovered = 0
    for call in calls:
        is_success = call.name == "sendto" and SUCCESS in call.data
        for uid in (uid for uid in known if is_success and uid in call.data):
            successes += 1
            uncovered += uid not in written or not any(covers(sync, written[uid], call) for sync in syncs)
    return successes, uncovered


def covers(sync: Call, write: Call, answer: Call) -> bool:
    """Whether the sync is of the written file, after the write and before the answer."""
    return sync.descriptor == write.descriptor and write.end <= sync.begin and sync.end <= answer.begin


SUCCESS = bytes.fromhex("0000000902000000 0000")
"""Status (0000,0900), length 2, 0x0000."""


@pytest.mark.parametrize(
    "options", [(), ("--reserve",), ("--no-sync",)], ids=["as it is", "in prepared room", "negative control"]
)
def test_every_success_follows_the_sync_that_covers_it(tmp_path, options):
    instances = endless_instances(rows=16)
    batches = [[next(instances) for _ in range(10)] for _ in range(4)]
    calls = trace(tmp_path, batches, *options)
    successes, uncovered = count_successes(calls, {uid for batch in batches for uid, _ in batch})
    assert successes == 40
    assert uncovered == (40 if "--no-sync" in options else 0)
