"""Slices of a job's volume as PNG: the FLAIR in grey, and what is shown of the saliency as a transparent layer on it.

Radiological convention, as in `braingemma.explain.pictures`; the letters of both edges are burnt into the grey picture.
"""

from __future__ import annotations

import functools
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from PIL import Image, ImageDraw, ImageFont

from braingemma.errors import ExplainError
from braingemma.explain.pictures import (
    AGAINST_COLOUR,
    AXIS,
    FOR_COLOUR,
    MARKS,
    REGION_COLOUR,
    Plane,
    View,
    acquired_plane,
    inner_edge,
    position_text,
)
from braingemma.explain.record import LEAST_COLOUR, SUPERVOXELS, ShownRecord
from daemon.errors import Rejected

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
CACHED_VOLUMES = 4
SHOWN_QUANTILE = 0.99
"""Of the saliency that is not zero: full colour of an older explanation, which does not say what is shown."""
PEAK_SHARE = 0.999
"""Of the largest value: voxels from there on are the peak."""
OPACITY = 0.7
LEAST_SIDE = 384
"""Pixels of the longer side of a picture at the least."""


@dataclass(frozen=True)
class Stack:
    """One volume with its map, ready to be cut; arrays (X, Y, Z), axes R, A, S."""

    volume: Float32
    saliency: Float32 | None
    view: View
    window: tuple[float, float]
    shown: ShownRecord
    outlined: Labels
    """(X, Y, Z): the number of each outlined region from 1, else 0."""

    def count(self, plane: Plane) -> int:
        """Slices of a plane."""
        return int(self.volume.shape[AXIS[plane]])

    @functools.cached_property
    def peak(self) -> tuple[int, int, int]:
        """Voxel (R, A, S) where the map is strongest, in the middle of where it is; without a map that of the volume.

        Maps of supervoxels have the same value all over a region: the voxel that is nearest to the region's centre is
        taken, and so lies in it.
        """
        if self.saliency is None or self.saliency.max() <= 0:
            right, front, up = (int(n) // 2 for n in self.volume.shape)
            return right, front, up
        region = np.argwhere(self.saliency >= self.saliency.max() * PEAK_SHARE)
        distance = ((region - region.mean(axis=0)) ** 2).sum(axis=1)
        right, front, up = (int(n) for n in region[distance.argmin()])
        return right, front, up

    def strongest(self, plane: Plane) -> int:
        """The slice of a plane through the peak."""
        return self.peak[AXIS[plane]]

    def position(self, plane: Plane, index: int) -> str:
        """Where a slice lies, for people: "S 32 mm"."""
        return position_text(plane, self.view.position(plane, index))

    def grey_png(self, plane: Plane, index: int) -> bytes:
        """The FLAIR, with the letters of both edges."""
        low, high = self.window
        cut = self.view.cut(self.volume, plane, index)
        image = Image.fromarray((np.clip((cut - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8))
        _write_letters(image, MARKS[plane])
        return _png(image)

    def map_png(self, plane: Plane, index: int) -> bytes:
        """The saliency in colour, red for, blue against, and outlined regions; transparent where nothing is shown."""
        if self.saliency is None:
            raise Rejected("no explanation was computed for this job")
        strength = self.shown.strength(self.view.cut(self.saliency, plane, index))
        colour = np.where((strength > 0)[..., None], FOR_COLOUR, AGAINST_COLOUR)
        rgba = np.concatenate([colour, np.abs(strength)[..., None] * OPACITY], axis=-1)
        numbers = self.view.cut(self.outlined, plane, index, smooth=False)
        for number in range(1, len(self.shown.regions) + 1):
            rgba[inner_edge(numbers == number, width=1)] = (*REGION_COLOUR, 1.0)
        return _png(Image.fromarray((rgba * 255).round().astype(np.uint8), "RGBA"))


def load_stack(volume: Path, saliency: Path | None) -> Stack:
    """Read a RAS volume, its map on the same grid, and what is shown of that.

    Raises:
        Rejected: the map is not on the volume's grid, or what is to be shown of it cannot be read.
    """
    image = nibabel.load(volume)
    values = np.asarray(image.dataobj, dtype=np.float32)
    weights = None if saliency is None else np.asarray(_on_grid(saliency, image).dataobj, dtype=np.float32)
    box = tuple((0, int(n)) for n in values.shape)
    spacing = voxel_sizes(image.affine)
    longest = max(n * s for n, s in zip(values.shape, spacing, strict=True))
    view = View(image.affine, (box[0], box[1], box[2]), min(float(spacing.min()), longest / LEAST_SIDE))
    head = values[values > values.mean() * 0.2]
    window = (0.0, float(np.quantile(head, 0.995))) if head.size else (0.0, 1.0)
    shown, outlined = _shown(weights, None if saliency is None else saliency.parent, image)
    return Stack(values, weights, view, window, shown, outlined)


def _on_grid(path: Path, image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    try:
        other = nibabel.load(path)
    except FileNotFoundError as error:
        raise Rejected(f"expected the labels of an explanation's regions: {error}") from error
    if other.shape != image.shape or not np.allclose(other.affine, image.affine, atol=1e-3):
        raise Rejected(f"expected a map of shape {image.shape} on the volume's grid, got {other.shape}")
    return other


def _shown(weights: Float32 | None, folder: Path | None, image: nibabel.Nifti1Image) -> tuple[ShownRecord, Labels]:
    """What is shown of a map, and the numbers of the outlined regions (X, Y, Z); of an older one only its colours."""
    try:
        shown = None if folder is None else ShownRecord.read_if_there(folder)
    except ExplainError as error:
        raise Rejected(str(error)) from error
    outlined = np.zeros(image.shape, np.uint8)
    if folder is not None and shown is not None:
        labels = np.asarray(_on_grid(folder / SUPERVOXELS, image).dataobj) if shown.regions else outlined
        for number, label in enumerate(shown.regions, start=1):
            outlined[labels == label] = number
        return shown, outlined
    strong = np.abs(weights[weights != 0]) if weights is not None else np.zeros(0)
    limit = float(np.quantile(strong, SHOWN_QUANTILE)) if strong.size else 0.0
    return ShownRecord(limit=limit, least_share=LEAST_COLOUR, regions=()), outlined


def first_plane(stack: Stack) -> Plane:
    """The plane that was acquired."""
    return acquired_plane(stack.view.affine)


class StackCache:
    """The stacks looked at last; a file that was written anew is read anew."""

    def __init__(self) -> None:
        self._stacks: OrderedDict[tuple[str, float, float], Stack] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, volume: Path, saliency: Path) -> Stack:
        """The stack of a volume and of its map, where there is one."""
        there = saliency if saliency.exists() else None
        key = (str(volume), volume.stat().st_mtime, there.stat().st_mtime if there else 0.0)
        with self._lock:
            if key in self._stacks:
                self._stacks.move_to_end(key)
                return self._stacks[key]
        stack = load_stack(volume, there)
        with self._lock:
            self._stacks[key] = stack
            while len(self._stacks) > CACHED_VOLUMES:
                self._stacks.popitem(last=False)
        return stack


def _write_letters(image: Image.Image, marks: tuple[str, str]) -> None:
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(16, image.height // 20))
    middle = image.height / 2
    for letter, x, anchor in ((marks[0], 4, "lm"), (marks[1], image.width - 4, "rm")):
        draw.text((x, middle), letter, fill=255, font=font, anchor=anchor, stroke_width=2, stroke_fill=0)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
