"""Metrics for Prometheus: what the service and the page count; receivers count in `daemon.receive.counters`.

No label names a patient, a study or a person. Receiver processes write their counts to files
(`prometheus_client`'s multi-process mode), which the page adds up when it is asked.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from daemon.files import make_private
from daemon.observe.shared_counts import SHARED_FOLDER

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
PAGE_RESTARTS = Counter("braingemma_page_restarts", "How often the page's process was replaced.", registry=REGISTRY)
MODEL_GPU_BYTES = Gauge(
    "braingemma_model_gpu_memory_bytes", "GPU memory that the model process holds; 0 without a GPU.", registry=REGISTRY
)


def counted() -> bytes:
    """What this process counts, in Prometheus' text format."""
    return bytes(generate_latest(REGISTRY))


PAGE_REGISTRY = CollectorRegistry()
"""What the page counts, in a process of its own."""

READER_VERDICTS = Counter(
    "braingemma_reader_verdicts", "Readers' verdicts on reports.", ["verdict"], registry=PAGE_REGISTRY
)


def share_with_children(folder: Path) -> Path:
    """Let child processes that are started from now on count into `folder`, which is emptied.

    Must be called after this module is imported: this process itself counts in memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.environ[SHARED_FOLDER] = str(make_private(folder))
    return folder
