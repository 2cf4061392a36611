"""Lesions of a phantom: where they are, how far they reach, and what they push.

All positions are MNI millimetres before mass effect, so that a lesion's lobes are those of `training.phantoms.anatomy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.phantoms.anatomy import Labels, Tissue, load_atlas, region_code
from training.phantoms.fields import Floats, Grid, apply_matrix, rotation, smooth_field

Mask = NDArray[np.bool_]

EDEMA, CORE, NECROSIS, LOST_VENTRICLE = PARTS = (1, 2, 3, 4)
"""What a voxel of a phantom can be beside healthy (0); no two on one voxel. The last: where a lateral ventricle would
be without mass effect, and is not."""

_CENTRE_WEIGHTS: Final = {
    "frontal": 0.27,
    "parietal": 0.23,
    "temporal": 0.22,
    "occipital": 0.11,
    "insula": 0.04,
    "cerebellum": 0.06,
    "thalamus": 0.03,
    "corpus callosum": 0.02,
    "brainstem": 0.02,
}
"""How often a lesion's centre is drawn from each region."""
DEEP: Final = "basal ganglia"
"""The same for hard phantoms: more in the thalamus, and in the basal ganglia, which belong to no lobe."""
_HARD_CENTRE_WEIGHTS: Final = {
    "frontal": 0.22,
    "parietal": 0.19,
    "temporal": 0.18,
    "occipital": 0.10,
    "insula": 0.05,
    "cerebellum": 0.06,
    "thalamus": 0.08,
    DEEP: 0.06,
    "corpus callosum": 0.04,
    "brainstem": 0.02,
}
ONE_SIDED: Final = 0.85
"""Beyond this share of a lesion on one side it is called one-sided."""
LEAST_ML: Final = 10.0
"""The smallest lesion, ml; what is smaller is not called a lesion area but belongs to the spots of healthy brains."""
_INFRATENTORIAL: Final = ("cerebellum", "brainstem")


@dataclass(frozen=True)
class Lesion:
    """One lesion as drawn: an irregular ellipsoid and its parts as fractions of it.

    Attributes:
        centre: (3,) MNI mm.
        radii: (3,) mm of the solid part.
        turn: (3, 3) rotation of the ellipsoid.
        edema: width of the edema around it as a fraction of the radius; 0 for none.
        necrosis: radius of the necrotic core as a fraction; 0 for none.
        push: mm by which tissue at its border is pushed away; 0 for none.
        roughness: how irregular the border is.
        infratentorial: whether it lies below the tentorium, which it does not cross.
        crosses: whether it may cross the midline.
        least_ml: what the brain's borders leave smaller is drawn larger.
        apex: (3,) MNI mm of a wedge's tip; None for an ellipsoid. A wedge reaches from there through the centre to the
            brain's surface.
        half_angle: radians between a wedge's axis and its border.
    """

    centre: NDArray[np.float64]
    radii: NDArray[np.float64]
    turn: NDArray[np.float64]
    edema: float
    necrosis: float
    push: float
    roughness: float
    infratentorial: bool
    crosses: bool
    least_ml: float = LEAST_ML
    apex: NDArray[np.float64] | None = None
    half_angle: float = 0.0


@dataclass(frozen=True)
class LesionMasks:
    """Voxels (X, Y, Z) of each part, which do not overlap."""

    edema: Mask
    core: Mask
    necrosis: Mask

    @staticmethod
    def union(parts: Sequence[LesionMasks]) -> LesionMasks:
        """All lesions of a case; necrosis lies over core, core over edema."""
        necrosis = np.logical_or.reduce([m.necrosis for m in parts])
        core = np.logical_or.reduce([m.core for m in parts]) & ~necrosis
        edema = np.logical_or.reduce([m.edema for m in parts]) & ~core & ~necrosis
        return LesionMasks(edema=edema, core=core, necrosis=necrosis)

    def labels(self) -> NDArray[np.uint8]:
        """(X, Y, Z) of 0 and the first three of `PARTS`."""
        return np.select((self.edema, self.core, self.necrosis), (EDEMA, CORE, NECROSIS)).astype(np.uint8)

    @property
    def whole(self) -> Mask:
        """Every voxel that is not healthy tissue."""
        return self.edema | self.core | self.necrosis


def draw_lesions(
    rng: np.random.Generator, *, both_sides: bool = False, draw_one: Callable[..., Lesion] | None = None
) -> tuple[Lesion, ...]:
    """One lesion, sometimes a second on the same side, sometimes, or always, one on each side.

    `draw_one` is `draw_lesion` (None) or `draw_hard_lesion`.
    """
    draw = draw_one or draw_lesion
    first = draw(rng, side=0)
    kind = rng.random()
    side = int(np.sign(first.centre[0])) or 1
    if kind < 0.08 and not both_sides:
        return first, draw(rng, side=side, like=first)
    if kind < 0.20 or both_sides:
        return first, draw(rng, side=-side, like=first)
    return (first,)


