"""Judge weights on cases with truth: from the text of their reports, beside reports that never look at the picture.

A case that fails is a failed case: it is listed, counted, and scored as a report that says nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np

from braingemma.errors import BrainGemmaError
from braingemma.findings import FINDINGS, Finding, findings_from_text
from braingemma.model import BrainGemma3D
from braingemma.preprocess import prepare_image
from training.errors import DataError
from training.metrics import Findings, Pair, bootstrap, calibration_error, constant_baselines, finding, measure
from training.phantoms import make_phantom
from training.sources import mirrored_findings

HEADLINE: Final = (
    "side_accuracy",
    "side_accuracy_one_sided",
    "wrong_side",
    "site_f1",
    "presence_f1",
    "lesion_presence_accuracy",
    "lesion_sensitivity",
    "healthy_specificity",
    "side_kappa",
    "lesion_kappa",
    "edema_kappa",
    "necrosis_kappa",
    "ventricular_compression_kappa",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CaseResult:
    """One case: what is true, what the report says, what it says of the mirrored picture."""

    name: str
    truth: Findings
    report: str
    predicted: Findings
    mirrored: Findings | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of all cases and the table made of them."""

    cases: tuple[CaseResult, ...]
    table: dict[str, dict[str, Any]]
    intervals: dict[str, tuple[float, float]]
    flip_consistency: float | None
    calibration: dict[str, float | None]

    @property
    def failed(self) -> int:
        """Cases that gave no report."""
        return sum(case.error is not None for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """For `evaluation.json`."""
        return {
            "cases": len(self.cases),
            "failed": self.failed,
            "flip_consistency": self.flip_consistency,
            "calibration_error": self.calibration,
            "intervals_95": self.intervals,
            "table": self.table,
        }


def evaluate_phantoms(
    model: BrainGemma3D, seeds: Sequence[int], *, flip: bool = True, progress: Progress = lambda _done, _all: None
) -> Evaluation:
    """Draw phantoms as `braingemma phantom` does, prepare them as serving does, and judge the reports' text."""
    results = []
    for number, seed in enumerate(seeds):
        phantom = make_phantom(seed)
        results.append(judge_case(model, phantom.volume, phantom.findings, f"phantom-{seed}", flip=flip))
        progress(number + 1, len(seeds))
    return summarise(results)


def evaluate_folders(
    model: BrainGemma3D, root: Path, *, flip: bool = True, progress: Progress = lambda _done, _all: None
) -> Evaluation:
    """Judge the reports on cases that `braingemma phantom` wrote."""
    results, cases = [], read_case_folders(root)
    for number, (name, picture, truth) in enumerate(cases):
        results.append(judge_case(model, nibabel.load(picture), truth, name, flip=flip))
        progress(number + 1, len(cases))
    return summarise(results)


def judge_case(model: BrainGemma3D, image: Any, truth: Findings, name: str, *, flip: bool = True) -> CaseResult:
    """One report, and one of the mirrored volume; a refusal by the model is kept as the case's error."""
    try:
        volume = prepare_image(image, model.config, name=name).tensor
        report = str(model.generate_report(volume))
        mirrored = findings_from_text(str(model.generate_report(volume.flip(-1)))) if flip else None
        probabilities = model.finding_probabilities(volume)
    except BrainGemmaError as error:
        silent = tuple(Finding(n, "undetermined") for n in FINDINGS)
        return CaseResult(name, truth, "", silent, error=str(error))
    known = probabilities if isinstance(probabilities, dict) else {}
    return CaseResult(
        name,
        truth,
        report,
        findings_from_text(report),
        mirrored,
        {n: float(known[n]["presence"]) for n in FINDINGS if n in known},
    )


def read_case_folders(root: Path) -> list[tuple[str, Path, tuple[Finding, ...]]]:
    """Cases as `braingemma phantom` writes them: (name, picture, truth); everything missing is listed at once.

    Raises:
        DataError: no case, or files that are missing or broken.
    """
    cases, problems = [], []
    for truth_file in sorted(root.glob("*/truth.json")):
        picture = truth_file.parent / "flair.nii.gz"
        try:
            entries = json.loads(truth_file.read_text())["findings"]
            cases.append((truth_file.parent.name, picture, tuple(Finding.from_json(e) for e in entries)))
        except (KeyError, ValueError) as error:
            problems.append(f"{truth_file}: {error}")
        if not picture.exists():
            problems.append(f"{picture}: missing")
    if problems or not cases:
        raise DataError("\n".join(problems) or f"{root}: expected folders with truth.json and flair.nii.gz, found none")
    return cases


def summarise(results: Sequence[CaseResult]) -> Evaluation:
    """The table: the model, then the reports that never look, on the same cases."""
    pairs: list[Pair] = [(case.truth, case.predicted) for case in results]
    truths = [case.truth for case in results]
    table = {"model": measure(pairs)}
    for name, reports in constant_baselines(truths).items():
        table[name] = measure(list(zip(truths, reports, strict=True)))
    shuffled = np.random.default_rng(1).permutation(len(results))
    table["shuffled images"] = measure([(truths[i], results[j].predicted) for i, j in enumerate(shuffled)])
    return Evaluation(
        cases=tuple(results),
        table=table,
        intervals=bootstrap(pairs, HEADLINE),
        flip_consistency=_flip_consistency(results),
        calibration={name: _calibration(results, name) for name in FINDINGS},
    )


def _flip_consistency(results: Sequence[CaseResult]) -> float | None:
    """Share of cases whose mirrored picture gets the mirrored side of the lesion (both "none" agree as well)."""
    answers = []
    for case in results:
        if case.mirrored is not None:
            back = mirrored_findings(tuple(case.mirrored))
            first, second = finding(case.predicted, "lesion"), finding(back, "lesion")
            answers.append((first.presence, first.laterality) == (second.presence, second.laterality))
    return float(np.mean(answers)) if answers else None


def _calibration(results: Sequence[CaseResult], name: str) -> float | None:
    known = [c for c in results if name in c.probabilities and finding(c.truth, name).presence != "undetermined"]
    return calibration_error(
        [c.probabilities[name] for c in known], [finding(c.truth, name).presence == "present" for c in known]
    )


def write_evaluation(evaluation: Evaluation, folder: Path, title: str) -> None:
    """`evaluation.json`, `evaluation.md` and `cases.csv` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation.to_json(), indent=2) + "\n")
    (folder / "evaluation.md").write_text(markdown(evaluation, title))
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "error", "report", *(f"{n} {side}" for n in FINDINGS for side in ("true", "stated"))])
        for case in evaluation.cases:
            cells = [_short(finding(f, n)) for n in FINDINGS for f in (case.truth, case.predicted)]
            writer.writerow([case.name, case.error or "", case.report, *cells])


def _short(entry: Finding) -> str:
    if entry.presence != "present":
        return entry.presence
    return " ".join(filter(None, [entry.laterality or "", "/".join(entry.sites)])) or "present"


def markdown(evaluation: Evaluation, title: str) -> str:
    """The table as Markdown, with 95 % intervals for the model."""
    columns = list(evaluation.table)
    lines = [
        f"# {title}",
        "",
        f"{len(evaluation.cases)} cases, {evaluation.failed} failed (scored as saying nothing). All figures are read "
        "from the reports' text. Brackets: 95 % bootstrap interval.",
        "",
        "| measure | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in HEADLINE:
        cells = [_cell(evaluation.table[column].get(name)) for column in columns]
        if name in evaluation.intervals:
            low, high = evaluation.intervals[name]
            cells[0] += f" [{low:.2f}, {high:.2f}]"
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    calibration = ", ".join(f"{n.replace('_', ' ')} {_cell(v)}" for n, v in evaluation.calibration.items())
    lines += [
        "",
        f"Left-right flip consistency: {_cell(evaluation.flip_consistency)}. Calibration error of the findings head: "
        f"{calibration}.",
        "",
    ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
