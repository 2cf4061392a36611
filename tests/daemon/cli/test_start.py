"""`braingemma --help` answers at once: it imports no command, and says of each what the command says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from daemon.cli.app import COMMANDS, app, load_command

HEAVY = ("torch", "transformers", "numpy", "pydicom", "highdicom", "sqlalchemy", "dbos", "starlette")


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_help_imports_nothing_heavy(asked: str) -> None:
    code = (
        f"import sys; sys.argv = ['braingemma', {asked!r}]\n"
        "from daemon.cli.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "heavy: []"
    assert asked == "--version" or all(name in run.stdout for name in COMMANDS)


def test_the_service_loads_neither_the_model_nor_the_encoders() -> None:
    """They are the work of the process of the steps; the service listens sooner without them."""
    later = ("torch", "transformers", "highdicom", "fpdf", "skimage", "matplotlib", "dicom2nifti")
    code = f"import sys, daemon.service.serve; print([name for name in {later} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_what_help_says(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    first = " ".join((command.help or "").split("\n\n")[0].split())
    assert first == COMMANDS[name].help


def test_a_misspelt_command_is_told_apart() -> None:
    result = CliRunner().invoke(app, ["proces"])
    assert result.exit_code == 2
    assert "Did you mean 'process'" in result.output.replace("\n", " ")


def test_sub_commands_have_their_own_help_by_both_names() -> None:
    for flag in ("--help", "-h"):
        result = CliRunner().invoke(app, ["jobs", "list", flag])
        assert result.exit_code == 0
        assert "newest first" in result.output
    assert isinstance(app, typer.Typer)
