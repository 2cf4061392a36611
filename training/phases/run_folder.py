"""A run's folder: configuration, provenance, losses by step, curves, state to go on from, weights."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from training.data.cases import Cases
from training.errors import ResumeError
from training.settings import TrainingSettings


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it made."""

    root: Path

    def check_same(self, settings: TrainingSettings, data_digest: str) -> None:
        """Refuse to go on in the folder of another run.

        Raises:
            ResumeError: it holds a run of another model or of other data.
        """
        file = self.root / "run.json"
        if not file.exists():
            return
        before = json.loads(file.read_text())
        now = json.loads(json.dumps(settings.to_json()))
        differs = [name for name in ("weights", "model", "language") if before["settings"].get(name) != now[name]]
        if before["data_sha256"] != data_digest:
            differs.append("data")
        if differs:
            raise ResumeError(f"{self.root} holds a run with another {' and '.join(differs)}: use another --out")

    def start(self, settings: TrainingSettings, data_digest: str) -> None:
        """Write `run.json`: settings, git revision, digest of the data, versions."""
        self.root.mkdir(parents=True, exist_ok=True)
        facts = {
            "settings": settings.to_json(),
            "git_revision": git_revision(),
            "data_sha256": data_digest,
            "torch": str(torch.__version__),
        }
        (self.root / "run.json").write_text(json.dumps(facts, indent=2) + "\n")

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
    digest.update(cases.volumes.numpy().tobytes())
    digest.update(cases.masks.numpy().tobytes())
    digest.update("\n".join(cases.reports).encode())
    return digest.hexdigest()
