"""What `braingemma train`, `evaluate` and `phantom` do; the arguments are read by `daemon.cli.train`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.records import Record
from training.errors import DataError
from training.phantoms.phantom import make_phantom, write_phantom
from training.settings import load_settings

if TYPE_CHECKING:
    from training.evaluation.cases import EvaluationCase
    from training.evaluation.evaluate import Evaluation
    from training.evaluation.reporters import Reporter

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


def train_phases(
    names: Sequence[str],
    config: str,
    out: Path,
    say: Say,
    progress: Callable[[str, int, int, dict[str, float]], None],
) -> Path:
    """Phases of the card by a configuration; see `training.phases.run`. Returns the folder of the weights."""
    from training.phases import run

    settings = load_settings(config)
    run.train_phases(settings, out, names or [phase.name for phase in settings.phases], progress, say)
    return out / "weights"


def ablation(
    config: str,
    out: Path,
    seeds: int,
    count: int,
    say: Say,
    progress: Callable[[str, int, int, dict[str, float]], None],
) -> str:
    """The ablation table; see `training.evaluation.ablation.run_ablation`. Returns it as Markdown."""
    from training.evaluation.ablation import run_ablation

    run_ablation(load_settings(config), out, seeds=seeds, count=count, progress=progress, say=say)
    return (out / "ablation.md").read_text()


def manifest(
    out: Path, *, brats: Path | None, reports: Path | None, splits: Path | None, controls: Path | None, seed: int = 0
) -> dict[str, int]:
    """Write one manifest for BraTS 2020 with TextBraTS and for controls; returns the cases of each split.

    Raises:
        DataError: everything that is missing or in two splits, at once.
    """
    from training.data.public_data import brats_records, control_records
    from training.data.records import SPLITS, check_records, write_manifest
    from training.data.splits import with_splits

    records: list[Record] = []
    if brats is not None:
        records += with_splits(brats_records(brats, reports or brats, splits), seed)
    if controls is not None:
        records += with_splits(control_records(controls), seed)
    if not records:
        raise DataError("expected a folder of BraTS 2020, of controls, or both")
    check_records(records)
    write_manifest(records, out)
    return {split: sum(record.split == split for record in records) for split in SPLITS}


def domain(out: Path, say: Say, *, manifest: Path | None, split: str, count: int, seed: int) -> str:
    """Measure what weights are trained on, and write it; beside the weights it is held against every picture.

    Args:
        out: The file, `domain.json` beside the weights.
        say: Told what is being done.
        manifest: The training cases; None: phantoms.
        split: Of the manifest.
        count: Pictures to measure at most.
        seed: Of the first phantom.

    Returns:
        What was measured, in words.
    """
    from training.data.domain import measure_files, measure_phantoms
    from training.data.records import read_manifest

    if manifest is None:
        say(f"measuring {count} phantoms")
        found = measure_phantoms(range(seed, seed + count))
    else:
        paths = [r.image for r in read_manifest(manifest) if r.split in (None, split)][:count]
        say(f"measuring {len(paths)} pictures")
        found = measure_files(f"training pictures of {manifest.stem}", paths)
    found.save(out)
    return f"{out}: {found.count} {found.name}"


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


@dataclass(frozen=True)
class Judged:
    """What `evaluate` is to judge.

    Attributes:
        weights: `demo`, a folder or a hub id; with a baseline, its checkpoint's folder.
        count: Phantoms to draw, where no cases are named.
        seed: Of the first, or of the inserted lesions.
        folders: Cases that `braingemma phantom` wrote.
        manifest: Cases of a manifest.
        split: One split of it.
        insert: Real scans without a mass, to put lesions into.
        baseline: "medgemma-2d" or "med3dvlm"; None: our model.
        trust_remote_code: Whether code that lies in the checkpoint's folder may run.
    """

    weights: str = "demo"
    count: int = 60
    seed: int = 7_000_000
    folders: Path | None = None
    manifest: Path | None = None
    split: str | None = None
    insert: tuple[Path, ...] = ()
    baseline: str | None = None
    trust_remote_code: bool = False


def evaluate(judged: Judged, out: Path, say: Say, *, flip: bool = True) -> Evaluation:
    """Judge reports; writes `evaluation.md`, `.json`, `.png`, `reliability.png` and `cases.csv` to `out`.

    Raises:
        DataError: the cases cannot be used, or all of them failed.
    """
    from training.evaluation.evaluate import evaluate_cases
    from training.evaluation.files import write_evaluation

    cases, described, total = _cases(judged)
    reporter = _reporter(judged)
    found = evaluate_cases(reporter, cases, flip=flip, progress=lambda done: say(f"case {done}/{total}"))
    write_evaluation(found, out, f"{reporter.name} on {described}")
    if found.cases and found.failed == len(found.cases):
        raise DataError(f"all {found.failed} cases failed, the first: {found.cases[0].name}: {found.cases[0].error}")
    return found


def _cases(judged: Judged) -> tuple[Iterable[EvaluationCase], str, int]:
    """(cases, what they are, how many)."""
    from training.evaluation import cases as sources

    named = [bool(judged.folders), bool(judged.manifest), bool(judged.insert)]
    if sum(named) > 1:
        raise DataError("expected one of folders, a manifest or scans to insert lesions into, got several")
    if judged.folders:
        found = sources.folder_cases(judged.folders)
        return found, f"{len(found)} cases of {judged.folders.name}", len(found)
    if judged.manifest:
        found = sources.manifest_cases(judged.manifest, judged.split)
        part = f", split {judged.split}" if judged.split else ""
        return found, f"{len(found)} cases of {judged.manifest.name}{part}", len(found)
    if judged.insert:
        each = 8
        total = len(judged.insert) * (each + 1)
        drawn = sources.inserted_cases(judged.insert, each, judged.seed)
        return drawn, f"{len(judged.insert)} real scans, as they are and with {each} inserted lesions each", total
    seeds = range(judged.seed, judged.seed + judged.count)
    described = f"{judged.count} phantoms, seeds {judged.seed} to {judged.seed + judged.count - 1}"
    return sources.phantom_cases(seeds), described, judged.count


def _reporter(judged: Judged) -> Reporter:
    if judged.baseline is None:
        from braingemma.model.braingemma3d import BrainGemma3D
        from training.evaluation.reporters import ModelReporter

        return ModelReporter(BrainGemma3D.from_pretrained(judged.weights).eval())
    from training.evaluation.baselines import load_baseline

    return load_baseline(judged.baseline, Path(judged.weights), trust_remote_code=judged.trust_remote_code)
