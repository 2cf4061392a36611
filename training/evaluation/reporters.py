"""What can be judged: our model, or a baseline, each as something that reads one picture and writes a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from braingemma.findings.vocabulary import FINDINGS
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.preprocess import PreparedVolume, prepare_image
from training.data.phantom_cases import mask_on_grid


@dataclass(frozen=True)
class Reading:
    """What was written about one case.

    Attributes:
        report: Its report.
        mirrored: The report of the mirrored picture; None where it was not asked for.
        probabilities: Of the presence of each finding, where the weights tell.
        grounding: (d, h, w) lesion share of each patch of the model's grid, where the weights tell.
        prepared: The grid that `grounding` lies on.
    """

    report: str
    mirrored: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    grounding: NDArray[np.float32] | None = None
    prepared: PreparedVolume | None = None


class Reporter(Protocol):
    """Writes reports."""

    @property
    def name(self) -> str:
        """Its row in the table."""

    def read(self, image: Any, name: str, /, *, flip: bool) -> Reading:
        """Report a nibabel image, and with `flip` its mirror image too."""


class ModelReporter:
    """BrainGemma3D, by the path that serving takes."""

    def __init__(self, model: BrainGemma3D) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """Name and version of the weights."""
        return f"{self.model.config.name} {self.model.config.version}"

    def read(self, image: Any, name: str, /, *, flip: bool) -> Reading:
        """One pass for the volume and its mirror image together."""
        prepared = prepare_image(image, self.model.config, name=name)
        volume = prepared.tensor.to(self.model.compute_device)
        both = torch.cat([volume, volume.flip(-1)]) if flip else volume
        written = self.model.generate_batch(both, settings=self.model.generation_settings(seed=0))
        found = self.model.finding_probabilities(volume)
        known = found if isinstance(found, dict) else {}
        patches = self.model.ground(volume)
        return Reading(
            report=written[0].text,
            mirrored=written[1].text if flip else None,
            probabilities={n: float(known[n]["presence"]) for n in FINDINGS if n in known},
            grounding=None if patches is None else patches[0].float().cpu().numpy(),
            prepared=prepared,
        )


def mirror_image(image: Any) -> Any:
    """The same head seen in a mirror: RAS voxels reversed from left to right, the affine kept."""
    canonical = nibabel.as_closest_canonical(image)
    voxels = np.ascontiguousarray(np.asanyarray(canonical.dataobj)[::-1])
    return nibabel.Nifti1Image(voxels, canonical.affine)


@dataclass(frozen=True)
class Grounding:
    """How a grounding map lies to the true lesion.

    Attributes:
        peak: Its highest value, in [0, 1].
        inside: Whether the highest patch touches the lesion; None where there is none, or no mask.
        left_share: Share of the map's sum on the patient's left half of the field of view.
    """

    peak: float
    inside: bool | None
    left_share: float


def judge_grounding(reading: Reading, mask: Any | None) -> Grounding | None:
    """Compare the map with a lesion mask (a nibabel image on the picture's grid); None where there is no map."""
    patches, prepared = reading.grounding, reading.prepared
    if patches is None or prepared is None:
        return None
    inside: bool | None = None
    if mask is not None:
        lesion = np.asarray(nibabel.as_closest_canonical(mask).dataobj) > 0
        if lesion.any():
            inside = _touches(patches, mask_on_grid(lesion.astype(np.float32), prepared))
    total = float(patches.sum())
    half = patches.shape[2] // 2  # index grows from the patient's left to the right
    left = float(patches[..., :half].sum()) + (float(patches[..., half].sum()) / 2 if patches.shape[2] % 2 else 0.0)
    return Grounding(float(patches.max()), inside, left / total if total else 0.5)


def _touches(patches: NDArray[np.float32], lesion: NDArray[np.bool_]) -> bool:
    """Whether any voxel of the highest patch is lesion; lesion (D, H, W) on the model's grid."""
    index = np.unravel_index(int(patches.argmax()), patches.shape)
    size = [n // m for n, m in zip(lesion.shape, patches.shape, strict=True)]
    box = tuple(slice(int(i) * s, (int(i) + 1) * s) for i, s in zip(index, size, strict=True))
    return bool(lesion[box].any())
