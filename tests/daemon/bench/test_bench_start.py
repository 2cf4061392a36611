from __future__ import annotations

import pytest

from daemon.bench.start import PROCESSES, _run, bench_start
from daemon.errors import DaemonError


@pytest.mark.e2e
@pytest.mark.slow
def test_help_and_both_starts_are_timed_and_what_each_process_loads() -> None:
    said: list[str] = []
    found = bench_start(rounds=1, say=said.append)
    assert found["help_seconds"] > 0
    assert set(found["ready_seconds"]) == {"new folder", "same folder"}
    assert min(found["ready_seconds"].values()) > max(0.0, found["load_cpu_seconds"]["service"] / 4)
    assert set(found["load_cpu_seconds"]) == set(PROCESSES)
    assert found["load_cpu_seconds"]["help"] < found["load_cpu_seconds"]["service"]
    assert said == ["round 1/1"]


def test_a_process_that_does_not_start_is_named_with_its_last_words() -> None:
    with pytest.raises(DaemonError, match=r"ended with 1: .*nowhere"):
        _run("-c", "import nowhere")
