"""The card's three phases from a configuration file: one, or all; on one processor, or many by `accelerate launch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

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
from training.phases.loop import Outcome, Trainer
from training.phases.objectives import Phase, make_phase
from training.phases.run_folder import RunFolder, data_digest
from training.progress import Progress, Say
from training.settings import PHASES, PhaseSettings, TrainingSettings


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Where and in what precision; weights stay float32."""
    # Phase 1's own maps take no part where their loss has no weight.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    return Accelerator(mixed_precision=settings.precision, kwargs_handlers=handlers)


def train_phases(
    settings: TrainingSettings,
    out: Path,
    names: Sequence[str],
    progress: Progress = lambda _phase, _step, _total, _losses: None,
    say: Say = lambda _text: None,
    accelerator: Accelerator | None = None,
) -> BrainGemma3D:
    """Train these phases after those before them, which the run folder must hold; a killed run goes on.

    Args:
        settings: The configuration.
        out: Run folder.
        names: Out of "phase1", "phase2a", "phase2b", in order.
        progress: Told each step of a phase.
        say: Told what is being done.
        accelerator: None: `make_accelerator(settings)`.

    Raises:
        SettingsError: the configuration has none of these phases, or cannot be trained.
        DataError: everything that is wrong with the data, at once.
        ResumeError: a phase before these is not finished in the run folder, or the folder is of another run.
    """
    planned = [settings.phase(name) for name in names]
    accelerator = accelerator or make_accelerator(settings)
    run = RunFolder(out)
    model = start_model(settings, accelerator.device)
    with accelerator.main_process_first():
        train, validation = load_data(settings, model, out, say)
    digest = data_digest(train)
    run.check_same(settings, digest)
    if accelerator.is_main_process:
        run.start(settings, digest)
    with accelerator.main_process_first():
        prepare_language(model, settings, run, progress)
    last = max(PHASES.index(phase.name) for phase in planned)
    for phase in settings.phases:
        if phase in planned:
            outcome = run_phase(model, phase, (train, validation), run, accelerator, progress, say)
            say(f"{phase.name}: {outcome.steps} steps, best validation loss {outcome.best:.4f}")
        elif PHASES.index(phase.name) < last:
            _trainer(model, phase, train, run, accelerator, restored=True).restore()
            say(f"{phase.name}: taken over from {run.root}")
        if "findings" in phase.trainable:
            calibrate(model, validation)
    if accelerator.is_main_process:
        model.save_pretrained(run.weights)
    accelerator.wait_for_everyone()
    return model


# ---- model and data


def start_model(settings: TrainingSettings, device: torch.device) -> BrainGemma3D:
    """Weights to go on from, a model composed of two, or one from nothing.

    Raises:
        SettingsError: the configuration names none of them.
    """
    if settings.weights:
        model = BrainGemma3D.from_pretrained(
            settings.weights, device=str(device), quantization=settings.quantization, dtype="float32"
        )
    elif isinstance(settings.model.get("vision"), str) and isinstance(settings.model.get("text"), str):
        model = compose_model(settings, device)
    elif settings.model:
        model = new_model(settings)
        model.to(device)
    else:
        raise SettingsError("the configuration needs weights, or [model] to make some from")
    model.requires_grad_(False)
    return model.eval()


def prepare_language(model: BrainGemma3D, settings: TrainingSettings, run: RunFolder, progress: Progress) -> None:
    """A language model from nothing first learns to write, and is rounded to what its 4-bit form will hold."""
    if settings.weights or not isinstance(settings.model.get("text"), dict):
        return
    language_stage(model, settings, run, progress)
    round_to_nf4(model.language_model)


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


def run_phase(
    model: BrainGemma3D,
    settings: PhaseSettings,
    data: tuple[Cases, Cases],
    run: RunFolder,
    accelerator: Accelerator,
    progress: Progress,
    say: Say,
) -> Outcome:
    """One phase on (training, validation) cases; the model is changed in place."""
    trainer = _trainer(model, settings, data[0], run, accelerator)
    parts = ", ".join(f"{name} {count:,}" for name, count in trainer.phase.describe().items())
    say(f"{settings.name}: {trainer.total} steps of {settings.batch}; trainable: {parts}")
    trainer.validate = validator(trainer.phase, data[1], settings)
    trainer.progress = progress
    outcome = trainer.train()
    model.requires_grad_(False)
    model.eval()
    return outcome


def _trainer(
    model: BrainGemma3D,
    settings: PhaseSettings,
    train: Cases,
    run: RunFolder,
    accelerator: Accelerator,
    *,
    restored: bool = False,
) -> Trainer:
    # What a phase adds for itself starts the same in every process, and when a run goes on.
    torch.manual_seed(settings.seed)
    phase = make_phase(model, settings)
    frozen_vision = not {"vision", "resampler"} & set(settings.trainable)
    keeps_tokens = frozen_vision and not restored
    source: Any = (TokenSource if keeps_tokens else VolumeSource)(train, model, settings)
    return Trainer(phase, source, run, accelerator=accelerator)


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
