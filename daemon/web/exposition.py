"""Metrics in the text format of Prometheus: counted, and read from the database when asked for."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import psutil
import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from daemon.config.sections import Settings
from daemon.database.engine import open_index
from daemon.jobs.lists import overview
from daemon.jobs.lists.figures import REPORTS, WARNED, Figures, figures_of
from daemon.jobs.store import now
from daemon.observe.metrics import PAGE_REGISTRY

CHILDREN = {"model": "daemon.pipeline.step_process", "page": "daemon.service.page"}
"""Processes of the service by their modules; the others are receivers."""


class DatabaseCollector(Collector):
    """Gauges that are read from the database and the machine when they are asked for."""

    def __init__(self, settings: Settings, engine: sa.Engine, service_pid: int) -> None:
        self._settings = settings
        self._service_pid = service_pid
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
        yield from _report_metrics(figures_of(self._engine))
        yield from _process_metrics(self._service_pid)


def _report_metrics(figures: Sequence[Figures]) -> Iterator[Metric]:
    """What reports say, summed over the months: as counters, since it only grows."""
    reports = CounterMetricFamily("braingemma_reports", "Reports that were written.", labels=["scanner"])
    findings = CounterMetricFamily(
        "braingemma_report_findings", "Findings of reports.", labels=["scanner", "finding", "presence"]
    )
    warned = CounterMetricFamily("braingemma_report_warnings", "Reports with a warning.", labels=["scanner"])
    failed = CounterMetricFamily(
        "braingemma_report_checks_failed", "Reports of pictures that failed a check.", labels=["scanner", "check"]
    )
    for scanner in sorted({f.scanner for f in figures}):
        summed: Counter[str] = Counter()
        for one in figures:
            summed.update(one.numbers if one.scanner == scanner else {})
        reports.add_metric([scanner], summed[REPORTS])
        warned.add_metric([scanner], summed[WARNED])
        for name, number in summed.items():
            kind, _, rest = name.partition(":")
            if kind == "finding":
                findings.add_metric([scanner, *rest.split(":")], number)
            elif kind == "failed":
                failed.add_metric([scanner, rest], number)
    yield from (reports, findings, warned, failed)


def _process_metrics(service_pid: int) -> Iterator[Metric]:
    me = psutil.Process(service_pid)
    yield GaugeMetricFamily("braingemma_open_files", "File descriptors of the service.", value=me.num_fds())
    rows = [("service", float(me.memory_info().rss))]
    for child in me.children():
        try:
            kind = next((kind for kind, module in CHILDREN.items() if module in child.cmdline()), "receiver")
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


def exposition(settings: Settings, engine: sa.Engine, service_pid: int, service_metrics: bytes) -> bytes:
    """Everything, in Prometheus' text format.

    Args:
        settings: The whole configuration.
        engine: The daemon's database.
        service_pid: Process id of the service, whose children are the other processes.
        service_metrics: What the service counted, in the same format.
    """
    gauges = CollectorRegistry()
    gauges.register(DatabaseCollector(settings, engine, service_pid))
    parts = [service_metrics, generate_latest(PAGE_REGISTRY), generate_latest(gauges)]
    if settings.data.metrics.is_dir():
        receivers = CollectorRegistry()
        MultiProcessCollector(receivers, path=str(settings.data.metrics))
        parts.append(generate_latest(receivers))
    return b"".join(parts)
