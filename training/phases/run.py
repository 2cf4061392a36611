"""The card's three phases from a configuration file: one, or all; on one processor, or many by `accelerate launch`."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from braingemma.checkpoint.weights import CONFIG_FILE
from braingemma.configuration import VolumeSettings
from braingemma.model.braingemma3d import COMPONENTS, BrainGemma3D
from training.data.batches import TokenSource, ValidationSource, VolumeSource, moves_tokens
from training.data.cases import Cases
from training.data.phantom_cases import judging_cases, training_cases
from training.data.record_cases import record_cases, unmasked_lesions
from training.data.records import Record, read_checked
from training.data.splits import chosen, with_splits
from training.errors import DataError, ResumeError, SettingsError
from training.phases.bases import compose_model, new_model
from training.phases.calibration import calibrate, fit_doubt
from training.phases.four_bit import round_to_nf4
from training.phases.language_pretraining import language_stage
from training.phases.loop import Outcome, Source, Trainer
from training.phases.objectives import Phase, make_phase
from training.phases.run_folder import RunFolder, data_digest
from training.phases.weights import TrainingData, describe, drop_untrained_heads, save_weights
from training.progress import Progress, Say, no_progress, silent
from training.settings import OVERRIDES, PHASES, PhaseSettings, TrainingSettings, load_settings

_PATIENCE: Final = timedelta(hours=24)
"""Preparing the data and the language model is the first process's; the others wait for it."""


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Where and in what precision; weights stay float32.

    Raises:
        SettingsError: several processes were started, but do not train together.
    """
    # Phase 1's own maps take no part where their loss has no weight.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True), InitProcessGroupKwargs(timeout=_PATIENCE)]
    started = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = started > 1 and not torch.cuda.is_available()  # else each would train alone
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=on_cpu, kwargs_handlers=handlers)
    if accelerator.num_processes != started:
        raise SettingsError(f"{started} processes were started, but {accelerator.num_processes} would train together")
    return accelerator


def train_phases(
    settings: TrainingSettings,
    out: Path,
    names: Sequence[str] = (),
    progress: Progress = no_progress,
    say: Say = silent,
    accelerator: Accelerator | None = None,
) -> BrainGemma3D:
    """Train these phases after those before them, which the run folder must hold; a killed run goes on.

    Args:
        settings: The configuration.
        out: Run folder.
        names: Out of "phase1", "phase2a", "phase2b"; none: all that the configuration has.
        progress: Told each step of a phase.
        say: Told what is being done.
        accelerator: None: `make_accelerator(settings)`.

    Raises:
        SettingsError: the configuration has none of these phases, or cannot be trained.
        DataError: everything that is wrong with the data, at once.
        ResumeError: a phase before these is not finished in the run folder, or the folder is of another run.
    """
    planned = [settings.phase(name) for name in names] or list(settings.phases)
    accelerator = accelerator or make_accelerator(settings)
    if settings.start:
        settings = with_start(settings, out, progress, say, accelerator)
    folder = RunFolder(out)
    with folder.locked() if accelerator.is_main_process else nullcontext():
        model = start_model(settings, accelerator.device)
        with accelerator.main_process_first():
            data = load_data(settings, model, out, say)
        digest = data_digest(data.training)
        folder.check_same(settings, digest)
        accelerator.wait_for_everyone()  # all have read what the first writes now
        if accelerator.is_main_process:
            folder.start(settings, digest)
        with accelerator.main_process_first():
            prepare_language(model, settings, folder, progress, say)
        runner = PhaseRunner(model, settings, data, folder, accelerator, progress, say)
        last = max(PHASES.index(phase.name) for phase in planned)
        for phase in settings.phases:
            if phase in planned:
                runner.train(phase)
            elif PHASES.index(phase.name) < last:
                runner.take_over(phase)
        runner.save()
    return model


# ---- model and data


def with_start(
    settings: TrainingSettings, out: Path, progress: Progress, say: Say, accelerator: Accelerator
) -> TrainingSettings:
    """The settings with the weights of the run that `start` names, which is trained here where they are not there."""
    earlier = out / "start"
    weights = RunFolder(earlier).weights
    if not (weights / CONFIG_FILE).exists():
        say(f"start: {settings.start}")
        train_phases(load_settings(settings.start), earlier, (), progress, say, accelerator)
    say(f"start: weights of {weights}")
    return replace(settings, start="", weights=str(weights))


def start_model(settings: TrainingSettings, device: torch.device) -> BrainGemma3D:
    """Weights to go on from, a model composed of two, or one from nothing.

    Raises:
        SettingsError: the configuration names none of them.
    """
    for name in settings.plugins:
        _import_plugin(name)
    torch.manual_seed(0)
    if settings.weights:
        model = BrainGemma3D.from_pretrained(
            settings.weights, device=str(device), quantization=settings.quantization, dtype="float32"
        )
        _override(model, settings)
    elif isinstance(settings.model.get("vision"), str) and isinstance(settings.model.get("text"), str):
        model = compose_model(settings, device)
    elif settings.model:
        model = new_model(settings)
        model.to(device)
    else:
        raise SettingsError("the configuration needs weights, or [model] to make some from")
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.requires_grad_(False)
    return model.eval()


def _override(model: BrainGemma3D, settings: TrainingSettings) -> None:
    """What `[model]` says beside the weights: of the volume, only what it names changes."""
    for name in OVERRIDES:
        if name in settings.model:
            value = settings.model[name]
            whole = asdict(VolumeSettings(**{**model.config.volume, **value})) if name == "volume" else value
            setattr(model.config, name, whole)


def _import_plugin(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"plugins: cannot import {name}: {error}") from error


def prepare_language(
    model: BrainGemma3D, settings: TrainingSettings, folder: RunFolder, progress: Progress, say: Say = silent
) -> None:
    """A language model from nothing first learns to write, and is rounded to what its 4-bit form will hold."""
    if settings.weights or not isinstance(settings.model.get("text"), dict):
        return
    language_stage(model, settings, folder, progress)
    say(f"language model rounded to 4 bit: {round_to_nf4(model.language_model)} layers")


def load_data(settings: TrainingSettings, model: BrainGemma3D, out: Path, say: Say) -> TrainingData:
    """The cases to train and to validate on.

    Raises:
        DataError: everything that is missing, broken or inconsistent, at once.
    """
    data = settings.data
    cache = data.cache or str(out / "cases")
    if data.kind == "phantoms":
        drawn = training_cases(data, model.config, cache, say)
        hard = "hard and plain " if data.plain else "hard "
        kind = f"{hard}synthetic" if data.difficulty == "hard" else "synthetic"
        return TrainingData(*drawn, f"{kind} FLAIR phantoms drawn from the MNI152 tissue maps")
    say(f"checking the cases of {data.manifest}")
    records = with_splits(read_checked(Path(data.manifest)), data.seed)
    parts = chosen(records, "train"), chosen(records, "val")
    _check_dense(settings, [name for part in parts for name in unmasked_lesions(part)])
    train, validation = (record_cases(part, model.config, Path(cache), say) for part in parts)
    return TrainingData(train, validation, described_records(parts[0], Path(data.manifest).name))


def described_records(records: Sequence[Record], manifest: str) -> str:
    """How many cases of which source, in words."""
    counts = Counter(record.source or f"cases of {manifest}" for record in records)
    return ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))


def _check_dense(settings: TrainingSettings, unmasked: list[str]) -> None:
    for phase in settings.phases:
        if phase.name == "phase1" and phase.parts:
            raise SettingsError("phase1.parts needs the parts of each lesion, which only phantoms have: set it to 0")
        if phase.name == "phase1" and phase.grounding and unmasked:
            raise DataError(
                f"phase1.grounding needs a mask for every lesion, {len(unmasked)} have none: "
                f"{', '.join(unmasked[:10])}; add masks, or set it to 0"
            )


# ---- one phase


@dataclass
class PhaseRunner:
    """Trains one phase after another; the model is changed in place.

    What a phase adds for itself is drawn in the order of the phases from the generator's state at the start, whether
    they are trained or taken over: the same in every process, and when a run goes on.
    """

    model: BrainGemma3D
    settings: TrainingSettings
    data: TrainingData
    folder: RunFolder
    accelerator: Accelerator
    progress: Progress = no_progress
    say: Say = silent
    generator: Tensor = field(default_factory=torch.get_rng_state)
    tokens: TokenSource | None = None
    trained: set[str] = field(default_factory=set)

    def train(self, settings: PhaseSettings) -> Outcome:
        """One phase to its end, and the probabilities of its findings calibrated.

        Raises:
            ResumeError: it was begun in the run folder by other settings, and is not finished.
        """
        self._note_changes(settings)
        phase, begun = self._phase(settings), self._parameters(settings)
        trainer = Trainer(
            phase,
            self._source(settings),
            self.folder,
            validator(phase, self.data.validation, settings),
            self.progress,
            self.accelerator,
            workers=self.settings.data.workers,
        )
        parts = ", ".join(f"{name} {count:,}" for name, count in phase.describe().items())
        self.say(f"{settings.name}: {trainer.total} steps of {settings.batch}; trainable: {parts}")
        if self.accelerator.is_main_process:
            self.folder.begin_phase(settings, self.settings)
        outcome = trainer.train()
        if self.accelerator.is_main_process:
            self.folder.end_phase(settings.name, {"steps": outcome.steps, "best_validation_loss": outcome.best})
        self.say(f"{settings.name}: {outcome.steps} steps, best validation loss {outcome.best:.4f}")
        self._finish(settings, begun)
        return outcome

    def take_over(self, settings: PhaseSettings) -> None:
        """What an earlier start of this run left of a phase.

        Raises:
            ResumeError: it has not come to its end in the run folder.
        """
        self._note_changes(settings)
        phase, begun = self._phase(settings), self._parameters(settings)
        source = VolumeSource(self.data.training, self.model, settings)
        Trainer(phase, source, self.folder, accelerator=self.accelerator).restore()
        self.say(f"{settings.name}: taken over from {self.folder.root}")
        self._finish(settings, begun)

    def save(self) -> None:
        """The weights, with what follows from what they were trained on; heads that no phase trained are left out."""
        begun = bool(self.settings.weights)
        describe(self.model, self.data, begun_from_weights=begun)
        dropped = [] if begun else drop_untrained_heads(self.model, self.trained)
        self._fit_doubt()
        if self.accelerator.is_main_process:
            save_weights(self.model, self.folder)
        self.accelerator.wait_for_everyone()
        if dropped:
            self.say(f"not saved, as no phase trained it: head for {' and '.join(dropped)}")

    def _fit_doubt(self) -> None:
        """On hard phantoms the model errs as it does on scanners, so only a run on them says how often it is wrong.

        Plain ones are judged beside them, where `[data] judging` asks for it: most pictures are clear.
        """
        data, written = self.settings.data, "lora" in self.trained
        if data.kind != "phantoms" or data.difficulty != "hard" or not written:
            return
        self.say("fitting the chance of an error")
        cache = data.cache or str(self.folder.root / "cases")
        judging = judging_cases(data, self.model.config, cache, self.say)
        fitted = fit_doubt(self.model, Cases.join([self.data.validation, *judging]))
        self.model.config.doubt = None if fitted is None else fitted.to_json()

    def _note_changes(self, settings: PhaseSettings) -> None:
        changes = "; ".join(self.folder.changed(settings, self.settings))
        if not changes:
            return
        state = self.folder.load_state(settings.name)
        if state is None or not state["finished"]:
            raise ResumeError(
                f"{self.folder.root}: {settings.name} was begun with other settings: {changes}; use another --out"
            )
        self.say(f"{settings.name} is finished, and was trained with other settings: {changes}")

    def _phase(self, settings: PhaseSettings) -> Phase:
        torch.set_rng_state(self.generator)
        phase = make_phase(self.model, settings)
        self.generator = torch.get_rng_state()
        return phase

    def _source(self, settings: PhaseSettings) -> Source:
        """Volumes; where a phase leaves the vision alone, tokens made once, for all such phases of one seed."""
        if moves_tokens(settings):
            return VolumeSource(self.data.training, self.model, settings)
        if self.tokens is None or self.tokens.settings.seed != settings.seed:
            self.tokens = TokenSource(self.data.training, self.model, settings)
        return self.tokens.of(settings)

    def _parameters(self, settings: PhaseSettings) -> dict[str, Tensor]:
        """Copies of what a phase trains of the model, where some of it is to be kept."""
        if not settings.start_share:
            return {}
        kept = {
            id(p) for part in settings.trainable if part in COMPONENTS for p in self.model.component_parameters(part)
        }
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if id(p) in kept}

    def _finish(self, settings: PhaseSettings, begun: Mapping[str, Tensor]) -> None:
        self.model.requires_grad_(False)
        self.model.eval()
        for name, parameter in self.model.named_parameters():
            if name in begun:
                parameter.data.lerp_(begun[name], settings.start_share)
        self.trained |= set(settings.trainable)
        if moves_tokens(settings):
            self.tokens = None
        if "findings" in settings.trainable:
            calibrate(self.model, self.data.validation)


def validator(phase: Phase, cases: Cases, settings: PhaseSettings) -> Callable[[], dict[str, float]]:
    """Losses on fixed cases, in pieces of a training pass's size; every process measures all of them."""
    source = ValidationSource(cases, phase.model, settings, max(1, settings.batch // settings.accumulate))

    @torch.no_grad()
    def validate() -> dict[str, float]:
        sums: dict[str, float] = {}
        for share, batch in source:
            on_device = {name: value.to(phase.model.compute_device) for name, value in batch.items()}
            for name, value in phase(on_device).items():
                sums[name] = sums.get(name, 0.0) + float(value) * share
        return sums

    return validate
