"""What `braingemma train`, `evaluate` and `phantom` do; the arguments are read by `daemon.cli_training`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.errors import DataError
from training.phantoms import make_phantom, write_phantom
from training.settings import load_settings

Say = Callable[[str], None]


def train_demo(out: Path, say: Say, config: str = "demo") -> Path:
    """The bundled weights from nothing; a run that was killed goes on when started again.

    Args:
        out: Run folder.
        say: Told what is being done.
        config: Bundled configuration by name, or a TOML file.

    Returns:
        Folder of the weights.
    """
    from training import demo

    def progress(phase: str, step: int, total: int, losses: dict[str, float]) -> None:
        say(f"{phase} {step}/{total}: loss {losses['loss']:.3f}")

    demo.train_demo(load_settings(config), out, progress, say)
    return out / "weights"


def phantoms(out: Path, count: int, seed: int, say: Say, each: Callable[[Path], None] | None = None) -> list[Path]:
    """Write phantoms of the seeds `seed` ... `seed + count - 1`, one folder each.

    Args:
        out: Takes the folders `phantom-SEED`.
        count: How many.
        seed: Of the first.
        say: Told what is being done.
        each: Called with each folder when it is written.

    Raises:
        DataError: count or seed makes no sense.
    """
    if count < 1 or seed < 0:
        raise DataError(f"expected a count of at least 1 and a seed of at least 0, got {count} and {seed}")
    folders = []
    for number in range(count):
        folder = out / f"phantom-{seed + number}"
        write_phantom(folder, make_phantom(seed + number))
        if each is not None:
            each(folder)
        folders.append(folder)
        say(f"phantom {number + 1}/{count}")
    return folders


def evaluate(weights: str, out: Path, count: int, seed: int, say: Say, *, flip: bool = True) -> str:
    """Judge the reports of weights on phantoms; writes `evaluation.md`, `.json` and `cases.csv` to `out`.

    Returns:
        The table as Markdown.
    """
    from braingemma.model import BrainGemma3D
    from training.evaluate import evaluate_phantoms, markdown, write_evaluation

    model = BrainGemma3D.from_pretrained(weights).eval()
    seeds = range(seed, seed + count)
    found = evaluate_phantoms(model, seeds, flip=flip, progress=lambda done, total: say(f"case {done}/{total}"))
    title = f"{model.config.name} {model.config.version} on {count} phantoms, seeds {seed} to {seed + count - 1}"
    write_evaluation(found, out, title)
    return markdown(found, title)
