"""Put a drawn lesion into a real FLAIR: a test of what carries over from phantoms, with truth that is known.

The scan is laid over the standard brain by its brain's box, which is good to a centimetre or two: enough for a side and
a lobe. Nothing is pushed: the anatomy stays the patient's.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from braingemma.errors import VolumeError
from braingemma.volume.brain import find_brain
from training.phantoms.anatomy import Tissue, load_atlas
from training.phantoms.fields import Floats, Grid
from training.phantoms.lesions import draw_lesion, paint_visible
from training.phantoms.phantom import Phantom
from training.phantoms.truth import located_findings

CORE_ABOVE_EDEMA = 0.2
"""With one brightness asked for, the core is so much brighter, in parts of the brain's median."""
_BOX = np.array([[-71.0, 71.0], [-107.0, 73.0], [-66.0, 80.0]], np.float32)
"""The standard brain's box in MNI mm: left to right, back to front, bottom to top."""


def insert_lesion(image: Any, seed: int, *, region: str, side: str, brightness: float | None = None) -> Phantom:
    """A real volume with one drawn lesion in it.

    Args:
        image: A nibabel FLAIR without a mass.
        seed: Of the drawing.
        region: One of `training.phantoms.anatomy.REGIONS` that a lesion may be centred in.
        side: The patient's "left" or "right".
        brightness: How many times as bright as the brain's median the edema is; the core is a little brighter. None
            draws both.

    Raises:
        VolumeError: no brain was found.
    """
    rng = np.random.default_rng([seed, 606])
    canonical = nib.as_closest_canonical(image)
    volume = np.asarray(canonical.get_fdata(dtype=np.float32))
    spacing = np.linalg.norm(canonical.affine[:3, :3], axis=0)
    brain = find_brain(volume, spacing)
    if brain is None:
        raise VolumeError("expected a brain to put the lesion into, found none")
    steps = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    grid = Grid(volume.shape, steps, (0.0, 0.0, 0.0))
    standard = _standard(brain.mask)
    lesion = draw_lesion(rng, side={"left": -1, "right": 1}[side], region=region)
    regions = load_atlas().region_at(standard)
    deep = ndimage.distance_transform_edt(brain.mask, sampling=spacing)
    tissue = Tissue(np.zeros_like(volume), np.full_like(volume, 0.5), -deep.astype(np.float32))
    masks = paint_visible(lesion, rng, grid, standard, regions, tissue)
    changed = _brighten(volume, brain.mask, masks, spacing, rng, brightness)
    findings = located_findings(regions, standard, masks, set())
    truth = {"seed": seed, "findings": [f.to_json() for f in findings], "report": ""}
    return Phantom(
        nib.Nifti1Image(changed, canonical.affine),
        nib.Nifti1Image(masks.whole.astype(np.uint8), canonical.affine),
        masks.labels(),
        truth,
    )


def _standard(mask: Any) -> Floats:
    """(3, X, Y, Z) approximate MNI mm of each voxel, from the brain's box."""
    axes = []
    for axis in range(3):
        span = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        share = (np.arange(mask.shape[axis]) - span[0]) / max(1, span[-1] - span[0])
        axes.append((_BOX[axis, 0] + share * (_BOX[axis, 1] - _BOX[axis, 0])).astype(np.float32))
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _brighten(
    volume: Floats, brain: Any, masks: Any, spacing: Any, rng: np.random.Generator, brightness: float | None
) -> Floats:
    """Edema and core brighter than the tissue they replace, necrosis near fluid; borders softened by about 1 mm."""
    typical = float(np.median(volume[brain]))
    image = volume.astype(np.float32).copy()
    fluid = np.clip(1.2 - image / (0.6 * typical), 0, 1)
    edema, core = 0.75 * rng.uniform(1.4, 1.8), 0.75 * rng.uniform(1.3, 1.7)
    if brightness is not None:  # what is replaced has the median's brightness, more or less
        edema, core = brightness - 0.35, brightness + CORE_ABOVE_EDEMA - 0.35
    for mask, level, spares in ((masks.edema, edema, 0.8), (masks.core, core, 0.4)):
        soft = ndimage.gaussian_filter(mask.astype(np.float32), 1.0 / spacing) * (1 - spares * fluid)
        image = image * (1 - soft) + (0.35 * image + level * typical) * soft
    soft = ndimage.gaussian_filter(masks.necrosis.astype(np.float32), 1.0 / spacing)
    return (image * (1 - soft) + rng.uniform(0.25, 0.5) * typical * soft).astype(np.float32)
