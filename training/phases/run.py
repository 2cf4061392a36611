"""The card's three phases from a configuration file: one, or all; on one processor, or many by `accelerate launch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor

from braingemma.checkpoint.weights import CONFIG_FILE
from braingemma.configuration import VolumeSettings
from braingemma.model.braingemma3d import BrainGemma3D
from training.data.batches import Batch, TokenSource, VolumeSource, validation_batch
from training.data.cases import Cases
from training.data.phantom_cases import training_cases
from training.data.record_cases import record_cases, unmasked_lesions
from training.data.records import check_records, read_manifest
from training.data.splits import chosen, with_splits
from training.errors import DataError, SettingsError
from training.phases.bases import compose_model, new_model
from training.phases.calibration import calibrate
from training.phases.four_bit import round_to_nf4
from training.phases.language_pretraining import language_stage
from training.phases.loop import Outcome, Source, Trainer
from training.phases.objectives import Phase, make_phase
from training.phases.run_folder import RunFolder, data_digest
from training.progress import Progress, Say, no_progress, silent
from training.settings import OVERRIDES, PHASES, PhaseSettings, TrainingSettings, load_settings


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Where and in what precision; weights stay float32."""
    # Phase 1's own maps take no part where their loss has no weight.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    return Accelerator(mixed_precision=settings.precision, kwargs_handlers=handlers)


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
    model = start_model(settings, accelerator.device)
    with accelerator.main_process_first():
        train, validation = load_data(settings, model, out, say)
    digest = data_digest(train)
    folder.check_same(settings, digest)
    if accelerator.is_main_process:
        folder.start(settings, digest)
    with accelerator.main_process_first():
        prepare_language(model, settings, folder, progress, say)
    runner = PhaseRunner(model, train, validation, folder, accelerator, progress, say)
    last = max(PHASES.index(phase.name) for phase in planned)
    for phase in settings.phases:
        if phase in planned:
            runner.train(phase)
        elif PHASES.index(phase.name) < last:
            runner.take_over(phase)
    if accelerator.is_main_process:
        model.save_pretrained(folder.weights)
    accelerator.wait_for_everyone()
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
    model.requires_grad_(False)
    return model.eval()


def _override(model: BrainGemma3D, settings: TrainingSettings) -> None:
    """What `[model]` says beside the weights: of the volume, only what it names changes."""
    for name in OVERRIDES:
        if name in settings.model:
            value = settings.model[name]
            whole = asdict(VolumeSettings(**{**model.config.volume, **value})) if name == "volume" else value
            setattr(model.config, name, whole)


def prepare_language(
    model: BrainGemma3D, settings: TrainingSettings, folder: RunFolder, progress: Progress, say: Say = silent
) -> None:
    """A language model from nothing first learns to write, and is rounded to what its 4-bit form will hold."""
    if settings.weights or not isinstance(settings.model.get("text"), dict):
        return
    language_stage(model, settings, folder, progress)
    say(f"language model rounded to 4 bit: {round_to_nf4(model.language_model)} layers")


def load_data(settings: TrainingSettings, model: BrainGemma3D, out: Path, say: Say) -> tuple[Cases, Cases]:
    """(training, validation) cases.

    Raises:
        DataError: everything that is missing, broken or inconsistent, at once.
    """
    data = settings.data
    cache = data.cache or str(out / "cases")
    if data.kind == "phantoms":
        return training_cases(data, model.config, cache, say)
    records = with_splits(read_manifest(Path(data.manifest)), data.seed)
    say(f"checking {len(records)} cases")
    check_records(records)
    parts = chosen(records, "train"), chosen(records, "val")
    _check_dense(settings, [name for part in parts for name in unmasked_lesions(part)])
    train, validation = (record_cases(part, model.config, Path(cache), say) for part in parts)
    return train, validation


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
    training: Cases
    validation: Cases
    folder: RunFolder
    accelerator: Accelerator
    progress: Progress = no_progress
    say: Say = silent
    generator: Tensor = field(default_factory=torch.get_rng_state)
    tokens: TokenSource | None = None

    def train(self, settings: PhaseSettings) -> Outcome:
        """One phase to its end, and the probabilities of its findings calibrated."""
        phase = self._phase(settings)
        trainer = Trainer(
            phase,
            self._source(settings),
            self.folder,
            validator(phase, self.validation, settings),
            self.progress,
            self.accelerator,
        )
        parts = ", ".join(f"{name} {count:,}" for name, count in phase.describe().items())
        self.say(f"{settings.name}: {trainer.total} steps of {settings.batch}; trainable: {parts}")
        outcome = trainer.train()
        self.say(f"{settings.name}: {outcome.steps} steps, best validation loss {outcome.best:.4f}")
        self._finish(settings)
        return outcome

    def take_over(self, settings: PhaseSettings) -> None:
        """What an earlier start of this run left of a phase.

        Raises:
            ResumeError: it has not come to its end in the run folder.
        """
        source = VolumeSource(self.training, self.model, settings)
        Trainer(self._phase(settings), source, self.folder, accelerator=self.accelerator).restore()
        self.say(f"{settings.name}: taken over from {self.folder.root}")
        self._finish(settings)

    def _phase(self, settings: PhaseSettings) -> Phase:
        torch.set_rng_state(self.generator)
        phase = make_phase(self.model, settings)
        self.generator = torch.get_rng_state()
        return phase

    def _source(self, settings: PhaseSettings) -> Source:
        """Volumes; where a phase leaves the vision alone, tokens made once, for all such phases of one seed."""
        if moves_tokens(settings):
            return VolumeSource(self.training, self.model, settings)
        if self.tokens is None or self.tokens.settings.seed != settings.seed:
            self.tokens = TokenSource(self.training, self.model, settings)
        return self.tokens.of(settings)

    def _finish(self, settings: PhaseSettings) -> None:
        self.model.requires_grad_(False)
        self.model.eval()
        if moves_tokens(settings):
            self.tokens = None
        if "findings" in settings.trainable:
            calibrate(self.model, self.validation)


def moves_tokens(settings: PhaseSettings) -> bool:
    """Whether a phase changes what the resampler gives."""
    return bool({"vision", "resampler"} & set(settings.trainable))


def validator(phase: Phase, cases: Cases, settings: PhaseSettings) -> Callable[[], dict[str, float]]:
    """Losses on fixed cases, in pieces of a training pass's size; every process measures all of them."""
    size = max(1, settings.batch // settings.accumulate)
    rows = [list(range(start, min(start + size, len(cases)))) for start in range(0, len(cases), size)]

    def batch(chosen_rows: list[int]) -> Batch:
        fixed = validation_batch(cases.select(chosen_rows), phase.model, settings.seed)
        return {name: value.to(phase.model.compute_device) for name, value in fixed.items()}

    @torch.no_grad()
    def validate() -> dict[str, float]:
        sums: dict[str, float] = {}
        for chosen_rows in rows:
            for name, value in phase(batch(chosen_rows)).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(chosen_rows) / len(cases)
        return sums

    return validate
