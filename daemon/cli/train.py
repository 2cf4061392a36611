"""`braingemma train`, `evaluate` and `phantom`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeRemainingColumn
from rich.progress import Progress as Bars

from daemon.cli.terminal import JsonOption, data, emit_json, messages, new_lines, working
from daemon.faults import writing_to
from daemon.loading import loading
from training.evaluation import judge
from training.progress import Progress, Say, no_progress, silent
from training.settings import load_settings

train_app = typer.Typer(help="Train the model.", no_args_is_help=True)


OutOption = Annotated[Path, typer.Option(help="Run folder; a run that was killed goes on from it.")]
ConfigName = Annotated[
    str, typer.Option("--config", "-c", help="TOML file, or a bundled configuration: card, demo, phase1 and so on.")
]
CARD_RUN = Path("runs/card")


@train_app.command("run")
def train_run(
    config: ConfigName = "card",
    phase: Annotated[
        list[str] | None,
        typer.Option(help="phase1, phase2a or phase2b; may be repeated. Without it, all of the configuration."),
    ] = None,
    out: OutOption = CARD_RUN,
    plan: Annotated[
        bool, typer.Option("--plan", help="Train nothing: print parameters, memory and hours, from a few timed steps.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the phases of a configuration, in order; each goes on from those before it in the run folder."""
    if as_json and not plan:
        raise typer.BadParameter("--json goes with --plan")
    if plan:
        _plan(config, phase or [], as_json=as_json)
    else:
        _train(config, out, phase or [])


def _plan(config: str, phases: list[str], *, as_json: bool) -> None:
    settings = load_settings(config)
    with working("loading") as say:
        from training.phases.plan import plan_run

        found = plan_run(settings, phases, say)
    if as_json:
        emit_json(found.to_json())
    else:
        data.print(found.text())


@train_app.command("phase1")
def train_phase1(config: ConfigName = "phase1", out: OutOption = CARD_RUN) -> None:
    """`run --phase phase1`: contrastive grounding; the language model is frozen."""
    _train(config, out, ["phase1"])


@train_app.command("phase2a")
def train_phase2a(config: ConfigName = "phase2a", out: OutOption = CARD_RUN) -> None:
    """`run --phase phase2a`: projector warm-up by next-token loss."""
    _train(config, out, ["phase2a"])


@train_app.command("phase2b")
def train_phase2b(config: ConfigName = "phase2b", out: OutOption = CARD_RUN) -> None:
    """`run --phase phase2b`: projector and adapters by next-token loss."""
    _train(config, out, ["phase2b"])


@train_app.command("all")
def train_all(config: ConfigName = "card", out: OutOption = CARD_RUN) -> None:
    """`run` of all phases of a configuration."""
    _train(config, out, [])


@train_app.command("demo")
def train_demo(
    out: OutOption = Path("runs/demo"),
    config: ConfigName = "demo",
    install: Annotated[bool, typer.Option("--install", help="Replace the bundled demo weights.")] = False,
) -> None:
    """`run --config demo`: the demo weights from nothing, on phantoms."""
    _train(config, out, [])
    if install:
        from braingemma.checkpoint.weights import DEMO_FOLDER

        shutil.rmtree(DEMO_FOLDER, ignore_errors=True)
        shutil.copytree(out / "weights", DEMO_FOLDER)
        messages.print(f"copied to {DEMO_FOLDER}", markup=False)


def _train(config: str, out: Path, phases: list[str]) -> None:
    settings = load_settings(config)  # first: a fault in it is told before torch is loaded
    with writing_to(out), training_progress() as (say, progress):
        with loading():
            from training.phases.run import train_phases

        train_phases(settings, out, phases, progress, say)
    data.print(str(out / "weights"))


