"""`braingemma train`, `evaluate`, `phantom` and `bench`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from daemon.cli.terminal import JsonOption, data, emit_json, messages, working
from training.evaluation import judge as training

train_app = typer.Typer(help="Train the model.", no_args_is_help=True)
bench_app = typer.Typer(help="Side-by-side measurements, printed as ratios.", no_args_is_help=True)


@train_app.command("demo")
def train_demo(
    out: Annotated[Path, typer.Option(help="Run folder; a run that was killed goes on from it.")] = Path("runs/demo"),
    config: Annotated[str, typer.Option(help="Bundled configuration by name, or a TOML file.")] = "demo",
    install: Annotated[bool, typer.Option("--install", help="Replace the bundled demo weights.")] = False,
) -> None:
    """Make the demo weights from nothing: phantoms, language, grounding, projector, adapters."""
    from braingemma.checkpoint.weights import DEMO_FOLDER

    with working("starting") as say:
        weights = training.train_demo(out, say, config)
    if install:
        shutil.rmtree(DEMO_FOLDER, ignore_errors=True)
        shutil.copytree(weights, DEMO_FOLDER)
        weights = DEMO_FOLDER
    data.print(str(weights))


OutOption = Annotated[Path, typer.Option(help="Run folder; a run that was killed goes on from it.")]
PhaseConfig = Annotated[
    str, typer.Option("--config", "-c", help="TOML file, or a bundled configuration: card, demo, phase1 and so on.")
]


@train_app.command("phase1")
def train_phase1(config: PhaseConfig = "phase1", out: OutOption = Path("runs/card")) -> None:
    """Contrastive grounding: encoder, resampler and projector learn; the language model is frozen."""
    _train(["phase1"], config, out)


@train_app.command("phase2a")
def train_phase2a(config: PhaseConfig = "phase2a", out: OutOption = Path("runs/card")) -> None:
    """Projector warm-up by next-token loss, after phase 1 in the same run folder."""
    _train(["phase2a"], config, out)


@train_app.command("phase2b")
def train_phase2b(config: PhaseConfig = "phase2b", out: OutOption = Path("runs/card")) -> None:
    """Projector and adapters by next-token loss, after phase 2A in the same run folder."""
    _train(["phase2b"], config, out)


@train_app.command("all")
def train_all(config: PhaseConfig = "card", out: OutOption = Path("runs/card")) -> None:
    """All phases of a configuration, in order."""
    _train([], config, out)


def _train(names: list[str], config: str, out: Path) -> None:
    with training_progress() as (say, progress):
        weights = training.train_phases(names, config, out, say, progress)
    data.print(str(weights))


@contextmanager
def training_progress() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int, dict[str, float]], None]]]:
    """What is being done, and how far each phase is: bars on a terminal, a line for every twentieth elsewhere."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if os.environ.get("RANK", "0") != "0":  # one process of many speaks
        yield (lambda _text: None), (lambda _phase, _step, _total, _losses: None)
        return
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, step: int, total: int, losses: dict[str, float]) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=step, description=f"{phase} loss {losses['loss']:.3f}")
            if not messages.is_terminal and (step == total or step % max(1, total // 20) == 0):
                messages.print(f"{phase} {step}/{total}: loss {losses['loss']:.4f}", markup=False)

        said: list[str] = []

        def say(text: str) -> None:
            kind = text.rstrip("0123456789/ ")
            if said[-1:] != [kind]:
                said.append(kind)
                messages.print(text, markup=False)

        yield say, progress


@train_app.command("ablation")
def train_ablation(
    config: PhaseConfig = "ablation",
    out: OutOption = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    count: Annotated[int, typer.Option(min=2, help="Unseen phantoms to judge on.")] = 100,
) -> None:
    """After each phase, Perceiver against the published pooling: same data, same budget; under two hours."""
    with training_progress() as (say, progress):
        table = training.ablation(config, out, seeds, count, say, progress)
    data.print(table)


@train_app.command("manifest")
def train_manifest(
    out: Annotated[Path, typer.Option(help="The manifest to write, JSONL.")] = Path("manifest.jsonl"),
    brats: Annotated[Path | None, typer.Option(help="BraTS 2020: the folder above BraTS20_Training_NNN.")] = None,
    reports: Annotated[Path | None, typer.Option(help="TextBraTS: its folder, or JSONL with id and report.")] = None,
    official: Annotated[Path | None, typer.Option(help="Folder of TextBraTS's Train.json and Test.json.")] = None,
    controls: Annotated[Path | None, typer.Option(help="Healthy controls, BIDS (MPI-Leipzig).")] = None,
    seed: Annotated[int, typer.Option(help="Of the 70/10/20 split by patient and side, where no split is stated.")] = 0,
) -> None:
    """List BraTS 2020 with TextBraTS reports and healthy controls, checked and split by patient."""
    with working("reading"):
        counts = training.manifest(out, brats=brats, reports=reports, splits=official, controls=controls, seed=seed)
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
    with working("loading") as say:
        text = training.domain(out, say, manifest=manifest, split=split, count=count, seed=seed)
    data.print(text)


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    weights: Annotated[str, typer.Option(help="`demo`, a folder, or a hub id.")] = "demo",
    count: Annotated[int, typer.Option(min=1, help="Phantoms to draw, where no cases are named.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; training uses 200000 and up.")] = 7_000_000,
    cases: Annotated[Path | None, typer.Option(help="Folder that `braingemma phantom` wrote.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="CSV or JSONL with image and report.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the manifest: train, val or test.")] = None,
    insert: Annotated[
        list[Path] | None, typer.Option(help="Real FLAIR without a mass, to insert lesions into; may be repeated.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="medgemma-2d or med3dvlm, with --checkpoint.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder of the baseline's checkpoint.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that lies in the checkpoint's folder.")
    ] = False,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Also report each volume mirrored.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge reports on cases with truth, beside reports that never look."""
    if (baseline is None) != (checkpoint is None):
        raise typer.BadParameter("--baseline and --checkpoint go together")
    judged = training.Judged(
        weights=weights if checkpoint is None else str(checkpoint),
        count=count,
        seed=seed,
        folders=cases,
        manifest=manifest,
        split=split,
        insert=tuple(insert or ()),
        baseline=baseline,
        trust_remote_code=trust_remote_code,
    )
    with working("loading") as say:
        training.evaluate(judged, out, say, flip=flip)
    if as_json:
        sys.stdout.write((out / "evaluation.json").read_text())
    else:
        data.print((out / "evaluation.md").read_text())


def phantom(
    out: Annotated[Path, typer.Option(help="Takes one folder for each case.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first.")] = 0,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write each as a DICOM series.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write synthetic FLAIR cases with their truth."""
    from dicom_io.series_writer import write_series

    def as_series(folder: Path) -> None:
        write_series(folder / "flair.nii.gz", folder / "dicom", overrides={"PatientID": folder.name})

    with working("drawing") as say:
        folders = training.phantoms(out, count, seed, say, as_series if dicom else None)
    if as_json:
        emit_json([str(folder) for folder in folders])
    else:
        for folder in folders:
            data.print(str(folder))


@bench_app.command("generate")
def bench_generate(
    size: Annotated[Literal["tiny", "full"], typer.Option(help="full: the card's sizes, about 10 minutes.")] = "tiny",
    as_json: JsonOption = False,
) -> None:
    """Memory, load time and seconds a token in 4-bit, beside plain transformers on the same weights."""
    from daemon.bench.generate import bench_generate as run

    with working("starting") as say:
        result = run(size, log=say)
    _show(result, as_json=as_json)


@bench_app.command("explain")
def bench_explain(
    weights: Annotated[str, typer.Option(help="`demo`, a folder, or a hub id.")] = "demo",
    count: Annotated[int, typer.Option(min=1, help="Phantoms with a lesion, or lesions inserted into each scan.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first.")] = 8_000_000,
    cases: Annotated[
        Path | None, typer.Option(help="Judge folders with flair.nii.gz, lesion.nii.gz and truth.json instead.")
    ] = None,
    insert: Annotated[
        list[Path] | None,
        typer.Option(help="Judge a real FLAIR without a mass with lesions drawn in; may be repeated."),
    ] = None,
    samples: Annotated[int, typer.Option(min=10, help="Volumes that each method may score.")] = 100,
    segments: Annotated[int, typer.Option(min=2, help="Supervoxels.")] = 20,
    quick: Annotated[bool, typer.Option("--quick", help="The default and LIME only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Faithfulness and speed of each method on volumes whose lesion is known."""
    from braingemma.model.braingemma3d import BrainGemma3D
    from training.evaluation.explanations import VARIANTS, format_table
    from training.evaluation.explanations import bench_explain as run
    from training.explain_cases import explain_cases

    drawn = explain_cases(seed=seed, count=count, folder=cases, insert=tuple(insert or ()))
    variants = [v for v in VARIANTS if not quick or v in (("kernelshap", "mirror"), ("lime", "mirror"))]
    with working("loading") as say:
        model = BrainGemma3D.from_pretrained(weights).eval()
        result = run(
            model,
            drawn,
            variants=variants,
            samples=samples,
            segments=segments,
            progress=lambda done, text: say(f"case {done}: {text}"),
        )
    if as_json:
        emit_json(result)
    else:
        data.print(format_table(result))


@bench_app.command("ingest")
def bench_ingest(
    folder: Annotated[Path | None, typer.Option(help="Where the receivers write; on a disk.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of one run.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each receiver; medians count.")] = 3,
    size: Annotated[list[int] | None, typer.Option(min=8, help="Rows and columns; may be repeated [256, 512].")] = None,
    associations: Annotated[list[int] | None, typer.Option(min=1, help="At once; may be repeated [1, 4, 16].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Images a second into this listener, dcmtk storescp and Orthanc."""
    from daemon.bench.ingest import bench_ingest as run

    with working("starting") as say:
        result = run(
            folder,
            images=images,
            rounds=rounds,
            sizes=size or (256, 512),
            associations=associations or (1, 4, 16),
            progress=say,
        )
    _show(result, as_json=as_json)


@bench_app.command("convert")
def bench_convert(
    slices: Annotated[int, typer.Option(min=4, help="Of 240 x 240 pixels.")] = 155,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each; medians count.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Folder of DICOM files to RAS NIfTI, beside dicom2nifti alone on the same files."""
    from daemon.bench.convert import bench_convert as run

    with working("writing the series") as say:
        result = run(slices=slices, rounds=rounds, say=say)
    _show(result, as_json=as_json)


@bench_app.command("pipeline")
def bench_pipeline(
    folder: Annotated[Path | None, typer.Option(help="Where the daemon keeps its data; on a disk.")] = None,
    slices: Annotated[int, typer.Option(min=8, help="Slices of the study.")] = 155,
    rounds: Annotated[int, typer.Option(min=1, help="Studies; medians count.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Where a study's time goes, from its last acknowledged instance to stored results, step by step."""
    from daemon.bench.pipeline import bench_pipeline as run

    with working("starting") as say:
        result = run(folder, slices=slices, rounds=rounds, say=say)
    _show(result, as_json=as_json)


@bench_app.command("pack")
def bench_pack(
    folder: Annotated[Path | None, typer.Option(help="Where the results go; on a disk.")] = None,
    slices: Annotated[int, typer.Option(min=8, help="Slices of the study.")] = 155,
    rounds: Annotated[int, typer.Option(min=1, help="Packs; the median counts.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Seconds to encode, check and store the result objects of one study."""
    from daemon.bench.pack import bench_pack as run

    with working("starting") as say:
        result = run(folder, slices=slices, rounds=rounds, say=say)
    _show(result, as_json=as_json)


@bench_app.command("page")
def bench_page(
    jobs: Annotated[int, typer.Option(min=100, help="Jobs in the database.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Requests of each page; medians count.")] = 25,
    as_json: JsonOption = False,
) -> None:
    """How long each page takes with a database as it is after months."""
    from daemon.bench.page import bench_page as run

    with working("starting") as say:
        result = run(jobs=jobs, rounds=rounds, say=say)
    _show(result, as_json=as_json)


@bench_app.command("site")
def bench_site(
    per_day: Annotated[float, typer.Option(min=0.1, help="Studies with a FLAIR in a day.")] = 200,
    service: Annotated[str, typer.Option(help="Seconds of work of a study, e.g. 40,55; empty: measure here.")] = "",
    target: Annotated[float, typer.Option(min=0, help="95 of 100 studies start within this many seconds.")] = 600,
    burst: Annotated[float, typer.Option(min=1, help="Studies that arrive together, mean.")] = 3,
    hours: Annotated[str, typer.Option(help="The site's own arrivals, relative, for each of 24 hours: 1,1,0,...")] = "",
    days: Annotated[int, typer.Option(min=1, help="Simulated days.")] = 20,
    check: Annotated[int, typer.Option(min=2, help="Studies of the real run, where it measures.")] = 6,
    as_json: JsonOption = False,
) -> None:
    """Queue times at a site of this size by number of workers, and how many it needs."""
    import tempfile

    from daemon.bench.site import HOURLY_SHARE, measured_service
    from daemon.bench.site import bench_site as run

    checked: dict[str, Any] = {}
    if service:
        seconds = _numbers(service)
    else:
        with working("starting") as say, tempfile.TemporaryDirectory(prefix="braingemma-site-") as folder:
            seconds, checked = measured_service(Path(folder), studies=check, say=say)
    shares = _numbers(hours, least=0, count=24) if hours else HOURLY_SHARE
    result = run(per_day=per_day, service=seconds, target_seconds=target, burst=burst, days=days, hours=shares)
    _show({**result, **({"check": checked} if checked else {})}, as_json=as_json)


def _numbers(text: str, *, least: float = 1e-9, count: int | None = None) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from error
    if min(found) < least or max(found) <= 0:
        raise typer.BadParameter(f"expected positive numbers, got {text!r}")
    if count is not None and len(found) != count:
        raise typer.BadParameter(f"expected {count} numbers, got {len(found)}")
    return found


def _show(result: dict[str, Any], *, as_json: bool, indent: int = 0) -> None:
    if as_json:
        emit_json(result)
        return
    for name, value in result.items():
        if isinstance(value, dict):
            data.print(f"{' ' * indent}{name}:")
            _show(value, as_json=False, indent=indent + 2)
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            data.print(f"{' ' * indent}{name}: {shown}")
