"""`braingemma serve`, `worker` and `doctor`: processes that run for months."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from daemon.cli.terminal import ConfigOption, JsonOption, data, emit_json, working
from daemon.config.load import load_settings
from daemon.errors import DaemonError
from daemon.loading import loading
from daemon.observe.logs import set_up_logging


def serve(config: ConfigOption = None) -> None:
    """Run the daemon. SIGTERM ends it within 10 s; unfinished work goes on at the next start."""
    settings = load_settings(config)
    set_up_logging(settings.log.format)
    with loading():
        from daemon.service.serve import serve as run

    run(settings)


def worker(
    config: ConfigOption = None,
    name: Annotated[str, typer.Option(help="Of this worker on this host: one for each GPU.")] = "gpu0",
    metrics_port: Annotated[int | None, typer.Option(help="Serve metrics on this port of loopback.")] = None,
) -> None:
    """Run one more worker on the same PostgreSQL database; SIGTERM hands its work to the others."""
    settings = load_settings(config)
    set_up_logging(settings.log.format)
    with loading():
        from daemon.service.worker import work

    work(settings, name, metrics_port=metrics_port)


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Is this machine ready: device, 4-bit, codecs, disk, ports, PACS reachable."""
    from daemon.service.doctor import examine

    checks = []
    settings = load_settings(config)
    with working("looking") as say:
        for check in examine(settings, say):
            checks.append(check)
            if not as_json:
                data.print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
    if as_json:
        emit_json([dataclasses.asdict(c) for c in checks])
    if not all(check.ok for check in checks):
        raise DaemonError(f"{sum(not c.ok for c in checks)} of {len(checks)} checks failed")


def stats(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """How often reports say what, by scanner and month.

    The share of reports that name each finding, carry a warning, or are of pictures far from training.
    """
    from daemon.database.engine import open_database
    from daemon.jobs.lists.figures import REPORTS, figures_of, rates

    found = figures_of(open_database(load_settings(config)))
    if as_json:
        emit_json({"figures": [{**vars(one), "numbers": dict(one.numbers)} for one in found], "rates": rates(found)})
        return
    if not found:
        data.print("No report has been counted yet.")
    for one in found:
        data.print(f"{one.month}  {one.scanner}: {one.numbers.get(REPORTS, 0)} reports", markup=False)
    for line, scanners in rates(found).items():
        data.print(f"\n{line}, share of reports")
        for scanner, values in scanners.items():
            data.print(f"  {scanner}", markup=False)
            for month, share in values:
                data.print(f"    {month}  {'█' * round(share * 40):<40} {share:4.0%}", markup=False)
