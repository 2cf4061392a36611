"""`braingemma bench ingest`: the same images into this listener, dcmtk's storescp and Orthanc, side by side.

Every run starts its receiver afresh on an empty folder of the same file system, sends by dcmtk's storescu with as many
associations as asked for, and checks that everything arrived. Runs of the contestants take turns, so that whatever
else the machine does hits all of them. All processes get `TCP_NODELAY=1`; Orthanc gets `SyncStorageArea` true;
storescp does not sync at all. Our listener runs as in the daemon, with the index following it; the clock starts when
the room that it prepares ahead (`listener.reserve_mb`) is there, as in a daemon that has run for a moment. A run that
sends more than that shows the speed without it, too.

A machine that computes meanwhile measures its own scheduler: each wait for a disk or a peer ends with a tick of 4 ms.
Where it cannot be left alone, `chrt -r 10 braingemma bench ingest` lets senders and all receivers alike go first.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from daemon.assemble.follower import SegmentFollower
from daemon.config.sections import Listener, Settings, Storage
from daemon.database.engine import create_tables, make_engine
from daemon.errors import DaemonError
from daemon.receive.processes import start_receivers
from daemon.spool.segment import RecordKind, read_records
from daemon.spool.writer import SEGMENT_BYTES
from daemon.trial.pacs import LOOPBACK, Orthanc
from dicom_io.content.equipment import is_own_result

CALLING, CALLED = "BENCH", "BRAINGEMMA"
MAX_PDU = 131072
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
OURS, TWICE, DCMTK, ORTHANC = "braingemma", "braingemma_replicated", "dcmtk_storescp", "orthanc_sync"
_TICKS = os.sysconf("SC_CLK_TCK")
_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}

_SETTLE_SECONDS = 60.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Usage:
    """What a receiver's processes used."""

    cpu_seconds: float
    peak_memory_mb: float
    """Largest resident set of one of its processes."""


@dataclass(frozen=True)
class Run:
    """One run: all images into one receiver."""

    seconds: float
    usage: Usage


class Contestant(Protocol):
    """A receiver under measurement."""

    port: int

    def settle(self) -> None:
        """Wait until what it prepares in the background after its start is done."""

    def stored(self) -> int:
        """How many instances it holds."""

    def usage(self) -> Usage:
        """What it used so far."""

    def stop(self) -> None:
        """End it."""


