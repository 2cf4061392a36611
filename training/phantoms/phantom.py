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
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from braingemma.findings.vocabulary import Finding, mirror_text, mirrored_findings
from braingemma.measure.sizes import Measured
from training.errors import DataError
from training.phantoms.anatomy import Atlas, Labels, Tissue, load_atlas, sample_tissue
from training.phantoms.contrast import (
    FAINTEST,
    Contrast,
    degrade,
    draw_contrast,
    draw_hard_contrast,
    paint_brain,
    paint_head,
    strip_head,
)
from training.phantoms.extraction import draw_extraction
from training.phantoms.fields import Floats, Grid, apply_matrix, rotation, smooth_displacement
from training.phantoms.generator import GENERATORS, Difficulty, Generator
from training.phantoms.infarcts import draw_infarct
from training.phantoms.lesions import (
    LOST_VENTRICLE,
    Lesion,
    LesionMasks,
    draw_hard_lesion,
    draw_lesions,
    paint_visible,
    push_away,
)
from training.phantoms.spots import LARGE_PLAQUE_SHARE, MEASURED_PLAQUE_SHARE, measured_plaques, white_matter_spots
from training.phantoms.truth import is_plain, located_findings, measured_truth
from training.phantoms.wording import write_report
from training.progress import Say

LESION_SHARE: Final = 0.62
STRIPPED_SHARE: Final = 0.35
COMPRESSED: Final = 0.55
"""A lateral ventricle smaller than this share of itself without mass effect is compressed; above the other it is
not."""
FREE: Final = 0.85
NARROW: Final = 0.5
"""A ventricle smaller than this share of the atlas's is narrow by nature: no reader could say that a mass narrowed
it."""
NARROWING: Final = (2.6, 4.6)
"""By how much a mass narrows a ventricle, see `_narrow`."""
SHIFT_MM: Final = (0.0, 7.0)
"""How far such a mass pushes the septum away from itself."""
WALL_MM: Final = 14.0
"""How far beside the septum the outer wall is pushed most."""
CORTEX_MM: Final = 70.0
"""How far beside the midline nothing is pushed any more."""
_DRAWS: Final = 8
"""What two readers would name alike: a case with a share between such bounds is drawn anew, this often at most."""
_LATERAL: Final = np.array([13.0, -12.0, 16.0])
"""MNI mm of the middle of the right lateral ventricle, and how far around it what changes its size reaches."""
_REACH: Final = np.array([16.0, 42.0, 22.0])
_VENTRICLES: Final = {"left": -1.0, "right": 1.0}


@dataclass(frozen=True)
class Phantom:
    """A synthetic case.

    Attributes:
        volume: RAS NIfTI of the FLAIR picture.
        lesion: RAS NIfTI mask on the same grid: 1 where there is edema, core or necrosis.
        parts: (X, Y, Z) on the same grid, `training.phantoms.lesions.PARTS` of each voxel: what a dense loss learns.
        truth: `{"seed", "findings", "measurements": [both as in report.json], "report"}`.
        extracted: (X, Y, Z) on the same grid, the brain as an extraction would find it, with its errors; None where
            none was drawn.
    """

    volume: nib.Nifti1Image
    lesion: nib.Nifti1Image
    parts: NDArray[np.uint8]
    truth: dict[str, Any]
    extracted: NDArray[np.bool_] | None = None

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
    difficulty: Difficulty = "plain",
    brightness: float | None = None,
    growth: float = 1.0,
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
        difficulty: The generator, one of `GENERATORS`.
        brightness: Only hard phantoms: edema and core are so many times as bright as the brain. Below `FAINTEST` all
            findings are undetermined; above it edema is, as nothing tells it from the core.
        growth: The lesion's size, as a multiple of the volume that it would have; all else stays as it would be.

    Raises:
        ValueError: a negative seed, a voxel size outside 0.5–12 mm, lesions on both sides of a head without one,
            large plaques in a head that may have a lesion, or a brightness of a plain phantom.
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    if both_sides and with_lesion is False:
        raise ValueError("both_sides=True needs a lesion, got with_lesion=False")
    if large_plaques and with_lesion is not False:
        raise ValueError(f"large_plaques=True needs with_lesion=False, got {with_lesion}")
    if difficulty not in GENERATORS:
        raise ValueError(f"difficulty must be one of {', '.join(GENERATORS)}, got {difficulty!r}")
    if brightness is not None and (difficulty != "hard" or brightness <= 0):
        raise ValueError(f"brightness needs difficulty='hard' and a ratio above 0, got {difficulty!r}, {brightness}")
    generator = GENERATORS[difficulty]
    rng = np.random.default_rng([seed, 20260])
    atlas = load_atlas()
    drawn = bool(rng.random() < STRIPPED_SHARE)
    stripped = drawn if stripped is None else stripped
    pose = _draw_pose(rng)
    grid = _draw_grid(rng, pose, _spacing(spacing, rng), stripped=stripped)
    drawn = bool(rng.random() < LESION_SHARE)
    present = both_sides or (drawn if with_lesion is None else with_lesion)
    draw = _lesion_source(generator, rng, both_sides=both_sides) if present else None
    share = 0.0 if present else 1.0 if large_plaques else _plaque_share(generator)
    case = _draw_case(
        rng, atlas, grid, pose, draw, generator, plaque_share=share, stripped=stripped, brightness=brightness,
        growth=growth,
    )  # fmt: skip
    picture, parts, findings = case.picture, case.parts, _visible(case.findings, brightness)
    errors = np.random.default_rng([seed, 20261])  # of its own: whatever is drawn of them, the picture stays as it is
    extracted = picture > 0 if stripped else draw_extraction(errors, grid, case.outside, pose.rigid(grid.points()))
    truth = {
        "seed": seed,
        "findings": [finding.to_json() for finding in findings],
        "measurements": [size.to_json() for size in case.sizes],
        "report": write_report(_stated(findings), np.random.default_rng([seed, 7])),
    }
    lesion = (parts > 0) & (parts != LOST_VENTRICLE)
    return Phantom(_image(picture, grid), _image(lesion.astype(np.uint8), grid), parts, truth, extracted)


