"""`braingemma pull`: what is asked for, and what became of it; the daemon fetches."""

from __future__ import annotations

import difflib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.terminal import ConfigOption, JsonOption, data, emit_json, messages, print_table, user, working
from daemon.config.load import load_settings
from daemon.config.sections import Settings, Source
from daemon.database.engine import open_database
from daemon.database.tables import PulledState, PullState
from daemon.errors import ConfigurationError, DaemonError
from daemon.observe.audit import AuditLog
from daemon.observe.status import ServiceStatus
from daemon.pull import asks
from daemon.pull.client import client_of
from daemon.pull.report import as_json, check_name, write_report
from daemon.pull.store import PullStore

POLL_SECONDS = 0.5
ENDED = (PullState.DONE, PullState.CANCELLED)
pull_app = typer.Typer(
    help="Fetch studies from a PACS and report them, each once; list, pause, resume.",
    invoke_without_command=True,
    no_args_is_help=True,
)

ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Write what became of each study, .csv or .json.", show_default=False)
]


@pull_app.callback()
def pull(
    ctx: typer.Context,
    source: Annotated[str, typer.Option("--from", help="A source of the configuration.", show_default=False)] = "",
    study: Annotated[list[str] | None, typer.Option(help="StudyInstanceUID; may be repeated.")] = None,
    accession: Annotated[list[str] | None, typer.Option(help="AccessionNumber; may be repeated.")] = None,
    patient: Annotated[list[str] | None, typer.Option(help="PatientID: all studies; may be repeated.")] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list", help="Study UIDs, one a line, or CSV with StudyInstanceUID, AccessionNumber or PatientID."
        ),
    ] = None,
    query: Annotated[
        str, typer.Option(help='"KEY=VALUE …" with DICOM keywords, such as "StudyDate=20260101-20260131".')
    ] = "",
    all_series: Annotated[
        bool, typer.Option("--all-series", help="Fetch every series, not only what could be a FLAIR.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait until it has ended.")] = False,
    report: ReportOption = None,
    config: ConfigOption = None,
    as_json_: JsonOption = False,
) -> None:
    """Fetch studies from a PACS and report them, each once.

    The daemon does the work: this command waits until it has ended. Ctrl-C leaves the pull running.
    """
    if ctx.invoked_subcommand is not None:
        return
    asked = _asked(study or [], accession or [], patient or [], listed, query)
    if report is not None:
        check_name(report)
    settings = load_settings(config)
    entry = _source(settings, source)
    if not detach and not _daemon_runs(settings):
        raise DaemonError(
            "no daemon runs on this configuration: start `braingemma serve`, which receives and reports what is "
            "fetched (--detach: record the pull, for when it runs)"
        )
    client_of(settings, entry).echo()
    store = PullStore(open_database(settings))
    pull_id = store.add(entry.name, asked, all_series=all_series)
    _audit(settings, "pull_asked", pull=pull_id, source=entry.name)
    if detach:
        _show(store, pull_id, as_json_=as_json_)
        return
    _follow(settings, store, pull_id)
    _end(store, pull_id, report, as_json_=as_json_)


def _asked(
    studies: list[str], accessions: list[str], patients: list[str], listed: Path | None, query: str
) -> tuple[asks.Ask, ...]:
    given = [
        *(asks.single("study", value) for value in studies),
        *(asks.single("accession", value) for value in accessions),
        *(asks.single("patient", value) for value in patients),
        *(asks.read_list(listed) if listed is not None else ()),
        *([asks.query(query)] if query else []),
    ]
    if not given:
        raise ConfigurationError("pull: expected what to fetch: --study, --accession, --patient, --list or --query")
    return tuple(given)


def _source(settings: Settings, name: str) -> Source:
    names = [source.name for source in settings.sources]
    if not names:
        raise ConfigurationError(
            "pull: the configuration has no [[sources]]: expected one (name, ae_title, host, port)"
        )
    if not name:
        raise ConfigurationError(f"pull: expected --from NAME, one of: {', '.join(names)}")
    found = next((source for source in settings.sources if source.name == name), None)
    if found is None:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        raise ConfigurationError(f"--from {name!r}: expected one of [[sources]] ({', '.join(names)}){meant}")
    return found


def _daemon_runs(settings: Settings) -> bool:
    return ServiceStatus.of_running(settings.data) is not None