class _Ours:
    def __init__(self, folder: Path, processes: int, second: Path | None = None) -> None:
        """`second`: a folder on another disk, where each segment is written a second time."""
        self._copies = None if second is None else Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=second))
        listener = Listener(ae_title=CALLED, host=LOOPBACK, port=0, processes=processes, max_pdu=MAX_PDU)
        settings = Settings(listener=listener, storage=Storage(folder=folder, min_free_gb=0))
        data = settings.data
        self._spool = data.spool
        self._receivers = start_receivers(settings, self._copies)
        self.port = self._receivers.address[1]
        self._engine = make_engine(f"sqlite:///{folder / 'bench.sqlite'}")
        create_tables(self._engine)
        self._follower = SegmentFollower(self._engine, self._spool, data.damaged, is_own_result)
        self._reserve = processes * -(-(listener.reserve_mb << 20) // SEGMENT_BYTES) * SEGMENT_BYTES
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def settle(self) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while sum(path.stat().st_size for path in self._spool.glob(".*.spare")) < self._reserve:
            if time.monotonic() > deadline:
                raise DaemonError(f"bench ingest: the reserve was not prepared within {_SETTLE_SECONDS:g} s")
            time.sleep(0.05)

    def _follow(self) -> None:
        while not self._stop.wait(0.25):
            self._follower.follow()

    def stored(self) -> int:
        records = [r for path in self._spool.glob("*.seg") for r in read_records(path, final=True)]
        return sum(getattr(record, "kind", None) is RecordKind.INSTANCE for record in records)

    def usage(self) -> Usage:
        return _usage_of(self._receivers.pids)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._receivers.stop()
        self._engine.dispose()
        if self._copies is not None:
            shutil.rmtree(self._copies)


class _Storescp:
    """dcmtk's storescp, one process for each association as with `--fork`.

    By itself it would listen on all interfaces and take anything from anyone, so it is run as from inetd, behind a
    socket on the loopback address.
    """

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._files.mkdir()
        self._socket = socket.create_server((LOOPBACK, 0), backlog=64)
        self.port = int(self._socket.getsockname()[1])
        self._processes: list[subprocess.Popen[bytes]] = []
        self._usages: list[Usage] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        command = ["storescp", "--inetd", "-aet", CALLED, "-pdu", str(MAX_PDU), "-od", str(self._files)]
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed by `stop`
                return
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                handle = client.fileno()
                process = subprocess.Popen(
                    command, stdin=handle, stdout=handle, stderr=subprocess.DEVNULL, env=_ENVIRONMENT
                )
                self._processes.append(process)

    def settle(self) -> None:
        """It prepares nothing."""

    def stored(self) -> int:
        return sum(1 for _ in self._files.iterdir())

    def usage(self) -> Usage:
        for process in self._processes:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._usages.append(Usage(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))
        self._processes.clear()
        return Usage(sum(u.cpu_seconds for u in self._usages), max(u.peak_memory_mb for u in self._usages))

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for process in self._processes:
            process.kill()
            process.wait()


class _Orthanc:
    def __init__(self, folder: Path) -> None:
        extra = {"SyncStorageArea": True, "StorageCompression": False, "Verbose": False}
        before = set(_children())
        modalities = {"bench": (CALLING, LOOPBACK, 104)}
        self._orthanc = Orthanc(folder, modalities=modalities, ae_title=CALLED, extra=extra)
        self._pids = [pid for pid in _children() if pid not in before]
        self.port = self._orthanc.port

    def settle(self) -> None:
        """It prepares nothing."""

    def stored(self) -> int:
        return int(self._orthanc.get("/statistics")["CountInstances"])

    def usage(self) -> Usage:
        return _usage_of(self._pids)

    def stop(self) -> None:
        self._orthanc.stop()


def bench_ingest(
    folder: Path | None = None,
    *,
    images: int = 1000,
    sizes: Sequence[int] = (256, 512),
    associations: Sequence[int] = (1, 4, 16),
    rounds: int = 3,
    processes: int | None = None,
    replicate: Path | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure, and compare.

    Args:
        folder: Where the receivers write; it must be on a disk. None: the folder for temporary files.
        images: Images of one run.
        sizes: Rows and columns of the images, 16 bits each.
        associations: How many associations at once.
        rounds: Runs of each contestant; medians are reported.
        processes: Receiver processes of ours; None: one for each core, four at most.
        replicate: A folder on the shared storage: ours is measured with a second copy there, too.
        progress: Told what is going on.

    Returns:
        `ratios`: `{"vs_orthanc_sync" | "vs_dcmtk" | "vs_replicated": {"256x256": {"1": ours / theirs, ...}}}` of images
        per second; above 1 is faster than theirs, or than ours with a second copy. `images_per_second`, `cpu_seconds`,
        `peak_memory_mb`: medians of each contestant by size and associations. `absent`: contestants that are not
        installed. Timings depend on the machine and on what
        else it does; only the ratios say something.

    Raises:
        DaemonError: storescu is missing, the folder is in memory, a run fails, or an image did not arrive.
    """
    if shutil.which("storescu") is None:
        raise DaemonError("bench ingest: expected dcmtk's command `storescu` (Debian package dcmtk)")
    processes = processes or min(4, os.cpu_count() or 1)
    if folder is not None and not folder.is_dir():
        raise DaemonError(f"bench ingest: expected a folder on a disk, got {folder}, which is none")
    if replicate is not None and not replicate.is_dir():
        raise DaemonError(f"bench ingest: expected a folder of the shared storage, got {replicate}, which is none")
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=folder) as temporary:
        root = Path(temporary)
        refuse_memory_file_system(root)
        start = _contestants(processes, replicate)
        runs: dict[str, dict[str, dict[str, list[Run]]]] = {}
        for size in sizes:
            files = _write_images(root / f"images{size}", images, size)
            label = f"{size}x{size}"
            for count in associations:
                for number in range(rounds):
                    for name, starter in start.items():
                        progress(f"{label}, {count} associations, round {number + 1} of {rounds}: {name}")
                        run = _run(root, starter, files, count)
                        runs.setdefault(name, {}).setdefault(label, {}).setdefault(str(count), []).append(run)
            shutil.rmtree(root / f"images{size}")
    absent = [name for name in (DCMTK, ORTHANC) if name not in start]
    return {**_report(runs, images), "processes": processes, "images": images, "rounds": rounds, "absent": absent}


def _contestants(processes: int, replicate: Path | None) -> Mapping[str, Callable[[Path], Contestant]]:
    """How to start each one that is installed."""
    starters: dict[str, Callable[[Path], Contestant]] = {OURS: lambda folder: _Ours(folder, processes)}
    if replicate is not None:
        starters[TWICE] = lambda folder: _Ours(folder, processes, replicate)
    if shutil.which("storescp") is not None:
        starters[DCMTK] = _Storescp
    if shutil.which("Orthanc") is not None:
        starters[ORTHANC] = _Orthanc
    return starters


def refuse_memory_file_system(folder: Path) -> None:
    """Syncing to memory costs nothing, so that a comparison there would say nothing.

    Raises:
        DaemonError: the folder is on one.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    over = [(Path(place), kind) for _, place, kind, *_ in mounts if folder.resolve().is_relative_to(place)]
    place, kind = max(over, key=lambda entry: len(entry[0].parts))
    if kind in MEMORY_FILE_SYSTEMS:
        raise DaemonError(f"bench ingest: expected a folder on a disk, {folder} is on {kind} ({place}); choose another")


def _run(root: Path, starter: Callable[[Path], Contestant], files: Sequence[Path], associations: int) -> Run:
    folder = root / "run"
    folder.mkdir()
    try:
        with _running(starter, folder) as contestant:
            _send(contestant.port, files[:associations], associations)  # everything is loaded before the clock starts
            contestant.settle()
            os.sync()
            before = contestant.usage()
            began = time.perf_counter()
            _send(contestant.port, files[associations:], associations)
            seconds = time.perf_counter() - began
            after = contestant.usage()
            stored = contestant.stored()
    finally:
        shutil.rmtree(folder)
    if stored != len(files):
        raise DaemonError(f"bench ingest: expected {len(files)} instances, {stored} arrived")
    return Run(seconds, Usage(after.cpu_seconds - before.cpu_seconds, after.peak_memory_mb))


@contextmanager
def _running(starter: Callable[[Path], Contestant], folder: Path) -> Iterator[Contestant]:
    contestant = starter(folder)
    try:
        yield contestant
    finally:
        contestant.stop()


def _send(port: int, files: Sequence[Path], associations: int) -> None:
    command = ["storescu", "-aet", CALLING, "-aec", CALLED, "--max-send-pdu", str(MAX_PDU), LOOPBACK, str(port)]
    senders = [
        subprocess.Popen([*command, *map(str, files[n::associations])], stderr=subprocess.PIPE, env=_ENVIRONMENT)
        for n in range(associations)
    ]
    for sender in senders:
        _, errors = sender.communicate()
        if sender.returncode:
            raise DaemonError(f"bench ingest: storescu ended with {sender.returncode}: {errors.decode()[-500:]}")


def _write_images(folder: Path, count: int, size: int) -> list[Path]:
    """One series of MR images as files; each differs in its UID and number from the first."""
    folder.mkdir()
    dataset = Dataset()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()[:-6] + "000000"
    dataset.file_meta = meta
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Bench^Ingest", "BENCH", "MR"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = np.random.default_rng(1).integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
    first = folder / "000000.dcm"
    dataset.save_as(first, enforce_file_format=True)
    raw, uid = first.read_bytes(), str(dataset.SOPInstanceUID).encode()
    files = [folder / f"{number:06d}.dcm" for number in range(count)]
    for number, path in enumerate(files):
        path.write_bytes(raw.replace(uid, uid[:-6] + b"%06d" % number))
    return files


def _usage_of(pids: Sequence[int]) -> Usage:
    """CPU seconds of processes and of those of their children that ended, and the largest peak of resident memory."""
    ticks, peak = 0, 0.0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += sum(map(int, stat[11:15]))
        status = Path(f"/proc/{pid}/status").read_text()
        peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) / 1024)
    return Usage(ticks / _TICKS, peak)


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _report(runs: Mapping[str, Mapping[str, Mapping[str, Sequence[Run]]]], images: int) -> dict[str, Any]:
    def table(value: Callable[[Run, int], float], digits: int) -> dict[str, dict[str, dict[str, float]]]:
        return {
            name: {
                size: {
                    count: round(statistics.median(value(run, int(count)) for run in found), digits)
                    for count, found in by_count.items()
                }
                for size, by_count in by_size.items()
            }
            for name, by_size in runs.items()
        }

    speed = table(lambda run, count: (images - count) / run.seconds, 1)
    ratios = {
        label: {
            size: {count: round(ours / speed[name][size][count], 2) for count, ours in by_count.items()}
            for size, by_count in speed[OURS].items()
        }
        for label, name in (("vs_orthanc_sync", ORTHANC), ("vs_dcmtk", DCMTK), ("vs_replicated", TWICE))
        if name in speed
    }
    return {
        "ratios": ratios,
        "images_per_second": speed,
        "cpu_seconds": table(lambda run, _: run.usage.cpu_seconds, 2),
        "peak_memory_mb": table(lambda run, _: run.usage.peak_memory_mb, 1),
    }
