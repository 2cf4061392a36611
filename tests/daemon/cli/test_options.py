"""`--json` and `--config` on every command, but for those that are named here with their reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from daemon.cli.app import COMMANDS, load_command

NO_DATA = {
    "serve": "runs until it is stopped", "worker": "runs until it is stopped",
    "train phase1": "`train run` by another name", "train phase2a": "likewise", "train phase2b": "likewise",
    "train all": "likewise", "train demo": "likewise", "train ablation": "writes a folder with its tables",
    "train domain": "writes a JSON file",
}  # fmt: skip
NO_CONFIGURATION = {
    "demo": "starts a service of its own", "phantom": "draws by its options alone",
    "evaluate": "judges by its options alone, so that figures can be compared", "config init": "writes one",
    "weights list": "lists what is on the machine", "weights fetch": "is told which", "weights verify": "is told which",
    "train manifest": "is told the folders", "train domain": "is told the cases",
}  # fmt: skip
"""`bench` measures with settings of its own, too; `train`'s --config names a recipe."""


def leaves() -> Iterator[tuple[str, Any]]:
    for name in COMMANDS:
        command = load_command(name)
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", found) for inner, found in command.commands.items())
        else:
            yield name, command


ALL = dict(leaves())


def options(name: str) -> set[str]:
    return {option for parameter in ALL[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", ALL)
def test_json_and_config(name: str) -> None:
    assert ("--json" in options(name)) is (name not in NO_DATA)
    if not name.startswith("bench "):
        assert ("--config" in options(name)) is (name not in NO_CONFIGURATION)


def test_the_exceptions_are_commands() -> None:
    assert set(NO_DATA) | set(NO_CONFIGURATION) <= set(ALL)
