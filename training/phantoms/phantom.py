"""Synthetic FLAIR volumes with truth: what the bundled `demo` weights are trained and judged on.

```
head coordinates → affine → elastic → MNI (lesions, lobes) → mass effect, ventricles → tissue maps → contrast → scan
```
Everything is evaluated at the voxels that are asked for, so that a coarse phantom costs a few dozen milliseconds.
RAS: the patient's left has negative x.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from braingemma.findings.text import FINDINGS, SITES, Finding, mirror_text
from training.phantoms.anatomy import REGIONS, Atlas, Labels, Tissue, load_atlas, region_code, sample_tissue
from training.phantoms.contrast import degrade, draw_contrast, paint_brain, paint_head, strip_head
from training.phantoms.fields import Floats, Grid, apply_matrix, rotation, smooth_displacement, smooth_field
from training.phantoms.lesions import (
    LOST_VENTRICLE,
    Lesion,
    LesionMasks,
    draw_lesions,
    paint_visible,
    push_away,
    side_of,
)
from training.phantoms.wording import write_report

LESION_SHARE: Final = 0.62
STRIPPED_SHARE: Final = 0.35
#: A site is named when it holds this share of the finding's voxels.
SITE_SHARE: Final = 0.2
#: A lateral ventricle smaller than this share of itself without mass effect is compressed; above the other it is not.
COMPRESSED: Final = 0.55
FREE: Final = 0.85
#: What two readers would name alike: a case with a share between such bounds is drawn anew, this often at most.
_DRAWS: Final = 8
_DOUBTFUL_SIDE: Final = (0.06, 0.25)  # of the lesion on its smaller side
_DOUBTFUL_SITE: Final = (0.15, 0.26)  # of the lesion in one site
_DOUBTFUL_PART: Final = (0.0, 0.08)  # of the lesion that is edema, or necrosis
#: No single spot of a healthy brain is larger than this, ml, and no plaque, alone or run together with others, than the
#: second: `LEAST_ML` is above both.
_LARGEST_SPOT_ML: Final = 2.5
_LARGEST_PLAQUE_ML: Final = 7.0
#: How many heads without a lesion have large plaques, as in advanced multiple sclerosis.
_LARGE_PLAQUE_SHARE: Final = 0.3
_VENTRICLES: Final = {"left": -1.0, "right": 1.0}


@dataclass(frozen=True)
class Phantom:
    """A synthetic case.

    Attributes:
        volume: RAS NIfTI of the FLAIR picture.
        lesion: RAS NIfTI mask on the same grid: 1 where there is edema, core or necrosis.
        parts: (X, Y, Z) on the same grid, `training.phantoms.lesions.PARTS` of each voxel: what a dense loss learns.
        truth: `{"seed", "findings": [as in report.json], "report"}`.
    """

    volume: nib.Nifti1Image
    lesion: nib.Nifti1Image
    parts: NDArray[np.uint8]
    truth: dict[str, Any]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The truth as values."""
        return tuple(Finding.from_json(entry) for entry in self.truth["findings"])


@dataclass(frozen=True)
class _Pose:
    """Scanner mm to MNI mm: `turn` about the brain's centre and `scale`; `shift` is where the centre lies."""

    turn: NDArray[np.float64]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    def rigid(self, points: Floats) -> Floats:
        """Head coordinates (3, ...) with the size of MNI's brain, before any elastic warp."""
        moved = points - (self.shift + _CENTRE).astype(np.float32).reshape(3, 1, 1, 1)
        turned = apply_matrix(self.turn, moved) / self.scale.astype(np.float32).reshape(3, 1, 1, 1)
        return turned + _CENTRE.astype(np.float32).reshape(3, 1, 1, 1)


_CENTRE: Final = np.array([0.0, -18.0, 8.0])


