"""NIfTI in, tensor out: one path for training and for serving.

The header alone says where right, front and top are; file names never matter, and nothing is ever flipped.
Array order of the tensor: (D, H, W) with D growing inferior→superior, H posterior→anterior, W left→right (RAS+).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from braingemma.configuration import BrainGemmaConfig, VolumeSettings
from braingemma.errors import VolumeError
from braingemma.volume.brain import BrainMask, Mask, background_value, find_brain
from braingemma.volume.frame import BrainFrame, find_frame
from braingemma.volume.loaded import LoadedVolume
from braingemma.volume.resampling import Volume, resample_box
from braingemma.volume.source import SourceVolume, check_source, read_source, require_contrast

Float = npt.NDArray[np.float64]
Settings = BrainGemmaConfig | VolumeSettings | None

NO_BRAIN = "No brain could be told from its surroundings: the whole volume was used."
FALLBACK = (
    "Brain extraction (deepbet) {failure}: a simpler method found one. Its mask may leave "
    "parts of the brain out, or take scalp and orbits in: look at the pictures before the findings."
)


@dataclass(frozen=True)
class PreparedVolume:
    """A volume as the model takes it, and how to get back from its grid to the patient.

    Attributes:
        tensor: (1, 1, D, H, W) float32.
        foreground: (D, H, W), true inside the brain.
        brain: (X, Y, Z) on the source's grid: what `foreground` was made from.
        grid_affine: (4, 4): grid voxel (w, h, d, 1) to RAS mm.
        source_affine: (4, 4): voxel of the RAS-ordered source volume to RAS mm.
        source_shape: Its shape (X, Y, Z).
        settings: What was asked for.
        extraction: How the brain was found, as in `BrainMask.method`; "none": no brain extraction was asked for, or
            no brain was found, and everything that differs from the background counts.
        brain_volume_ml: Size of the foreground.
        clip: (low, high): source values that the voxels were cut to.
        warnings: What a reader of the report should know about the input.
    """

    tensor: Tensor
    foreground: Mask
    brain: Mask
    grid_affine: Float
    source_affine: Float
    source_shape: tuple[int, int, int]
    settings: VolumeSettings
    extraction: str
    brain_volume_ml: float
    clip: tuple[float, float]
    warnings: tuple[str, ...]

    @cached_property
    def frame(self) -> BrainFrame:
        """Where places lie in the brain, as the picture on the model's grid tells it."""
        picture = self.tensor[0, 0].numpy().transpose(2, 1, 0)
        return find_frame(picture, self.foreground.transpose(2, 1, 0), self.grid_affine)

    def facts(self) -> dict[str, Any]:
        """What was done, for a report's provenance."""
        steps = np.linalg.norm(self.grid_affine[:3, :3], axis=0)
        return {
            "grid": list(self.settings.grid),
            "grid_spacing_mm": [round(float(s), 4) for s in steps[::-1]],
            "normalization": self.settings.normalization,
            "percentiles": list(self.settings.percentiles),
            "reading": self.settings.reading,
            "clip": [round(v, 4) for v in self.clip],
            "brain_extraction": self.extraction,
            "brain_volume_ml": round(self.brain_volume_ml, 1),
            "crop": self.settings.crop,
        }


def load_nifti_volume(
    path: str | Path, target_size: tuple[int, int, int] | None = None, *, config: Settings = None
) -> LoadedVolume:
    """Read a brain FLAIR as the model takes it.

    Args:
        path: NIfTI file; its header says the orientation.
        target_size: (D, H, W) to use in place of the configuration's grid.
        config: `model.config`; None: the card's values.

    Returns:
        (1, 1, D, H, W) float32: D inferior→superior, H posterior→anterior, W patient's left→right. It remembers how
        it was read, and a model that needs another reading refuses it.

    Raises:
        VolumeError: the file is not one finite 3D volume of at least 10 slices along each axis.
    """
    settings = _settings(config, target_size)
    if settings.reading != "whole":
        return LoadedVolume.of(prepare_volume(path, settings).tensor, settings)
    voxels = read_source(path).voxels  # without looking for a brain, of which this reading knows nothing
    return LoadedVolume.of(_whole_tensor(voxels, settings)[0], settings)


