"""The command `braingemma`: data to standard output, messages to standard error; exit 0, 1 (failure) or 2 (usage).

Thin: each command reads its arguments, calls one function elsewhere, and prints. What needs torch is imported late, so
that `--help` and the job list answer at once.
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from braingemma.errors import BrainGemmaError
from daemon.cli.bench import bench_app
from daemon.cli.configuration import config_app
from daemon.cli.jobs import jobs_app
from daemon.cli.pacs import echo, send
from daemon.cli.serve import doctor, serve, worker
from daemon.cli.study import demo, process, select
from daemon.cli.terminal import data
from daemon.cli.train import evaluate, phantom, train_app
from daemon.cli.weights import weights_app
from daemon.errors import DaemonError
from dicom_io.errors import DicomIoError
from training.errors import TrainingError

FORESEEN = (DaemonError, DicomIoError, BrainGemmaError, TrainingError)
"""Errors whose text is fit for a user."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True, no_args_is_help=True)
def braingemma(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Brain MRI FLAIR in by DICOM, a report draft and a saliency overlay back. Research use only, no diagnosis."""
    if version:
        data.print(f"braingemma {metadata.version('braingemma3d-pacs')}")
        raise typer.Exit


for command in (demo, serve, worker, process, select, send, echo, doctor, phantom, evaluate):
    app.command()(command)
app.add_typer(jobs_app, name="jobs")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
app.add_typer(weights_app, name="weights")
app.add_typer(config_app, name="config")
