"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

#: Told what is being done.
Say = Callable[[str], None]

#: Told each step: phase, step, all steps, losses by name.
Progress = Callable[[str, int, int, dict[str, float]], None]


def silent(_text: str) -> None:
    """Says nothing."""


def no_progress(_phase: str, _step: int, _total: int, _losses: dict[str, float]) -> None:
    """Shows nothing."""
