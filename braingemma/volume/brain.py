"""Where the brain is in a FLAIR volume: one mask that everything else uses.

The mask is that of `deepbet` (Fisch et al., Computers in Biology and Medicine, 2024): two small nets that come with the
package and are read from disk. They were trained on T1 of adults; that they carry over to FLAIR, also around a tumour,
was measured. Pictures that come without a skull need no extraction, and where the nets find nothing of the size of a
brain, classical peeling takes their place.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from braingemma.errors import VolumeError
from braingemma.volume.peeling import coarser, lacks_skull, peel_brain
from braingemma.volume.resampling import Float, Volume, resample_mask

Mask = npt.NDArray[np.bool_]
Method = Literal["deepbet", "peeling", "came without skull", "given"]

NET_SPACING = 1.0
"""Voxel size for which the nets were trained, mm; finer volumes are brought to it."""
PLAUSIBLE_ML = (200.0, 2600.0)
"""What a brain, or what a cut picture holds of one, measures; anything else is a failure of the extraction, ml."""
FLAT_SHARE = 0.1
"""A volume of which this share has exactly one background value may have been stripped."""
NEGATIVE_SHARE = 0.01
"""Share of values below a flat background from which on it lies among the others: they were scaled around it."""
LOWEST_PERCENTILE = 1.0
"""Of the others: what is set just above such a background, so that a few outliers decide nothing."""
NOTHING_FOUND = "found no brain of a plausible size"
"""Why the nets' mask is not used, where they ran."""
KEPT = 4
"""Masks kept, so that check, preprocessing and explanation of one volume share one extraction, also one that was made
while the model worked on another volume."""


@dataclass(frozen=True)
class BrainMask:
    """The brain in a volume.

    Attributes:
        mask: (X, Y, Z) on the volume's grid.
        method: How it was found; "came without skull": the mask is what is not background.
        volume_ml: Size of the mask.
        failure: What the nets did instead, where the method is "peeling".
    """

    mask: Mask
    method: Method
    volume_ml: float
    failure: str = NOTHING_FOUND

    @classmethod
    def of(
        cls, mask: Mask, spacing: npt.ArrayLike, method: Method = "given", failure: str = NOTHING_FOUND
    ) -> BrainMask:
        """A mask (X, Y, Z) of a volume whose voxels measure `spacing` (3,), mm."""
        volume_ml = float(np.count_nonzero(mask) * np.prod(np.asarray(spacing, np.float64)) / 1000)
        return cls(mask, method, volume_ml, failure)

    @property
    def stripped(self) -> bool:
        """Whether the volume had no skull to begin with."""
        return self.method == "came without skull"


def background_value(volume: Volume) -> float:
    """The value of the corners: what a stripped volume has outside the brain."""
    corners = volume[:: max(volume.shape[0] - 1, 1), :: max(volume.shape[1] - 1, 1), :: max(volume.shape[2] - 1, 1)]
    return float(np.median(corners))


def above_background(volume: Volume) -> Volume:
    """The volume with its background at 0 and the rest above it, where that is one value or lies below 0.

    Normalised files have it anywhere: at the lowest value or, where the rest was scaled around zero, among the others.

    Returns:
        (X, Y, Z): the volume itself where there is nothing to change.
    """
    background = background_value(volume)
    flat = bool((volume == background).mean() > FLAT_SHARE)
    if background > 0 and not flat:
        return volume
    # One copy at most: large volumes fill the memory.
    above = volume if background == 0 else np.subtract(volume, np.float32(background), dtype=np.float32)
    if not flat or (above < 0).mean() <= NEGATIVE_SHARE:
        return above
    return _raised(above.astype(np.float32) if above is volume else above)


