"""The saliency overlay as pictures, one for each source slice.

Pixels keep the order of the source slice, so a picture looks as the slice does in any viewer: for axial and coronal
slices the patient's left is on the right-hand side. Small matrices are enlarged by a whole factor so that text can be
read, and text that is not about a place stands in strips above and below; `Layout` says where each source pixel went,
so a picture's spacing and position in the patient stay exact.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from dicom_io.content.regions import BoolArray, SourceVolumes, brain_window, head_middle, slice_place
from dicom_io.content.report import RESEARCH_USE_LINE, ReportContent
from dicom_io.volume.geometry import SeriesGeometry

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

LONG_SIDE = 448
"""The enlarged slice has at least this many pixels on its long side."""
SHORT_SIDE = 128
"""... and this many on its short side: the letters need them."""
MIN_WIDTH = 512
"""Narrowest picture, pixels: the strips' text needs it."""
ALPHA = 0.5
"""Opacity of the strongest weight."""
LETTER_COSINE = 0.3
"""An edge is lettered with each axis it leans to by more than this (17 degrees off the plane)."""

SUPPORTS: Colour = (255, 40, 30)
AGAINST: Colour = (40, 110, 255)
OUTLINE: Colour = (255, 220, 0)
TEXT: Colour = (235, 235, 235)
WARNING: Colour = (255, 210, 60)

_RED, _BLUE = (np.array(colour, dtype=np.float32) for colour in (SUPPORTS, AGAINST))


@dataclass(frozen=True)
class Layout:
    """Where the slice lies in the picture, pixels.

    Attributes:
        scale: Whole factor by which the slice is enlarged.
        left: Columns before the slice.
        top: Rows above the slice.
        width: Columns of the picture.
        height: Rows of the picture.
    """

    scale: int
    left: int
    top: int
    width: int
    height: int

    def pixel_spacing(self, geometry: SeriesGeometry) -> tuple[float, float]:
        """PixelSpacing of the picture, mm."""
        return geometry.pixel_spacing[0] / self.scale, geometry.pixel_spacing[1] / self.scale

    def position(self, geometry: SeriesGeometry, index: int) -> tuple[float, float, float]:
        """ImagePositionPatient of the picture's first pixel, mm, LPS."""
        column = (0.5 - self.left) / self.scale - 0.5
        row = (0.5 - self.top) / self.scale - 0.5
        along_row, along_column = np.array(geometry.orientation).reshape(2, 3)
        origin = np.array(geometry.slices[index].position)
        x, y, z = (
            origin + along_row * geometry.pixel_spacing[1] * column + along_column * geometry.pixel_spacing[0] * row
        )
        return float(x), float(y), float(z)


def direction_letters(direction: npt.ArrayLike) -> str:
    """Patient directions that a vector points to, the strongest first (PS3.3 C.7.6.1.1.1).

    Args:
        direction: (3,) unit vector, LPS.
    """
    vector = np.asarray(direction, dtype=np.float64)
    letters = [("RL", "AP", "FH")[axis][int(vector[axis] > 0)] for axis in range(3)]
    order = np.argsort(-np.abs(vector), kind="stable")
    return "".join(letters[axis] for n, axis in enumerate(order) if n == 0 or abs(vector[axis]) > LETTER_COSINE)


def edge_letters(geometry: SeriesGeometry) -> dict[str, str]:
    """Letters for the edges of every picture: `right`, `left`, `bottom`, `top`; S and I instead of H and F."""
    along_row, along_column = np.array(geometry.orientation, dtype=np.float64).reshape(2, 3)
    directions = {"right": along_row, "left": -along_row, "bottom": along_column, "top": -along_column}
    shown = str.maketrans("HF", "SI")
    return {edge: direction_letters(vector).translate(shown) for edge, vector in directions.items()}


def slice_side(geometry: SeriesGeometry, index: int, middle: float) -> tuple[str, float] | None:
    """Side of the head that a sagittal slice shows: (`L`, `R` or `MID`, distance from the middle of the head in mm).

    None for slices that are not sagittal: they show both sides. Measured along their normal: slices that are turned
    with the head lie beside its midsagittal plane, but across the scanner's axes.

    Args:
        geometry: Geometry of the series.
        index: Slice in its order.
        middle: Of the head, see `head_middle`.
    """
    to_left = geometry.normal[0]
    if int(np.abs(geometry.normal).argmax()) != 0:
        return None
    distance = (slice_place(geometry, index) - middle) * float(np.sign(to_left))
    if abs(distance) <= geometry.slice_spacing / 2 + 1e-3:
        return "MID", abs(distance)
    return ("L" if distance > 0 else "R"), abs(distance)


