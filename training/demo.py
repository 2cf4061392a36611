"""The `demo` weights from nothing, by one command: phantoms, language model, the card's three phases, judgement."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from braingemma.configuration import BrainGemmaConfig
from braingemma.findings.text import Finding
from braingemma.model.braingemma3d import BrainGemma3D
from training.data.batches import TokenSource, VolumeSource, validation_batch
from training.data.cases import Cases, prepare_case, training_phantom
from training.data.targets import findings_target
from training.errors import DataError, SettingsError
from training.phases.calibration import calibrate
from training.phases.four_bit import round_to_nf4
from training.phases.language_pretraining import pretrain_language
from training.phases.loop import Outcome, Progress, Source, Trainer
from training.phases.objectives import make_phase
from training.phases.run_folder import RunFolder, data_digest
from training.phases.tokenizer import build_tokenizer
from training.settings import DataSettings, PhaseSettings, TrainingSettings

BANNER: Final = "Demo weights, trained on synthetic images only: not a statement about any patient."
_CHUNK: Final = 25
Say = Callable[[str], None]


def demo_config(settings: TrainingSettings) -> BrainGemmaConfig:
    """The demo model's configuration from the `[model]` table."""
    if "vision" not in settings.model or "text" not in settings.model:
        raise SettingsError("[model] needs the tables vision and text to make a model from nothing")
    rest = {k: v for k, v in settings.model.items() if k not in ("vision", "text")}
    return BrainGemmaConfig(
        vision_config=settings.model["vision"],
        text_config={**settings.model["text"], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        synthetic_only=True,
        banner=BANNER,
        training_domain="synthetic FLAIR phantoms drawn from the MNI152 tissue maps",
        grounding_head=True,
        findings_head=True,
        **rest,
    )


def new_model(settings: TrainingSettings, seed: int = 0) -> BrainGemma3D:
    """A model with random weights and the demo's tokenizer."""
    torch.manual_seed(seed)
    config = demo_config(settings)
    return BrainGemma3D(config, tokenizer=build_tokenizer(config.text_config.vocab_size))


# ---- data


def training_cases(data: DataSettings, config: BrainGemmaConfig, cache: str, say: Say = print) -> tuple[Cases, Cases]:
    """(training, validation) phantoms; those of a kind that was asked for have the seeds after validation's."""
    seed = data.seed + data.count
    train = [phantom_cases(config, data.seed, data.count, cache, say)]
    validation = phantom_cases(config, seed, data.validation, cache, say)
    seed += data.validation
    for kind, count in (("bilateral", data.bilateral), ("plaques", data.plaques)):
        if count:
            train.append(phantom_cases(config, seed, count, cache, say, kind))
        seed += count
    return Cases.join(train), validation


def phantom_cases(
    config: BrainGemmaConfig, first: int, count: int, cache: str = "", say: Say = print, kind: str = "any"
) -> Cases:
    """Prepared phantoms of the seeds `first` … `first + count - 1`, drawn by all processors; kept in `cache`."""
    starts = range(first, first + count, _CHUNK)
    jobs = [(config.to_dict(), start, min(_CHUNK, first + count - start), cache, kind) for start in starts]
    parts: list[Cases] = []
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        for number, part in enumerate(pool.map(_draw_chunk, jobs)):
            parts.append(part)
            if number % 10 == 9:
                say(f"phantoms: {sum(map(len, parts))} of {count}")
    return Cases.join(parts)


def _draw_chunk(job: tuple[dict[str, Any], int, int, str, str]) -> Cases:
    torch.set_num_threads(1)
    threadpool_limits(1)  # one process for each processor: BLAS threads of their own would only spin
    raw, start, count, cache, kind = job
    config = BrainGemmaConfig(**raw)
    file = None
    if cache:
        ending = "" if kind == "any" else f"-{kind}"
        name = f"phantoms-{config.volume_settings!r}-{start}-{count}.safetensors{ending}"
        file = Path(cache) / f"phantoms-{_short_digest(name)}.safetensors"
        if file.exists():
            return load_cases(file)
    seeds = range(start, start + count)
    cases = Cases.join([prepare_case(training_phantom(seed, kind), config) for seed in seeds])
    if file is not None:
        save_cases(cases, file)
    return cases


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_cases(cases: Cases, file: Path) -> None:
    """Write cases to one safetensors file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "findings": json.dumps([[f.to_json() for f in case] for case in cases.findings]),
        "reports": json.dumps(cases.reports),
    }
    part = file.with_suffix(".part")
    save_file({"volumes": cases.volumes, "masks": cases.masks}, part, metadata=metadata)
    part.replace(file)


def load_cases(file: Path) -> Cases:
    """Read what `save_cases` wrote."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    if not metadata or "findings" not in metadata:
        raise DataError(f"{file}: expected prepared cases with findings and reports")
    findings = tuple(tuple(Finding.from_json(e) for e in case) for case in json.loads(metadata["findings"]))
    targets = torch.stack([findings_target(f) for f in findings])
    return Cases(tensors["volumes"], tensors["masks"], targets, findings, tuple(json.loads(metadata["reports"])))


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


def language_stage(model: BrainGemma3D, settings: TrainingSettings, run: RunFolder, progress: Progress) -> None:
    """Text-only training, or what an earlier start of this run left of it."""
    kept = run.root / "language.safetensors"
    if kept.exists():
        model.language_model.load_state_dict(load_file(kept), strict=False)
        return
    history: list[dict[str, float]] = []

    def log(step: int, loss: float) -> None:
        history.append({"step": float(step + 1), "loss": loss})
        progress("language", step + 1, settings.language.steps, {"loss": loss})

    if settings.language.steps:
        pretrain_language(model, settings.language, log)
        run.write_history("language", history)
    own = {n: p.contiguous() for n, p in model.language_model.named_parameters()}
    save_file(own, kept)
