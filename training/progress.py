"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Told what is being done."""

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Told each step: phase, step, all steps, losses by name."""


def silent(_text: str) -> None:
    """Says nothing."""


def no_progress(_phase: str, _step: int, _total: int, _losses: dict[str, float]) -> None:
    """Shows nothing."""
