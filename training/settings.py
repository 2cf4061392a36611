"""Training configurations: TOML files to small frozen classes that check themselves."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from training.errors import SettingsError

#: What may be trained: names of `BrainGemma3D.component_parameters`, and what phase 1 adds for itself.
TRAINABLE: Final = ("vision", "resampler", "projector", "language", "lora", "grounding", "findings", "auxiliary")


@dataclass(frozen=True)
class PhaseSettings:
    """One phase.

    Attributes:
        name: "phase1", "phase2a" or "phase2b".
        trainable: Parts that learn; all others are frozen.
        steps: Optimiser steps; 0: `epochs` counts.
        epochs: Passes over the training cases when `steps` is 0.
        batch: Cases for each optimiser step, over all processes and accumulated passes.
        accumulate: Passes for each optimiser step.
        learning_rate: Peak; linear warm-up, then cosine to 1 %.
        matrix_rate: Peak for the matrices inside encoder and resampler layers, which Muon then trains; 0: AdamW does.
        warmup: Steps of warm-up.
        weight_decay: AdamW's.
        clip: Largest norm of the gradient.
        validate_every: Steps between validations.
        patience: Validations without improvement before the phase ends; 0: never.
        grounding: Weight of the grounding loss.
        parts: Weight of the loss of edema, core, necrosis and lost ventricle in the cells of each patch.
        findings: Weight of the findings loss.
        contrast: Weight of the contrast between picture and report.
        focus_patches: Phase 1: patches of each volume that the encoder sees in the first `focus_steps` steps: in and
            around the lesion, their mirror images, and others at random. Most of a brain teaches little.
        focus_steps: How many steps these are; after them the encoder sees all patches, as it will in use.
        augment: Whether volumes are moved, mirrored and changed in brightness.
        seed: Of everything drawn.
    """

    name: str
    trainable: tuple[str, ...]
    steps: int = 0
    epochs: int = 0
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    matrix_rate: float = 0.0
    warmup: int = 40
    weight_decay: float = 0.02
    clip: float = 1.0
    validate_every: int = 100
    patience: int = 0
    grounding: float = 1.0
    parts: float = 0.0
    findings: float = 2.0
    contrast: float = 0.2
    focus_patches: int = 0
    focus_steps: int = 0
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges; TOML's lists become tuples."""
        object.__setattr__(self, "trainable", tuple(self.trainable))
        unknown = [name for name in self.trainable if name not in TRAINABLE]
        if unknown or not self.trainable:
            raise SettingsError(f"{self.name}: trainable must name some of {', '.join(TRAINABLE)}; got {unknown}")
        if (self.steps > 0) == (self.epochs > 0):
            raise SettingsError(f"{self.name}: give either steps or epochs, got {self.steps} and {self.epochs}")
        for name in ("batch", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{self.name}: {name} must be at least 1, got {getattr(self, name)}")
        if self.batch % self.accumulate:
            raise SettingsError(f"{self.name}: batch ({self.batch}) must be a multiple of accumulate")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise SettingsError(f"{self.name}: learning_rate and clip must be above 0")
        if self.matrix_rate < 0:
            raise SettingsError(f"{self.name}: matrix_rate must not be negative, got {self.matrix_rate}")
        if self.focus_steps and (self.name != "phase1" or self.focus_patches < 1):
            raise SettingsError(f"{self.name}: focus_steps belong to phase1, with focus_patches of at least 1")

    def total_steps(self, cases: int) -> int:
        """Optimiser steps for this many training cases."""
        return self.steps or max(1, self.epochs * cases // self.batch)


@dataclass(frozen=True)
class LanguageSettings:
    """The text-only stage of the demo weights; 0 steps leave it out."""

    steps: int = 0
    batch: int = 20
    learning_rate: float = 2e-3
    warmup: int = 50
    seed: int = 0


@dataclass(frozen=True)
class DataSettings:
    """Where cases come from.

    Attributes:
        kind: "phantoms" or "manifest".
        count: Phantoms for training.
        seed: First seed of the phantoms; each case has its own. With a manifest: of the split, where it states none.
        validation: Cases held out for validation: the phantoms after the training ones.
        bilateral: Further training phantoms with a lesion on each side, which are one in twelve of all others.
        plaques: Further training phantoms without a lesion but with large plaques, which are one in nine of all others.
        manifest: JSONL or CSV with `image`, `report` and optional `mask`, `patient`, `split`.
        cache: Folder for prepared cases; empty: the run folder's.
    """

    kind: str = "phantoms"
    count: int = 2000
    seed: int = 100_000
    validation: int = 96
    bilateral: int = 0
    plaques: int = 0
    manifest: str = ""
    cache: str = ""

    def __post_init__(self) -> None:
        """Check what the kind needs."""
        if self.kind not in ("phantoms", "manifest"):
            raise SettingsError(f"data.kind must be phantoms or manifest, got {self.kind!r}")
        if self.kind == "manifest" and not self.manifest:
            raise SettingsError("data.manifest must name a file when data.kind is manifest")
        if self.kind == "phantoms" and min(self.count, self.validation) < 1:
            raise SettingsError(f"data.count and data.validation must be at least 1, got {self.count, self.validation}")
        if self.kind == "phantoms" and min(self.seed, self.bilateral, self.plaques) < 0:
            given = (self.seed, self.bilateral, self.plaques)
            raise SettingsError(f"data.seed, data.bilateral and data.plaques must not be negative, got {given}")


@dataclass(frozen=True)
class TrainingSettings:
    """A whole run: model sizes, data, and the phases in order.

    Attributes:
        weights: Folder or hub id to start from; empty: `model` says how to make one.
        quantization: Of the frozen language model: "none", "4bit" or "auto".
        precision: "no": float32 throughout; "bf16": float32 weights, arithmetic in bfloat16 where autocast takes it.
        model: Sizes of a model from nothing (tables `vision` and `text`), or hub ids or folders of the two models that
            a new one is made of (strings `vision` and `text`), with further fields of `BrainGemmaConfig`.
        data: Where cases come from.
        language: The text-only stage.
        phases: In order.
    """

    weights: str = ""
    quantization: str = "none"
    precision: str = "no"
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    phases: tuple[PhaseSettings, ...] = ()

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.quantization not in ("none", "4bit", "auto"):
            raise SettingsError(f"quantization must be none, 4bit or auto, got {self.quantization!r}")
        if self.precision not in ("no", "bf16"):
            raise SettingsError(f"precision must be no or bf16, got {self.precision!r}")

    def phase(self, name: str) -> PhaseSettings:
        """The phase of this name."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise SettingsError(f"the configuration has no [{name}]; it has {', '.join(p.name for p in self.phases)}")

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the run folder."""
        return dataclasses.asdict(self)


PHASES: Final = ("phase1", "phase2a", "phase2b")


def load_settings(source: str | Path) -> TrainingSettings:
    """Read a TOML file, or a bundled configuration by name ("demo", "card", "phase1", ...).

    `include = ["other.toml"]` at the top of a file takes over what it does not state itself, from files beside it.

    Raises:
        SettingsError: no such file, not TOML, or an unknown or impossible value.
    """
    raw = _read(source)
    unknown = set(raw) - {"weights", "quantization", "precision", "model", "data", "language", *PHASES}
    if unknown:
        raise SettingsError(f"{source}: unknown sections {', '.join(sorted(unknown))}")
    return TrainingSettings(
        weights=str(raw.get("weights", "")),
        quantization=str(raw.get("quantization", "none")),
        precision=str(raw.get("precision", "no")),
        model=dict(raw.get("model", {})),
        data=_section(DataSettings, raw.get("data", {}), "data"),
        language=_section(LanguageSettings, raw.get("language", {}), "language"),
        phases=tuple(_section(PhaseSettings, {"name": n, **raw[n]}, n) for n in PHASES if n in raw),
    )


def _read(source: str | Path) -> dict[str, Any]:
    """The sections of a file and of what it includes; the file's own win."""
    path = Path(source)
    bundled = files("training").joinpath("configs", f"{source}.toml")
    if not path.suffix and bundled.is_file():
        path = Path(str(bundled))
    try:
        raw = tomllib.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise SettingsError(f"{source}: no such configuration file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source}: not TOML: {error}") from error
    included: dict[str, Any] = {}
    for name in raw.pop("include", []):
        included |= _read(path.parent / str(name))
    return {**included, **raw}


def _section(kind: Any, values: dict[str, Any], name: str) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(f"[{name}] has unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise SettingsError(f"[{name}]: {error}") from error
