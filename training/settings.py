"""Training configurations: TOML files to small frozen classes that check themselves, every fault at once."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from training.errors import SettingsError

Trainable = Literal["vision", "resampler", "projector", "language", "lora", "grounding", "findings", "auxiliary"]
"""What may be trained: names of `BrainGemma3D.component_parameters`, and what phase 1 adds for itself."""
TRAINABLE: Final = get_args(Trainable)
PhaseName = Literal["phase1", "phase2a", "phase2b"]
PHASES: Final[tuple[str, ...]] = get_args(PhaseName)

OVERRIDES: Final = ("name", "version", "volume", "storage_dtype")
"""What `[model]` may say beside `start` or `weights`; all else is the size of a model that is there."""

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
_STRICT: Final = ConfigDict(extra="forbid")
"""Unknown keys are faults."""


@dataclass(frozen=True, config=_STRICT)
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
        rates: Peaks of single parts of `trainable`, e.g. {vision = 1e-5}, where they differ from `learning_rate`.
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
        contrast_loss: "infonce" (van den Oord et al. 2018: the own report among all others) or "sigmoid" (SigLIP: each
            pair on its own).
        negatives: Reports of further cases, drawn anew for each step, that each picture is held against beside those
            of its step: the contrast is between many cases also where a step or a pass has few.
        losses: Weights of further losses by the name under which `register_loss` knows them.
        focus_patches: Phase 1: patches of each volume that the encoder sees in the first `focus_steps` steps: in and
            around the lesion, their mirror images, and others at random. Most of a brain teaches little.
        focus_steps: How many steps these are; after them the encoder sees all patches, as it will in use.
        start_share: Share of the parameters that the phase began with in those that it leaves; the rest is where it
            ended. The mean of two sets on one path is often better than either (Wortsman et al. 2022,
            arXiv 2203.05482).
        augment: Whether volumes are moved, mirrored and changed in brightness.
        seed: Of everything drawn.
    """

    name: PhaseName
    trainable: Annotated[tuple[Trainable, ...], Field(min_length=1)]
    steps: Count = 0
    epochs: Count = 0
    batch: AtLeastOne = 16
    accumulate: AtLeastOne = 1
    learning_rate: Rate = 1e-3
    rates: dict[str, Rate] = field(default_factory=dict)
    matrix_rate: Weight = 0.0
    warmup: Count = 40
    weight_decay: Weight = 0.02
    clip: Rate = 1.0
    validate_every: AtLeastOne = 100
    patience: Count = 0
    grounding: Weight = 1.0
    parts: Weight = 0.0
    findings: Weight = 2.0
    contrast: Weight = 0.2
    contrast_loss: Literal["infonce", "sigmoid"] = "infonce"
    negatives: Count = 256
    losses: dict[str, Weight] = field(default_factory=dict)
    focus_patches: Count = 0
    focus_steps: Count = 0
    start_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: bool = True
    seed: Count = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _raise_each(
            "give either steps or epochs, got both or neither" if (self.steps > 0) == (self.epochs > 0) else "",
            f"batch ({self.batch}) must be a multiple of accumulate ({self.accumulate})"
            if self.batch % self.accumulate
            else "",
            "focus_steps belong to phase1, with focus_patches of at least 1"
            if self.focus_steps and (self.name != "phase1" or self.focus_patches < 1)
            else "",
            *(f"rates names {part}, which trainable does not" for part in self.rates if part not in self.trainable),
        )
        return self

    def total_steps(self, cases: int) -> int:
        """Optimiser steps for this many training cases."""
        return self.steps or max(1, self.epochs * cases // self.batch)


@dataclass(frozen=True, config=_STRICT)
class LanguageSettings:
    """The text-only stage of the demo weights; 0 steps leave it out."""

    steps: Count = 0
    batch: AtLeastOne = 20
    learning_rate: Rate = 2e-3
    warmup: Count = 50
    seed: Count = 0


@dataclass(frozen=True, config=_STRICT)
class DataSettings:
    """Where cases come from.

    Attributes:
        kind: "phantoms" or "manifest".
        count: Phantoms for training.
        seed: First seed of the phantoms; each case has its own. With a manifest: of the split, where it states none.
        validation: Cases held out for validation: the phantoms after the training ones.
        bilateral: Further training phantoms with a lesion on each side, which are one in twelve of all others.
        plaques: Further training phantoms without a lesion but with large plaques, which are one in nine of all others.
        difficulty: Which phantoms are drawn, by `training.phantoms.generator`.
        plain: Further training phantoms that are plain, so that hard ones do not make clear cases forgotten.
        judging: Further hard phantoms, and as many plain ones, on which alone, beside those of validation, the chance
            that a statement is wrong is fitted.
        manifest: JSONL or CSV with `image`, `report` and optional `mask`, `patient`, `split`.
        cache: Folder for prepared cases; empty: the run folder's.
        workers: Processes that load and augment ahead of the training; 0: the training does it itself.
    """

    kind: Literal["phantoms", "manifest"] = "phantoms"
    count: AtLeastOne = 2000
    seed: Count = 100_000
    validation: AtLeastOne = 96
    bilateral: Count = 0
    plaques: Count = 0
    difficulty: Literal["plain", "hard"] = "plain"
    plain: Count = 0
    judging: Count = 0
    manifest: str = ""
    cache: str = ""
    workers: Count = 0

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        _raise_each(
            "manifest must name a file, as kind is manifest" if self.kind == "manifest" and not self.manifest else ""
        )
        return self


@dataclass(frozen=True, config=_STRICT)
class TrainingSettings:
    """A whole run: model sizes, data, and the phases in order.

    Attributes:
        start: Bundled configuration, or TOML file, whose run gives the weights to start from; it is trained in the
            run folder's `start`, unless weights lie there. Its model is kept; `model` may state some of `OVERRIDES`.
        weights: Folder or hub id to start from; empty: `model` says how to make one.
        quantization: Of the frozen language model: "none", "4bit" or "auto".
        gradient_checkpointing: Compute activations twice in place of keeping them: less memory, a third more time.
        plugins: Python modules that are imported first; they may register losses and encoders.
        precision: "no": float32 throughout; "bf16": float32 weights, arithmetic in bfloat16 where autocast takes it.
        model: Sizes of a model from nothing (tables `vision` and `text`), or hub ids or folders of the two models that
            a new one is made of (strings `vision` and `text`), with further fields of `BrainGemmaConfig`.
        data: Where cases come from.
        language: The text-only stage.
        phases: In order.
    """

    start: str = ""
    weights: str = ""
    quantization: Literal["none", "4bit", "auto"] = "none"
    precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    plugins: tuple[str, ...] = ()
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    phases: tuple[PhaseSettings, ...] = ()

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        changed = [name for name in self.model if name not in OVERRIDES]
        _raise_each(
            "give either start or weights, got both" if self.start and self.weights else "",
            f"model.{', model.'.join(changed)}: the model of start is kept" if self.start and changed else "",
        )
        return self

    def phase(self, name: str) -> PhaseSettings:
        """The phase of this name."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise SettingsError(f"the configuration has no [{name}]; it has {', '.join(p.name for p in self.phases)}")

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the run folder."""
        return dataclasses.asdict(self)


def load_settings(source: str | Path) -> TrainingSettings:
    """Read a TOML file, or a bundled configuration by name ("demo", "card", "phase1", ...).

    `include = ["other.toml"]` at the top of a file takes over what it does not state itself, from files beside it.

    Raises:
        SettingsError: no such file, not TOML, or every unknown or impossible value, one on a line.
    """
    return parse_settings(_read(source), str(source))


def parse_settings(raw: dict[str, Any], source: str) -> TrainingSettings:
    """The settings of TOML's sections; `source` is what messages call them.

    Raises:
        SettingsError: every unknown or impossible value, one on a line.
    """
    named = [{"name": name, **raw[name]} for name in PHASES if isinstance(raw.get(name), dict)]
    sections = {key: value for key, value in raw.items() if key not in PHASES}
    faults = list(_model_faults(sections.get("model", {})))
    faults += [f"{n}: expected a table, got {raw[n]!r}" for n in PHASES if n in raw and not isinstance(raw[n], dict)]
    settings: TrainingSettings | None = None
    try:
        settings = TypeAdapter(TrainingSettings).validate_python({**sections, "phases": named})
    except ValidationError as error:
        faults = [*_faults(error, [str(phase["name"]) for phase in named]), *faults]
    if faults or settings is None:
        raise SettingsError("\n".join(f"{source}: {fault}" for fault in faults))
    return settings


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
        included = _over(included, _read(path.parent / str(name)))
    return _over(included, raw)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; where both state a value, `above` wins."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


# ---- faults


def _raise_each(*faults: str) -> None:
    """One ValueError for all that are not empty."""
    found = [fault for fault in faults if fault]
    if found:
        raise ValueError("; ".join(found))


def _faults(error: ValidationError, phases: Sequence[str]) -> Iterator[str]:
    """One line for each fault: where it is, what was expected, what came."""
    for fault in error.errors():
        if fault["type"] == "too_short" and fault["input"]:
            continue  # what was in it is a fault of its own
        place = [str(part) for part in fault["loc"]]
        if place[:1] == ["phases"] and len(place) > 1:
            place = [phases[int(place[1])], *place[2:]]
        where = ".".join(place)
        got = fault.get("input")
        if fault["type"] == "unexpected_keyword_argument":
            yield f"{where} is unknown{_suggested(place[-1], _known(place[:-1]))}"
        elif fault["type"] == "missing":
            yield f"{where} is missing"
        elif fault["type"] == "value_error":
            yield f"{where}: {fault['ctx']['error']}"
        else:
            hint = _suggested(str(got), TRAINABLE) if "trainable" in place else ""
            yield f"{where}: {fault['msg']}, got {got!r}{hint}"


def _known(place: Sequence[str]) -> tuple[str, ...]:
    """The keys of a section, by its place in the file."""
    kinds: dict[str, Any] = {"data": DataSettings, "language": LanguageSettings, **dict.fromkeys(PHASES, PhaseSettings)}
    kind = kinds.get(place[0]) if place else TrainingSettings
    names = tuple(f.name for f in dataclasses.fields(kind)) if kind is not None else ()
    return names if place else (*(n for n in names if n != "phases"), "include", *PHASES)


def _suggested(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _model_faults(model: Any) -> Iterator[str]:
    """Keys of `[model]` that no part of the model has: its configuration would carry them along without a word."""
    if not isinstance(model, dict) or not model:
        return
    from transformers import Gemma3TextConfig, SiglipVisionConfig

    from braingemma.configuration import BrainGemmaConfig, VolumeSettings

    kinds: dict[str, Any] = {"volume": VolumeSettings, "vision": SiglipVisionConfig, "text": Gemma3TextConfig}
    own = {name for name in BrainGemmaConfig.__annotations__ if not name.endswith("_config")} - {"model_type"}
    for key, value in model.items():
        if key in ("training_domain", "banner", "synthetic_only", "lora"):
            yield f"model.{key} follows from the training: leave it out"
        elif key not in own | set(kinds):
            yield f"model.{key} is unknown{_suggested(key, sorted(own | set(kinds)))}"
        elif key in kinds and isinstance(value, dict):
            names = {f.name for f in dataclasses.fields(kinds[key])}
            yield from (
                f"model.{key}.{name} is unknown{_suggested(name, sorted(names))}" for name in value if name not in names
            )