def _plaque_share(generator: Generator) -> float:
    return MEASURED_PLAQUE_SHARE if generator.measured_plaques else LARGE_PLAQUE_SHARE


def _lesion_source(
    generator: Generator, rng: np.random.Generator, *, both_sides: bool
) -> Callable[[np.random.Generator], tuple[Lesion, ...]]:
    """What draws the lesions of this case, again and again until they are plain."""
    if generator.infarcts and not both_sides and rng.random() < generator.infarcts:
        return draw_infarct
    return partial(draw_lesions, both_sides=both_sides, draw_one=draw_hard_lesion if generator.deep else None)


def _visible(findings: tuple[Finding, ...], brightness: float | None) -> tuple[Finding, ...]:
    """The truth of a case whose lesion was drawn at one brightness: what cannot be seen is undetermined."""
    if brightness is None or findings[0].presence != "present":
        return findings
    lost = {f.finding for f in findings} if brightness < FAINTEST else {"edema"}
    return tuple(Finding(f.finding, "undetermined") if f.finding in lost else f for f in findings)


def _stated(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """For a report, which states everything: what is undetermined is worded as not there."""
    return tuple(Finding(f.finding, "absent") if f.presence == "undetermined" else f for f in findings)


def mirror(phantom: Phantom) -> Phantom:
    """The case seen in a mirror: voxels flipped left-right, left and right exchanged in truth and report."""
    findings = mirrored_findings(phantom.findings)
    truth = {
        **phantom.truth,
        "findings": [finding.to_json() for finding in findings],
        "measurements": [
            Measured.from_json(entry).mirrored().to_json() for entry in phantom.truth.get("measurements", ())
        ],
        "report": mirror_text(phantom.truth["report"]),
    }
    parts = np.ascontiguousarray(phantom.parts[::-1])
    extracted = None if phantom.extracted is None else np.ascontiguousarray(phantom.extracted[::-1])
    return Phantom(_flipped(phantom.volume), _flipped(phantom.lesion), parts, truth, extracted)


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


@dataclass(frozen=True)
class _Case:
    """What was drawn: picture, parts, findings, distance (X, Y, Z) to the brain's surface in mm, true measurements."""

    picture: Floats
    parts: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    outside: Floats
    sizes: tuple[Measured, ...]


def _draw_case(
    rng: np.random.Generator,
    atlas: Atlas,
    grid: Grid,
    pose: _Pose,
    draw: Callable[[np.random.Generator], tuple[Lesion, ...]] | None,
    generator: Generator,
    *,
    plaque_share: float,
    stripped: bool,
    brightness: float | None,
    growth: float,
) -> _Case:
    head = pose.rigid(grid.points())
    standard = head + smooth_displacement(rng, grid, 45.0, 2.2) + smooth_displacement(rng, grid, 20.0, 0.9)
    resting = _size_ventricles(standard, rng, generator)
    regions = atlas.region_at(standard)
    lesions: tuple[Lesion, ...] = ()
    for _ in range(_DRAWS):
        lesions = draw(rng) if draw else ()
        pushed, compressed = _mass_effect(rng, atlas, resting, standard, lesions)
        tissue = sample_tissue(atlas, pushed, atrophy := float(rng.uniform(0.0, 0.55)))
        border = deepcopy(rng)
        masks = _paint_all(rng, grid, standard, regions, tissue, lesions)
        if masks is None or is_plain(masks, regions, standard):
            break
    if lesions and growth != 1.0:  # drawn as it would be, then larger: with a border of the same roughness
        lesions = tuple(replace(lesion, radii=lesion.radii * growth ** (1 / 3)) for lesion in lesions)
        pushed, compressed = _mass_effect(deepcopy(border), atlas, resting, standard, lesions)
        tissue = sample_tissue(atlas, pushed, atrophy)
        masks = _paint_all(border, grid, standard, regions, tissue, lesions)
    spots = _draw_spots(rng, atlas, grid, pushed, tissue.white, plaque_share, generator)
    contrast = _draw_contrast(rng, generator, infarct=draw is draw_infarct, brightness=brightness)
    image = paint_brain(tissue, masks, spots, contrast, grid, rng)
    if stripped:
        image = strip_head(image, tissue, grid, rng)
    else:
        fat = contrast.brain * float(rng.uniform(0.8, 2.5)) if generator.fat else None
        image = paint_head(image, tissue, head, grid, rng, fat)
    picture = degrade(image, grid, rng, stripped=stripped)
    parts = _label_parts(atlas, standard, resting, pushed, masks, compressed)
    findings = located_findings(regions, standard, masks, compressed)
    sizes = measured_truth(head, pushed, grid.spacing, float(pose.scale[0]))
    return _Case(picture, parts, findings, tissue.outside, sizes)


def _draw_contrast(
    rng: np.random.Generator, generator: Generator, *, infarct: bool, brightness: float | None
) -> Contrast:
    if not generator.faint:
        return draw_contrast(rng)
    return draw_hard_contrast(rng, infarct=infarct, brightness=brightness)


def _draw_spots(
    rng: np.random.Generator,
    atlas: Atlas,
    grid: Grid,
    points: Floats,
    white: Floats,
    plaque_share: float,
    generator: Generator,
) -> Floats:
    if not generator.measured_plaques:
        return white_matter_spots(rng, atlas, grid, points, white, plaque_share)
    spots = white_matter_spots(rng, atlas, grid, points, white, 0.0)
    if rng.random() < plaque_share:
        spots = np.maximum(spots, measured_plaques(rng, atlas, grid, points, white) * rng.uniform(0.6, 1.0))
    return spots.astype(np.float32)


def _label_parts(
    atlas: Atlas, standard: Floats, resting: Floats, pushed: Floats, masks: LesionMasks | None, compressed: set[str]
) -> NDArray[np.uint8]:
    """(X, Y, Z) of 0 and `PARTS`."""
    if masks is None:
        return np.zeros(standard.shape[1:], np.uint8)
    labels = masks.labels()
    lost = (atlas.sample(atlas.standard.ventricle, resting) > 0.5) & (
        atlas.sample(atlas.standard.ventricle, pushed) <= 0.5
    )
    for side in compressed:
        labels[lost & ~masks.whole & (standard[0] * np.float32(_VENTRICLES[side]) > 0)] = LOST_VENTRICLE
    return labels


def _size_ventricles(standard: Floats, rng: np.random.Generator, generator: Generator) -> Floats:
    """Look tissue up nearer to or farther from each lateral ventricle's middle: larger or smaller ventricles."""
    both = rng.uniform(*generator.ventricles)
    points = standard
    for side in _VENTRICLES.values():
        points = _swell(points, side, both + rng.normal(0, generator.asymmetry))
    return points


def _swell(points: Floats, side: float, amount: float) -> Floats:
    """Magnify (`amount` > 0) or narrow (< 0) one lateral ventricle within about 25 mm of it."""
    offset = points - (_LATERAL * [side, 1, 1]).astype(np.float32).reshape(3, 1, 1, 1)
    weight = _near_middle(points, _LATERAL * [side, 1, 1], _REACH)
    # Across the ventricle's width most of all, a little along its height.
    share = np.array([1.0, 0.15, 0.6], np.float32).reshape(3, 1, 1, 1)
    return points - offset * share * (np.float32(amount) * weight)


def _shift_midline(points: Floats, millimetres: float) -> Floats:
    """Move what lies about the septum, the falx at the skull's edge left where it is; above 0 towards the right."""
    weight = _near_middle(points, _LATERAL, [np.inf, 70.0, 45.0]) * _inside_cortex(points[0])
    return np.stack([points[0] - np.float32(millimetres) * weight, points[1], points[2]])


def _narrow(points: Floats, side: float, amount: float) -> Floats:
    """Push the outer wall of one lateral ventricle towards the septum, which stays, and its roof and floor together.

    Tissue at x mm beside the midline is looked up farther out, by `amount` x / (1 + (x / WALL_MM)²), less towards the
    cortex. Up to the largest of `NARROWING` that falls by less than 1 from one mm to the next: nothing is looked up
    twice.
    """
    beside = np.maximum(points[0] * np.float32(side), 0.0)
    weight = _near_middle(points, _LATERAL, [np.inf, *_REACH[1:]])
    step = np.float32(amount) * weight * beside / (1 + (beside / np.float32(WALL_MM)) ** 2)
    step *= _inside_cortex(beside)
    flatter = np.float32(0.25 * amount) * _near_middle(points, _LATERAL * [side, 1, 1], _REACH)
    height = points[2] + (points[2] - np.float32(_LATERAL[2])) * flatter * np.minimum(
        beside / np.float32(_LATERAL[0]), 1
    )
    return np.stack([points[0] + np.float32(side) * step, points[1], height])


def _inside_cortex(beside: Floats) -> Floats:
    """1 at the midline, 0 from `CORTEX_MM` beside it on."""
    return np.maximum(1 - (beside / np.float32(CORTEX_MM)) ** 2, 0)


def _near_middle(
    points: Floats, middle: Sequence[float] | NDArray[np.float64], reach: Sequence[float] | NDArray[np.float64]
) -> Floats:
    """1 at a place, falling off as a Gaussian."""
    centre, size = (np.array(given, np.float32).reshape(3, 1, 1, 1) for given in (middle, reach))
    weight: Floats = np.exp(-(((points - centre) / size) ** 2).sum(axis=0))
    return weight


def _mass_effect(
    rng: np.random.Generator, atlas: Atlas, resting: Floats, standard: Floats, lesions: tuple[Lesion, ...]
) -> tuple[Floats, set[str]]:
    """Tissue coordinates after the lesions' push, and the sides whose lateral ventricle it narrows.

    A ventricle that would end between `COMPRESSED` and `FREE`, or below while it is narrow by nature, is a matter of
    taste: the push is then given up.
    """
    if not lesions:
        return resting, set()
    before, usual = _ventricle_size(atlas, resting), _ventricle_size(atlas, standard)
    wide = {side for side in _VENTRICLES if before[side] > NARROW * usual[side]}
    pushed = resting + sum(push_away(lesion, standard) for lesion in lesions)
    for side, sign in _VENTRICLES.items():
        if any(_squeezes(lesion, sign) for lesion in lesions) and side in wide and rng.random() < 0.8:
            pushed = _narrow(_shift_midline(pushed, -sign * rng.uniform(*SHIFT_MM)), sign, rng.uniform(*NARROWING))
    after = _ventricle_size(atlas, pushed)
    shares = {side: after[side] / max(before[side], 1e-6) for side in _VENTRICLES}
    if any(share < FREE and (share >= COMPRESSED or side not in wide) for side, share in shares.items()):
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
    share = atlas.sample(atlas.standard.ventricle, points)
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


# ---- truth


def phantoms(
    out: Path,
    count: int,
    seed: int,
    say: Say,
    each: Callable[[Path], None] | None = None,
    difficulty: Difficulty = "plain",
) -> list[Path]:
    """Write phantoms of the seeds `seed` ... `seed + count - 1`, one folder each.

    Args:
        out: Takes the folders `phantom-SEED`.
        count: How many.
        seed: Of the first.
        say: Told what is being done.
        each: Called with each folder when it is written.
        difficulty: Of all of them.

    Raises:
        DataError: count or seed makes no sense.
    """
    if count < 1 or seed < 0:
        raise DataError(f"expected a count of at least 1 and a seed of at least 0, got {count} and {seed}")
    folders = []
    for number in range(count):
        folder = out / f"phantom-{seed + number}"
        write_phantom(folder, make_phantom(seed + number, difficulty=difficulty))
        if each is not None:
            each(folder)
        folders.append(folder)
        say(f"phantom {number + 1}/{count}")
    return folders
