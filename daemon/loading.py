"""Importing large libraries without waiting for the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import within it: modules are no garbage, and the collector need not look for any among them, now or later.

    torch and transformers make a million objects, which the collector would go through several times while they load
    (a quarter of the time that it takes) and again with every full collection.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
