"""What `braingemma evaluate` does; the arguments are read by `daemon.cli.train`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import DataError
from training.progress import Say

if TYPE_CHECKING:
    from training.evaluation.cases import EvaluationCase
    from training.evaluation.evaluate import CaseResult, Evaluation
    from training.evaluation.fade import FadedReading
    from training.evaluation.reporters import Reporter


@dataclass(frozen=True)
class Judged:
    """What `evaluate` is to judge.

    Attributes:
        weights: `demo`, a folder or a hub id; with a baseline, its checkpoint's folder.
        count: Phantoms to draw, where no cases are named.
        seed: Of the first, or of the inserted lesions.
        hard: Whether the phantoms are hard ones, and inserted lesions faint ones too.
        candidates: Texts at most for each picture, as `[model] candidates`.
        fade: Of how many lesions the brightness is lowered step by step.
        scores: `NAME=FOLDER` of report scores that need weights of their own.
        folders: Cases that `braingemma phantom` wrote.
        manifest: Cases of a manifest.
        split: One split of it.
        insert: Real scans without a mass, to put lesions into.
        baseline: "medgemma-2d" or "med3dvlm"; None: our model.
        slices: Pictures of each volume that medgemma-2d is shown; None: its default.
        trust_remote_code: Whether code that lies in the checkpoint's folder may run.
        kept: Folder where brain masks and measurements are kept, by the picture's voxels.
        workers: Processes that share the cases.
    """

    weights: str = "demo"
    count: int = 60
    seed: int = 7_000_000
    hard: bool = False
    candidates: int = 8
    fade: int = 0
    scores: tuple[str, ...] = ()
    folders: Path | None = None
    manifest: Path | None = None
    split: str | None = None
    insert: tuple[Path, ...] = ()
    baseline: str | None = None
    slices: int | None = None
    trust_remote_code: bool = False
    kept: Path | None = None
    workers: int = 1


def evaluate(judged: Judged, out: Path, say: Say, *, flip: bool = True) -> Evaluation:
    """Judge reports; writes `evaluation.md`, `.json`, `.png`, `reliability.png` and `cases.csv` to `out`.

    Raises:
        DataError: the cases cannot be used, or all of them failed.
    """
    from training.evaluation.evaluate import summarise, with_meteor
    from training.evaluation.files import write_evaluation
    from training.evaluation.text.report_scores import parse_folders, report_scores

    folders = parse_folders(judged.scores)
    _, described, total = _cases(judged)
    results, readings, name = _judged(judged, total, say, flip=flip)
    found = summarise(results, 300, readings)
    if folders:
        say("report scores")
        references, reports = ([getattr(case, text) for case in found.cases] for text in ("reference", "report"))
        found = replace(found, report_scores=report_scores(folders, references, reports))
    say("measuring METEOR")
    found = with_meteor(found)
    write_evaluation(found, out, f"{name} on {described}")
    if found.cases and found.failed == len(found.cases):
        raise DataError(f"all {found.failed} cases failed, the first: {found.cases[0].name}: {found.cases[0].error}")
    return found


def _judged(judged: Judged, total: int, say: Say, *, flip: bool) -> tuple[list[CaseResult], list[FadedReading], str]:
    """(all cases in order, readings of faded lesions, the reporter's name), shared among processes."""
    if judged.workers == 1:
        return _judge_part(judged, 0, 1, say, flip=flip)
    say(f"{total} cases in {judged.workers} processes")
    with ProcessPoolExecutor(judged.workers, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_judge_part, judged, part, judged.workers, None, flip=flip) for part in range(judged.workers)
        ]
        parts = [future.result() for future in futures]
    results: list[CaseResult] = [parts[0][0][0]] * sum(len(part[0]) for part in parts)
    for number, part in enumerate(parts):
        results[number :: judged.workers] = part[0]
    return results, [reading for part in parts for reading in part[1]], parts[0][2]


def _judge_part(
    judged: Judged, part: int, parts: int, say: Say | None, *, flip: bool
) -> tuple[list[CaseResult], list[FadedReading], str]:
    """Every `parts`-th case from `part` on; `fade` lesions are shared among the parts."""
    import torch

    from training.evaluation.evaluate import judge_cases

    if parts > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    cases, _, total = _cases(judged, part, parts)
    reporter = _reporter(judged)
    fade = -(-judged.fade // parts)
    told = (lambda done: say(f"case {done}/{total}")) if say else (lambda _done: None)
    results, readings = judge_cases(reporter, cases, flip=flip, fade=fade, progress=told)
    return results, readings, reporter.name


def _cases(judged: Judged, part: int = 0, parts: int = 1) -> tuple[Iterable[EvaluationCase], str, int]:
    """(every `parts`-th case from `part` on, what they all are, how many)."""
    from training.evaluation import cases as sources

    named = [bool(judged.folders), bool(judged.manifest), bool(judged.insert)]
    if sum(named) > 1:
        raise DataError("expected one of folders, a manifest or scans to insert lesions into, got several")
    if judged.folders:
        found = sources.folder_cases(judged.folders)
        return found[part::parts], f"{len(found)} cases of {judged.folders.name}", len(found)
    if judged.manifest:
        found = sources.manifest_cases(judged.manifest, judged.split)
        split = f", split {judged.split}" if judged.split else ""
        return found[part::parts], f"{len(found)} cases of {judged.manifest.name}{split}", len(found)
    if judged.insert:
        each = 8
        total = len(judged.insert) * (each + 1)
        drawn = sources.inserted_cases(judged.insert, each, judged.seed, hard=judged.hard)
        faint = ", from 1.2 times the brain's brightness" if judged.hard else ""
        return (
            islice(drawn, part, None, parts),
            f"{len(judged.insert)} real scans, as they are and with {each} inserted lesions each{faint}",
            total,
        )
    seeds = range(judged.seed, judged.seed + judged.count)
    kind = "hard phantoms" if judged.hard else "phantoms"
    described = f"{judged.count} {kind}, seeds {judged.seed} to {judged.seed + judged.count - 1}"
    return sources.phantom_cases(seeds[part::parts], "hard" if judged.hard else "plain"), described, judged.count


def _reporter(judged: Judged) -> Reporter:
    if judged.baseline is None:
        from braingemma.model.braingemma3d import BrainGemma3D
        from training.evaluation.reporters import ModelReporter

        return ModelReporter(BrainGemma3D.from_pretrained(judged.weights).eval(), judged.candidates, judged.kept)
    from training.evaluation.baselines import load_baseline

    return load_baseline(
        judged.baseline, Path(judged.weights), slices=judged.slices, trust_remote_code=judged.trust_remote_code
    )
