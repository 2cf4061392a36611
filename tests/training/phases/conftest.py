"""What trainings of one process would share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(scope="module", autouse=True)
def precision_of_its_own() -> Iterator[None]:
    """Accelerate keeps the first precision of a process; each file of tests trains in its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