def draw_lesion(
    rng: np.random.Generator, side: int = 0, like: Lesion | None = None, region: str | None = None
) -> Lesion:
    """Draw one lesion.

    Args:
        rng: Draws everything.
        side: -1 the patient's left, 1 right, 0 either.
        like: A lesion that this one accompanies: of its kind, often smaller.
        region: Where its centre lies; None draws it.
    """
    names = list(_CENTRE_WEIGHTS)
    drawn = str(rng.choice(names, p=np.array(list(_CENTRE_WEIGHTS.values()))))
    region = region or drawn
    small = region in ("insula", "thalamus", "corpus callosum", "brainstem")
    mean = rng.uniform(10.0, 14.0) if small else rng.uniform(11.0, 27.0)
    if like is not None:
        mean = min(mean, float(like.radii.mean())) if rng.random() < 0.7 else mean
    radii = mean * np.exp(rng.normal(0.0, 0.2, 3))
    edema = like.edema > 0 if like is not None else bool(rng.random() < 0.72)
    # A necrosis that could not be seen at the coarsest resolution is not drawn.
    roomy = radii.min() > 10.0
    necrosis = like.necrosis > 0 if like is not None else bool(rng.random() < 0.62)
    return Lesion(
        centre=_draw_centre(rng, region, side),
        radii=radii,
        turn=rotation(rng, 40.0),
        edema=float(rng.uniform(8.0, 16.0) / mean) if edema else 0.0,
        necrosis=float(rng.uniform(0.55, 0.75)) if necrosis and roomy else 0.0,
        push=float(rng.uniform(0.10, 0.35) * mean) if rng.random() < 0.75 else 0.0,
        roughness=float(rng.uniform(0.05, 0.3)),
        infratentorial=region in _INFRATENTORIAL,
        crosses=region in ("corpus callosum", "brainstem") or bool(rng.random() < 0.04),
    )


def draw_hard_lesion(rng: np.random.Generator, side: int = 0, like: Lesion | None = None) -> Lesion:
    """`draw_lesion` with lesions from 4 ml, more of them deep, edema from a narrow rim to a wide field."""
    region = str(rng.choice(list(_HARD_CENTRE_WEIGHTS), p=list(_HARD_CENTRE_WEIGHTS.values())))
    lesion = draw_lesion(rng, side, like, region)
    small = region in ("insula", "thalamus", DEEP, "corpus callosum", "brainstem")
    mean = float(np.exp(rng.uniform(np.log(8.0), np.log(14.0 if small else 28.0))))
    if like is not None:
        mean = min(mean, float(like.radii.mean())) if rng.random() < 0.7 else mean
    radii = lesion.radii * (mean / float(lesion.radii.mean()))
    roomy = radii.min() > 9.0
    necrotic = like.necrosis > 0 if like is not None else bool(rng.random() < 0.55)
    return replace(
        lesion,
        radii=radii,
        edema=float(rng.uniform(0.45, 0.9) if mean < 12 else rng.uniform(5.0, 18.0) / mean) if lesion.edema else 0.0,
        necrosis=float(rng.uniform(0.55, 0.75)) if necrotic and roomy else 0.0,
        push=float(rng.uniform(0.08, 0.35) * mean) if rng.random() < 0.6 else 0.0,
        least_ml=4.0,
    )


@lru_cache(maxsize=len(_HARD_CENTRE_WEIGHTS))
def centres(region: str) -> NDArray[np.float64]:
    """(N, 3) MNI mm of the tissue voxels of a region that lie at least 4 mm below the surface."""
    atlas = load_atlas()
    wanted = (atlas.standard.gray + atlas.standard.white > 0.5) & (atlas.standard.outside < -4)
    wanted &= atlas.regions == region_code("none" if region == DEEP else region)
    places: NDArray[np.float64] = np.argwhere(wanted) * atlas.standard.spacing + np.asarray(atlas.standard.origin)
    if region == DEEP:
        places = places[(np.abs(np.abs(places[:, 0]) - 24) < 10) & (places[:, 1] > -18) & (places[:, 2] > -8)]
    return places


def _draw_centre(rng: np.random.Generator, region: str, side: int) -> NDArray[np.float64]:
    """A place in the region on the given side (0: either)."""
    places = centres(region)
    if side:
        places = places[places[:, 0] * side > 6.0]
    pick: NDArray[np.float64] = places[rng.integers(len(places))] + rng.uniform(-1, 1, 3)
    return pick


