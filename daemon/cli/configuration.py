"""`braingemma config`: check, show."""

from __future__ import annotations

import json

import typer

from daemon.cli.terminal import ConfigOption, JsonOption, data, emit_json, messages
from daemon.config.load import load_settings

config_app = typer.Typer(help="The configuration as it will be used.", no_args_is_help=True)


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the configuration; every fault is printed."""
    load_settings(config)
    messages.print("the configuration is sound", markup=False)


@config_app.command("show")
def config_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the configuration as it will be used, with where each value came from."""
    from daemon.config.load import origins

    settings = load_settings(config)
    rows = origins(settings, config)
    if as_json:
        emit_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return
    for name, value, origin in rows:
        data.print(f"{name} = {json.dumps(value, default=str)}  # {origin}")
