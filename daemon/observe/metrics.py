"""Figures for Prometheus: what this process counts, what the receivers count, and what stands in the database.

No label names a patient, a study or a person. Receiver processes write their counts to files
(`prometheus_client`'s multi-process mode), which the service adds up when it is asked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from daemon.config.sections import Settings
from daemon.database.engine import open_index
from daemon.jobs import overview
from daemon.jobs.folder import make_private
from daemon.jobs.store import now

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable by which `prometheus_client` finds the folder that several processes count into."""

STEP_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
LAG_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

REGISTRY = CollectorRegistry()
"""What this process counts."""

STEP_SECONDS = Histogram(
    "braingemma_step_seconds", "How long a step of a job took.", ["step"], buckets=STEP_BUCKETS, registry=REGISTRY
)
JOBS_ENDED = Counter(
    "braingemma_jobs_ended", "Jobs that ended, by state and by the kind of their error.", ["state", "error"],
    registry=REGISTRY,
)  # fmt: skip
STEP_FAILURES = Counter(
    "braingemma_step_failures", "Steps that failed, by kind of error; a step may be tried again.", ["step", "error"],
    registry=REGISTRY,
)  # fmt: skip
OBJECTS_SENT = Counter(
    "braingemma_delivery_objects", "Attempts to deliver an object, by outcome.", ["destination", "outcome"],
    registry=REGISTRY,
)  # fmt: skip
DELIVERY_LAG = Histogram(
    "braingemma_delivery_lag_seconds", "From results on disk to each object's acknowledgement by a destination.",
    ["destination"], buckets=LAG_BUCKETS, registry=REGISTRY,
)  # fmt: skip
READER_VERDICTS = Counter("braingemma_reader_verdicts", "Readers' verdicts on reports.", ["verdict"], registry=REGISTRY)
MODEL_GPU_BYTES = Gauge(
    "braingemma_model_gpu_memory_bytes", "GPU memory that the model process holds; 0 without a GPU.", registry=REGISTRY
)


def share_with_children(folder: Path) -> Path:
    """Let child processes that are started from now on count into `folder`, which is emptied.

    Must be called after this module is imported: this process itself counts in memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.environ[SHARED_FOLDER] = str(make_private(folder))
    return folder


class DatabaseFigures(Collector):
    """Gauges that are read from the database and the machine when they are asked for."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._index = open_index(settings, engine)

    def collect(self) -> Iterator[Metric]:
        """The gauges, as they are now."""
        yield _gauge("braingemma_jobs", "Jobs by state.", "state", overview.count_by_state(self._engine).items())
        waiting = overview.arriving(self._index, limit=10_000)
        yield GaugeMetricFamily("braingemma_studies_arriving", "Studies not complete yet.", value=len(waiting))
        oldest = overview.oldest_queued(self._engine)
        age = 0.0 if oldest is None else now() - oldest
        yield GaugeMetricFamily("braingemma_queue_oldest_seconds", "Age of the oldest queued job.", value=age)
        backlogs = overview.backlogs(self._engine)
        rows = [(b.destination, float(b.waiting)) for b in backlogs]
        yield _gauge("braingemma_delivery_waiting_objects", "Objects that wait.", "destination", rows)
        rows = [(b.destination, float(b.dead)) for b in backlogs]
        yield _gauge("braingemma_delivery_dead_objects", "Objects in the dead letter.", "destination", rows)
        rows = [(b.destination, now() - b.oldest) for b in backlogs]
        yield _gauge("braingemma_delivery_oldest_seconds", "Age of the oldest waiting job.", "destination", rows)
        disk = shutil.disk_usage(self._settings.storage.folder)
        yield GaugeMetricFamily("braingemma_disk_free_bytes", "Free space at the data folder.", value=disk.free)
        yield GaugeMetricFamily("braingemma_disk_total_bytes", "Size of its file system.", value=disk.total)
        yield from _process_figures()


def _process_figures() -> Iterator[Metric]:
    me = psutil.Process()
    yield GaugeMetricFamily("braingemma_open_files", "File descriptors of the service.", value=me.num_fds())
    rows = [("service", float(me.memory_info().rss))]
    for child in me.children():
        try:
            kind = "model" if "daemon.pipeline.step_process" in child.cmdline() else "receiver"
            rows.append((kind, float(child.memory_info().rss)))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):  # ended while we looked
            continue
    by_kind: dict[str, float] = {}
    for kind, size in rows:
        by_kind[kind] = by_kind.get(kind, 0.0) + size
    yield _gauge("braingemma_memory_bytes", "Resident memory, by kind of process.", "process", by_kind.items())


def _gauge(name: str, text: str, label: str, rows: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in rows:
        family.add_metric([str(value)], number)
    return family


def exposition(settings: Settings, engine: sa.Engine) -> bytes:
    """Everything, in Prometheus' text format."""
    gauges = CollectorRegistry()
    gauges.register(DatabaseFigures(settings, engine))
    parts = [generate_latest(REGISTRY), generate_latest(gauges)]
    shared = os.environ.get(SHARED_FOLDER, "")
    if shared and Path(shared).is_dir():
        receivers = CollectorRegistry()
        MultiProcessCollector(receivers, path=shared)
        parts.append(generate_latest(receivers))
    return b"".join(parts)