def make_phantom(
    seed: int,
    *,
    spacing: float | Sequence[float] | None = None,
    with_lesion: bool | None = None,
    stripped: bool | None = None,
    both_sides: bool = False,
    large_plaques: bool = False,
) -> Phantom:
    """Draw one case; equal arguments give equal voxels.

    Args:
        seed: Any non-negative integer.
        spacing: Voxel size in mm, one number or (x, y, z); None draws a clinical one (1.2–1.9 mm in plane, slices of
            up to 6 mm, axial, sagittal or coronal).
        with_lesion: Whether there is a lesion; None draws it.
        stripped: Whether the skull is stripped; None draws it.
        both_sides: Whether there is a lesion on each side, which is otherwise seldom.
        large_plaques: Whether a head without a lesion surely has large plaques, which are otherwise drawn for some.

    Raises:
        ValueError: a negative seed, a voxel size outside 0.5–12 mm, lesions on both sides of a head without one, or
            large plaques in a head that may have a lesion.
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    if both_sides and with_lesion is False:
        raise ValueError("both_sides=True needs a lesion, got with_lesion=False")
    if large_plaques and with_lesion is not False:
        raise ValueError(f"large_plaques=True needs with_lesion=False, got {with_lesion}")
    rng = np.random.default_rng([seed, 20260])
    atlas = load_atlas()
    drawn = bool(rng.random() < STRIPPED_SHARE)
    stripped = drawn if stripped is None else stripped
    pose = _draw_pose(rng)
    grid = _draw_grid(rng, pose, _spacing(spacing, rng), stripped=stripped)
    drawn = bool(rng.random() < LESION_SHARE)
    present = both_sides or (drawn if with_lesion is None else with_lesion)
    draw = partial(draw_lesions, both_sides=both_sides) if present else None
    share = 0.0 if present else 1.0 if large_plaques else _LARGE_PLAQUE_SHARE
    picture, parts, findings = _draw_case(rng, atlas, grid, pose, draw, plaque_share=share, stripped=stripped)
    truth = {
        "seed": seed,
        "findings": [finding.to_json() for finding in findings],
        "report": write_report(findings, np.random.default_rng([seed, 7])),
    }
    lesion = (parts > 0) & (parts != LOST_VENTRICLE)
    return Phantom(_image(picture, grid), _image(lesion.astype(np.uint8), grid), parts, truth)


def mirror(phantom: Phantom) -> Phantom:
    """The case seen in a mirror: voxels flipped left-right, left and right exchanged in truth and report."""
    findings = [replace(f, laterality=_OTHER_SIDE.get(f.laterality or "", f.laterality)) for f in phantom.findings]
    truth = {
        **phantom.truth,
        "findings": [finding.to_json() for finding in findings],
        "report": mirror_text(phantom.truth["report"]),
    }
    return Phantom(_flipped(phantom.volume), _flipped(phantom.lesion), np.ascontiguousarray(phantom.parts[::-1]), truth)


_OTHER_SIDE: Final[dict[str, Any]] = {"left": "right", "right": "left"}


def write_phantom(folder: Path, phantom: Phantom) -> None:
    """Write `flair.nii.gz` (16-bit), `lesion.nii.gz` and `truth.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = np.asarray(phantom.volume.dataobj, np.float32)
    top = 300 + (phantom.truth["seed"] * 37) % 3000
    counts = np.rint(data * (top / max(float(data.max()), 1e-6))).astype(np.int16)
    nib.save(nib.Nifti1Image(counts, phantom.volume.affine), folder / "flair.nii.gz")
    nib.save(phantom.lesion, folder / "lesion.nii.gz")
    (folder / "truth.json").write_text(json.dumps(phantom.truth, indent=2) + "\n")


# ---- geometry


def _spacing(spacing: float | Sequence[float] | None, rng: np.random.Generator) -> tuple[float, float, float]:
    if spacing is None:
        size = np.array([rng.uniform(1.2, 1.9)] * 3)
        if rng.random() < 0.7:
            size[rng.choice(3, p=[0.15, 0.1, 0.75])] = rng.uniform(2.5, 6.0)
    else:
        size = np.broadcast_to(np.asarray(spacing, float), (3,)).copy()
    if size.min() < 0.5 or size.max() > 12:
        raise ValueError(f"spacing must be 0.5–12 mm, got {size.tolist()}")
    return float(size[0]), float(size[1]), float(size[2])


def _draw_pose(rng: np.random.Generator) -> _Pose:
    scale = rng.uniform(0.9, 1.08) * np.exp(rng.normal(0, 0.025, 3))
    return _Pose(rotation(rng, 5.0), scale, rng.uniform(-25, 25, 3))


def _draw_grid(rng: np.random.Generator, pose: _Pose, spacing: tuple[float, float, float], *, stripped: bool) -> Grid:
    """The field of view: around the brain, or around the head with more or less of the neck."""
    low, high = np.array([-78.0, -112.0, -62.0]), np.array([78.0, 78.0, 84.0])
    if stripped:
        low, high = low - rng.uniform(2, 30, 3), high + rng.uniform(2, 30, 3)
    else:
        low -= np.array([14, 14, 4]) + rng.uniform(0, 1, 3) * [25, 25, 55]
        high += np.array([14, 18, 12]) + rng.uniform(-0.3, 1, 3) * [25, 25, 14]
    low, high = (_CENTRE + (edge - _CENTRE) * pose.scale + pose.shift for edge in (low, high))
    shape = np.maximum(np.ceil((high - low) / spacing), 4).astype(int)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), spacing, (float(low[0]), float(low[1]), float(low[2])))


def _image(data: NDArray[Any], grid: Grid) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units("mm")
    return image


def _flipped(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Reflect across x = 0 in mm: the voxels are reversed and the origin moves."""
    affine = image.affine.copy()
    affine[0, 3] = -(affine[0, 3] + affine[0, 0] * (image.shape[0] - 1))
    return nib.Nifti1Image(np.ascontiguousarray(np.asarray(image.dataobj)[::-1]), affine)


# ---- one case


def _draw_case(
    rng: np.random.Generator,
    atlas: Atlas,
    grid: Grid,
    pose: _Pose,
    draw: Callable[[np.random.Generator], tuple[Lesion, ...]] | None,
    *,
    plaque_share: float,
    stripped: bool,
) -> tuple[Floats, NDArray[np.uint8], tuple[Finding, ...]]:
    head = pose.rigid(grid.points())
    standard = head + smooth_displacement(rng, grid, 45.0, 2.2) + smooth_displacement(rng, grid, 20.0, 0.9)
    resting = _size_ventricles(standard, rng)
    regions = atlas.region_at(standard)
    for _ in range(_DRAWS):
        lesions = draw(rng) if draw else ()
        pushed, compressed = _mass_effect(rng, atlas, resting, standard, lesions)
        tissue = sample_tissue(atlas, pushed, rng.uniform(0.0, 0.55))
        masks = _paint_all(rng, grid, standard, regions, tissue, lesions)
        if masks is None or _is_plain(masks, regions, standard):
            break
    spots = _white_matter_spots(rng, atlas, grid, pushed, tissue.white, plaque_share)
    contrast = draw_contrast(rng)
    image = paint_brain(tissue, masks, spots, contrast, grid, rng)
    image = strip_head(image, tissue, grid, rng) if stripped else paint_head(image, tissue, head, grid, rng)
    picture = degrade(image, grid, rng, stripped=stripped)
    parts = _label_parts(atlas, standard, resting, pushed, masks, compressed)
    return picture, parts, located_findings(regions, standard, masks, compressed)


def _label_parts(
    atlas: Atlas, standard: Floats, resting: Floats, pushed: Floats, masks: LesionMasks | None, compressed: set[str]
) -> NDArray[np.uint8]:
    """(X, Y, Z) of 0 and `PARTS`."""
    if masks is None:
        return np.zeros(standard.shape[1:], np.uint8)
    labels = masks.labels()
    lost = (atlas.sample(atlas.ventricle, resting) > 0.5) & (atlas.sample(atlas.ventricle, pushed) <= 0.5)
    for side in compressed:
        labels[lost & ~masks.whole & (standard[0] * np.float32(_VENTRICLES[side]) > 0)] = LOST_VENTRICLE
    return labels


def _size_ventricles(standard: Floats, rng: np.random.Generator) -> Floats:
    """Look tissue up nearer to or farther from each lateral ventricle's middle: larger or smaller ventricles."""
    both = rng.uniform(0.0, 0.5)
    points = standard
    for side in _VENTRICLES.values():
        points = _swell(points, side, both + rng.normal(0, 0.03))
    return points


def _swell(points: Floats, side: float, amount: float) -> Floats:
    """Magnify (`amount` > 0) or narrow (< 0) one lateral ventricle within about 25 mm of it."""
    middle = np.array([13.0 * side, -12.0, 16.0], np.float32).reshape(3, 1, 1, 1)
    reach = np.array([16.0, 42.0, 22.0], np.float32).reshape(3, 1, 1, 1)
    offset = points - middle
    weight = np.exp(-((offset / reach) ** 2).sum(axis=0))
    # Across the ventricle's width most of all, a little along its height.
    share = np.array([1.0, 0.15, 0.6], np.float32).reshape(3, 1, 1, 1)
    return points - offset * share * (np.float32(amount) * weight)


def _mass_effect(
    rng: np.random.Generator, atlas: Atlas, resting: Floats, standard: Floats, lesions: tuple[Lesion, ...]
) -> tuple[Floats, set[str]]:
    """Tissue coordinates after the lesions' push, and the sides whose lateral ventricle it narrows.

    A ventricle that would end between `COMPRESSED` and `FREE` is a matter of taste: the push is then given up.
    """
    if not lesions:
        return resting, set()
    before = _ventricle_size(atlas, resting)
    pushed = resting + sum(push_away(lesion, standard) for lesion in lesions)
    for side, sign in _VENTRICLES.items():
        if any(_squeezes(lesion, sign) for lesion in lesions) and before[side] > 0 and rng.random() < 0.8:
            pushed = _swell(pushed, sign, -rng.uniform(0.9, 1.6))
    after = _ventricle_size(atlas, pushed)
    shares = {side: after[side] / max(before[side], 1e-6) for side in _VENTRICLES}
    if any(COMPRESSED <= share < FREE for share in shares.values()):
        return resting, set()
    return pushed, {side for side, share in shares.items() if share < COMPRESSED}


def _squeezes(lesion: Lesion, sign: float) -> bool:
    """Whether a lesion is large and near enough, on that side, to narrow the lateral ventricle."""
    if lesion.push <= 0 or lesion.infratentorial or lesion.centre[0] * sign < 5:
        return False
    gap = np.linalg.norm((lesion.centre - [14 * sign, -12, 16]) * [1, 0.55, 0.8])
    return bool(gap < 22 + 1.3 * lesion.radii.mean() * (1 + 0.5 * lesion.edema))


def _ventricle_size(atlas: Atlas, points: Floats) -> dict[str, float]:
    """Size of the lateral ventricles of each side, in any unit, when tissue is looked up at `points`."""
    points = points[:, ::2, ::2, ::2]
    share = atlas.sample(atlas.ventricle, points)
    x = points[0]
    return {side: float(share[(x * sign > 2.5)].sum()) for side, sign in _VENTRICLES.items()}


def _paint_all(
    rng: np.random.Generator,
    grid: Grid,
    standard: Floats,
    regions: Labels,
    tissue: Tissue,
    lesions: tuple[Lesion, ...],
) -> LesionMasks | None:
    if not lesions:
        return None
    return LesionMasks.union([paint_visible(lesion, rng, grid, standard, regions, tissue) for lesion in lesions])


def _white_matter_spots(
    rng: np.random.Generator, atlas: Atlas, grid: Grid, points: Floats, white: Floats, plaque_share: float
) -> Floats:
    """Small hyperintensities of ageing, plaques, and bright caps along the ventricles: never a lesion."""
    spots = np.zeros(grid.shape, np.float32)
    if rng.random() < 0.6:
        spots = _ageing_spots(rng, grid, white)
    near = atlas.sample(_ventricle_halo(), points)
    if rng.random() < 0.6:
        strength = rng.uniform(0.2, 1.0)
        spots = np.maximum(spots, np.clip(near * strength, 0, 1) * np.clip(white * 1.5, 0, 1))
    if rng.random() < 0.4:
        _add_plaques(spots, rng, grid, near, white)
    large = rng.spawn(1)[0]  # a generator of its own: whatever is drawn for them, all else stays as it is
    if large.random() < plaque_share:
        _add_large_plaques(spots, large, grid, near, white)
    return spots


def _ageing_spots(rng: np.random.Generator, grid: Grid, white: Floats) -> Floats:
    """Irregular spots strewn over the white matter; fewer where one of them would be as large as a lesion."""
    threshold = rng.uniform(1.7, 2.8)
    noise = smooth_field(rng, grid, rng.uniform(5.0, 8.0)) + 0.4 * smooth_field(rng, grid, 40.0)
    inside = np.clip(white * 1.5 - 0.5, 0, 1)
    while True:
        spots: Floats = (np.clip((noise - threshold) * 2.5, 0, 1) * inside).astype(np.float32)
        if _largest_ml(spots, grid) <= _LARGEST_SPOT_ML:
            return spots
        threshold += 0.25


def _largest_ml(spots: Floats, grid: Grid) -> float:
    """Size of the largest connected spot, ml; 0 where there is none."""
    labels, _ = ndimage.label(spots > 0.3)
    return float(np.bincount(labels.ravel(), minlength=2)[1:].max() * (np.prod(grid.spacing) / 1000))


def _add_plaques(spots: Floats, rng: np.random.Generator, grid: Grid, near: Floats, white: Floats) -> None:
    """Ovoid plaques of 3 to 11 mm, most of them at the ventricles' walls, in place."""
    at_wall = np.argwhere((near > 0.15) & (white > 0.5))
    anywhere = np.argwhere(white > 0.8)
    for _ in range(int(rng.integers(3, 25))):
        choices = at_wall if rng.random() < 0.6 and len(at_wall) else anywhere
        if not len(choices):
            return
        centre = choices[rng.integers(len(choices))]
        radii = rng.uniform(1.5, 4.0) * np.exp(rng.normal(0.0, 0.25, 3)) / grid.spacing  # voxels
        _add_ovoid(spots, centre, radii, rng.uniform(0.5, 1.0), white)


def _add_large_plaques(spots: Floats, rng: np.random.Generator, grid: Grid, near: Floats, white: Floats) -> None:
    """One to five plaques of 8 to 22 mm, some run together, in place; all smaller than a lesion."""
    at_wall, anywhere = np.argwhere((near > 0.15) & (white > 0.5)), np.argwhere(white > 0.8)
    centre = None
    for _ in range(int(rng.integers(1, 6))):
        choices = at_wall if rng.random() < 0.5 and len(at_wall) else anywhere
        if not len(choices):
            return
        if centre is not None and rng.random() < 0.4:  # beside the last one
            choices = choices[np.linalg.norm((choices - centre) * grid.spacing, axis=1) < 14.0]
        if not len(choices):
            continue
        centre = choices[rng.integers(len(choices))]
        radii = rng.uniform(4.0, 10.0) * np.exp(rng.normal(0.0, 0.2, 3)) / grid.spacing  # voxels
        larger = spots.copy()
        _add_ovoid(larger, centre, radii, rng.uniform(0.6, 1.0), white)
        if _largest_ml(larger, grid) <= _LARGEST_PLAQUE_ML:
            spots[...] = larger


def _add_ovoid(
    spots: Floats, centre: NDArray[np.int64], radii: NDArray[np.float64], bright: float, white: Floats
) -> None:
    """An ellipsoid of `radii` voxels where there is white matter, soft at its border, in place."""
    low = np.maximum(np.floor(centre - 1.5 * radii - 1), 0).astype(int)
    high = np.minimum(np.ceil(centre + 1.5 * radii + 2), spots.shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    axes = [(np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, centre, radii, strict=True)]
    distance = np.sqrt(sum(np.square(axis) for axis in np.ix_(*axes)))
    spots[box] = np.maximum(spots[box], np.clip((1.3 - distance) * 2.0, 0, 1) * bright * (white[box] > 0.2))


@lru_cache(maxsize=1)
def _ventricle_halo() -> Floats:
    """How near to a ventricle's wall, on the atlas's grid: 1 at it, fading over about 4 mm."""
    near = ndimage.gaussian_filter((load_atlas().ventricle > 0.4).astype(np.float32), 1.2)
    return np.clip(near * 2.5, 0, 1).astype(np.float32)


# ---- truth


def _is_plain(masks: LesionMasks, regions: Labels, standard: Floats) -> bool:
    """Whether side, sites and parts of a lesion are no matter of taste: none of its shares is near its threshold."""
    whole = masks.whole
    total = max(1, int(whole.sum()))
    left = float((standard[0][whole] < 0).mean()) if whole.any() else 0.0
    sites = _region_counts(whole, regions)
    parts = [float(part.sum()) / total for part in (masks.edema, masks.necrosis)]
    return (
        not _DOUBTFUL_SIDE[0] < min(left, 1 - left) < _DOUBTFUL_SIDE[1]
        and not any(_DOUBTFUL_SITE[0] < share < _DOUBTFUL_SITE[1] for share in sites / max(1.0, sites.sum()))
        and not any(_DOUBTFUL_PART[0] < share < _DOUBTFUL_PART[1] for share in parts)
    )


def _region_counts(mask: NDArray[np.bool_], regions: Labels) -> NDArray[np.float64]:
    """Voxels of a mask in each of `REGIONS`; those in no region, or in a ventricle, are not counted."""
    counts = np.bincount(regions[mask], minlength=len(REGIONS)).astype(float)
    counts[region_code("none")] = counts[region_code("ventricle")] = 0
    return counts


def located_findings(
    regions: Labels, standard: Floats, masks: LesionMasks | None, compressed: set[str]
) -> tuple[Finding, ...]:
    """The truth of a case: what is present, on which side, in which lobes; `compressed` names narrowed ventricles."""
    if masks is None or not masks.whole.any():
        return tuple(Finding(name, "absent") for name in FINDINGS)
    side = {frozenset(): None, frozenset({"left"}): "left", frozenset({"right"}): "right"}.get(
        frozenset(compressed), "bilateral"
    )
    narrowed = (
        Finding("ventricular_compression", "present", side, ("ventricle",))  # type: ignore[arg-type]
        if compressed
        else Finding("ventricular_compression", "absent")
    )
    whole = masks.whole
    enough = 0.03 * whole.sum()
    return (
        _located("lesion", whole, regions, standard),
        _located("edema", masks.edema, regions, standard) if masks.edema.sum() > enough else Finding("edema", "absent"),
        _located("necrosis", masks.necrosis, regions, standard)
        if masks.necrosis.sum() > enough
        else Finding("necrosis", "absent"),
        narrowed,
    )


def _located(name: str, mask: NDArray[np.bool_], regions: NDArray[np.uint8], standard: Floats) -> Finding:
    """A present finding with its side and the regions that hold at least `SITE_SHARE` of it."""
    counts = _region_counts(mask, regions)
    total = counts.sum()
    if total == 0:
        return Finding(name, "present", side_of(mask, standard))  # type: ignore[arg-type]
    sites = tuple(site for site in SITES if counts[region_code(site)] >= SITE_SHARE * total)
    return Finding(name, "present", side_of(mask, standard), sites)  # type: ignore[arg-type]