def paint_visible(
    lesion: Lesion, rng: np.random.Generator, grid: Grid, standard: Floats, regions: Labels, tissue: Tissue
) -> LesionMasks:
    """Paint the lesion; one that the brain's borders leave smaller than `least_ml` is made larger and painted anew."""
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    masks = paint(lesion, rng, grid, standard, regions, tissue)
    for _ in range(4):
        if masks.whole.sum() * voxel_ml >= lesion.least_ml:
            break
        lesion = replace(lesion, radii=lesion.radii * 1.25, half_angle=lesion.half_angle * 1.2)
        masks = paint(lesion, rng, grid, standard, regions, tissue)
    return masks


def paint(
    lesion: Lesion, rng: np.random.Generator, grid: Grid, standard: Floats, regions: Labels, tissue: Tissue
) -> LesionMasks:
    """The lesion's parts on a grid.

    Args:
        lesion: What to paint.
        rng: Its border's roughness.
        grid: The voxels.
        standard: (3, X, Y, Z) MNI mm of each voxel before mass effect.
        regions: (X, Y, Z) labels there; some must not be entered.
        tissue: After mass effect: edema prefers white matter.
    """
    distance = _ellipsoid_distance(lesion, standard) if lesion.apex is None else _wedge_distance(lesion, standard)
    rough = smooth_field(rng, grid, float(lesion.radii.mean()) * 0.8) * np.float32(lesion.roughness)
    fine = smooth_field(rng, grid, 6.0) * np.float32(0.3 * lesion.roughness)
    shape = distance * (1 + np.clip(rough + fine, -0.5, 0.6))
    allowed = _compartment(lesion, regions, standard) & (tissue.outside < -0.5)
    core = (shape < 1.0) & allowed
    necrosis = (shape < lesion.necrosis) & allowed
    reach = lesion.edema * (0.35 + 0.9 * tissue.white)
    edema = (shape < 1.0 + reach) & allowed & ~core if lesion.edema else np.zeros_like(core)
    return LesionMasks(edema=edema, core=core & ~necrosis, necrosis=necrosis)


def _ellipsoid_distance(lesion: Lesion, standard: Floats) -> Floats:
    """(X, Y, Z) distance from the centre, 1 at the border."""
    offset = standard - lesion.centre.astype(np.float32).reshape(3, 1, 1, 1)
    turned = apply_matrix(lesion.turn.T, offset) / lesion.radii.astype(np.float32).reshape(3, 1, 1, 1)
    return np.sqrt((turned**2).sum(axis=0))


def _wedge_distance(lesion: Lesion, standard: Floats) -> Floats:
    """(X, Y, Z) angle from the axis between tip and centre, seen from the tip, 1 at the border."""
    apex = np.asarray(lesion.apex, np.float64)
    axis = (lesion.centre - apex) / np.linalg.norm(lesion.centre - apex)
    offset = standard - apex.astype(np.float32).reshape(3, 1, 1, 1)
    along = sum(np.float32(a) * o for a, o in zip(axis, offset, strict=True))
    length = np.sqrt((offset**2).sum(axis=0)) + np.float32(1e-3)
    angle = np.arccos(np.clip(along / length, -1, 1)) / np.float32(lesion.half_angle)
    # The far side of the head lies on the axis too; a territory ends at the near surface, at most twice as far.
    limit = np.float32(2.0 * np.linalg.norm(lesion.centre - apex))
    return np.where(length < limit, angle, np.float32(9.0)).astype(np.float32)


def _compartment(lesion: Lesion, regions: Labels, standard: Floats) -> Mask:
    """What the lesion can reach: not ventricle, not across the tentorium, seldom across the falx."""
    below = np.isin(regions, [region_code(name) for name in _INFRATENTORIAL])
    allowed = (below == lesion.infratentorial) & (regions != region_code("ventricle"))
    if not lesion.crosses and abs(lesion.centre[0]) > 1.0:
        allowed &= standard[0] * np.float32(np.sign(lesion.centre[0])) > 0.5
    result: Mask = allowed
    return result


def push_away(lesion: Lesion, standard: Floats) -> Floats:
    """(3, X, Y, Z) shift of the place where healthy tissue is looked up: towards the lesion, so tissue moves away."""
    offset = standard - lesion.centre.astype(np.float32).reshape(3, 1, 1, 1)
    mean = np.float32(lesion.radii.mean() * (1.0 + lesion.edema * 0.5))
    distance = np.sqrt((offset**2).sum(axis=0)) + np.float32(1e-3)
    size = np.float32(lesion.push) * np.exp(-(((distance - mean) / (1.2 * mean)) ** 2)) * np.minimum(distance / mean, 1)
    return -offset / distance * size


def side_of(mask: Mask, standard: Floats) -> str | None:
    """The patient's "left" or "right", or "bilateral"; None for an empty mask."""
    x = standard[0][mask]
    if x.size == 0:
        return None
    left = float((x < 0).mean())
    if left >= ONE_SIDED:
        return "left"
    return "right" if left <= 1 - ONE_SIDED else "bilateral"
