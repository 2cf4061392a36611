"""The three pictures of an explanation, for a radiologist's eye.

Radiological convention (axial and coronal: patient left on the right of the picture), marks burned in, positions in mm,
red for and blue against what was explained, lines around the strongest region and the lesion map. No pyplot: figures
belong to their caller, threads do not mix.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from nibabel.affines import apply_affine, voxel_sizes

from braingemma.errors import ExplainError
from braingemma.explain.pictures import (
    AGAINST_COLOUR,
    AXIS,
    FOR_COLOUR,
    MARKS,
    REGION_COLOUR,
    Plane,
    View,
    blend,
    grey,
    montage,
    outline,
    position_text,
)
from braingemma.explain.record import LEAST_COLOUR, ShownRecord
from braingemma.explain.supervoxels import Region, Supervoxels

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

RESEARCH_LINE = "Research use only. Not for diagnosis. AI draft, unverified."
NOTHING_LINE = "Nothing supports a finding: no map is drawn."
DPI = 100
SHEET_WIDTH = 2000
"""Pixels across that the sheet of all slices aims at."""
MARGIN_MM = 12.0
"""Shown around the brain."""
SMALL_EFFECT = 0.02
"""Nats per token below which an effect is not told from noise."""
LEAST_SHOWN = 0.05
"""Supervoxels below this share of the greatest weight are not shown among the most influential."""
SLICE_MM, LEAST_AREA = 4.0, 0.02
"""Slices on the sheet are at least this far apart, and hold this share of the brain in the fullest slice."""
MAP_LEVEL, FAINT_MAP = 0.5, 0.15
"""The lesion map's line is where it reaches the first, or half its peak where that is lower; maps that stay below the
second have none."""
MAP_COLOUR = (0.1, 0.95, 0.95)
"""Line around what the lesion map shows: cyan."""
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
COLOURS = LinearSegmentedColormap.from_list("against_for", [AGAINST_COLOUR, (0.45, 0.45, 0.45), FOR_COLOUR])
TEXT = "#f2f2f2"
NOTHING_STYLE = {"color": "#ffe08a", "size": 12, "weight": "bold"}


@dataclass(frozen=True)
class Scene:
    """What all three pictures show.

    Attributes:
        volume: (X, Y, Z) intensities, axes R, A, S.
        saliency: (X, Y, Z); positive for, negative against.
        supervoxels: The partition behind the saliency.
        weights: (F,) of the supervoxels.
        drawn: False: nothing supports a finding, so no overlay is laid and the pictures say so.
        title: First line of each picture: what was explained and how.
        grounding: (X, Y, Z) the model's lesion map in [0, 1]; None where the weights have none.
        bilateral: Whether the report states a lesion on both sides: then both sides are shown.
        banner: What must be said about the weights; None for nothing.
        alpha: Opacity of full colour.
        clip_q: Quantile of |saliency| in the brain that gets full colour.
    """

    volume: Float32
    saliency: Float32
    supervoxels: Supervoxels
    weights: Float
    drawn: bool
    title: str
    banner: str | None = None
    grounding: Float32 | None = None
    bilateral: bool = False
    alpha: float = 0.45
    clip_q: float = 0.99

    def __post_init__(self) -> None:
        """Check what drawing takes for granted."""
        if self.volume.shape != self.saliency.shape or self.volume.shape != self.supervoxels.labels.shape:
            raise ExplainError(
                f"expected volume, saliency and labels of one shape, got {self.volume.shape}, "
                f"{self.saliency.shape}, {self.supervoxels.labels.shape}"
            )
        if not (0 <= self.alpha <= 1 and 0 < self.clip_q <= 1):
            raise ExplainError(f"expected alpha in 0..1 and clip_q in (0, 1], got {self.alpha} and {self.clip_q}")

    @cached_property
    def limit(self) -> float:
        """Saliency of full colour; 0 where there is nothing to colour.

        Full colour never stands for less than SMALL_EFFECT: noise must not look like a finding.
        """
        inside = np.abs(self.saliency[self.supervoxels.labels > 0])
        if not self.drawn or not inside.any():
            return 0.0
        return max(float(np.quantile(inside, self.clip_q)), SMALL_EFFECT)

    @cached_property
    def shown(self) -> ShownRecord:
        """What every picture shows, these and others' of the same explanation."""
        regions = tuple(region.label for region in self.strongest)
        return ShownRecord(limit=self.limit, least_share=LEAST_COLOUR, regions=regions)

    @cached_property
    def window(self) -> tuple[float, float]:
        """Grey window: 1st to 99.7th percentile of the brain, from black for what is darker outside."""
        inside = self.volume[self.supervoxels.labels > 0]
        low, high = np.percentile(inside, [1, 99.7])
        return float(min(low, np.percentile(self.volume, 1))), float(high)

    @property
    def statement(self) -> str:
        """What colours and lines say."""
        said = [NOTHING_LINE]
        if self.drawn:
            said = [f"Red: speaks for the finding, blue: against it, from {LEAST_COLOUR:.0%} of the strongest on."]
            if self.strongest:
                said.append("Yellow line: strongest region" + (" of each side." if len(self.strongest) > 1 else "."))
        if self.map_level is not None:
            said.append(f"Cyan line: lesion map at {self.map_level:.2f}.")
        return " ".join(said)

    @cached_property
    def strongest(self) -> tuple[Region, ...]:
        """The region that speaks most for the finding, of each side where both are stated; none where none does.

        One at the midline lies on both sides, and takes none beside it that hardly speaks for anything.
        """
        regions = [r for r in self.supervoxels.regions if self.drawn and self.weights[r.label - 1] >= SMALL_EFFECT]
        best = sorted(regions, key=lambda r: -self.weights[r.label - 1])
        if not self.bilateral or not best or best[0].side == "midline":
            return tuple(best[:1])
        other = next((r for r in best if {r.side, best[0].side} == {"left", "right"}), None)
        return (best[0],) if other is None else (best[0], other)

    @cached_property
    def map_level(self) -> float | None:
        """Where the lesion map's line runs; None where it shows nothing."""
        peak = 0.0 if self.grounding is None else float(self.grounding.max())
        return None if peak < FAINT_MAP else min(MAP_LEVEL, peak / 2)

    def view(self, pixel_mm: float) -> View:
        """Cut to the brain with a margin."""
        box = _brain_box(self.supervoxels)
        return View(self.supervoxels.affine, (box[0], box[1], box[2]), pixel_mm)

    def tile(self, view: View, plane: Plane, index: int, *, overlay: bool = True) -> Float32:
        """One slice as RGB, with or without colours and lines."""
        picture = grey(view.cut(self.volume, plane, index), self.window)
        if not overlay:
            return picture
        strength = self.shown.strength(view.cut(self.saliency, plane, index))
        return self.lines(blend(picture, strength, 1.0, self.alpha), view, plane, index)

    def lines(self, picture: Float32, view: View, plane: Plane, index: int) -> Float32:
        """The strongest regions and the lesion map as lines in a copy of a tile."""
        for region in self.strongest:
            inside = view.cut(self.supervoxels.labels == region.label, plane, index, smooth=False) > 0.5
            picture = outline(picture, inside, REGION_COLOUR, width=1)
        if self.grounding is not None and self.map_level is not None:
            picture = outline(picture, view.cut(self.grounding, plane, index) >= self.map_level, MAP_COLOUR, width=1)
        return picture


