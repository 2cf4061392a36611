"""Infarcts: a wedge of cortex with its base at the surface, a few emboli in one hemisphere, or a lacune or two.

They have no edema of their own, no necrosis and no mass effect in FLAIR of the first days: what is bright is it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.phantoms.anatomy import load_atlas, region_code
from training.phantoms.lesions import DEEP, Lesion, centres

_CORTEX: Final = {"frontal": 0.3, "parietal": 0.28, "temporal": 0.22, "occipital": 0.14, "cerebellum": 0.06}
"""Where a wedge or the first embolus lies."""
_MIDDLE: Final = np.array([0.0, -18.0, 12.0])
"""MNI mm: towards here an arterial territory narrows."""


def draw_infarct(rng: np.random.Generator) -> tuple[Lesion, ...]:
    """One wedge, two to six emboli, or one or two lacunes; all on one side."""
    kind = rng.choice(("wedge", "emboli", "lacunes"), p=(0.5, 0.38, 0.12))
    side = int(rng.choice((-1, 1)))
    if kind == "wedge":
        return (_wedge(rng, side),)
    if kind == "emboli":
        return _emboli(rng, side)
    return tuple(_blob(rng, _lacune_place(rng, side), (4.5, 7.5)) for _ in range(int(rng.integers(1, 3))))


def _wedge(rng: np.random.Generator, side: int) -> Lesion:
    centre = _cortical_place(rng, side)
    infratentorial = bool(centre[2] < -20 and centre[1] < -40)
    middle = np.array([0.0, -45.0, -30.0]) if infratentorial else _MIDDLE
    apex = middle + rng.uniform(0.3, 0.62) * (centre - middle)
    return Lesion(
        centre=centre,
        radii=np.full(3, float(np.linalg.norm(centre - apex))),
        turn=np.eye(3),
        edema=0.0,
        necrosis=0.0,
        push=0.0,
        roughness=float(rng.uniform(0.05, 0.3)),
        infratentorial=infratentorial,
        crosses=False,
        apex=apex,
        half_angle=float(np.deg2rad(rng.uniform(14.0, 34.0))),
        least_ml=3.0,
    )


def _emboli(rng: np.random.Generator, side: int) -> tuple[Lesion, ...]:
    first = _cortical_place(rng, side)
    places = _cortex_places()
    near = places[(np.linalg.norm(places - first, axis=1) < 45.0) & (places[:, 0] * side > 6.0)]
    others = near[rng.integers(len(near), size=int(rng.integers(1, 6)))]
    return tuple(_blob(rng, place, (4.0, 9.0)) for place in (first, *others))


def _blob(rng: np.random.Generator, centre: NDArray[np.float64], radius: tuple[float, float]) -> Lesion:
    return Lesion(
        centre=centre,
        radii=rng.uniform(*radius) * np.exp(rng.normal(0.0, 0.2, 3)),
        turn=np.eye(3),
        edema=0.0,
        necrosis=0.0,
        push=0.0,
        roughness=float(rng.uniform(0.05, 0.3)),
        infratentorial=bool(centre[2] < -20 and centre[1] < -36),
        crosses=False,
        least_ml=0.0,
    )


def _cortex_places() -> NDArray[np.float64]:
    """(N, 3) MNI mm of the surface of the cerebrum."""
    return np.concatenate([_surface(name) for name in _CORTEX if name != "cerebellum"])


@lru_cache(maxsize=len(_CORTEX))
def _surface(region: str) -> NDArray[np.float64]:
    """(N, 3) MNI mm of tissue 3 to 12 mm below the surface of a region."""
    atlas = load_atlas()
    shell = (
        (atlas.standard.outside < -3)
        & (atlas.standard.outside > -12)
        & (atlas.standard.gray + atlas.standard.white > 0.5)
    )
    found = np.argwhere(shell & (atlas.regions == region_code(region)))
    places: NDArray[np.float64] = found * atlas.standard.spacing + np.asarray(atlas.standard.origin)
    return places


def _cortical_place(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    region = str(rng.choice(list(_CORTEX), p=list(_CORTEX.values())))
    return _one_of(rng, _surface(region), side, 14.0)


def _lacune_place(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    return _one_of(rng, centres(str(rng.choice(("thalamus", DEEP)))), side, 6.0)


def _one_of(rng: np.random.Generator, places: NDArray[np.float64], side: int, beside: float) -> NDArray[np.float64]:
    """One of the places (N, 3) on a side, more than `beside` mm from the midline, moved by a millimetre at most."""
    places = places[places[:, 0] * side > beside]
    place: NDArray[np.float64] = places[rng.integers(len(places))] + rng.uniform(-1, 1, 3)
    return place
