"""One training loop for all phases, on Hugging Face Accelerate: one CPU, one GPU, or many by `accelerate launch`.

What is drawn at a step depends on the seed and the step alone, never on what came before. So a run that was killed
goes on to the same curve, and two processes that share a batch give the same curve as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.data.batches import Batch
from training.errors import ResumeError, SettingsError
from training.phases.objectives import Phase
from training.phases.run_folder import RunFolder
from training.progress import Progress, no_progress


class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Training cases."""

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


def make_optimisers(phase: Phase, parameters: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """AdamW; with `matrix_rate`, Muon (Jordan et al. 2024) for the matrices inside encoder and resampler layers.

    A small encoder from nothing learns several times faster with it: docs/training.md.
    """
    settings = phase.settings
    within = ("siglip.encoder.layers", "resampler.layers")
    names = {id(p): name for name, p in phase.named_parameters()}
    matrices = [
        p for p in parameters if settings.matrix_rate and p.ndim == 2 and any(w in names[id(p)] for w in within)
    ]
    chosen = set(map(id, matrices))
    others = [p for p in parameters if id(p) not in chosen]
    optimisers: list[torch.optim.Optimizer] = []
    if others:
        optimisers.append(
            torch.optim.AdamW(others, settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
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
    ) -> None:
        self.settings = phase.settings
        self.source = source
        self.run = run
        self.validate = validate
        self.progress = progress
        self.accelerator = accelerator or Accelerator()
        self.parameters = phase.trainable_parameters()
        self.total = self.settings.total_steps(len(source))
        self.phase = phase
        optimisers = make_optimisers(phase, self.parameters)
        self.module, *self.optimisers = self.accelerator.prepare(phase, *optimisers)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best, self.waited = math.inf, 0
        self.best_parameters: dict[str, Tensor] | None = None
        self._check_parts()

    def train(self) -> Outcome:
        """From where the run folder stands to the end; with patience, the parameters end as they were at their best."""
        self._resume()
        self.module.train()
        while self.step < self.total and not self._exhausted():
            losses = self._step()
            self.step += 1
            self.history.append({"step": float(self.step), **losses})
            self.progress(self.settings.name, self.step, self.total, losses)
            if self.step % self.settings.validate_every == 0 or self.step == self.total:
                self._validate_and_save()
        self.module.eval()
        if self.best_parameters is not None:
            self._put(self.best_parameters)
        return Outcome(self.step, self.history, self.best, self.step < self.total)

    # ------------------------------------------------------------------ one step

    def _step(self) -> dict[str, float]:
        settings = self.settings
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate(group["peak"], settings.warmup, self.step, self.total)
        chosen = indices(len(self.source), settings.batch, self.step, settings.seed)
        sums: dict[str, float] = {}
        parts = self._parts(len(chosen))
        for number, part in enumerate(parts):
            batch = {k: v.to(self.accelerator.device) for k, v in self.source.batch(chosen, self.step, part).items()}
            losses = self._forward(batch, last=number == len(parts) - 1, share=1 / len(parts))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(self._mean(value)) / len(parts)
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