def draw_overlay_slices(scene: Scene, path: Path) -> None:
    """Axial slices through the whole brain with the overlay on one sheet."""
    indices = _slices(scene)
    columns, tile_width = _sheet_layout(scene, "axial", len(indices))
    view = scene.view(1.0)
    view = View(view.affine, view.box, view.tile_shape("axial")[1] / tile_width)
    tiles = [scene.tile(view, "axial", i) for i in indices]
    labels = [position_text("axial", view.position("axial", i)) for i in indices]
    _sheet(scene, tiles, ["axial"] * len(tiles), labels, columns, path)


def _slices(scene: Scene) -> list[int]:
    """Axial slices with brain in them, at least SLICE_MM apart, the middle of each strongest region among them."""
    areas = (scene.supervoxels.labels > 0).sum(axis=(0, 1))
    used = np.flatnonzero(areas >= LEAST_AREA * areas.max())
    step = max(1, round(SLICE_MM / float(voxel_sizes(scene.supervoxels.affine)[2])))
    first = int(used[0])
    if scene.strongest:
        first += (_middle(scene.supervoxels, scene.strongest[0])[2] - first) % step
    return list(range(first, int(used[-1]) + 1, step))


def draw_grid(scene: Scene, path: Path) -> None:
    """2 x 3: the slices through the strongest region in three planes, without overlay above, with it below.

    Where the report states a lesion on both sides, so for the strongest region of each.
    """
    view = scene.view(_pixel_mm(scene, 560))
    tiles, planes, labels = [], [], []
    for centre in _centres(scene):
        tiles += [scene.tile(view, plane, centre[AXIS[plane]], overlay=o) for o in (False, True) for plane in PLANES]
        planes += [*PLANES, *PLANES]
        labels += [f"{p}  {position_text(p, view.position(p, centre[AXIS[p]]))}" for p in PLANES] * 2
    _sheet(scene, _padded(tiles), planes, labels, 3, path, gap=28)


