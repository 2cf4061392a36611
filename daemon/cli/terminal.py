"""How commands talk: data to standard output, messages and progress to standard error; options they share."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from daemon.config.load import find_configuration
from training.progress import Say

messages = Console(stderr=True, highlight=False, soft_wrap=True)
data = Console(highlight=False, soft_wrap=True, markup=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration, TOML [BRAINGEMMA_CONFIG, ./braingemma.toml, the user's, /etc/braingemma/braingemma.toml].",
        show_default=False,
        callback=find_configuration,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WeightsOption = Annotated[str | None, typer.Option(help="`demo`, a folder, or a hub id.", show_default="demo")]


def user() -> str:
    """Who gives the command, as the system knows them: by name, or by number where it has none."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # in a container, as a rule
        name = f"uid {os.getuid()}"
    return f"{name} (command line)"


def emit_json(value: Any) -> None:
    """Print data as JSON."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns side by side, never cut nor wrapped: a line stays a line also through a pipe."""
    lines = [columns, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        data.print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def new_lines() -> Say:
    """Prints what is said on standard error, unless it differs from what was said last in its numbers alone."""
    said: list[str] = []

    def say(text: str) -> None:
        kind = text.rstrip("0123456789/ ")
        if said[-1:] != [kind]:
            said.append(kind)
            messages.print(text, markup=False)

    return say


@contextmanager
def working(first: str) -> Iterator[Say]:
    """A line on standard error that says what is being done: live on a terminal, one line a step elsewhere."""
    if messages.is_terminal:
        with messages.status(first) as status:
            yield status.update
    else:
        say = new_lines()
        say(first)
        yield say
