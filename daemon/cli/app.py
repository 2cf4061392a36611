"""The command `braingemma`: data to standard output, messages to standard error; exit 0, 1 (failure) or 2 (usage).

Thin: each command reads its arguments, calls one function elsewhere, and prints. What needs torch is imported late, so
that `--help` and the job list answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from braingemma.errors import BrainGemmaError
from daemon.cli.jobs import jobs_app
from daemon.cli.terminal import ConfigOption, JsonOption, WeightsOption, data, emit_json, messages, working
from daemon.cli.train import bench_app, evaluate, phantom, train_app
from daemon.config.sections import Explain, Model, load_settings
from daemon.errors import ConfigurationError, DaemonError
from daemon.observe.logs import set_up_logging
from dicom_io.errors import DicomIoError
from training.errors import TrainingError

app = typer.Typer(
    help="Brain MRI FLAIR in by DICOM, a report draft and a saliency overlay back. Research use only, no diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="Weights: the bundled `demo`, a local folder, or a hub id.", no_args_is_help=True)
config_app = typer.Typer(help="The configuration as it will be used.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
app.command()(phantom)
app.command()(evaluate)
app.add_typer(weights_app, name="weights")
app.add_typer(config_app, name="config")


def main() -> None:
    """Entry point: an error that was foreseen becomes one line and an exit code, never a traceback."""
    try:
        app()
    except ConfigurationError as error:
        messages.print(f"braingemma: {error}", style="red", markup=False)
        sys.exit(2)
    except (DaemonError, DicomIoError, BrainGemmaError, TrainingError) as error:
        messages.print(f"braingemma: {error}", style="red", markup=False)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (`| head`) has enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


# ---------------------------------------------------------------------- the main job


@app.command()
def demo(
    pacs: Annotated[Literal["embedded", "orthanc"], typer.Option(help="Which trial PACS.")] = "embedded",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("braingemma-demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the working data too, in OUT/work.")] = False,
) -> None:
    """Run the main job end to end on loopback: a study goes in by C-STORE, an SR and an overlay come back."""
    from daemon.jobs.report import finding_line
    from daemon.trial.demo import demo as run

    with working("loading") as say:
        result = run(out, pacs=pacs, keep=keep, say=say)
    folder = result.folder
    data.print(folder.report_text.read_text(encoding="utf-8"))
    data.print("The phantom was made with:")
    for finding in result.truth["findings"]:
        data.print(f"  {finding_line(finding)}")
    held = ", ".join(f"{n} {kind}" for kind, n in sorted(result.received.items()))
    data.print(f"\nThe {result.pacs} PACS holds beside the images, in the same study: {held}\n")
    for label, path in (
        ("Look at this first", folder.report_html),
        ("Structured Report", folder.dicom / "sr.dcm"),
        ("Overlay, one picture a slice", folder.dicom / "sc"),
        ("Pictures of the explanation", folder.explain),
        ("All results", folder.root),
    ):
        data.print(f"{label}: {path.resolve()}")


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the daemon. SIGTERM ends it within 10 s; unfinished work goes on at the next start."""
    settings = load_settings(config)
    set_up_logging(settings.log.format)
    from daemon.service.serve import serve as run

    run(settings)


@app.command()
def worker(
    config: ConfigOption = None,
    name: Annotated[str, typer.Option(help="Of this worker on this host: one for each GPU.")] = "gpu0",
    metrics_port: Annotated[int | None, typer.Option(help="Serve figures on this port of loopback.")] = None,
) -> None:
    """Run one more worker on the same PostgreSQL database; SIGTERM hands its work to the others."""
    settings = load_settings(config)
    set_up_logging(settings.log.format)
    from daemon.service.worker import work

    work(settings, name, metrics_port=metrics_port)


