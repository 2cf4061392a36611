"""What can be judged: our model, or a baseline, each as something that reads one picture and writes a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np
from numpy.typing import NDArray

from braingemma.measure.brain import measure_brain
from braingemma.measure.sizes import Measured
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.candidates import write_candidates
from braingemma.reading.chance import ChanceOfError, weighed
from braingemma.reading.second_look import look_twice
from braingemma.volume.brain import BrainMask, find_brain
from braingemma.volume.preprocess import PreparedVolume, prepare_image
from training.data.phantom_cases import mask_on_grid


@dataclass(frozen=True)
class Reading:
    """What was written about one case.

    Attributes:
        report: Its report.
        mirrored: The report of the mirrored picture; None where it was not asked for.
        probabilities: Of the presence of each finding, where the weights tell.
        sides: Of its left and right, where the weights tell.
        doubted: Statements (finding, about) on which a warning was given.
        chances: That each statement (finding, about) is wrong, where the weights tell.
        grounding: (d, h, w) lesion share of each patch of the model's grid, where the weights tell.
        prepared: The grid that `grounding` lies on.
    """

    report: str
    mirrored: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    sides: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    doubted: frozenset[tuple[str, str]] = frozenset()
    chances: Mapping[tuple[str, str], float] = field(default_factory=dict)
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
    """BrainGemma3D, by the path that serving takes.

    Attributes:
        model: The model.
        candidates: Texts at most for each picture, as `[model] candidates`.
        kept: Folder where brain masks and measurements are kept, by the picture's voxels; None: nowhere.
    """

    def __init__(self, model: BrainGemma3D, candidates: int = 1, kept: Path | None = None) -> None:
        self.model = model
        self.kept = kept
        self.candidates = 1 if model.config.published else candidates

    @property
    def name(self) -> str:
        """Name and version of the weights."""
        return f"{self.model.config.name} {self.model.config.version}"

    def read(self, image: Any, name: str, /, *, flip: bool, brain: BrainMask | None = None) -> Reading:
        """Report a picture; with `flip` its mirror image, which is not looked for a brain again."""
        looked = _Looked.at(image, brain, self.kept)
        wanted = self.model.config.volume_settings
        found = looked.brain if wanted.brain_extraction == "auto" or wanted.reading == "whole" else brain
        prepared = prepare_image(image, self.model.config, name=name, brain=found)
        reading = self._read(prepared, looked.measured)
        if not flip:
            return reading
        back = tuple(measured.mirrored() for measured in looked.measured)
        return replace(reading, mirrored=self._read(_mirrored(prepared), back).report)

    def _read(self, prepared: PreparedVolume, measured: tuple[Measured, ...]) -> Reading:
        volume = prepared.tensor.to(self.model.compute_device)
        found = self.model.finding_probabilities(volume)
        known = found if isinstance(found, dict) else None
        look = look_twice(self.model, prepared)
        settings = self.model.generation_settings(seed=0)
        written = write_candidates(self.model, volume, known, look, measured, count=self.candidates, settings=settings)
        taken = next(candidate for candidate in written if candidate.taken)
        fitted = ChanceOfError.from_json(self.model.config.doubt)
        found_doubts, chance = weighed(fitted, taken.findings, known, look, measured, taken.unsure)
        return Reading(
            report=taken.text,
            probabilities={n: float(p["presence"]) for n, p in (known or {}).items()},
            sides={n: (float(p["left"]), float(p["right"])) for n, p in (known or {}).items()},
            doubted=frozenset((doubt.finding, doubt.about) for doubt in found_doubts),
            chances={(name, about): value for (name, about), value in chance.items()},
            grounding=None if look is None else look.patches,
            prepared=prepared,
        )


@dataclass(frozen=True)
class _Looked:
    """What is found in a picture before any weights see it: the same for all weights."""

    brain: BrainMask | None
    measured: tuple[Measured, ...]

    @classmethod
    def at(cls, image: Any, brain: BrainMask | None, kept: Path | None) -> _Looked:
        """Brain and measurements of a nibabel image, from `kept` where they lie there."""
        canonical = nibabel.as_closest_canonical(image)
        volume = np.asarray(canonical.dataobj, dtype=np.float32)
        axes = np.asarray(canonical.affine, np.float64)[:3, :3]
        if volume.ndim != 3 or not np.isfinite(volume).all():
            return cls(brain, ())  # preparing it says what is wrong
        if kept is None or brain is not None:
            return cls._found(volume, axes, brain)
        digest = hashlib.sha256(np.ascontiguousarray(volume).data)
        digest.update(axes.tobytes())
        file = kept / f"{digest.hexdigest()[:32]}.npz"
        if file.exists():
            return cls._read(file, volume.shape)
        found = cls._found(volume, axes, None)
        kept.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{digest.hexdigest()[:6]}.tmp.npz")
        facts = {
            "method": found.brain.method if found.brain else None,
            "volume_ml": found.brain.volume_ml if found.brain else 0.0,
            "measured": [measured.to_json() for measured in found.measured],
        }
        mask = found.brain.mask if found.brain else np.zeros(volume.shape, bool)
        np.savez_compressed(draft, mask=np.packbits(mask), facts=json.dumps(facts))
        draft.replace(file)
        return found

    @classmethod
    def _found(cls, volume: NDArray[np.float32], axes: NDArray[np.float64], brain: BrainMask | None) -> _Looked:
        brain = brain or find_brain(volume, np.linalg.norm(axes, axis=0))
        return cls(brain, measure_brain(volume, brain.mask, axes).measured if brain else ())

    @classmethod
    def _read(cls, file: Path, shape: tuple[int, ...]) -> _Looked:
        with np.load(file) as saved:
            facts = json.loads(str(saved["facts"]))
            mask = np.unpackbits(saved["mask"], count=int(np.prod(shape))).astype(bool).reshape(shape)
        brain = BrainMask(mask, facts["method"], facts["volume_ml"]) if facts["method"] else None
        return cls(brain, tuple(Measured.from_json(entry) for entry in facts["measured"]))


def _mirrored(prepared: PreparedVolume) -> PreparedVolume:
    """The prepared volume seen in a mirror, on the same grid."""
    foreground = np.ascontiguousarray(prepared.foreground[..., ::-1])
    return replace(prepared, tensor=prepared.tensor.flip(-1), foreground=foreground)


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
