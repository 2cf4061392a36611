"""`braingemma demo`, `process`, `select` and `batch`: one study, or many."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from daemon.cli.terminal import ConfigOption, JsonOption, WeightsOption, data, emit_json, messages, working
from daemon.config.load import load_settings, with_options
from daemon.errors import DaemonError
from daemon.faults import writing_to
from daemon.loading import loading

BATCH_NICENESS = 10
"""Of a batch: the daemon's processes on the same machine get the processor first."""
MOST_NAMED = 10
"""Files of a batch that could not be read, in words; of more the number is said."""
StudyOption = Annotated[
    str | None, typer.Option("--study", metavar="UID", help="The study to take, of several patients or days.")
]


def demo(
    pacs: Annotated[Literal["embedded", "orthanc"], typer.Option(help="Which trial PACS.")] = "embedded",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("braingemma-demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the working data too, in OUT/work.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the main job end to end on loopback: a study goes in by C-STORE, an SR and an overlay come back."""
    from daemon.jobs.records import ReportFinding
    from daemon.jobs.report import finding_line, read_report
    from daemon.trial.demo import demo as run
    from dicom_io.objects.kinds import SC

    with writing_to(out), working("loading") as say:
        result = run(out, pacs=pacs, keep=keep, say=say)
    folder = result.folder
    if as_json:
        emit_json(
            {
                "folder": str(folder.root.resolve()),
                "report": read_report(folder).to_json(),
                "truth": result.truth,
                "pacs": result.pacs,
                "received": dict(result.received),
            }
        )
        return
    data.print(folder.report_text.read_text(encoding="utf-8"))
    data.print("The phantom was made with:")
    for finding in result.truth["findings"]:
        data.print(f"  {finding_line(ReportFinding.model_validate(finding))}")
    held = ", ".join(f"{n} {kind}" for kind, n in sorted(result.received.items()))
    data.print(f"\nThe {result.pacs} PACS holds beside the images, in the same study: {held}\n")
    for label, path in (
        ("Look at this first", folder.report_html),
        ("Structured Report", folder.sr),
        ("Overlay, one picture a slice", (folder.dicom / SC.file()).parent),
        ("Pictures of the explanation", folder.explain),
        ("All results", folder.root),
    ):
        data.print(f"{label}: {path.resolve()}")


def process(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A NIfTI file, or a folder of DICOM files.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    weights: WeightsOption = None,
    explain: Annotated[bool, typer.Option("--explain/--no-explain", help="Compute the saliency map.")] = True,
    seed: Annotated[int | None, typer.Option(help="Seed of the explanation.", show_default="42")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where the model runs.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0: greedy; above: drawn. Not given: as the weights say.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="Nucleus of the drawing.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(min=0.01, help="Above 1: words that were written are less likely.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(min=0, help="No run of so many tokens is written twice; 0: all may be.")
    ] = None,
    min_new_tokens: Annotated[int | None, typer.Option(min=0, help="Shortest report, tokens.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Longest report, tokens.", show_default="256")
    ] = None,
    study: StudyOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report one study without a daemon."""
    settings = with_options(
        load_settings(config),
        model={
            "weights": weights, "device": device, "temperature": temperature, "top_p": top_p,
            "repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size,
            "min_new_tokens": min_new_tokens, "max_new_tokens": max_new_tokens,
        },
        explain={"enabled": explain, "seed": seed},
    )  # fmt: skip
    with writing_to(out), working("loading") as say:
        with loading():
            from daemon.pipeline.process import process as run

        folder = run(
            source, out, settings, study_uid=study,
            progress=lambda done, total, text: say(f"{text} {done}/{total}"),
            on_step=say,
        )  # fmt: skip
    if as_json:
        sys.stdout.write(folder.report_json.read_text(encoding="utf-8") + "\n")
        return
    data.print(folder.report_text.read_text(encoding="utf-8"))
    data.print(f"Page to look at: {folder.report_html.resolve()}")


def select(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, any nesting.")],
    study: StudyOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say for every series found whether it would be reported, and why."""
    from daemon.pipeline.steps.picture import look_at
    from dicom_io.errors import SeriesError
    from dicom_io.select.selection import SelectionRules, rank
    from dicom_io.series.group import scan_folder
    from dicom_io.series.studies import of_one_study, studies_of

    rules = load_settings(config).selection
    if not folder.is_dir():
        raise DaemonError(
            f"{folder}: expected a folder of DICOM files, found {'a file' if folder.exists() else 'nothing'}"
        )
    scan = scan_folder(folder)
    series, unclear = scan.series, None
    try:
        series = of_one_study(scan.series, study)
    except SeriesError as error:  # each is judged all the same, but none comes before another
        unclear = DaemonError(f"{folder}: {error}")
    ranked = rank(series, SelectionRules(include=rules.include, exclude=rules.exclude), look_at)
    rows = [
        {
            "series_uid": verdict.series_uid,
            "verdict": "accepted" if verdict.accepted else "refused",
            "reasons": [reason.line for reason in verdict.reasons],
        }
        for _, verdict in ranked
    ]
    problems = [{"file": str(p.path), "reason": p.reason} for p in scan.problems]
    if as_json:
        emit_json({"series": rows, "problems": problems, "studies": [s.study_uid for s in studies_of(scan.series)]})
    else:
        for row in rows:
            data.print(f"{row['verdict']}: series {row['series_uid']}")
            for reason in row["reasons"]:
                data.print(f"  {reason}")
        for problem in problems:
            messages.print(f"not read: {problem['file']}: {problem['reason']}", markup=False)
    if not rows:
        raise DaemonError(f"{folder}: expected DICOM instances, found none ({len(problems)} files could not be read)")
    if unclear is not None:
        raise unclear


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
    deface: Annotated[bool, typer.Option("--deface", help="Remove the face from every volume and picture.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report every FLAIR of many studies; exit code 1 where a case failed, whose row says why.

    Several calls on one folder (a Slurm array, say) share the work: each case is done once.
    """
    settings = with_options(
        load_settings(config),
        model={"weights": weights, "device": device},
        explain={"enabled": explain},
        results={"deidentify": deidentify or None, "deface": deface or None},
    )
    with writing_to(out), working("looking for cases") as say:
        with loading():
            from daemon.cohort.batch import Batch, only_one_writes
            from daemon.cohort.bids import write_bids
            from daemon.cohort.cases import find_cases
            from daemon.cohort.page import write_page
            from daemon.cohort.sessions import compare_sessions
            from daemon.cohort.table import rows_of, write_csv, write_parquet
            from daemon.pipeline.steps.nameless import deidentifier_of

        found = find_cases(source, out, deidentifier_of(settings))
        os.nice(BATCH_NICENESS)
        work = Batch(found, out, settings, say)
        tally = work.run()
        with only_one_writes(out):
            compared = compare_sessions(found.cases, out, named=not settings.results.deidentify)
            failed = tally.failed + work.encode_anew()
            rows = rows_of(out)
            write_csv(rows, out / "cases.csv")
            write_parquet(rows, out / "cases.parquet")
            write_page(rows, out, work.banner)
            if bids:
                write_bids(rows, out, out / "bids")
    for file, why in found.problems[:MOST_NAMED]:
        messages.print(f"not read: {file}: {why}", markup=False, soft_wrap=True)
    if compared.note:
        messages.print(compared.note, markup=False)
    if as_json:
        counts = {"cases": len(found.cases), **vars(tally), "failed": failed, "not_read": len(found.problems)}
        emit_json({**counts, "table": str(out / "cases.csv")})
    else:
        data.print(
            f"{len(found.cases)} cases: {tally.reported} reported, {tally.refused} refused, {failed} failed, "
            f"{tally.skipped} done before; {len(found.problems)} files not read"
        )
        data.print(f"Table: {(out / 'cases.csv').resolve()}\nPage to look at: {(out / 'index.html').resolve()}")
    if failed:
        raise DaemonError(f"{failed} of {len(found.cases)} cases failed: see reason in {out / 'cases.csv'}")
