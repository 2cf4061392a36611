"""The order of the files."""

from __future__ import annotations

import pytest

FIRST = ("tests/end_to_end/", "tests/training/phases/")
"""Files that take longest: begun last, one worker would end them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders of `FIRST`; otherwise as collected."""
    items.sort(key=lambda item: next((n for n, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST)))
