"""What a run will take, before it is started: parameters, memory, hours, from a few timed steps on noise."""

from __future__ import annotations

import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from braingemma.findings.vocabulary import FINDINGS, Finding
from braingemma.model.braingemma3d import BrainGemma3D
from training.data.batches import TokenSource, VolumeSource, moves_tokens
from training.data.cases import Cases
from training.data.records import Record, read_manifest
from training.data.splits import chosen, with_splits
from training.data.targets import findings_target
from training.phantoms.lesions import PARTS
from training.phantoms.wording import write_report
from training.phases.loop import Trainer
from training.phases.objectives import make_phase
from training.phases.run import make_accelerator, start_model
from training.phases.run_folder import RunFolder
from training.progress import Say, silent
from training.settings import DataSettings, PhaseSettings, TrainingSettings, load_settings

_TIMED: Final = 2
"""Steps that are timed, after one that is not."""


@dataclass(frozen=True)
class PhasePlan:
    """What one phase will take.

    Attributes:
        name: Of the phase.
        steps: Optimiser steps.
        trainable: Numbers that learn, by part.
        seconds: Of one step in the mean, loading and augmentation included.
        encoding_seconds: To encode once what no step changes: each volume where the phase leaves the vision alone, each
            report where it is embedded beforehand.
        memory_gib: Highest use so far: of the GPU, or of this process's memory on a CPU.
    """

    name: str
    steps: int
    trainable: dict[str, int]
    seconds: float
    encoding_seconds: float
    memory_gib: float

    @property
    def hours(self) -> float:
        """From the first to the last step, without validation."""
        return (self.steps * self.seconds + self.encoding_seconds) / 3600


@dataclass(frozen=True)
class RunPlan:
    """What a run will take; `parameters` of each part of the model, `cases` to train on."""

    device: str
    parameters: dict[str, int]
    cases: int
    phases: tuple[PhasePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "hours": sum(phase.hours for phase in self.phases)}

    def text(self) -> str:
        """A table."""
        width = max(8, *(len(p.name) for p in self.phases))
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        lines = [
            f"{self.cases} training cases on {self.device}; parameters: {parts}",
            f"{'phase':{width}} steps    trainable        s/step   memory GiB   hours",
        ]
        for p in self.phases:
            count = sum(p.trainable.values())
            lines.append(
                f"{p.name:{width}} {p.steps:<8} {count:<16,} {p.seconds:<8.2f} {p.memory_gib:<12.2f} {p.hours:.2f}"
            )
        lines.append(
            f"in all {sum(p.hours for p in self.phases):.2f} hours, without preparing cases, validating, and teaching "
            "a new language model to write"
        )
        return "\n".join(lines)


def plan_run(settings: TrainingSettings, names: Sequence[str] = (), say: Say = silent) -> RunPlan:
    """Time a few steps of these phases, none: of all, and of the runs that this one starts from.

    Nothing is written, and no case is prepared.

    Raises:
        SettingsError: see `start_model`.
        DataError: the manifest has lines that cannot be used.
    """
    accelerator = make_accelerator(settings)
    say("loading the model")
    earlier = _earlier(settings)
    # The model of a run that starts from another's weights is that of the first.
    model = start_model(earlier[0][1] if earlier else settings, accelerator.device)
    planned = [(f"{name} ", part, phase) for name, part in earlier for phase in part.phases]
    planned += [("", settings, phase) for phase in ([settings.phase(name) for name in names] or settings.phases)]
    phases = []
    for label, part, phase in planned:
        say(f"timing {label}{phase.name}")
        timed = _timed(model, phase, part.data)
        phases.append(replace(timed, name=f"{label}{phase.name}"))
    counts = {
        name: sum(_count(p) for p in part.parameters())
        for name, part in model.named_children()
        if part is not None and any(True for _ in part.parameters())
    }
    return RunPlan(accelerator.device.type, counts, _case_count(settings.data), tuple(phases))


def _earlier(settings: TrainingSettings) -> list[tuple[str, TrainingSettings]]:
    """The runs that are trained before, as each starts from the one before it; the first one first."""
    found: list[tuple[str, TrainingSettings]] = []
    while settings.start:
        name, settings = settings.start, load_settings(settings.start)
        found.insert(0, (name, settings))
    return found


def _count(parameter: Any) -> int:
    """Numbers of a parameter, also of one that is packed in four bits."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def _timed(model: BrainGemma3D, settings: PhaseSettings, data: DataSettings) -> PhasePlan:
    noise, cases = _noise(model, data, settings.batch), _case_count(data)
    steps = settings.total_steps(cases)
    phase = make_phase(model, settings)
    began = time.perf_counter()
    source: Any = (VolumeSource if moves_tokens(settings) else TokenSource)(noise, model, settings)
    source.prepare()
    encoding = (time.perf_counter() - began) / len(noise) * cases
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(phase, source, RunFolder(Path(folder)), workers=data.workers)
        focused = min(settings.focus_steps, steps)  # they see a part of each volume
        kinds = [(first, count) for first, count in ((0, focused), (focused, steps - focused)) if count]
        seconds = sum(trainer.time_steps(_TIMED, first) * count for first, count in kinds) / steps
        described = phase.describe()
    model.requires_grad_(False)
    model.eval()
    return PhasePlan(settings.name, steps, described, seconds, encoding, _peak_gib(model))


def _noise(model: BrainGemma3D, data: DataSettings, count: int) -> Cases:
    """Cases of noise on the model's grid, which take as long as any others, with reports as long as the run's."""
    grid, synthetic = model.config.grid, data.kind == "phantoms"
    findings = tuple(Finding(name, "present", "left") for name in FINDINGS) if synthetic else ()
    worded = [write_report(findings, np.random.default_rng(0))] if synthetic else []
    reports = worded or [record.report for record in _records(data)]
    return Cases(
        volumes=torch.randn(count, 1, *grid).half(),
        masks=torch.zeros(count, len(PARTS), *grid, dtype=torch.bool),
        targets=findings_target(findings)[None].repeat(count, 1, 1),
        findings=(findings,) * count,
        reports=tuple(itertools.islice(itertools.cycle(reports), count)),
        synthetic=synthetic,
    )


def _case_count(data: DataSettings) -> int:
    if data.kind == "phantoms":
        return data.count + data.bilateral + data.plain + data.plaques
    return len(_records(data))


def _records(data: DataSettings) -> list[Record]:
    """The training cases of a manifest."""
    return chosen(with_splits(read_manifest(Path(data.manifest)), data.seed), "train")


def _peak_gib(model: BrainGemma3D) -> float:
    if model.compute_device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.compute_device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
