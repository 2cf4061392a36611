"""`braingemma batch`: many studies into one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from daemon.cli.faults import writing_to
from daemon.cli.terminal import ConfigOption, JsonOption, WeightsOption, data, emit_json, working
from daemon.config.load import load_settings
from daemon.errors import DaemonError


def batch(
    source: Annotated[
        Path, typer.Argument(help="DICOM files in any nesting, a BIDS data set, NIfTI files, or a CSV or JSONL list.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; an earlier call goes on where it stopped.")],
    weights: WeightsOption = None,
    explain: Annotated[bool, typer.Option("--explain/--no-explain", help="Compute the saliency maps.")] = True,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the model runs.")] = None,
    bids: Annotated[bool, typer.Option("--bids", help="Also write OUT/bids, a BIDS derivative data set.")] = False,
    deidentify: Annotated[bool, typer.Option("--deidentify", help="Pseudonyms, other UIDs, shifted dates.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report every FLAIR of many studies; exit code 1 where a case failed, whose row says why.

    Several calls on one folder (a Slurm array, say) share the work: each case is done once.
    """
    settings = load_settings(config)
    model = {k: v for k, v in (("weights", weights), ("device", device)) if v is not None}
    changed: dict[str, dict[str, Any]] = {
        "model": model,
        "explain": {"enabled": explain},
        "results": {"deidentify": True} if deidentify else {},
    }
    settings = settings.model_copy(
        update={
            name: type(section).model_validate({**section.model_dump(), **values})
            for name, values in changed.items()
            for section in [getattr(settings, name)]
        }
    )
    with writing_to(out), working("looking for cases") as say:
        from daemon.cohort.batch import Batch, only_one_writes
        from daemon.cohort.bids import write_bids
        from daemon.cohort.cases import find_cases
        from daemon.cohort.page import write_page
        from daemon.cohort.table import rows_of, write_csv, write_parquet

        found = find_cases(source)
        work = Batch(found, out, settings, say)
        tally = work.run()
        with only_one_writes(out):
            rows = rows_of(out)
            write_csv(rows, out / "cases.csv")
            write_parquet(rows, out / "cases.parquet")
            write_page(rows, out, work.banner)
            if bids:
                write_bids(rows, out, out / "bids")
    if as_json:
        counts = {"cases": len(found.cases), **vars(tally), "not_read": len(found.problems)}
        emit_json({**counts, "table": str(out / "cases.csv")})
    else:
        data.print(
            f"{len(found.cases)} cases: {tally.reported} reported, {tally.refused} refused, {tally.failed} failed, "
            f"{tally.skipped} done before; {len(found.problems)} files not read"
        )
        data.print(f"Table: {(out / 'cases.csv').resolve()}\nPage to look at: {(out / 'index.html').resolve()}")
    if tally.failed:
        raise DaemonError(f"{tally.failed} of {len(found.cases)} cases failed: see reason in {out / 'cases.csv'}")
