"""The command `braingemma`: data to standard output, messages to standard error; exit 0, 1 (failure) or 2 (usage).

Thin: each command reads its arguments, calls one function elsewhere, and prints. What needs torch is imported late, so
that `--help` and the job list answer at once.
"""

from __future__ import annotations

import os
import sys

import typer

from braingemma.errors import BrainGemmaError
from daemon.cli.bench import bench_app
from daemon.cli.configuration import config_app
from daemon.cli.jobs import jobs_app
from daemon.cli.pacs import echo, send
from daemon.cli.serve import doctor, serve, worker
from daemon.cli.study import demo, process, select
from daemon.cli.terminal import messages
from daemon.cli.train import evaluate, phantom, train_app
from daemon.cli.weights import weights_app
from daemon.errors import ConfigurationError, DaemonError
from dicom_io.errors import DicomIoError
from training.errors import TrainingError

app = typer.Typer(
    help="Brain MRI FLAIR in by DICOM, a report draft and a saliency overlay back. Research use only, no diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, serve, worker, process, select, send, echo, doctor, phantom, evaluate):
    app.command()(command)
app.add_typer(jobs_app, name="jobs")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
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
