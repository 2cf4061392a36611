"""The command `braingemma`: data to standard output, messages to standard error; exit 0, 1 (failure) or 2 (usage).

Thin: each command reads its arguments, calls one function elsewhere, and prints. A command's file is imported when the
command is called, so that `--help` and the job list answer at once.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from daemon.loading import loading


class Command(NamedTuple):
    """A command before it is imported.

    Attributes:
        module: Its file in `daemon.cli`.
        attribute: A function, or a `Typer` of several commands.
        help: What `--help` says of it.
    """

    module: str
    attribute: str
    help: str


COMMANDS = {
    "demo": Command(
        "study",
        "demo",
        "Run the main job end to end on loopback: a study goes in by C-STORE, an SR and an overlay come back.",
    ),
    "serve": Command(
        "serve", "serve", "Run the daemon. SIGTERM ends it within 10 s; unfinished work goes on at the next start."
    ),
    "worker": Command(
        "serve",
        "worker",
        "Run one more worker on the same PostgreSQL database; SIGTERM hands its work to the others.",
    ),
    "process": Command("study", "process", "Report one study without a daemon."),
    "batch": Command(
        "study", "batch", "Report every FLAIR of many studies; exit code 1 where a case failed, whose row says why."
    ),
    "pull": Command("pull", "pull_app", "Fetch studies from a PACS and report them, each once; list, pause, resume."),
    "select": Command("study", "select", "Say for every series found whether it would be reported, and why."),
    "send": Command("pacs", "send", "Send DICOM files by C-STORE."),
    "echo": Command("pacs", "echo", "C-ECHO: is the peer there, and does it talk to us."),
    "doctor": Command("serve", "doctor", "Is this machine ready: device, 4-bit, codecs, disk, ports, PACS reachable."),
    "stats": Command("serve", "stats", "How often reports say what, by scanner and month."),
    "phantom": Command("train", "phantom", "Write synthetic FLAIR cases with their truth."),
    "evaluate": Command("train", "evaluate", "Judge reports on cases with truth, beside reports that never look."),
    "jobs": Command("jobs", "jobs_app", "The daemon's work, also while it is stopped."),
    "train": Command("train", "train_app", "Train the model."),
    "bench": Command("bench", "bench_app", "Side-by-side measurements, printed as ratios."),
    "weights": Command("weights", "weights_app", "Weights: the bundled `demo`, a local folder, or a hub id."),
    "config": Command("configuration", "config_app", "The configuration as it will be used."),
}


def load_command(name: str) -> Any:
    """Import one of `COMMANDS`."""
    entry = COMMANDS[name]
    with loading():
        found = getattr(importlib.import_module(f"daemon.cli.{entry.module}"), entry.attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(found)
        return typer.main.get_command(single)
    group = typer.main.get_group(found)
    group.name = name
    return group


class LateGroup(TyperGroup):
    """`COMMANDS`, each imported when it is called; `--help` needs none of them."""

    listing = False

    def __init__(self, **attrs: Any) -> None:
        stubs = {name: TyperCommand(name, help=entry.help) for name, entry in COMMANDS.items()}
        super().__init__(**{**attrs, "commands": stubs})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself; while help is written, its name and line."""
        if self.listing or cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        return load_command(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of commands."""
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


app = typer.Typer(
    cls=LateGroup,
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
        typer.echo(f"braingemma {metadata.version('braingemma3d-pacs')}")
        raise typer.Exit