def slice_centre(geometry: SeriesGeometry, index: int) -> npt.NDArray[np.float64]:
    """Centre of a slice, (3,) mm, LPS."""
    middle = [(geometry.columns - 1) / 2, (geometry.rows - 1) / 2, 0.0]
    offset = geometry.affine_lps[:3, :3] @ np.array(middle)
    return np.asarray(np.array(geometry.slices[index].position) + offset, dtype=np.float64)


class OverlayRenderer:
    """Draws the overlay of each slice; everything that all slices share is drawn once.

    Attributes:
        layout: Where the slice lies in each picture.
    """

    def __init__(self, geometry: SeriesGeometry, volumes: SourceVolumes, content: ReportContent) -> None:
        self._geometry = geometry
        self._volumes = volumes
        self._low, self._high = brain_window(volumes.flair)
        self._middle = head_middle(volumes.flair, geometry)
        header = _header_lines(content, volumes)
        self.layout = _layout(geometry, len(header))
        self._canvas = self._draw_base(header)
        """Drawn over for each slice: what lies beneath the slice is put back from `_strip`."""
        self._strip = self._canvas.crop((0, self._under, self.layout.width, self.layout.height))
        self._letters = self._draw_letters()

    def __iter__(self) -> Iterator[Picture]:
        """Pictures (height, width, 3) in the order of the geometry's slices."""
        return (self.render(index) for index in range(len(self._geometry.slices)))

    def render(self, index: int) -> Picture:
        """The picture (height, width, 3), RGB, of one slice; one at a time."""
        layout = self.layout
        size = (self._geometry.columns * layout.scale, self._geometry.rows * layout.scale)
        canvas = self._canvas
        canvas.paste(self._strip, (0, self._under))
        enlarged = self._blend(index).resize(size, Image.Resampling.BILINEAR)
        canvas.paste(enlarged.convert("RGB"), (layout.left, layout.top))
        for letters, (left, top) in self._letters:
            canvas.paste(letters, (layout.left + left, layout.top + top), letters)
        draw = ImageDraw.Draw(canvas)
        self._draw_side(draw, index)
        for row, line in enumerate(self._place(index), start=1):
            _draw_fitted(draw, (8, self._below + row * _LINE), line, layout.width - 16, TEXT)
        return np.asarray(canvas)

    def _blend(self, index: int) -> Image.Image:
        """Slice with saliency, at the size of the source; grey where there is none."""
        grey = np.clip((self._volumes.flair[index] - self._low) * (255 / (self._high - self._low)), 0, 255)
        strength = self._volumes.strength(index)
        shown = strength != 0
        edges = [_outline(region.mask[index]) for region in self._volumes.supports]
        if not shown.any() and not any(edge.any() for edge in edges):
            return Image.fromarray(grey.astype(np.uint8))
        picture = np.repeat(grey[..., None], 3, axis=2)
        colour = np.where((strength[shown] > 0)[:, None], _RED, _BLUE)
        picture[shown] += ALPHA * np.abs(strength[shown])[:, None] * (colour - picture[shown])
        for edge in edges:
            picture[edge] = OUTLINE
        return Image.fromarray(picture.astype(np.uint8))

    @property
    def _under(self) -> int:
        """First row under the slice."""
        return self.layout.top + self._geometry.rows * self.layout.scale

    @property
    def _below(self) -> int:
        """First row of text below the slice."""
        return self._under + 4

    def _place(self, index: int) -> Iterator[str]:
        """Where the slice lies, in words."""
        x, y, z = slice_centre(self._geometry, index)
        yield f"Slice {index + 1}/{len(self._geometry.slices)}   centre x {x:+.1f}  y {y:+.1f}  z {z:+.1f} mm (LPS)"
        side = slice_side(self._geometry, index, self._middle)
        if side is not None:
            names = {"L": "LEFT of", "R": "RIGHT of", "MID": "from"}
            yield f"{side[1]:.0f} mm {names[side[0]]} the middle of the head"

    def _draw_side(self, draw: ImageDraw.ImageDraw, index: int) -> None:
        side = slice_side(self._geometry, index, self._middle)
        if side is not None:
            place = (self.layout.left + 10, self.layout.top + 6)
            draw.text(place, side[0], fill=WARNING, font=_font(36), stroke_width=2, stroke_fill=(0, 0, 0))

    def _draw_letters(self) -> list[tuple[Image.Image, tuple[int, int]]]:
        """The letters at the edges, each cut out with its place (left, top) in the slice."""
        width, height = self._geometry.columns * self.layout.scale, self._geometry.rows * self.layout.scale
        places = {
            "right": (width - 8, height / 2, "rm"),
            "left": (8, height / 2, "lm"),
            "top": (width / 2, 6, "ma"),
            "bottom": (width / 2, height - 6, "md"),
        }
        cut = []
        for edge, letters in edge_letters(self._geometry).items():
            layer = Image.new("RGBA", (width, height))
            x, y, anchor = places[edge]
            ImageDraw.Draw(layer).text(
                (x, y), letters, fill=TEXT, font=_font(28), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
            )
            box = layer.getbbox()
            if box is not None:
                cut.append((layer.crop(box), (box[0], box[1])))
        return cut

    def _draw_base(self, header: list[str]) -> Image.Image:
        layout = self.layout
        base = Image.new("RGB", (layout.width, layout.height))
        draw = ImageDraw.Draw(base)
        for row, line in enumerate(header):
            _draw_fitted(draw, (8, 3 + row * _LINE), line, layout.width - 16, WARNING)
        if self._volumes.no_support_reason is not None:
            _draw_fitted(draw, (8, self._below), self._volumes.no_support_reason, layout.width - 16, WARNING)
        else:
            self._draw_legend(base, self._below)
        return base

    def _draw_legend(self, base: Image.Image, top: int) -> None:
        """Colour bar from full colour against the draft to that in support of it, black where nothing is coloured."""
        ramp = np.linspace(-1, 1, 120, dtype=np.float32)[:, None]
        shown = np.where(np.abs(ramp) >= self._volumes.least_share, np.abs(ramp), np.float32(0))
        colours = np.where(ramp > 0, _RED, _BLUE) * shown
        bar = Image.fromarray(np.repeat(colours[None].astype(np.uint8), 10, axis=0))
        draw = ImageDraw.Draw(base)
        font = _font(13)
        before = f"against {-self._volumes.limit:.2g}"
        draw.text((8, top), before, fill=TEXT, font=font)
        left = 14 + int(draw.textlength(before, font=font))
        base.paste(bar, (left, top + 4))
        after = f"{self._volumes.limit:.2g} supports the draft"
        draw.text((left + 126, top), after, fill=TEXT, font=font)
        right = left + 126 + int(draw.textlength(after, font=font)) + 16
        outlined = "outline: strongest" + (" L, R" if len(self._volumes.supports) > 1 else "")
        _draw_fitted(draw, (right, top), outlined, self.layout.width - 8 - right, OUTLINE, size=13)


