"""One training loop for all phases, on Hugging Face Accelerate: one CPU, one GPU, or many by `accelerate launch`.

What is drawn at a step depends on the seed and the step alone, never on what came before. So a run that was killed
goes on to the same curve, and two processes that share a batch give the same curve as one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training.data.batches import Batch
from training.errors import ResumeError, SettingsError
from training.phases.objectives import Phase
from training.phases.run_folder import RunFolder, let_go_of_locks
from training.progress import Progress, no_progress
from training.settings import PhaseSettings


class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Training cases."""

    def prepare(self) -> None:
        """What all batches need, before the first of them."""

    def batch(self, index: list[int], step: int, part: slice) -> Batch:
        """The cases `index[part]` of a step, with everything drawn from the seed and the step."""


@dataclass(frozen=True)
class Outcome:
    """How a phase ended."""

    steps: int
    history: list[dict[str, float]]
    best: float
    stopped_early: bool


def indices(count: int, size: int, step: int, seed: int) -> list[int]:
    """Cases of a step: each pass over the data sees every case at most once, in an order of its own."""
    size = min(size, count)
    per_pass = count // size
    rng = torch.Generator().manual_seed(seed * 1_000_003 + step // per_pass)
    order = torch.randperm(count, generator=rng).tolist()
    start = (step % per_pass) * size
    return order[start : start + size]


def rate(peak: float, warmup: int, step: int, total: int) -> float:
    """Linear warm-up to `peak`, then a cosine down to 1 % of it."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, total)))
    return peak * warm * (0.01 + 0.99 * cosine)


class Passes(Dataset[Batch]):
    """One item for each pass of each step of a phase."""

    def __init__(self, source: Source, settings: PhaseSettings, parts: Sequence[slice], first: int, total: int) -> None:
        self.source, self.settings, self.parts = source, settings, parts
        self.first, self.total = first, total

    def __len__(self) -> int:
        return max(0, self.total - self.first) * len(self.parts)

    def __getitem__(self, item: int) -> Batch:
        step = self.first + item // len(self.parts)
        chosen = indices(len(self.source), self.settings.batch, step, self.settings.seed)
        return self.source.batch(chosen, step, self.parts[item % len(self.parts)])


def _start_worker(_worker: int) -> None:
    let_go_of_locks()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def make_optimisers(phase: Phase, parts: Mapping[str, Sequence[nn.Parameter]]) -> list[torch.optim.Optimizer]:
    """AdamW; with `matrix_rate`, Muon (Jordan et al. 2024) for the matrices inside encoder and resampler layers.

    A small encoder from nothing learns several times faster with Muon: docs/training.md. `parts`: what learns, by its
    name in `trainable`; `rates` names those that AdamW trains at a rate of their own.
    """
    settings = phase.settings
    within = ("siglip.encoder.layers", "resampler.layers")
    names = {id(p): name for name, p in phase.named_parameters()}

    def is_matrix(p: nn.Parameter) -> bool:
        return bool(settings.matrix_rate and p.ndim == 2 and any(w in names[id(p)] for w in within))

    by_rate: dict[float, list[nn.Parameter]] = {}
    for part, parameters in parts.items():
        others = [p for p in parameters if not is_matrix(p)]
        if others:
            by_rate.setdefault(settings.rates.get(part, settings.learning_rate), []).extend(others)
    matrices = [p for parameters in parts.values() for p in parameters if is_matrix(p)]
    groups = [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    optimisers: list[torch.optim.Optimizer] = []
    if groups:
        optimisers.append(
            torch.optim.AdamW(groups, settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
        )
    if matrices:
        optimisers.append(torch.optim.Muon(matrices, settings.matrix_rate, weight_decay=settings.weight_decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return optimisers


class Trainer:
    """Runs one phase to its end, saving as it goes."""

    def __init__(
        self,
        phase: Phase,
        source: Source,
        run: RunFolder,
        validate: Callable[[], dict[str, float]] | None = None,
        progress: Progress = no_progress,
        accelerator: Accelerator | None = None,
        *,
        workers: int = 0,
    ) -> None:
        self.settings = phase.settings
        self.source = source
        self.run = run
        self.validate = validate
        self.progress = progress
        self.accelerator = accelerator or Accelerator()
        parts = phase.trainable_parameters()
        self.parameters = [parameter for part in parts.values() for parameter in part]
        self.total = self.settings.total_steps(len(source))
        self.phase = phase
        self.workers = workers
        optimisers = make_optimisers(phase, parts)
        self.module, *self.optimisers = self.accelerator.prepare(phase, *optimisers)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best, self.waited = math.inf, 0
        self.best_parameters: dict[str, Tensor] | None = None
        self._check_parts()

    def train(self) -> Outcome:
        """From where the run folder stands to the end; with patience, the parameters end as they were at their best."""
        self._resume()
        if self.step < self.total and not self._exhausted():
            self.source.prepare()
        batches = iter(self._loader())
        self.module.train()
        while self.step < self.total and not self._exhausted():
            losses = self._step(batches)
            self.step += 1
            self.history.append({"step": float(self.step), **losses})
            self.progress(self.settings.name, self.step, self.total, losses)
            if self.step % self.settings.validate_every == 0 or self.step == self.total:
                self._validate_and_save()
        self.module.eval()
        if self.best_parameters is not None:
            self._put(self.best_parameters)
        return Outcome(self.step, self.history, self.best, self.step < self.total)

    def time_steps(self, count: int, first: int = 0) -> float:
        """Seconds of one of `count` steps after the step `first`, which is not timed; nothing is saved."""
        self.step, self.total = first, first + count + 1
        batches = iter(self._loader())
        self.module.train()
        self._step(batches)
        began = time.perf_counter()
        for _ in range(count):
            self._step(batches)  # its losses are read, so a GPU has done its work
        return (time.perf_counter() - began) / count

    # ------------------------------------------------------------------ one step

    def _loader(self) -> Iterable[Batch]:
        """This process's passes of all steps to come, in order, made by `workers` processes ahead of time."""
        size = min(self.settings.batch, len(self.source))
        passes = Passes(self.source, self.settings, self._parts(size), self.step, self.total)
        return DataLoader(
            passes,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else it would draw from the one that the phases draw from
        )

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        settings = self.settings
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate(group["peak"], settings.warmup, self.step, self.total)
        sums: dict[str, float] = {}
        for number in range(settings.accumulate):
            batch = {k: v.to(self.accelerator.device, non_blocking=True) for k, v in next(batches).items()}
            last = number == settings.accumulate - 1
            losses = self._forward(batch, last=last, share=1 / settings.accumulate)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(self._mean(value)) / settings.accumulate
        self.accelerator.clip_grad_norm_(self.parameters, settings.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return sums

    def _forward(self, batch: Batch, *, last: bool, share: float) -> Batch:
        """Losses of one pass, with gradients; processes exchange them in the last pass only."""
        if last or self.accelerator.num_processes == 1:
            losses: Batch = self.module(batch)
            self.accelerator.backward(losses["loss"] * share)
        else:
            with self.accelerator.no_sync(self.module):
                losses = self.module(batch)
                self.accelerator.backward(losses["loss"] * share)
        return {name: value.detach() for name, value in losses.items()}

    def _parts(self, size: int) -> list[slice]:
        """This process's slices of a step's batch, one for each accumulated pass."""
        passes, processes = self.settings.accumulate, self.accelerator.num_processes
        width = size // (passes * processes)
        starts = [(n * processes + self.accelerator.process_index) * width for n in range(passes)]
        return [slice(start, start + width) for start in starts]

    def _check_parts(self) -> None:
        size = min(self.settings.batch, len(self.source))
        parts = self.settings.accumulate * self.accelerator.num_processes
        if size % parts:
            raise SettingsError(
                f"{self.settings.name}: {size} cases a step do not fall into {parts} equal parts "
                f"({self.settings.accumulate} passes on {self.accelerator.num_processes} processes)"
            )

    def _mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="mean")

    # ------------------------------------------------------------------ validation, state

    def _exhausted(self) -> bool:
        return bool(self.settings.patience and self.waited >= self.settings.patience)

    def _validate_and_save(self) -> None:
        if self.validate is not None:
            self.module.eval()
            measured = self.validate()
            self.module.train()
            self.history[-1].update({f"validation {name}": value for name, value in measured.items()})
            improved = measured["loss"] < self.best
            self.best, self.waited = min(self.best, measured["loss"]), 0 if improved else self.waited + 1
            if improved and self.settings.patience:
                self.best_parameters = {name: value.clone() for name, value in self._trained().items()}
        if self.accelerator.is_main_process:
            self.run.save_state(self.settings.name, self._state())
            self.run.write_history(self.settings.name, self.history)
        self.accelerator.wait_for_everyone()

    def _trained(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu() for n, p in self.phase.named_parameters() if p.requires_grad}

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "total": self.total,
            "finished": self.step >= self.total or self._exhausted(),
            "parameters": self._trained(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "history": self.history,
            "best": self.best,
            "waited": self.waited,
            "best_parameters": self.best_parameters,
        }

    def restore(self) -> None:
        """Take over what this phase left in the run folder, without training.

        Raises:
            ResumeError: it has not come to its end there.
        """
        self._resume()
        if self.step < self.total and not self._exhausted():
            raise ResumeError(
                f"{self.run.root}: {self.settings.name} stands at step {self.step} of {self.total}; "
                f"train {self.settings.name} first, or train all"
            )
        if self.best_parameters is not None:
            self._put(self.best_parameters)

    def _resume(self) -> None:
        """Go on from the run folder's state.

        Raises:
            ResumeError: the state is of another model or another budget.
        """
        state = self.run.load_state(self.settings.name)
        if state is None:
            return
        shapes = {n: tuple(p.shape) for n, p in self.phase.named_parameters() if p.requires_grad}
        theirs = {n: tuple(p.shape) for n, p in state["parameters"].items()}
        same_optimisers = len(state.get("optimisers", ())) == len(self.optimisers)
        if shapes != theirs or state["total"] != self.total or not same_optimisers:
            raise ResumeError(
                f"{self.run.state(self.settings.name)} is of another run: it has {len(theirs)} tensors and "
                f"{state['total']} steps, this configuration {len(shapes)} and {self.total}, or it was trained by "
                f"other optimisers; use another --out"
            )
        self._put(state["parameters"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.history = state["step"], state["history"]
        self.best, self.waited = state["best"], state["waited"]
        self.best_parameters = state.get("best_parameters")

    @torch.no_grad()
    def _put(self, parameters: dict[str, Tensor]) -> None:
        mine = dict(self.phase.named_parameters())
        for name, value in parameters.items():
            mine[name].copy_(value)
