"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


Progress = Callable[[str, int, int, dict[str, float]], None]