_LINE = 18
"""Height of one line in the strips, pixels."""
_LINES_BELOW = 3
"""Legend or why there is none, place of the slice, its side."""


def _header_lines(content: ReportContent, volumes: SourceVolumes) -> list[str]:
    """What the picture is worth; where a region is drawn for words that nothing confirms, that as well."""
    doubted = volumes.supports and not volumes.confirmed
    said = [content.banner, content.nothing_present if doubted else None]
    return [RESEARCH_USE_LINE, *(part for line in said if line for part in textwrap.wrap(line, 76))]


def _layout(geometry: SeriesGeometry, header_lines: int) -> Layout:
    sides = sorted((geometry.rows, geometry.columns))
    scale = max(-(-SHORT_SIDE // sides[0]), -(-LONG_SIDE // sides[1]), 1)
    width = max(MIN_WIDTH, geometry.columns * scale)
    top = header_lines * _LINE + 6
    return Layout(
        scale=scale,
        left=(width - geometry.columns * scale) // 2,
        top=top,
        width=width,
        height=top + geometry.rows * scale + _LINES_BELOW * _LINE + 8,
    )


def _outline(mask: BoolArray) -> BoolArray:
    """Pixels of the mask with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def _draw_fitted(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, colour: Colour, size: int = 15
) -> None:
    """Draw one line, smaller where it would not fit."""
    while size > 8 and draw.textlength(text, font=_font(size)) > width:
        size -= 1
    draw.text(place, text, fill=colour, font=_font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size)
    return _FONTS[size]


_FONTS: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}
