"""`braingemma jobs`: the daemon's work, also while it is stopped."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from daemon.assemble import index
from daemon.cli.terminal import ConfigOption, JsonOption, data, emit_json, messages, print_table, user
from daemon.config.load import load_settings
from daemon.config.sections import Settings
from daemon.database.engine import open_database, open_index
from daemon.database.tables import JobState
from daemon.errors import DaemonError
from daemon.jobs.files import JobFiles, LocalFiles
from daemon.jobs.lists.overview import jobs_page
from daemon.jobs.reviews import all_reviews
from daemon.jobs.shared_files import SharedFiles
from daemon.jobs.store import Delivery, JobStore
from daemon.observe.audit import AuditLog
from daemon.pipeline import actions
from daemon.service import retention

jobs_app = typer.Typer(help="The daemon's work, also while it is stopped.", no_args_is_help=True)


def _store(config: Path | None) -> tuple[Settings, sa.Engine, JobStore]:
    settings = load_settings(config)
    engine = open_database(settings)
    return settings, engine, JobStore(engine)


def _files(settings: Settings, engine: sa.Engine) -> JobFiles:
    shared, jobs = settings.storage.shared_url, settings.data.jobs
    return SharedFiles(engine, jobs, shared) if shared else LocalFiles(jobs)


def _audit(settings: Settings, event: str, **facts: Any) -> None:
    """What was done, and who did it, as the system knows them."""
    AuditLog(settings.data.audit).note(event, by=user(), **facts)


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@jobs_app.command("list")
def jobs_list(
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only jobs of this state; may be repeated.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, newest first."""
    _, engine, _ = _store(config)
    jobs = jobs_page(engine, state or tuple(JobState), limit=limit)
    if as_json:
        emit_json([job.to_json() for job in jobs])
        return
    if not jobs:
        data.print("no jobs")
        return
    print_table(
        ("job", "state", "step", "progress", "created", "reason"),
        [(j.job_id, str(j.state), j.step, j.progress, _when(j.created), j.reason) for j in jobs],
    )


@jobs_app.command("show")
def jobs_show(job_id: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one job: state, timings, verdicts on its series, deliveries."""
    settings, _, store = _store(config)
    job = actions.job_or_error(store, job_id)
    facts = {**job.to_json(), "folder": str(settings.data.job(job_id))}
    verdicts, deliveries = store.verdicts(job_id=job_id), store.deliveries(job_id)
    if as_json:
        emit_json(
            {
                **facts,
                "series": [dataclasses.asdict(v) for v in verdicts],
                "deliveries": [dataclasses.asdict(d) for d in deliveries],
            }
        )
        return
    for name, value in facts.items():
        data.print(f"{name}: {_when(value) if name in ('created', 'updated') else value}")
    for verdict in verdicts:
        data.print(f"series {verdict.named}: {verdict.verdict}")
    if deliveries:
        print_table(
            ("destination", "kind", "file", "state", "status", "confirmed by", "attempts", "reason"),
            delivery_rows(deliveries),
        )


def delivery_rows(deliveries: Iterable[Delivery]) -> list[tuple[str, ...]]:
    """One row for all files of a kind that fared alike at a destination: an overlay has a file for each slice."""
    files: dict[tuple[str, ...], list[str]] = {}
    for d in deliveries:
        fared = (d.destination, d.kind, str(d.state), d.status, d.confirmed, str(d.attempts), d.reason)
        files.setdefault(fared, []).append(d.file)
    return [(*fared[:2], _named(of_it), *fared[2:]) for fared, of_it in files.items()]


def _named(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} ... {files[-1]} ({len(files)} files)"


@jobs_app.command("why")
def jobs_why(series_uid: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say why a series was reported or not, rule by rule."""
    settings, engine, store = _store(config)
    verdicts = store.verdicts(series_uid=series_uid)
    arrival = index.arrival_of_series(open_index(settings, engine), series_uid)
    if not verdicts and arrival is None:
        raise DaemonError(f"nothing was ever received of series {series_uid}")
    if as_json:
        emit_json({"series_uid": series_uid, "arrival": arrival, "verdicts": [dataclasses.asdict(v) for v in verdicts]})
        return
    if arrival:
        data.print(arrival)
    for verdict in verdicts:
        job = store.get(verdict.job_id)
        which = f"acquisition {verdict.part} " if verdict.part else ""
        data.print(
            f"{which}{verdict.verdict} in job {verdict.job_id}" + (f" ({job.state}): {job.reason}" if job else "")
        )
        for reason in verdict.reasons:
            data.print(f"  {reason}")


@jobs_app.command("retry")
def jobs_retry(
    job_id: str,
    anew: Annotated[
        bool, typer.Option("--anew", help="Report the study again with the weights and settings of now.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a job that failed, was cancelled or was set aside again; results that exist are only delivered again.

    With --anew a job that has results is reported again, as a new job whose results name and replace the old ones.
    """
    settings, engine, store = _store(config)
    if anew:
        started = f"all steps, as job {actions.report_anew(store, engine, _files(settings, engine), job_id)}"
    else:
        started = actions.retry(store, engine, job_id)
    _audit(settings, "retried", job=job_id, what=started)
    if as_json:
        emit_json({"job": job_id, "queued": started})
    else:
        messages.print(f"queued again: {started}", markup=False)


@jobs_app.command("cancel")
def jobs_cancel(job_id: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job that has not ended."""
    settings, _, store = _store(config)
    actions.cancel(store, job_id)
    _audit(settings, "cancelled", job=job_id)
    if as_json:
        emit_json({"job": job_id, "state": str(JobState.CANCELLED)})
    else:
        messages.print(f"cancelled: {job_id}", markup=False)


@jobs_app.command("reviews")
def jobs_reviews(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the readers' verdicts as JSONL (--json: as one list), the oldest first, for training."""
    settings, engine, _ = _store(config)
    AuditLog(settings.data.audit).write("reviews_exported", by=user())
    reviews = [review.to_json() for review in all_reviews(engine)]
    if as_json:
        emit_json(reviews)
    else:
        for review in reviews:
            data.print(json.dumps(review, ensure_ascii=False))


@jobs_app.command("purge")
def jobs_purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove jobs whose time is over (`storage.keep_days` and its like); undelivered results stay."""
    settings, engine, store = _store(config)
    forget = _files(settings, engine).forget

    def note(purged: retention.Purged) -> None:
        _audit(settings, "purged", job=purged.job_id, state=purged.state, why=purged.why)

    removed = retention.purge(store, settings, dry_run=dry_run, forget_files=forget, on_removed=note)
    if as_json:
        emit_json([dataclasses.asdict(p) for p in removed])
        return
    for purged in removed:
        data.print(
            f"{'would remove' if dry_run else 'removed'} {purged.job_id} ({purged.state}, {purged.size / 1e6:.1f} MB): "
            f"{purged.why}"
        )
    messages.print(f"{len(removed)} jobs", markup=False)
