"""`braingemma config`: init, check, show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.terminal import ConfigOption, JsonOption, data, emit_json, messages
from daemon.config.load import load_settings, origins
from daemon.config.template import configuration_template
from daemon.errors import DaemonError

config_app = typer.Typer(help="The configuration as it will be used.", no_args_is_help=True)


@config_app.command("init")
def config_init(
    out: Annotated[Path, typer.Option(help="The file to write; one that is there is never overwritten.")] = Path(
        "braingemma.toml"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write a configuration file to start from: every key with its default and what it means."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(configuration_template())
    except FileExistsError as error:
        raise DaemonError(
            f"{out}: expected no file there, found one: it stays as it is; name another by --out"
        ) from error
    if as_json:
        emit_json({"file": str(out.resolve())})
    else:
        data.print(str(out))


@config_app.command("check")
def config_check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the configuration; every fault is printed."""
    load_settings(config)
    if as_json:
        emit_json({"sound": True, "file": None if config is None else str(config)})
    else:
        messages.print(f"the configuration is sound: {config or 'defaults and environment'}", markup=False)


@config_app.command("show")
def config_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the configuration as it will be used, with where each value came from."""
    settings = load_settings(config)
    rows = origins(settings, config)
    if as_json:
        emit_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return
    for name, value, origin in rows:
        data.print(f"{name} = {json.dumps(value, default=str)}  # {origin}")