def draw_top_supervoxels(scene: Scene, path: Path, count: int = 4) -> None:
    """The most influential supervoxels, one row each: outlined in three planes through their middle."""
    if not scene.drawn:
        draw_grid(scene, path)
        return
    view = scene.view(_pixel_mm(scene, 440))
    top = _most_influential(scene, count)
    tiles, labels, notes = [], [], []
    for rank, region in enumerate(top, start=1):
        weight = float(scene.weights[region.label - 1])
        middle = _middle(scene.supervoxels, region)
        tiles += [_outlined(scene, view, plane, middle, region, weight) for plane in PLANES]
        labels += [f"{p}  {position_text(p, view.position(p, middle[AXIS[p]]))}" for p in PLANES]
        notes.append(_note(scene, rank, region))
    _sheet(scene, _padded(tiles), list(PLANES) * len(top), labels, 3, path, notes)


def _most_influential(scene: Scene, count: int) -> list[Region]:
    """Up to `count` regions by the size of their weight, the strongest of each stated side among them."""
    strength = np.abs(scene.weights)
    least = LEAST_SHOWN * strength.max()
    order = sorted(scene.supervoxels.regions, key=lambda region: -strength[region.label - 1])
    others = [r for r in order if r not in scene.strongest and strength[r.label - 1] >= least]
    kept = [*scene.strongest, *others[: count - len(scene.strongest)]]
    return sorted(kept, key=lambda region: -strength[region.label - 1])


def _outlined(
    scene: Scene, view: View, plane: Plane, middle: tuple[int, int, int], region: Region, weight: float
) -> Float32:
    index = middle[AXIS[plane]]
    inside = view.cut(scene.supervoxels.labels == region.label, plane, index, smooth=False) > 0.5
    colour = FOR_COLOUR if weight > 0 else AGAINST_COLOUR
    tinted = blend(
        grey(view.cut(scene.volume, plane, index), scene.window), inside * np.float32(weight), abs(weight), 0.15
    )
    return scene.lines(outline(tinted, inside, colour), view, plane, index)


def _note(scene: Scene, rank: int, region: Region) -> str:
    """One line on a supervoxel; its side is the patient's, against the brain's own midline."""
    weight = float(scene.weights[region.label - 1])
    verdict = "for the finding" if weight > 0 else "against the finding"
    place = region.site if region.side == "midline" else f"{region.side} {region.site}"
    share = f"{abs(weight) / float(np.abs(scene.weights).max()):.0%} of the strongest"
    middle = f"centre {abs(region.right_mm):.0f} mm {'left' if region.right_mm < 0 else 'right'} of the midline"
    return f"{rank}. speaks {verdict}, {share}   {place}   {region.size_ml:.0f} ml   {middle}"


def _middle(supervoxels: Supervoxels, region: Region) -> tuple[int, int, int]:
    """Voxel of the region nearest to its centroid (which may lie outside a bent region)."""
    voxels = np.argwhere(supervoxels.labels == region.label)
    offsets = apply_affine(supervoxels.affine, voxels) - region.centroid_mm
    nearest = voxels[np.argmin((offsets**2).sum(axis=1))]
    return int(nearest[0]), int(nearest[1]), int(nearest[2])