@app.command()
def process(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A NIfTI file, or a folder of DICOM files.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    weights: WeightsOption = None,
    explain: Annotated[bool, typer.Option("--explain/--no-explain", help="Compute the saliency map.")] = True,
    seed: Annotated[int | None, typer.Option(help="Seed of the explanation.", show_default="42")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the model runs.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report one study without a daemon."""
    settings = load_settings(config)
    model = {k: v for k, v in (("weights", weights), ("device", device)) if v is not None}
    explained = {"enabled": explain, **({} if seed is None else {"seed": seed})}
    settings = settings.model_copy(
        update={
            "model": Model.model_validate({**settings.model.model_dump(), **model}),
            "explain": Explain.model_validate({**settings.explain.model_dump(), **explained}),
        }
    )
    with working("loading") as say:
        from daemon.pipeline.process import process as run

        folder = run(
            source, out, settings,
            progress=lambda done, total, text: say(f"{text} {done}/{total}"),
            on_step=say,
        )  # fmt: skip
    if as_json:
        sys.stdout.write(folder.report_json.read_text(encoding="utf-8") + "\n")
        return
    data.print(folder.report_text.read_text(encoding="utf-8"))
    data.print(f"Page to look at: {folder.report_html.resolve()}")


@app.command()
def select(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, any nesting.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say for every series found whether it would be reported, and why."""
    from dicom_io.select.selection import SelectionRules, rank
    from dicom_io.series.group import scan_folder

    rules = load_settings(config).selection
    if not folder.is_dir():
        raise DaemonError(
            f"{folder}: expected a folder of DICOM files, found {'a file' if folder.exists() else 'nothing'}"
        )
    scan = scan_folder(folder)
    ranked = rank(scan.series, SelectionRules(include=rules.include, exclude=rules.exclude))
    rows = [
        {
            "series_uid": verdict.series_uid,
            "verdict": "accepted" if verdict.accepted else "refused",
            "reasons": [reason.line for reason in verdict.reasons],
        }
        for _, verdict in ranked
    ]
    problems = [{"file": str(p.path), "reason": p.reason} for p in scan.problems]
    if as_json:
        emit_json({"series": rows, "problems": problems})
    else:
        for row in rows:
            data.print(f"{row['verdict']}: series {row['series_uid']}")
            for reason in row["reasons"]:
                data.print(f"  {reason}")
        for problem in problems:
            messages.print(f"not read: {problem['file']}: {problem['reason']}", markup=False)
    if not rows:
        raise DaemonError(f"{folder}: expected DICOM instances, found none ({len(problems)} files could not be read)")


# ---------------------------------------------------------------------- DICOM client


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, any nesting.")],
    to: Annotated[str, typer.Option(help="AET@HOST:PORT")],
    calling_aet: Annotated[str, typer.Option(help="Our AE title.")] = "BRAINGEMMA",
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Send pseudonyms, other UIDs and shifted dates (PS3.15 basic profile).")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files by C-STORE."""
    from daemon.deliver import dimse as scu

    peer = scu.parse_peer(to)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()] if folder.is_dir() else [folder]
    if not files or not folder.exists():
        raise DaemonError(f"{folder}: expected DICOM files, found none")
    with contextlib.ExitStack() as kept, working(f"sending to {peer}") as say:
        originals = {file: file for file in files}
        unread: list[str] = []
        if deidentify:
            folder_without = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="braingemma-send-")))
            originals, unread = _deidentified(files, folder_without, load_settings(config).pseudonym_key)
        outgoing = []
        for file in originals:
            try:
                outgoing.append(scu.Outgoing.read(file))
            except DaemonError as error:
                unread.append(str(error))
        outcomes: list[scu.StoreOutcome] = []

        def note(outcome: scu.StoreOutcome) -> None:
            outcomes.append(outcome)
            say(f"sent {len(outcomes)}/{len(outgoing)}")

        scu.store(outgoing, peer, calling_aet, on_outcome=note)
    failed = [f"{originals[o.outgoing.path]}: {o.reason}" for o in outcomes if not o.stored] + unread
    stored = sum(o.stored for o in outcomes)
    if as_json:
        emit_json({"stored": stored, "failed": failed})
    else:
        data.print(f"{stored} instances stored at {peer}")
    for line in failed:
        messages.print(line, style="red", markup=False)
    if failed:
        raise DaemonError(f"{len(failed)} of {len(files)} files were not stored at {peer}")


def _deidentified(files: list[Path], folder: Path, key: Path) -> tuple[dict[Path, Path], list[str]]:
    """De-identified copies in a folder, each with its original, and why others have none."""
    from dicom_io.deidentify import Deidentifier, deidentify_file, load_key

    deidentifier = Deidentifier(load_key(key))
    originals: dict[Path, Path] = {}
    refused = []
    for number, file in enumerate(files, start=1):
        try:
            deidentify_file(deidentifier, file, folder / f"{number:06d}.dcm")
        except DicomIoError as error:
            refused.append(f"{file}: not sent: {error}")
        else:
            originals[folder / f"{number:06d}.dcm"] = file
    return originals, refused


@app.command()
def echo(peer: Annotated[str, typer.Argument(help="AET@HOST:PORT")], calling_aet: str = "BRAINGEMMA") -> None:
    """C-ECHO: is the peer there, and does it talk to us."""
    from daemon.deliver import dimse as scu

    scu.echo(scu.parse_peer(peer), calling_aet)
    data.print(f"{peer} answers")


# ---------------------------------------------------------------------- weights, configuration, machine


@weights_app.command("list")
def weights_list(as_json: JsonOption = False) -> None:
    """List the weights on this machine: bundled ones, and those in the hub's cache."""
    from braingemma.checkpoint.weights import list_weights

    rows = [dataclasses.asdict(info) for info in list_weights()]
    if as_json:
        emit_json(rows)
        return
    for row in rows:
        data.print(
            f"{row['ref']}: {row['name']} {row['version']} ({row['format']}), sha256 {row['sha256'][:16]}, "
            f"{row['folder']}"
        )


@weights_app.command("fetch")
def weights_fetch(ref: str, revision: Annotated[str | None, typer.Option(help="Commit or tag.")] = None) -> None:
    """Download weights from the hub into its cache; goes on where an earlier download stopped."""
    from braingemma.checkpoint.weights import fetch_weights

    data.print(str(fetch_weights(ref, revision=revision)))


@weights_app.command("verify")
def weights_verify(folder: Path, as_json: JsonOption = False) -> None:
    """Check that a folder holds whole weights: every file, every key, every shape."""
    from braingemma.checkpoint.weights import verify_weights

    info = verify_weights(folder)
    if as_json:
        emit_json(dataclasses.asdict(info))
    else:
        data.print(f"sound: {info.name} {info.version} ({info.format}), sha256 {info.sha256}")


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the configuration; every fault is printed."""
    load_settings(config)
    messages.print("the configuration is sound", markup=False)


@config_app.command("show")
def config_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the configuration as it will be used, with where each value came from."""
    from daemon.config.sections import origins

    settings = load_settings(config)
    rows = origins(settings, config)
    if as_json:
        emit_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return
    for name, value, origin in rows:
        data.print(f"{name} = {json.dumps(value, default=str)}  # {origin}")


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Is this machine ready: device, 4-bit, codecs, disk, ports, PACS reachable."""
    from daemon.service.doctor import examine

    checks = list(examine(load_settings(config)))
    if as_json:
        emit_json([dataclasses.asdict(c) for c in checks])
    else:
        for check in checks:
            data.print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
    if not all(check.ok for check in checks):
        raise DaemonError(f"{sum(not c.ok for c in checks)} of {len(checks)} checks failed")