def _raised(volume: Volume) -> Volume:
    """Change a volume whose values lie on both sides of its background of 0, so that all of them lie above it."""
    outside = volume == 0
    ends = np.percentile(volume[~outside], [LOWEST_PERCENTILE, 99.0], overwrite_input=True)
    low, high = (np.float32(v) for v in ends)
    # Where the lowest value fills much of the volume it is the air, and the 0 at the corners only padding.
    least = np.float32(0) if (volume == low).mean() > FLAT_SHARE else np.float32(1e-3) * (high - low)
    volume -= low
    np.maximum(volume, least, out=volume)
    volume[outside] = 0
    return volume


def find_brain(volume: Volume, spacing: npt.ArrayLike) -> BrainMask | None:
    """Find the brain; None where nothing has the size and compactness of one.

    The last volumes' masks are kept: asking again for equal voxels costs a digest.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        spacing: Voxel size (3,), mm.
    """
    size = np.asarray(spacing, dtype=np.float64)
    above = np.asarray(above_background(volume), dtype=np.float32)
    # As it lies in memory: a copy in another order would be as large as the volume.
    flat = above.T if above.flags.f_contiguous else np.ascontiguousarray(above)
    key = hashlib.blake2b(flat.data, key=size.tobytes()).digest() + repr((above.shape, above.strides)).encode()
    with _KNOWN_LOCK:
        known, found = key in _KNOWN, _KNOWN.pop(key, None)
    if not known:
        found = _extract(above, size)
    with _KNOWN_LOCK:
        _KNOWN[key] = found  # the newest
        while len(_KNOWN) > KEPT:
            _KNOWN.popitem(last=False)
    return found


_KNOWN: OrderedDict[bytes, BrainMask | None] = OrderedDict()
_KNOWN_LOCK = threading.Lock()


def _extract(volume: Volume, spacing: Float) -> BrainMask | None:
    """The brain in a volume whose background is 0."""
    if (volume == 0).mean() > FLAT_SHARE and lacks_skull(volume, spacing):
        return BrainMask.of(np.asarray(volume != 0), spacing, "came without skull")
    found = _by_nets(volume, spacing)
    if not isinstance(found, str):
        return BrainMask.of(found, spacing, "deepbet")
    peeled = peel_brain(volume, spacing)
    return None if peeled is None else BrainMask.of(peeled, spacing, "peeling", found)


def agreement_of_nets(volume: Volume, brain: BrainMask, spacing: npt.ArrayLike) -> float:
    """How far the nets take the same voxels for the brain: Dice's coefficient, in [0, 1]; 0 where they find none.

    Args:
        volume: (X, Y, Z), axes in RAS order, finite.
        brain: On its grid.
        spacing: Voxel size (3,), mm.

    Raises:
        VolumeError: the nets failed, so that nobody can tell.
    """
    found = _by_nets(above_background(volume), np.asarray(spacing, dtype=np.float64))
    if isinstance(found, str):
        if found != NOTHING_FOUND:
            raise VolumeError(f"expected the nets of the brain extraction to look at the picture, but they {found}")
        return 0.0
    return float(2 * np.count_nonzero(found & brain.mask) / (np.count_nonzero(found) + np.count_nonzero(brain.mask)))


def _by_nets(volume: Volume, spacing: Float) -> Mask | str:
    """The mask of `deepbet`; in words what it did instead, where it gives none of a brain's size."""
    working, size = coarser(volume, spacing, NET_SPACING)
    nets = _nets()
    try:
        mask = nets.postprocess(nets.run_model(working.copy()) > 0.5)
    except (AssertionError, ValueError):  # what it raises where there is nothing to find
        return NOTHING_FOUND
    except RuntimeError as error:  # an empty box, but memory that is short, too
        return f"failed ({' '.join(str(error).split())[:200]})"
    if not PLAUSIBLE_ML[0] <= float(mask.sum() * np.prod(size)) / 1000 <= PLAUSIBLE_ML[1]:
        return NOTHING_FOUND
    return resample_mask(mask, volume.shape)


@lru_cache(maxsize=1)
def _nets() -> Any:
    """The two nets, on the processor: the same volume gets the same mask on every machine."""
    from deepbet import BrainExtraction

    return BrainExtraction(no_gpu=True)