def _follow(settings: Settings, store: PullStore, pull_id: str) -> None:
    """Until it has ended, with a line that says how far it is."""
    with working(f"pull {pull_id}") as say:
        try:
            while (pull := store.get(pull_id)).state not in ENDED or _in_flight(store, pull_id):
                [progress] = store.progress([pull])
                state = "" if pull.state is PullState.RUNNING else f"{pull.state}; "
                gone = "" if _daemon_runs(settings) else "the daemon does not run, it goes on when it does; "
                say(f"pull {pull_id}: {gone}{state}{progress.text}")
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            messages.print(
                f"the pull goes on in the daemon: `braingemma pull show {pull_id}`, `braingemma pull pause {pull_id}`",
                markup=False,
            )
            raise


def _in_flight(store: PullStore, pull_id: str) -> bool:
    return bool(store.studies(pull_id, (PulledState.FETCHING, PulledState.FETCHED)))


def _end(store: PullStore, pull_id: str, report: Path | None, *, as_json_: bool) -> None:
    """Say what became of it; exit code 1 where something did not come, or it was cancelled."""
    [progress], studies = store.progress([store.get(pull_id)]), store.studies(pull_id)
    if report is not None:
        write_report(report, progress, studies)
    _show(store, pull_id, as_json_=as_json_)
    missed = [s for s in studies if s.state in (PulledState.FAILED, PulledState.NOT_FOUND, PulledState.CANCELLED)]
    if missed:
        raise DaemonError(
            f"{len(missed)} of {len(studies)} were not fetched and reported: {missed[0].asked}: {missed[0].reason}"
        )
    if progress.pull.state is PullState.CANCELLED:
        raise DaemonError(f"pull {pull_id} was cancelled")


def _show(store: PullStore, pull_id: str, *, as_json_: bool) -> None:
    [progress], studies = store.progress([store.get(pull_id)]), store.studies(pull_id)
    if as_json_:
        emit_json(as_json(progress, studies))
        return
    data.print(f"pull {pull_id} from {progress.pull.source}: {progress.pull.state}, {progress.text}")
    if studies:
        print_table(
            ("study", "accession", "date", "state", "instances", "job", "what to know"),
            [
                (s.study_uid or s.asked, s.accession, s.study_date, str(s.state), str(s.instances), s.job_id, s.reason)
                for s in studies
            ],
        )


def _audit(settings: Settings, event: str, **facts: Any) -> None:
    AuditLog(settings.data.audit).note(event, by=user(), **facts)


@pull_app.command("list")
def pull_list(config: ConfigOption = None, as_json_: JsonOption = False) -> None:
    """List the pulls, newest first."""
    store = PullStore(open_database(load_settings(config)))
    found = store.progress(store.pulls())
    if as_json_:
        emit_json([{k: v for k, v in as_json(progress, ()).items() if k != "studies"} for progress in found])
    elif not found:
        data.print("no pulls")
    else:
        print_table(
            ("pull", "source", "state", "progress", "asked"),
            [(p.pull.pull_id, p.pull.source, str(p.pull.state), p.text, _short(p.pull.asked)) for p in found],
        )


def _short(asked: tuple[asks.Ask, ...]) -> str:
    return asked[0].label + (f" and {len(asked) - 1} more" if len(asked) > 1 else "")


@pull_app.command("show")
def pull_show(
    pull_id: str, report: ReportOption = None, config: ConfigOption = None, as_json_: JsonOption = False
) -> None:
    """Show what became of each study of a pull."""
    store = PullStore(open_database(load_settings(config)))
    if report is not None:
        write_report(report, store.progress([store.get(pull_id)])[0], store.studies(pull_id))
    _show(store, pull_id, as_json_=as_json_)


@pull_app.command("pause")
def pull_pause(pull_id: str, config: ConfigOption = None, as_json_: JsonOption = False) -> None:
    """Fetch nothing more until `pull resume`; what is here already is reported."""
    _set(config, pull_id, PullState.PAUSED, as_json_=as_json_)


@pull_app.command("resume")
def pull_resume(pull_id: str, config: ConfigOption = None, as_json_: JsonOption = False) -> None:
    """Go on with a paused pull."""
    _set(config, pull_id, PullState.RUNNING, as_json_=as_json_)


@pull_app.command("cancel")
def pull_cancel(pull_id: str, config: ConfigOption = None, as_json_: JsonOption = False) -> None:
    """Fetch nothing more, for good; what is here already is reported."""
    _set(config, pull_id, PullState.CANCELLED, as_json_=as_json_)


def _set(config: Path | None, pull_id: str, state: PullState, *, as_json_: bool) -> None:
    settings = load_settings(config)
    PullStore(open_database(settings)).set_state(pull_id, state)
    _audit(settings, "pull_changed", pull=pull_id, state=str(state))
    if as_json_:
        emit_json({"pull": pull_id, "state": str(state)})
    else:
        messages.print(f"{pull_id}: {state}", markup=False)
