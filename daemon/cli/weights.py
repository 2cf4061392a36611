"""`braingemma weights`: list, fetch, verify."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.terminal import JsonOption, data, emit_json

weights_app = typer.Typer(help="Weights: the bundled `demo`, a local folder, or a hub id.", no_args_is_help=True)


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
def weights_fetch(
    ref: str,
    revision: Annotated[str | None, typer.Option(help="Commit or tag.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Download weights from the hub into its cache; goes on where an earlier download stopped."""
    from braingemma.checkpoint.weights import fetch_weights

    folder = fetch_weights(ref, revision=revision)
    if as_json:
        emit_json({"ref": ref, "folder": str(folder)})
    else:
        data.print(str(folder))


@weights_app.command("verify")
def weights_verify(folder: Path, as_json: JsonOption = False) -> None:
    """Check that a folder holds whole weights: every file, every key, every shape."""
    from braingemma import BrainGemma3D

    info = BrainGemma3D.verify_pretrained(folder)
    if as_json:
        emit_json(dataclasses.asdict(info))
    else:
        data.print(f"sound: {info.name} {info.version} ({info.format}), sha256 {info.sha256}")