@contextmanager
def training_progress() -> Iterator[tuple[Say, Progress]]:
    """What is being done, and how far each phase is: bars on a terminal, a line for every twentieth elsewhere."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if os.environ.get("RANK", "0") != "0":  # one process of many speaks
        yield silent, no_progress
        return
    with Bars(*columns, console=messages, disable=not messages.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, step: int, total: int, losses: dict[str, float]) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=step, description=f"{phase} loss {losses['loss']:.3f}")
            if not messages.is_terminal and (step == total or step % max(1, total // 20) == 0):
                messages.print(f"{phase} {step}/{total}: loss {losses['loss']:.4f}", markup=False)

        yield new_lines(), progress


@train_app.command("ablation")
def train_ablation(
    config: ConfigName = "ablation",
    out: OutOption = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    count: Annotated[int, typer.Option(min=2, help="Unseen phantoms to judge on.")] = 100,
) -> None:
    """After each phase, Perceiver against the published pooling: same data, same budget; under two hours."""
    from training.evaluation.ablation import run_ablation

    with writing_to(out), training_progress() as (say, progress):
        run_ablation(load_settings(config), out, seeds=seeds, count=count, progress=progress, say=say)
    data.print((out / "ablation.md").read_text())


@train_app.command("manifest")
def train_manifest(
    out: Annotated[Path, typer.Option(help="The manifest to write, JSONL.")] = Path("manifest.jsonl"),
    brats: Annotated[Path | None, typer.Option(help="BraTS 2020: the folder above BraTS20_Training_NNN.")] = None,
    reports: Annotated[Path | None, typer.Option(help="TextBraTS: its folder, or JSONL with id and report.")] = None,
    official: Annotated[Path | None, typer.Option(help="Folder of TextBraTS's Train.json and Test.json.")] = None,
    controls: Annotated[Path | None, typer.Option(help="Healthy controls, BIDS (MPI-Leipzig).")] = None,
    seed: Annotated[int, typer.Option(help="Of the 70/10/20 split by patient and side, where no split is stated.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List BraTS 2020 with TextBraTS reports and healthy controls, checked and split by patient."""
    from training.data.public_data import manifest

    with working("reading"):
        counts = manifest(out, brats=brats, reports=reports, splits=official, controls=controls, seed=seed)
    if as_json:
        emit_json({"manifest": str(out), "cases": dict(counts)})
    else:
        data.print(f"{out}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))


@train_app.command("domain")
def train_domain(
    out: Annotated[Path, typer.Option(help="The file to write: domain.json beside the weights.")] = Path("domain.json"),
    manifest: Annotated[Path | None, typer.Option(help="The cases trained on; without it, phantoms.")] = None,
    split: Annotated[str, typer.Option(help="Of the manifest.")] = "train",
    count: Annotated[int, typer.Option(min=18, help="Pictures to measure at most.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Of the first phantom.")] = 200_000,
) -> None:
    """Measure the pictures that weights are trained on, so that reports can warn of pictures unlike them."""
    from training.data.domain import domain

    with working("loading") as say:
        text = domain(out, say, manifest=manifest, split=split, count=count, seed=seed)
    data.print(text)


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    weights: Annotated[str, typer.Option(help="`demo`, a folder, or a hub id.")] = "demo",
    count: Annotated[int, typer.Option(min=1, help="Phantoms to draw, where no cases are named.")] = 60,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first: 7000000, hard ones 7100000; training uses 200000 and up.")
    ] = None,
    hard: Annotated[
        bool, typer.Option("--hard", help="Phantoms as hard as scanners; lesions to insert from 1.2 times the brain.")
    ] = False,
    cases: Annotated[Path | None, typer.Option(help="Folder that `braingemma phantom` wrote.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="CSV or JSONL with image and report.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the manifest: train, val or test.")] = None,
    insert: Annotated[
        list[Path] | None, typer.Option(help="Real FLAIR without a mass, to insert lesions into; may be repeated.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="medgemma-2d or med3dvlm, with --checkpoint.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder of the baseline's checkpoint.")] = None,
    slices: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each volume for medgemma-2d.", show_default="16")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that lies in the checkpoint's folder.")
    ] = False,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Also report each volume mirrored.")] = True,
    candidates: Annotated[int, typer.Option(min=1, help="Texts at most for each picture, as [model] candidates.")] = 8,
    score: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER: radgraph, ratescore or green with local weights; repeatable.")
    ] = None,
    changes: Annotated[
        int, typer.Option(min=0, help="Instead: so many pairs with a lesion that grew, and that did not.")
    ] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Keep brain masks and measurements here: other weights find them again.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the cases.")] = 1,
    fade: Annotated[int, typer.Option(min=0, help="Lower the brightness of so many lesions step by step.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Judge reports on cases with truth, beside reports that never look."""
    if changes:
        _evaluate_changes(out, weights, changes, seed if seed is not None else 7_300_000, as_json=as_json)
        return
    if (baseline is None) != (checkpoint is None):
        raise typer.BadParameter("--baseline and --checkpoint go together")
    if slices is not None and baseline != "medgemma-2d":
        raise typer.BadParameter("--slices goes with --baseline medgemma-2d")
    judged = judge.Judged(
        weights=weights if checkpoint is None else str(checkpoint),
        count=count,
        seed=seed if seed is not None else 7_100_000 if hard else 7_000_000,
        hard=hard,
        candidates=candidates,
        fade=fade,
        scores=tuple(score or ()),
        folders=cases,
        manifest=manifest,
        split=split,
        insert=tuple(insert or ()),
        baseline=baseline,
        slices=slices,
        trust_remote_code=trust_remote_code,
        kept=cache,
        workers=workers,
    )
    with writing_to(out), working("loading") as say:
        judge.evaluate(judged, out, say, flip=flip)
    if as_json:
        sys.stdout.write((out / "evaluation.json").read_text())
    else:
        data.print((out / "evaluation.md").read_text())


def _evaluate_changes(out: Path, weights: str, count: int, seed: int, *, as_json: bool) -> None:
    """How well a change of lesion volume is told from none."""
    from braingemma.model.braingemma3d import BrainGemma3D
    from training.evaluation.changes import markdown, measure_changes

    with writing_to(out), working("loading") as say:
        result = measure_changes(BrainGemma3D.from_pretrained(weights).eval(), count, seed, say)
        (out / "changes.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / "changes.md").write_text(markdown(result))
    if as_json:
        emit_json(result)
    else:
        data.print(markdown(result))


def phantom(
    out: Annotated[Path, typer.Option(help="Takes one folder for each case.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first.")] = 0,
    hard: Annotated[bool, typer.Option("--hard", help="As hard as scanners.")] = False,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write each as a DICOM series.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write synthetic FLAIR cases with their truth."""
    from dicom_io.series_writer import write_series
    from training.phantoms.phantom import phantoms

    def as_series(folder: Path) -> None:
        write_series(folder / "flair.nii.gz", folder / "dicom", overrides={"PatientID": folder.name})

    with writing_to(out), working("drawing") as say:
        folders = phantoms(out, count, seed, say, as_series if dicom else None, "hard" if hard else "plain")
    if as_json:
        emit_json([str(folder) for folder in folders])
    else:
        for folder in folders:
            data.print(str(folder))
