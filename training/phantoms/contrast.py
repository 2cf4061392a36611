"""From tissue to picture: FLAIR contrast, head, bias, noise and blur, all drawn at random.

The manner is SynthSeg's (Billot et al., arXiv 2107.09559): intensities, artefacts and resolution vary more widely than
in any one clinic, so that what is learned does not hang on them. FLAIR's order is kept: fluid dark, white matter a
little darker than gray, edema bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.phantoms.anatomy import Tissue
from training.phantoms.extraction import orbit, skull_base
from training.phantoms.fields import Floats, Grid, smooth_field
from training.phantoms.lesions import LesionMasks

FAINTEST: Final = 1.08
"""Edema and core of hard phantoms are at least so much brighter than the brain (the mean of gray and white matter).
What is fainter cannot be told from noise and bias by any reader: its truth is "undetermined"."""


@dataclass(frozen=True)
class Contrast:
    """Mean intensities of one scan; white matter near 0.5–0.75.

    `core_spares`: share of the core's brightness that fluid within it keeps out; `texture`: the core's unevenness.
    """

    white: float
    gray: float
    fluid: float
    edema: float
    core: float
    necrosis: float
    spots: float
    core_spares: float = 0.15
    texture: tuple[float, float] = (0.04, 0.14)

    @property
    def brain(self) -> float:
        """What brightness ratios are held against: the mean of gray and white matter."""
        return (self.gray + self.white) / 2


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """Edema and core are brighter than gray matter, an eighth or more apart; necrosis is 45 % below white matter.

    Where core and edema were equally bright, nothing in the picture would say whether there is edema.
    """
    white = rng.uniform(0.45, 0.75)
    gray = white * rng.uniform(1.03, 1.4)
    edema = max(white * rng.uniform(1.5, 2.3), gray * 1.4)
    core = edema * (rng.uniform(0.6, 0.8) if rng.random() < 0.65 else rng.uniform(1.2, 1.4))
    return Contrast(
        white=float(white),
        gray=float(gray),
        fluid=float(white * rng.uniform(0.1, 0.4)),
        edema=float(edema),
        core=float(max(core, white * 1.3, gray * 1.15)),
        necrosis=float(white * rng.uniform(0.15, 0.55)),
        spots=float(white * rng.uniform(1.3, 2.0)),
    )


def draw_hard_contrast(rng: np.random.Generator, *, infarct: bool = False, brightness: float | None = None) -> Contrast:
    """Edema and core from `FAINTEST` times the brain upward, half of them below 1.5; an eighth or more apart.

    With `brightness` both are that many times as bright as the brain, whatever else was drawn.
    """
    white = rng.uniform(0.45, 0.75)
    gray = white * rng.uniform(1.03, 1.35)
    brain = (white + gray) / 2
    level = float(np.exp(rng.uniform(np.log(FAINTEST + 0.01), np.log(1.9 if infarct else 2.2))))
    edema = brain * level
    darker, brighter = rng.uniform(0.62, 0.85), rng.uniform(1.15, 1.45)
    core = edema * (darker if rng.random() < 0.6 else brighter)
    core = core if core > FAINTEST * brain else edema * brighter
    if infarct:
        core = edema
    core = max(core, gray * 1.03)
    if brightness is not None:
        edema = core = brain * brightness
    return Contrast(
        white=float(white),
        gray=float(gray),
        fluid=float(white * rng.uniform(0.1, 0.45)),
        edema=float(edema),
        core=float(core),
        necrosis=float(white * rng.uniform(0.15, 0.6)),
        spots=float(white * rng.uniform(1.3, 2.2)),
        core_spares=0.8 if infarct else 0.3,
        texture=(0.02, 0.10) if infarct else (0.04, 0.2),
    )


def paint_brain(
    tissue: Tissue, masks: LesionMasks | None, spots: Floats, contrast: Contrast, grid: Grid, rng: np.random.Generator
) -> Floats:
    """Intensities within the brain: tissue with its own slow and fine texture, small spots, and the lesion."""
    gray = contrast.gray * (1 + 0.10 * smooth_field(rng, grid, 40.0))
    white = contrast.white * (1 + 0.05 * smooth_field(rng, grid, 45.0))
    fluid_share = np.clip(1 - tissue.gray - tissue.white, 0, 1)
    image = tissue.gray * gray + tissue.white * white + fluid_share * contrast.fluid
    image = image * (1 - spots) + spots * np.maximum(contrast.spots, image)
    if masks is not None:
        image = _paint_lesion(image, masks, contrast, fluid_share, grid, rng)
    return image.astype(np.float32)


def _paint_lesion(
    image: Floats, masks: LesionMasks, contrast: Contrast, fluid: Floats, grid: Grid, rng: np.random.Generator
) -> Floats:
    blur = 0.7 * np.array([1.0 / s for s in grid.spacing]) + 0.15
    texture = smooth_field(rng, grid, 9.0)
    parts = (
        (masks.edema, contrast.edema * (1 + 0.06 * texture), 0.85),
        (masks.core, contrast.core * (1 + rng.uniform(*contrast.texture) * texture), contrast.core_spares),
        (masks.necrosis, contrast.necrosis * (1 + 0.10 * texture), 0.0),
    )
    for mask, value, spares_fluid in parts:
        if mask.any():
            soft = ndimage.gaussian_filter(mask.astype(np.float32), blur) * (1 - spares_fluid * fluid)
            image = image * (1 - soft) + value * soft
    return image


def paint_head(
    image: Floats, tissue: Tissue, head: Floats, grid: Grid, rng: np.random.Generator, fat: float | None = None
) -> Floats:
    """Skull, marrow, scalp, face and neck around the brain; `head` (3, X, Y, Z) are rigid MNI mm.

    `fat`: brightness of the fat in orbits and skull base; None leaves them like the rest of the face.
    """
    x, y, z = head
    d = tissue.outside + 1.2 * smooth_field(rng, grid, 30.0)
    fluid, bone, scalp = rng.uniform(0.5, 3.0), rng.uniform(5.0, 9.0), rng.uniform(10.0, 18.0)
    face = ((x / 72) ** 2 + ((y - 28) / 68) ** 2 + ((z + 62) / 66) ** 2 < 1) & (y > -20)
    neck = ((x / 58) ** 2 + ((y + 45) / 52) ** 2 < 1) & (z < -45)
    soft = np.where((d < scalp) | face | neck, 1.0, 0.0)
    muscle = rng.uniform(0.15, 0.5) * (1 + 0.4 * smooth_field(rng, grid, 12.0))
    scalp_fat = rng.uniform(0.2, 1.1)
    tissue_mix = smooth_field(rng, grid, 9.0) > rng.uniform(0.2, 1.2)
    value = np.where(tissue_mix | ((d > bone) & (d < scalp) & (z > -25)), scalp_fat, muscle)
    air = (np.abs(x) < 20) & (y > 40) & (y < 88) & (z < -22) & (z > -75)
    eyes = ((np.abs(x) - 33) ** 2 + (y - 58) ** 2 + (z + 34) ** 2) < 12**2
    value = np.where(eyes, 0.12, np.where(air, 0.03, value)) * soft
    marrow = rng.uniform(0.03, 0.35)
    value = np.where(d < bone, np.where(np.abs(d - (fluid + bone) / 2) < 1.3, marrow, 0.04), value)
    value = np.where(d < fluid, rng.uniform(0.05, 0.2), value)
    if fat is not None:
        value = _paint_fat(value, d, head, eyes, fat * (1 + 0.12 * smooth_field(rng, grid, 10.0)))
    inside = np.clip(0.5 - tissue.outside, 0, 1)
    return (image * inside + np.clip(value, 0, None) * (1 - inside)).astype(np.float32)


def _paint_fat(value: Floats, d: Floats, head: Floats, eyes: NDArray[np.bool_], fat: Floats) -> Floats:
    """Fat behind the eyes and below the temporal bones, with the thin bone that lies over it; `d` mm from the brain."""
    for side in (-1, 1):
        behind = (orbit(head, side) < 1) & ~eyes & (d > 1.5)
        below = (skull_base(head, side) < 1) & (d > 3.0)
        # Muscles and the optic nerve run through it.
        nerve = ((np.abs(head[0]) - 26) ** 2 + (head[2] + 33) ** 2) < 3.0**2
        value = np.where((behind & ~nerve) | below, fat, value)
    return value


def strip_head(image: Floats, tissue: Tissue, grid: Grid, rng: np.random.Generator) -> Floats:
    """Zero outside the brain, with a border that is off by a few millimetres here and there."""
    border = rng.uniform(-1.0, 2.5) + rng.uniform(0.0, 1.2) * smooth_field(rng, grid, 25.0)
    return np.where(tissue.outside < border, image, 0).astype(np.float32)


def degrade(image: Floats, grid: Grid, rng: np.random.Generator, *, stripped: bool) -> Floats:
    """Point spread, bias field, gamma and Rician noise; what was stripped stays zero."""
    blur = np.array([rng.uniform(0.2, 0.9) / step for step in grid.spacing])
    zero = image <= 0 if stripped else None
    image = ndimage.gaussian_filter(image, blur)
    bias = np.exp(rng.uniform(0.03, 0.16) * smooth_field(rng, grid, rng.uniform(70.0, 140.0)))
    peak = float(np.percentile(image, 99.5)) or 1.0
    image = (np.clip(image / peak, 0, None) ** rng.uniform(0.85, 1.2)) * bias
    sigma = rng.uniform(0.003, 0.035)
    a = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    b = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    noisy = np.sqrt(a * a + b * b)
    if zero is not None:
        noisy[zero] = 0
    return noisy.astype(np.float32)
