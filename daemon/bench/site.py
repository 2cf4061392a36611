"""`braingemma bench site`: how long studies wait at a site of a given size, and how many workers it needs.

A discrete-event simulation of one queue and `workers` equal servers, first come, first served: what the report queue
is. Arrivals: a Poisson process whose rate follows the hour of the day, by thinning (Lewis and Shedler, "Simulation of
nonhomogeneous Poisson processes by thinning", Naval Research Logistics 26, 1979), in bursts whose sizes are geometric
(a scanner that sends its list at once, a PACS that comes back). Service times: drawn from those measured on this
machine, or given. The model is checked against the M/M/c queue's closed form in the tests, and against real runs of
the daemon by `--check`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.progress import Say

Float = npt.NDArray[np.float64]

SECONDS_PER_DAY = 86400.0
HOURLY_SHARE = np.array(
    [1, 1, 1, 1, 1, 1, 2, 5, 8, 9, 9, 8, 7, 8, 9, 9, 8, 6, 4, 3, 2, 2, 1, 1], dtype=np.float64
)  # fmt: skip
"""Relative arrivals in each hour of a day: an out-patient department with an emergency room at night. A model, not a
measurement: give the site's own with `--hours`."""

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Day:
    """What one simulated period was like; seconds.

    Attributes:
        waits: (studies,) from arrival to the start of work.
        busy: Share of all workers' time that was work.
    """

    waits: Float
    busy: float


def arrivals(
    per_day: float, days: float, rng: np.random.Generator, *, burst: float = 1.0, hours: Float = HOURLY_SHARE
) -> Float:
    """Times at which studies arrive, s, ascending.

    Args:
        per_day: Mean number of studies in a day.
        days: Length of the period.
        rng: Of this run.
        burst: Mean number of studies that arrive together, 1 or more.
        hours: (24,) relative arrivals in each hour.

    Raises:
        ValueError: a number that no site has.
    """
    if per_day <= 0 or days <= 0 or burst < 1 or hours.shape != (24,) or hours.min() < 0 or hours.sum() <= 0:
        raise ValueError("expected a positive number of studies and days, burst >= 1, and 24 shares, none negative")
    rate = hours / hours.sum() * 24  # relative to the mean, by hour
    peak = per_day / burst / SECONDS_PER_DAY * rate.max()
    expected = peak * days * SECONDS_PER_DAY
    count = rng.poisson(expected)
    candidates = np.sort(rng.uniform(0, days * SECONDS_PER_DAY, count))
    hour = (candidates % SECONDS_PER_DAY // 3600).astype(int)
    kept = candidates[rng.uniform(0, rate.max(), count) < rate[hour]]
    sizes = rng.geometric(1 / burst, kept.size)
    return np.repeat(kept, sizes)


def simulate(times: Float, service: Float, workers: int) -> Day:
    """First come, first served, by `workers` equal servers.

    Args:
        times: (N,) arrivals, s, ascending.
        service: (N,) seconds of work.
        workers: One or more.
    """
    if workers < 1 or times.shape != service.shape:
        raise ValueError(f"expected one service time an arrival and 1 worker or more, got {workers} workers")
    free = [0.0] * workers
    waits = np.empty_like(times)
    end = 0.0
    for number, (arrived, seconds) in enumerate(zip(times, service, strict=True)):
        start = max(arrived, heapq.heappop(free))
        waits[number] = start - arrived
        heapq.heappush(free, start + seconds)
        end = max(end, start + seconds)
    return Day(waits, float(service.sum() / (workers * end)) if end else 0.0)


def bench_site(
    *,
    per_day: float,
    service: Sequence[float],
    target_seconds: float,
    burst: float = 3.0,
    days: int = 20,
    most_workers: int = 64,
    seed: int = 0,
    hours: Sequence[float] | Float = HOURLY_SHARE,
) -> dict[str, Any]:
    """Queue times by number of workers, up to the first number that meets the target.

    Args:
        per_day: Studies with a FLAIR in a day.
        service: Measured seconds of work of a study; drawn from with replacement.
        target_seconds: 95 of 100 studies should start within this time.
        burst: Mean number of studies that arrive together.
        days: Simulated days.
        most_workers: Give up here.
        seed: Of the simulation.
        hours: (24,) relative arrivals in each hour.
    """
    rng = np.random.default_rng(seed)
    times = arrivals(per_day, days, rng, burst=burst, hours=np.asarray(hours, dtype=np.float64))
    work = rng.choice(np.asarray(service, dtype=np.float64), times.size)
    table: dict[str, dict[str, float]] = {}
    needed: int | None = None
    least = max(1, int(np.floor(work.sum() / (days * SECONDS_PER_DAY))))
    for workers in range(least, most_workers + 1):
        day = simulate(times, work, workers)
        found = np.percentile(day.waits, PERCENTILES)
        table[str(workers)] = {
            **{f"wait_p{p}_seconds": round(float(w), 1) for p, w in zip(PERCENTILES, found, strict=True)},
            "busy": round(day.busy, 3),
        }
        if found[PERCENTILES.index(95)] <= target_seconds:
            needed = workers
            break
    return {
        "studies_per_day": per_day,
        "simulated_studies": int(times.size),
        "service_seconds_mean": round(float(np.mean(service)), 2),
        "service_samples": len(service),
        "target_p95_seconds": target_seconds,
        "workers": table,
        "workers_needed": needed,
    }


def measured_service(folder: Path, *, studies: int, say: Say) -> tuple[list[float], dict[str, Any]]:
    """Send studies to a real daemon in one burst: their seconds of work, and the queue times beside the simulation's.

    Returns:
        Service times, and `check`: mean and longest queue time, measured and simulated with those service times.
    """
    from daemon.trial.daemon import TrialService
    from dicom_io.series_writer import write_series
    from training.phantoms.phantom import make_phantom

    service = TrialService(
        folder / "daemon",
        {"listener": {"port": 0}, "assembly": {"quiet_seconds": 1}, "explain": {"samples": 16, "segments": 8}},
    )
    try:
        service.start()
        say("one study that loads the model, not counted")
        service.send(write_series(make_phantom(30107, spacing=(3.0, 3.0, 5.0)).volume, folder / "warm"))
        service.wait_for_jobs(1, seconds=1200)
        say(f"{studies} studies at once")
        for number in range(studies):
            volume = make_phantom(920_000 + number, spacing=(3.0, 3.0, 5.0)).volume
            service.send(write_series(volume, folder / f"study{number}"))
        jobs = sorted(service.wait_for_jobs(studies + 1, seconds=1200 + 300 * studies), key=lambda job: job.created)[1:]
    finally:
        service.stop()
    work = [sum(job.timings.values()) for job in jobs]
    arrived = np.array([job.created for job in jobs])
    ended = np.array([job.updated for job in jobs])
    real = np.clip(ended - arrived - np.array(work), 0, None)
    simulated = simulate(arrived - arrived[0], np.array(work), 1).waits
    check = {
        "measured_mean_wait_seconds": round(float(real.mean()), 2),
        "simulated_mean_wait_seconds": round(float(simulated.mean()), 2),
        "measured_longest_wait_seconds": round(float(real.max()), 2),
        "simulated_longest_wait_seconds": round(float(simulated.max()), 2),
        "studies": studies,
    }
    return work, check