def prepare_volume(
    path: str | Path,
    config: Settings = None,
    target_size: tuple[int, int, int] | None = None,
    brain: BrainMask | None = None,
) -> PreparedVolume:
    """Read and prepare a NIfTI file; see `load_nifti_volume` and, for `brain`, `prepare_image`."""
    return _prepared(read_source(path), _settings(config, target_size), Path(path).name, brain)


def prepare_image(
    image: Any,
    config: Settings = None,
    target_size: tuple[int, int, int] | None = None,
    name: str = "volume",
    brain: BrainMask | None = None,
) -> PreparedVolume:
    """Prepare a nibabel image that is in memory, by the same path.

    Args:
        image: A nibabel spatial image.
        config: The model's configuration, or its volume settings; None: the card's values.
        target_size: (D, H, W) in place of the configuration's grid.
        name: What messages call it.
        brain: Where the brain is, on the image's grid in nibabel's canonical order; None: it is looked for.

    Raises:
        VolumeError: see `load_nifti_volume`.
    """
    return _prepared(check_source(image, name), _settings(config, target_size), name, brain)


def _prepared(source: SourceVolume, settings: VolumeSettings, name: str, brain: BrainMask | None) -> PreparedVolume:
    volume, affine = source.voxels, source.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if settings.reading == "whole":
        found = find_brain(volume, spacing) if brain is None and volume.min() < volume.max() else brain
        return _whole(source, found, settings)
    require_contrast(volume, name)
    mask, extraction, warnings = _foreground(volume, spacing, settings, name, brain)
    lower, upper = _box(mask, spacing, settings)
    clip = _normalize(volume, mask, settings)
    background = settings.background
    sizes = settings.grid[::-1]  # (W, H, D), as the source's axes
    tensor = resample_box(volume, lower, upper, sizes, background).transpose(2, 1, 0)
    if settings.normalization == "unit":
        tensor = tensor.clip(0, 1)  # rounding of the interpolation reaches 1 + 1e-7
    return PreparedVolume(
        tensor=torch.from_numpy(np.ascontiguousarray(tensor))[None, None],
        foreground=_on_grid(mask, lower, upper, sizes),
        brain=mask,
        grid_affine=affine @ _box_affine(lower, upper, sizes),
        source_affine=affine,
        source_shape=(volume.shape[0], volume.shape[1], volume.shape[2]),
        settings=settings,
        extraction=extraction,
        brain_volume_ml=float(mask.sum() * np.prod(spacing) / 1000),
        clip=clip,
        warnings=(*source.warnings, *warnings, *source.doubts),
    )


def _whole(source: SourceVolume, brain: BrainMask | None, settings: VolumeSettings) -> PreparedVolume:
    """The public code's reading; the brain's mask says where the brain is, and changes nothing in the tensor."""
    volume, affine = source.voxels, source.affine
    mask = np.ones(volume.shape, bool) if brain is None else brain.mask
    tensor, clip = _whole_tensor(volume, settings)
    edges, sizes = _edges(volume.shape), settings.grid[::-1]
    flat = "the volume has no contrast between its percentiles: the model sees nothing"
    return PreparedVolume(
        tensor=tensor,
        foreground=_on_grid(mask, *edges, sizes),
        brain=mask,
        grid_affine=affine @ _box_affine(*edges, sizes),
        source_affine=affine,
        source_shape=(volume.shape[0], volume.shape[1], volume.shape[2]),
        settings=settings,
        extraction="none" if brain is None else brain.method,
        brain_volume_ml=float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000),
        clip=clip,
        warnings=(*source.warnings, *_said_of(brain), *source.doubts, *(() if clip[0] < clip[1] else (flat,))),
    )


def _whole_tensor(volume: Volume, settings: VolumeSettings) -> tuple[Tensor, tuple[float, float]]:
    """A volume (X, Y, Z) to (1, 1, D, H, W) in [0, 1] as the public code does it, and the ends of its clip.

    Source: the code published with arXiv 2602.22098; a volume without contrast becomes zeros there.
    """
    low, high = (np.percentile(volume, p) for p in settings.percentiles)
    scaled = np.zeros_like(volume) if high <= low else ((volume - low) / (high - low)).clip(0, 1)
    voxels = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 1, 0), dtype=np.float32))[None, None]
    return F.interpolate(voxels, size=settings.grid, mode="trilinear", align_corners=False), (float(low), float(high))


