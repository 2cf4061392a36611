"""What a receiver process counts; the page adds up the processes' files (see `metrics.share_with_children`)."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from daemon.observe.shared_counts import take_room

take_room("counter", "histogram")

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

RECEIVED = Counter("braingemma_received_instances", "C-STORE requests, by the status they got.", ["status"])
ACKNOWLEDGE_SECONDS = Histogram(
    "braingemma_acknowledge_seconds", "From an instance's last byte to its durable acknowledgement.", buckets=BUCKETS
)
RECEIVED_BYTES = Counter("braingemma_received_bytes", "Bytes of received data sets.")


def count(status: str, size: int, seconds: float) -> None:
    """Count one C-STORE: DIMSE status by name, size of the data set in bytes, and how long the answer took."""
    RECEIVED.labels(status).inc()
    RECEIVED_BYTES.inc(size)
    ACKNOWLEDGE_SECONDS.observe(seconds)
