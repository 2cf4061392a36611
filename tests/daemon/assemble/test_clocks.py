"""The machine's clock may be set at any time, and senders may repeat themselves: no study waits for that."""

from __future__ import annotations

import threading
import time

import pytest
from ingest_support import Bench, make_series, wait_until

from daemon.assemble import assembler as module
from daemon.assemble.assembler import Assembler

HOUR = 3600.0


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.parametrize("received", [0.0, 1000.0 + HOUR, 4e9], ids=["long ago", "in an hour", "in the far future"])
def test_when_senders_or_the_receivers_clock_say_that_it_came_does_not_matter(bench, received):
    bench.receive(make_series(2), at=received, look=False)
    bench.assembler.look(1000.0)
    assert bench.assembler.step(1009.0) == ()
    assert len(bench.assembler.step(1010.0)) == 1


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_the_clock_is_set_while_a_study_waits(tmp_path, monkeypatch, step):
    """In the running assembler; time.monotonic is what the kernel says, time.time is shimmed for this process."""
    bench = Bench(tmp_path, quiet_seconds=0.3)
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    bench.assembler = Assembler(bench.settings, bench.engine, bench.arrivals.append)
    stop = threading.Event()
    thread = threading.Thread(target=bench.assembler.run, args=(stop,))
    thread.start()
    try:
        bench.receive(make_series(2), at=time.time(), look=False)
        shift[0] = step
        wait_until(lambda: len(bench.arrivals) == 1, seconds=30)
        bench.receive(make_series(2), at=time.time(), look=False, association="a2")
        wait_until(lambda: len(bench.arrivals) == 2, seconds=30)
    finally:
        stop.set()
        thread.join(30)
        bench.close()


def test_late_slices_supersede_the_latest_job_whatever_the_clock_says(bench):
    series = make_series(6)
    times = iter([5000.0, 5000.0 - HOUR, 5000.0 - 2 * HOUR])
    bench.new_assembler(clock=lambda: next(times))
    jobs = []
    for number in range(3):
        bench.receive(series[2 * number : 2 * number + 2], at=1000.0 + 100 * number, association=f"a{number}")
        jobs += bench.assembler.step(1050.0 + 100 * number)
    assert [job.supersedes for job in jobs] == [None, jobs[0].job_id, jobs[1].job_id]


def test_a_slice_that_is_sent_for_ever_postpones_nothing(bench):
    series = make_series(3)
    bench.receive(series)
    for second in range(1, 10):
        bench.receive(series[:1], at=1000.0 + second, association=f"again{second}")
        assert bench.assembler.step(1000.0 + second) == ()
    [arrival] = bench.assembler.step(1010.0)
    assert arrival.instances == 3


def test_a_slice_that_is_sent_for_ever_on_one_association_postpones_it_only_so_long(bench):
    series = make_series(3)
    bench.receive(series, end=False)
    for minute in range(1, 60):
        bench.receive(series[:1], at=1000.0 + 60 * minute, end=False)
        assert bench.assembler.step(1000.0 + 60 * minute) == ()
    assert len(bench.assembler.step(1000.0 + 3600)) == 1
