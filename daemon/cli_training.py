"""`braingemma train`, `evaluate`, `phantom` and `bench`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from daemon.terminal import JsonOption, data, emit_json, working
from training import cli as training

train_app = typer.Typer(help="Train the model.", no_args_is_help=True)
bench_app = typer.Typer(help="Side-by-side measurements, printed as ratios.", no_args_is_help=True)


@train_app.command("demo")
def train_demo(
    out: Annotated[Path, typer.Option(help="Run folder; a run that was killed goes on from it.")] = Path("runs/demo"),
    config: Annotated[str, typer.Option(help="Bundled configuration by name, or a TOML file.")] = "demo",
    install: Annotated[bool, typer.Option("--install", help="Replace the bundled demo weights.")] = False,
) -> None:
    """Make the demo weights from nothing: phantoms, language, grounding, projector, adapters."""
    from braingemma.weights import DEMO_FOLDER

    with working("starting") as say:
        weights = training.train_demo(out, say, config)
    if install:
        shutil.rmtree(DEMO_FOLDER, ignore_errors=True)
        shutil.copytree(weights, DEMO_FOLDER)
        weights = DEMO_FOLDER
    data.print(str(weights))


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    weights: Annotated[str, typer.Option(help="`demo`, a folder, or a hub id.")] = "demo",
    count: Annotated[int, typer.Option(min=1, help="Phantoms.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; training uses 200000 and up.")] = 7_000_000,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Also report each volume mirrored.")] = True,
) -> None:
    """Judge reports on phantoms that the weights never saw, beside reports that never look."""
    with working("loading") as say:
        table = training.evaluate(weights, out, count, seed, say, flip=flip)
    data.print(table)


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
    from braingemma.bench import bench_generate as run

    with working("starting") as say:
        result = run(size, log=say)
    _show(result, as_json=as_json)


@bench_app.command("explain")
def bench_explain(
    weights: Annotated[str, typer.Option(help="`demo`, a folder, or a hub id.")] = "demo",
    count: Annotated[int, typer.Option(min=1, help="Phantoms with a lesion.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first.")] = 8_000_000,
    samples: Annotated[int, typer.Option(min=10, help="Volumes that each method may score.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Faithfulness and speed of each method on phantoms whose lesion is known."""
    import nibabel
    import numpy as np

    from braingemma.explain_bench import BenchCase
    from braingemma.explain_bench import bench_explain as run
    from braingemma.model import BrainGemma3D
    from training.phantoms import make_phantom

    drawn = (make_phantom(seed + number, with_lesion=True) for number in range(count))
    cases = (BenchCase(p.volume, np.asarray(nibabel.as_closest_canonical(p.lesion).dataobj) > 0) for p in drawn)
    with working("loading") as say:
        model = BrainGemma3D.from_pretrained(weights).eval()
        result = run(model, cases, samples=samples, progress=lambda done, text: say(f"case {done}: {text}"))
    _show(result, as_json=as_json)


@bench_app.command("ingest")
def bench_ingest(
    folder: Annotated[Path | None, typer.Option(help="Where the receivers write; on a disk.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of one run.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each receiver; medians count.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Images a second into this listener, dcmtk storescp and Orthanc."""
    from daemon.bench_ingest import bench_ingest as run

    with working("starting") as say:
        result = run(folder, images=images, rounds=rounds, progress=say)
    _show(result, as_json=as_json)


@bench_app.command("pipeline")
def bench_pipeline(
    folder: Annotated[Path | None, typer.Option(help="Where the daemon keeps its data; on a disk.")] = None,
    slices: Annotated[int, typer.Option(min=8, help="Slices of the study.")] = 155,
    rounds: Annotated[int, typer.Option(min=1, help="Studies; medians count.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Where a study's time goes, from its last acknowledged instance to stored results, step by step."""
    from daemon.bench_pipeline import bench_pipeline as run

    with working("starting") as say:
        result = run(folder, slices=slices, rounds=rounds, say=say)
    _show(result, as_json=as_json)


@bench_app.command("site")
def bench_site(
    per_day: Annotated[float, typer.Option(min=0.1, help="Studies with a FLAIR in a day.")] = 200,
    service: Annotated[str, typer.Option(help="Seconds of work of a study, e.g. 40,55; empty: measure here.")] = "",
    target: Annotated[float, typer.Option(min=0, help="95 of 100 studies start within this many seconds.")] = 600,
    burst: Annotated[float, typer.Option(min=1, help="Studies that arrive together, mean.")] = 3,
    check: Annotated[int, typer.Option(min=2, help="Studies of the real run, where it measures.")] = 6,
    as_json: JsonOption = False,
) -> None:
    """Queue times at a site of this size by number of workers, and how many it needs."""
    import tempfile

    from daemon.bench_site import bench_site as run
    from daemon.bench_site import measured_service

    checked: dict[str, Any] = {}
    if service:
        seconds = _numbers(service)
    else:
        with working("starting") as say, tempfile.TemporaryDirectory(prefix="braingemma-site-") as folder:
            seconds, checked = measured_service(Path(folder), studies=check, say=say)
    result = run(per_day=per_day, service=seconds, target_seconds=target, burst=burst)
    _show({**result, **({"check": checked} if checked else {})}, as_json=as_json)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from error
    if min(found) <= 0:
        raise typer.BadParameter(f"expected positive seconds, got {text!r}")
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
