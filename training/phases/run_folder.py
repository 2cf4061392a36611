"""A run's folder: what was trained by what, losses by step, curves, state to go on from, weights."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from training.data.cases import Cases
from training.errors import ResumeError
from training.settings import PhaseSettings, TrainingSettings

_OF_THE_RUN: Final = ("weights", "model", "language")
"""What every phase of a run has in common: another value is another run."""


_HELD: Final[set[int]] = set()
"""Locks of this process. A child that is forked from it holds them too, until it lets go."""


def let_go_of_locks() -> None:
    """In a child process: else a folder would stay locked until the last child of a killed training has noticed."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it made."""

    root: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else trains here meanwhile; the system takes the lock off a process that ends in any way.

        Raises:
            ResumeError: somebody does.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "run.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResumeError(
                    f"{self.root}: another training works in this folder; wait for it, or use another --out"
                ) from error
            _HELD.add(file.fileno())
            try:
                yield
            finally:
                _HELD.discard(file.fileno())

    # ------------------------------------------------------------------ what was trained by what

    def facts(self) -> dict[str, Any]:
        """`run.json`; empty before the first start.

        Raises:
            ResumeError: it cannot be read.
        """
        file = self.root / "run.json"
        if not file.exists():
            return {}
        try:
            facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return {**facts, "settings": dict(facts["settings"]), "phases": dict(facts["phases"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"{file}: not readable as the record of a run ({error!r}); use another --out") from error

    def check_same(self, settings: TrainingSettings, data_digest: str) -> None:
        """Refuse to go on in the folder of another run.

        Raises:
            ResumeError: it holds a run of another model or of other data; says which values differ.
        """
        facts = self.facts()
        if not facts:
            return
        now = _plain(settings.to_json())
        differs = [
            change
            for name in _OF_THE_RUN
            for change in _changes({name: facts["settings"].get(name)}, {name: now[name]})
        ]
        if facts.get("data_sha256", data_digest) != data_digest:
            differs.append("the training data")
        if differs:
            raise ResumeError(
                f"{self.root} holds another run, which differs in {'; '.join(differs)}: use another --out"
            )

    def start(self, settings: TrainingSettings, data_digest: str) -> None:
        """Write `run.json`: settings, git revision, digest of the data, versions; records of phases are kept."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._write(
            {
                "settings": settings.to_json(),
                **_provenance(),
                "data_sha256": data_digest,
                "phases": self.facts().get("phases", {}),
            }
        )

    def changed(self, phase: PhaseSettings, settings: TrainingSettings) -> list[str]:
        """What a phase that was begun here was set to and is no longer, as "name = before, now after"."""
        record = self.facts().get("phases", {}).get(phase.name)
        return list(_changes(record["settings"], _plain(_phase_settings(phase, settings)))) if record else []

    def begin_phase(self, phase: PhaseSettings, settings: TrainingSettings) -> None:
        """Record what a phase is trained by; what it was begun with stays."""
        facts = {"settings": settings.to_json(), "phases": {}, **self.facts()}
        facts["phases"].setdefault(phase.name, {"settings": _phase_settings(phase, settings), **_provenance()})
        self._write(facts)

    def end_phase(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Add how a phase ended to its record."""
        facts = self.facts()
        facts["phases"][name] |= outcome
        self._write(facts)

    def _write(self, facts: Mapping[str, Any]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        part = self.root / "run.json.part"
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        part.replace(self.root / "run.json")

    # ------------------------------------------------------------------ state, weights, curves

    def state(self, phase: str) -> Path:
        """The file that a phase goes on from."""
        return self.root / f"{phase}.state.pt"

    @property
    def weights(self) -> Path:
        """The folder of the weights."""
        return self.root / "weights"

    def save_state(self, phase: str, state: dict[str, Any]) -> None:
        """Write the state whole or not at all."""
        part = self.state(phase).with_suffix(".part")
        torch.save(state, part)
        part.replace(self.state(phase))

    def load_state(self, phase: str) -> dict[str, Any] | None:
        """The saved state of a phase; None where there is none."""
        if not self.state(phase).exists():
            return None
        state: dict[str, Any] = torch.load(self.state(phase), map_location="cpu", weights_only=False)
        return state

    def write_history(self, phase: str, history: list[dict[str, float]]) -> None:
        """Losses by step as `<phase>.csv` and `<phase>.png`."""
        names = list(dict.fromkeys(name for row in history for name in row))
        with (self.root / f"{phase}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(history)
        _plot(history, [n for n in names if n != "step"], self.root / f"{phase}.png")


def _phase_settings(phase: PhaseSettings, settings: TrainingSettings) -> dict[str, Any]:
    """All that a phase depends on but the data and the model."""
    return {**asdict(phase), "precision": settings.precision, "quantization": settings.quantization}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """One text for each value that differs."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{place}{name}.")
        elif old != new:
            yield f"{place}{name} = {old!r}, now {new!r}"


def _plot(history: list[dict[str, float]], names: list[str], path: Path) -> None:
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in names:
            rows = [(row["step"], row[name]) for row in history if name in row]
            axes.plot(*zip(*rows, strict=True), label=name, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
        figure.savefig(path, dpi=110)


def _provenance() -> dict[str, str]:
    return {"git_revision": git_revision(), "torch": str(torch.__version__)}


def git_revision() -> str:
    """The commit that this code was checked out at, with "+changes" if files differ; "unknown" outside git."""
    here = Path(__file__).parent
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        answers = [
            subprocess.run(command, cwd=here, check=True, capture_output=True, text=True).stdout.strip()
            for command in commands
        ]
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return answers[0] + ("+changes" if answers[1] else "")


def data_digest(cases: Cases) -> str:
    """SHA-256 over the volumes, masks and reports of all cases, in order."""
    digest = hashlib.sha256()
    for tensors in (cases.volumes, cases.masks):
        for start in range(0, len(cases), 16):
            digest.update(tensors[start : start + 16].numpy().tobytes())
    digest.update("\n".join(cases.reports).encode())
    return digest.hexdigest()
