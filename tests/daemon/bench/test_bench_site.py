import math

import numpy as np
import pytest

from daemon.bench.site import SECONDS_PER_DAY, arrivals, bench_site, simulate


def erlang_c_wait(load: float, servers: int, service: float) -> float:
    """Mean wait of M/M/c, s (Erlang C); `load` in Erlang."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    waiting = last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)
    return waiting * service / (servers - load)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (3, 2.4)])
def test_waits_are_those_of_the_closed_form(servers: int, load: float) -> None:
    rng = np.random.default_rng(1)
    service = 60.0
    times = arrivals(load / service * SECONDS_PER_DAY, 150, rng, hours=np.ones(24))
    found = simulate(times, rng.exponential(service, times.size), servers)
    assert found.waits.mean() == pytest.approx(erlang_c_wait(load, servers, service), rel=0.12)
    assert found.busy == pytest.approx(load / servers, rel=0.03)


def test_arrivals_follow_the_hours_and_come_in_bursts() -> None:
    hours = np.zeros(24)
    hours[8:16] = 1
    times = arrivals(200, 50, np.random.default_rng(2), burst=4, hours=hours)
    assert times.size == pytest.approx(200 * 50, rel=0.1)
    assert set((times % SECONDS_PER_DAY // 3600).astype(int)) == set(range(8, 16))
    assert times.size / np.unique(times).size == pytest.approx(4, rel=0.1)


def test_nobody_waits_where_there_is_a_server_for_each() -> None:
    day = simulate(np.array([0.0, 0.0, 0.0]), np.array([5.0, 5.0, 5.0]), 3)
    assert day.waits.tolist() == [0, 0, 0]
    day = simulate(np.array([0.0, 0.0, 1.0]), np.array([5.0, 5.0, 5.0]), 1)
    assert day.waits.tolist() == [0, 5, 9]


def test_a_larger_site_needs_more_workers() -> None:
    small = bench_site(per_day=50, service=[60.0, 90.0], target_seconds=600, days=10)
    large = bench_site(per_day=2000, service=[60.0, 90.0], target_seconds=600, days=10)
    assert small["workers_needed"] <= 2
    assert large["workers_needed"] > small["workers_needed"]
    waits = [row["wait_p95_seconds"] for row in large["workers"].values()]
    assert waits == sorted(waits, reverse=True)


@pytest.mark.parametrize("wrong", [{"per_day": 0}, {"burst": 0.5}, {"hours": np.ones(23)}])
def test_what_no_site_has_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        arrivals(**{"per_day": 10, "days": 1, "rng": np.random.default_rng(0), **wrong})