def _centres(scene: Scene) -> list[tuple[int, int, int]]:
    """Middle of each strongest region; middle of the brain where nothing is drawn or nothing supports."""
    if scene.strongest:
        return [_middle(scene.supervoxels, region) for region in scene.strongest]
    x, y, z = ((low + high) // 2 for low, high in _brain_box(scene.supervoxels))
    return [(x, y, z)]


def _brain_box(supervoxels: Supervoxels) -> list[tuple[int, int]]:
    """First and last + 1 voxel of the brain with MARGIN_MM along each axis."""
    brain = supervoxels.labels > 0
    box = []
    for axis, (size, spacing) in enumerate(zip(brain.shape, voxel_sizes(supervoxels.affine), strict=True)):
        used = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(MARGIN_MM / spacing))
        box.append((max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
    return box


def _pixel_mm(scene: Scene, tile_pixels: int) -> float:
    """Pixel size at which the longest side of the brain's box takes `tile_pixels`."""
    spacing = voxel_sizes(scene.supervoxels.affine)
    lengths = [(high - low) * s for (low, high), s in zip(_brain_box(scene.supervoxels), spacing, strict=True)]
    return float(max(lengths)) / tile_pixels


def _sheet_layout(scene: Scene, plane: Plane, count: int) -> tuple[int, int]:
    """Columns and tile width in pixels of the sheet of all slices: about as wide as high, tiles of 120..320."""
    rows, columns = scene.view(1.0).tile_shape(plane)
    across = max(1, min(count, round(float(np.sqrt(count * rows / columns * 1.2)))))
    return across, int(np.clip(SHEET_WIDTH / across, 120, 320))


def _padded(tiles: Sequence[Float32]) -> list[Float32]:
    """Tiles of different planes on black tiles of one shape."""
    height, width = (max(t.shape[axis] for t in tiles) for axis in (0, 1))
    padded = []
    for tile in tiles:
        canvas = np.zeros((height, width, 3), np.float32)
        top, left = (height - tile.shape[0]) // 2, (width - tile.shape[1]) // 2
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        padded.append(canvas)
    return padded


def _sheet(
    scene: Scene,
    tiles: list[Float32],
    planes: Sequence[Plane],
    labels: Sequence[str],
    columns: int,
    path: Path,
    notes: Sequence[str] = (),
    gap: int = 8,
) -> None:
    """Tiles with their marks, lines above and below, and the colour bar; written as PNG at one pixel per pixel."""
    sheet, corners = montage(tiles, columns, gap=30 if notes else gap)
    height, width = tiles[0].shape[:2]
    rows, across = sheet.shape[:2]
    size = 11 if width >= 240 else 9 if width >= 160 else 7.5
    head, foot = _lines(scene, across)
    top, bottom, right = 20 + 20 * len(head) + (30 if notes else 0), 16 + 20 * len(foot), 110
    figure = Figure(figsize=((across + right) / DPI, (rows + top + bottom) / DPI), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    total_w, total_h = across + right, rows + top + bottom
    axes = figure.add_axes((0, bottom / total_h, across / total_w, rows / total_h))
    axes.imshow(sheet, interpolation="none", aspect="auto", extent=(0, across, rows, 0))
    axes.set_axis_off()
    for (row, column), plane, label in zip(corners, planes, labels, strict=True):
        left_mark, right_mark = MARKS[plane]
        middle = row + height / 2
        axes.text(column + 4, row + 4, label, color="#ffe08a", size=size, va="top", ha="left")
        axes.text(column + 4, middle, left_mark, color="white", size=size + 1, va="center", weight="bold")
        axes.text(
            column + width - 4, middle, right_mark, color="white", size=size + 1, va="center", ha="right", weight="bold"
        )
    for number, note in enumerate(notes):
        row = corners[number * columns][0]
        axes.text(4, row - 15, note, color=TEXT, size=12, va="center", clip_on=False)
    for number, line in enumerate(head):
        plain = scene.drawn or line not in NOTHING_LINE
        style: dict[str, Any] = {"color": TEXT, "size": 11} if plain else NOTHING_STYLE
        figure.text(8 / total_w, 1 - (18 + 20 * number) / total_h, line, va="center", **style)
    for number, line in enumerate(foot):
        figure.text(8 / total_w, (bottom - 16 - 20 * number) / total_h, line, color="#ffb3a7", size=11, va="center")
    if scene.limit > 0:
        _colour_bar(figure, scene, across + 22, total_w, (bottom, rows, total_h))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="black", pil_kwargs={"compress_level": 3})  # half the time of the default


def _lines(scene: Scene, across: int) -> tuple[list[str], list[str]]:
    """Lines above and below, wrapped to the sheet's width."""
    width = max(30, int((across + 80) / 8.2))
    above = [*textwrap.wrap(scene.title, width), *textwrap.wrap(scene.statement, width)]
    below = [part for line in (RESEARCH_LINE, scene.banner) if line for part in textwrap.wrap(line, width)]
    return above, below


def _colour_bar(figure: Figure, scene: Scene, left: float, total_w: float, heights: tuple[int, int, int]) -> None:
    """Weight to colour, at the right edge, at most 320 pixels high."""
    bottom, rows, total_h = heights
    high = min(320.0, rows * 0.7)
    axes = figure.add_axes((left / total_w, (bottom + (rows - high) / 2) / total_h, 18 / total_w, high / total_h))
    bar = figure.colorbar(ScalarMappable(Normalize(-scene.limit, scene.limit), COLOURS), cax=axes)
    least = LEAST_COLOUR * scene.limit
    bar.set_ticks([-scene.limit, -least, least, scene.limit], labels=["strong", "", "", "strong"])
    bar.ax.axhspan(-least, least, color="black")  # what lies between is not coloured
    bar.ax.tick_params(colors=TEXT, labelsize=9)
    axes.set_title("for", color=TEXT, size=10)
    axes.set_xlabel("against", color=TEXT, size=10)
