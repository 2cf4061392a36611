"""The page of figures: how often reports say what, by scanner and month, drawn as SVG; no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from daemon.jobs.lists.figures import figures_of, rates
from daemon.web.context import page_of, render

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 640, 200, 44, 30, 24
SHAPES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "1 5")
"""Dashes, so that lines differ without colour, too; the colour of each is in the style sheet."""


@dataclass(frozen=True)
class Line:
    """One scanner's line in a chart; `number` of its colour, `points` as SVG has them, `dots` (x, y, what it says)."""

    scanner: str
    number: int
    dashes: str
    points: str
    dots: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """One chart: a share of reports over months."""

    title: str
    months: Sequence[tuple[float, str]]
    lines: Sequence[Line]


def charts_of(shares: Mapping[str, Mapping[str, Sequence[tuple[str, float]]]]) -> list[Chart]:
    """Charts of what `rates` found; all have the same months and the same colour for a scanner."""
    months = sorted({month for lines in shares.values() for line in lines.values() for month, _ in line})
    step = (WIDTH - LEFT - RIGHT) / max(1, len(months) - 1)
    place = {month: LEFT + step * number for number, month in enumerate(months)}
    scanners = sorted({scanner for lines in shares.values() for scanner in lines})
    every = max(1, len(months) // 8)
    return [
        Chart(
            title,
            [(place[month], month) for month in months[::every]],
            [_line(scanner, scanners.index(scanner), lines[scanner], place) for scanner in sorted(lines)],
        )
        for title, lines in shares.items()
        if lines
    ]


def _line(scanner: str, number: int, values: Sequence[tuple[str, float]], place: Mapping[str, float]) -> Line:
    dots = [
        (
            round(place[month], 1),
            round(10 + (1 - share) * (HEIGHT - BOTTOM - 10), 1),
            f"{scanner}, {month}: {share:.0%}",
        )
        for month, share in values
    ]
    points = " ".join(f"{x},{y}" for x, y, _ in dots)
    number %= len(SHAPES)
    return Line(scanner, number, SHAPES[number], points, dots)


def figures(request: Request) -> Response:
    """The page."""
    found = figures_of(page_of(request).engine)
    size = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "bottom": BOTTOM}
    return render(request, "figures.html", charts=charts_of(rates(found)), figures=found, size=size)
