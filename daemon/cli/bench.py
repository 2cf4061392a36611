"""`braingemma bench`: what each measurement takes as arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from daemon.cli.terminal import JsonOption, data, emit_json, working
from daemon.errors import ConfigurationError

bench_app = typer.Typer(help="Side-by-side measurements, printed as ratios.", no_args_is_help=True)


@bench_app.command("generate")
def bench_generate(
    size: Annotated[
        Literal["tiny", "full"], typer.Option(help="full: the card's sizes, about a quarter of an hour.")
    ] = "tiny",
    explain: Annotated[
        bool, typer.Option("--explain", help="What an explanation takes on this processor, each step apart, instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Memory, load time and seconds a token in 4-bit, beside plain transformers, with an 8-bit head, with guesses."""
    from daemon.bench.generate import bench_generate as run

    with working("starting") as say:
        result = run(size, log=say, explain=explain)
    _show(result, as_json=as_json)


@bench_app.command("gpu")
def bench_gpu(
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: a small trial of the check itself.")] = "cuda",
    out: Annotated[Path, typer.Option(help="Folder for gpu-check.md and gpu-check.json.")] = Path("gpu-check"),
    as_json: JsonOption = False,
) -> None:
    """Does the GPU give what the processor gives, and does the full-size model fit and run there: `make gpu-check`."""
    from daemon.bench.gpu_check import gpu_check, markdown

    with working("starting") as say:
        result = gpu_check(device, out, say)
    if as_json:
        emit_json(result)
    else:
        data.print(markdown(result))
    if not result["passed"]:
        raise typer.Exit(1)


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
    segments: Annotated[
        list[int] | None, typer.Option(min=2, help="Supervoxels [20]; may be repeated: each on the same cases.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The default and LIME only.")] = False,
    method: Annotated[
        list[str] | None, typer.Option(help="Only these methods, such as balanced or kernelshap; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Faithfulness and speed of each method on volumes whose lesion is known."""
    from braingemma.model.braingemma3d import BrainGemma3D
    from training.evaluation.explanations import VARIANTS, explain_cases, format_table
    from training.evaluation.explanations import bench_explain as run

    drawn = explain_cases(seed=seed, count=count, folder=cases, insert=tuple(insert or ()))
    variants = [v for v in VARIANTS if not quick or v in (("balanced", "mirror"), ("lime", "mirror"))]
    if method:
        variants = [v for v in VARIANTS if v[0] in method and v[1] == "mirror"]
        if unknown := set(method) - {name for name, _ in VARIANTS}:
            raise typer.BadParameter(f"--method: expected {', '.join(sorted({n for n, _ in VARIANTS}))}, got {unknown}")
    with working("loading") as say:
        model = BrainGemma3D.from_pretrained(weights).eval()
        result = run(
            model,
            drawn,
            variants=variants,
            samples=samples,
            segments=tuple(segments or (20,)),
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
    replicate: Annotated[
        Path | None, typer.Option(help="Also with a second copy in this folder: what `listener.replicate` costs.")
    ] = None,
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
            replicate=replicate,
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
    database_url: Annotated[str, typer.Option(help="An empty PostgreSQL database; SQLite where not given.")] = "",
    as_json: JsonOption = False,
) -> None:
    """How long each page takes with a database as it is after months."""
    from daemon.bench.page import bench_page as run

    with working("starting") as say:
        result = run(jobs=jobs, rounds=rounds, database_url=database_url, say=say)
    _show(result, as_json=as_json)


@bench_app.command("start")
def bench_start(
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each; medians count.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """How long help and the service take until they answer, and what each process loads."""
    from daemon.bench.start import bench_start as run

    with working("starting") as say:
        result = run(rounds=rounds, say=say)
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

    shares = _numbers("--hours", hours, least=0, count=24) if hours else HOURLY_SHARE
    checked: dict[str, Any] = {}
    if service:
        seconds = _numbers("--service", service)
    else:
        with working("starting") as say, tempfile.TemporaryDirectory(prefix="braingemma-site-") as folder:
            seconds, checked = measured_service(Path(folder), studies=check, say=say)
    result = run(per_day=per_day, service=seconds, target_seconds=target, burst=burst, days=days, hours=shares)
    _show({**result, **({"check": checked} if checked else {})}, as_json=as_json)


def _numbers(option: str, text: str, *, least: float = 1e-9, count: int | None = None) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"{option}: expected numbers with commas between, got {text!r}") from error
    if min(found) < least or max(found) <= 0:
        raise ConfigurationError(f"{option}: expected positive numbers, got {text!r}")
    if count is not None and len(found) != count:
        raise ConfigurationError(f"{option}: expected {count} numbers, got {len(found)}")
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