def _settings(config: Settings, target_size: tuple[int, int, int] | None) -> VolumeSettings:
    settings = config.volume_settings if isinstance(config, BrainGemmaConfig) else config or VolumeSettings()
    if target_size is None:
        return settings
    if len(target_size) != 3 or min(target_size) < 1:
        raise VolumeError(f"target_size must be three positive sizes (D, H, W), got {target_size}")
    return VolumeSettings(**{**vars(settings), "grid": tuple(target_size)})


# ---------------------------------------------------------------------- foreground, crop, values


def _said_of(brain: BrainMask | None) -> tuple[str, ...]:
    """What must be said of how the brain was looked for: the lesion map and the explanation stay within its mask."""
    if brain is None:
        return (NO_BRAIN,)
    return (FALLBACK.format(failure=brain.failure),) if brain.method == "peeling" else ()


def _foreground(
    volume: Volume, spacing: Float, settings: VolumeSettings, name: str, brain: BrainMask | None
) -> tuple[Mask, str, tuple[str, ...]]:
    """(mask, how it was found, warnings)."""
    if brain is not None and brain.mask.shape != volume.shape:
        raise VolumeError(f"{name}: expected a brain mask of shape {volume.shape}, got {brain.mask.shape}")
    warnings: tuple[str, ...] = ()
    if brain is None and settings.brain_extraction == "auto":
        brain = find_brain(volume, spacing)
        warnings = _said_of(brain)
    if brain is not None:
        return brain.mask, brain.method, _said_of(brain)
    mask = np.asarray(volume != background_value(volume))
    if mask.sum() < 2:
        raise VolumeError(f"{name}: expected a brain, got {int(mask.sum())} voxels that differ from the background")
    return mask, "none", warnings


def _box(mask: Mask, spacing: Float, settings: VolumeSettings) -> tuple[Float, Float]:
    """(lower, upper) edges (3,) of the field of view, in source voxels; voxel i spans i - 0.5 … i + 0.5."""
    if settings.crop == "none":
        return _edges(mask.shape)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    lower = np.array([s[0] - 0.5 for s in spans])
    upper = np.array([s[-1] + 0.5 for s in spans])
    if settings.crop == "brain":
        margin = settings.crop_margin_mm / spacing
        return lower - margin, upper + margin
    half = np.maximum(np.array(settings.field_of_view_mm[::-1]) / spacing, upper - lower) / 2
    centre = (lower + upper) / 2
    return centre - half, centre + half


def _edges(shape: tuple[int, ...]) -> tuple[Float, Float]:
    """(lower, upper) edges (3,) of a whole volume, in its voxels."""
    return np.full(3, -0.5), np.array(shape) - 0.5


def _normalize(volume: Volume, mask: Mask, settings: VolumeSettings) -> tuple[float, float]:
    """Clip and scale in place by the foreground's values; outside it: background. Returns the clip's ends."""
    inside = volume[mask]
    low, high = (float(v) for v in np.percentile(inside, settings.percentiles))
    if not low < high:
        raise VolumeError(f"the brain's voxels have no contrast: p{settings.percentiles} are {low:g} and {high:g}")
    np.clip(volume, low, high, out=volume)
    if settings.normalization == "unit":
        volume -= low
        volume /= high - low
    else:
        np.clip(inside, low, high, out=inside)
        volume -= float(inside.mean(dtype=np.float64))
        volume /= float(inside.std(dtype=np.float64))
    volume[~mask] = settings.background
    return low, high


# ---------------------------------------------------------------------- grid


def _on_grid(mask: Mask, lower: Float, upper: Float, sizes: tuple[int, ...]) -> Mask:
    """A mask (X, Y, Z) on the model's grid (D, H, W)."""
    return np.ascontiguousarray(
        resample_box(mask.astype(np.float32), lower, upper, sizes, 0.0).transpose(2, 1, 0) > 0.5
    )


def _box_affine(lower: Float, upper: Float, sizes: tuple[int, ...]) -> Float:
    """(4, 4): grid voxel (w, h, d, 1) to source voxel."""
    step = (upper - lower) / np.array(sizes)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = lower + step / 2
    return affine
