"""What holds for the whole suite: one thread for each process, the order of files, and how long slow tests may take."""

from __future__ import annotations

import gc
import os

import pytest

# Before anything loads torch or BLAS, and for every process that a test starts: several workers share the cores, and
# threads that wait for each other there spend more than they save. Tests of threads set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nor does the collector look through what is imported, now or in any test: libraries and tests are no garbage.
gc.disable()

FIRST = ("tests/end_to_end/", "tests/training/phases/")
"""Files that take longest: begun last, one worker would end them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders of `FIRST`; otherwise as collected. A slow test has an hour, unless it says otherwise."""
    items.sort(key=lambda item: next((n for n, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST)))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_collection_finish() -> None:
    """All tests are imported: the collector works on what they make."""
    gc.freeze()
    gc.enable()
