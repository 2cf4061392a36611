"""The `demo` weights from nothing, by one command: phantoms, language model, the card's three phases, judgement."""

from __future__ import annotations

from pathlib import Path

import torch

from braingemma.model.braingemma3d import BrainGemma3D
from training.data.batches import TokenSource, VolumeSource, validation_batch
from training.data.cases import Cases
from training.data.phantom_cases import training_cases
from training.phases.bases import new_model
from training.phases.calibration import calibrate
from training.phases.four_bit import round_to_nf4
from training.phases.language_pretraining import language_stage
from training.phases.loop import Outcome, Source, Trainer
from training.phases.objectives import make_phase
from training.phases.run_folder import RunFolder, data_digest
from training.progress import Progress, Say
from training.settings import PhaseSettings, TrainingSettings

# ---- data


# ---- phases


def run_phase(
    model: BrainGemma3D,
    settings: PhaseSettings,
    train: Cases,
    validation: Cases,
    run: RunFolder,
    progress: Progress,
    source: Source | None = None,
) -> Outcome:
    """One phase on these cases; the model is changed in place. `source`: batches; None makes them."""
    phase = make_phase(model, settings)
    source = source or make_source(model, settings, train)
    fixed = validation_batch(validation, model, settings.seed)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        return {name: float(value) for name, value in phase(fixed).items()}

    outcome = Trainer(phase, source, run, validate, progress).train()
    model.requires_grad_(False)
    model.eval()
    return outcome


def make_source(model: BrainGemma3D, settings: PhaseSettings, train: Cases, before: Source | None = None) -> Source:
    """Batches of a phase; where it leaves the vision alone, tokens made once, taken over from the phase `before`."""
    if {"vision", "resampler"} & set(settings.trainable):
        return VolumeSource(train, model, settings)
    return before.of(settings) if isinstance(before, TokenSource) else TokenSource(train, model, settings)


def train_demo(settings: TrainingSettings, out: Path, progress: Progress, say: Say = print) -> BrainGemma3D:
    """Everything in order; a run that was killed goes on from its folder when started again."""
    run = RunFolder(out)
    out.mkdir(parents=True, exist_ok=True)
    model = new_model(settings)
    say("drawing phantoms")
    data = settings.data
    cache = data.cache or str(out / "cases")
    train, validation = training_cases(data, model.config, cache, say)
    run.start(settings, data_digest(train))
    language_stage(model, settings, run, progress)
    rounded = round_to_nf4(model.language_model)
    say(f"language model rounded to 4 bit: {rounded} layers")
    source: Source | None = None
    for phase in settings.phases:
        source = make_source(model, phase, train, source)
        outcome = run_phase(model, phase, train, validation, run, progress, source)
        say(f"{phase.name}: {outcome.steps} steps, best validation loss {outcome.best:.4f}")
        if "findings" in phase.trainable:
            calibrate(model, validation)
    model.save_pretrained(run.weights)
    return model
