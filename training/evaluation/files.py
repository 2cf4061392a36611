"""An evaluation as files: Markdown in the card's column order, CSV by case, JSON, and two pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from braingemma.findings.vocabulary import FINDINGS, Finding
from training.evaluation.evaluate import HEADLINE, Evaluation
from training.evaluation.metrics import finding

_COLUMNS: Final = {
    "BLEU-1": "bleu_1",
    "BLEU-4": "bleu_4",
    "ROUGE-L": "rouge_l",
    "CIDEr": "cider",
    "Lat F1": "laterality_f1",
    "Anat F1": "anatomy_f1",
    "Path F1": "pathology_f1",
    "METEOR": "meteor",
    "Lat κ": "laterality_kappa",
    "Anat κ": "anatomy_kappa",
    "Path κ": "pathology_kappa",
    "Healthy specificity": "healthy_specificity",
}
"""The card's columns, then what chance and healthy cases make of them."""
_KEYWORDS: Final = {
    "keyword Lat F1": "keyword_laterality_f1",
    "keyword Anat F1": "keyword_anatomy_f1",
    "keyword Path F1": "keyword_pathology_f1",
}


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """For `evaluation.json`."""
    return {
        "cases": len(evaluation.cases),
        "failed": evaluation.failed,
        "failures": {case.name: case.error for case in evaluation.cases if case.error is not None},
        "flip_consistency": evaluation.flip_consistency,
        "calibration_error": evaluation.calibration,
        "grounding": evaluation.grounding,
        "risk_coverage": evaluation.risk_coverage,
        "auroc_wrong": evaluation.auroc_wrong,
        "silent_errors": evaluation.silent_errors,
        "ece": evaluation.ece,
        "fade": evaluation.fade,
        "report_scores": evaluation.report_scores,
        "intervals_95": evaluation.intervals,
        "table": evaluation.table,
        "unmeasured": evaluation.unmeasured,
        "apart": evaluation.apart,
        "reliability": {n: [dataclasses.asdict(b) for b in bins] for n, bins in evaluation.reliability.items()},
    }


def write_evaluation(evaluation: Evaluation, folder: Path, title: str) -> None:
    """`evaluation.md`, `.json`, `.png`, `cases.csv`, and `reliability.png` where probabilities are known."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(to_json(evaluation), indent=2) + "\n")
    (folder / "evaluation.md").write_text(markdown(evaluation, title))
    _write_cases(evaluation, folder / "cases.csv")
    _plot_measures(evaluation, title, folder / "evaluation.png")
    if evaluation.reliability:
        _plot_reliability(evaluation, title, folder / "reliability.png")


# ---- Markdown


def markdown(evaluation: Evaluation, title: str) -> str:
    """All tables as Markdown."""
    lines = [
        f"# {title}",
        "",
        f"{len(evaluation.cases)} cases, {evaluation.failed} failed (scored as saying nothing). All figures are read "
        "from the reports' text. Brackets: 95 % bootstrap interval. κ: Cohen's kappa, 0 at chance.",
        "",
        *_card_table(evaluation),
        "",
        *_by_group(evaluation),
        "",
        *_measures(evaluation),
        "",
        *_keywords(evaluation),
        "",
        *_doubt(evaluation),
        "",
        *_notes(evaluation),
        "",
    ]
    return "\n".join(lines)


def _card_table(evaluation: Evaluation) -> list[str]:
    lines = _head(["Model", *_COLUMNS])
    for row, values in evaluation.table.items():
        intervals = evaluation.intervals if row == "model" else {}
        cells = [_cell(values.get(key)) + _interval(intervals.get(key)) for key in _COLUMNS.values()]
        lines.append(_row([row, *cells]))
    return lines


def _by_group(evaluation: Evaluation) -> list[str]:
    lines = ["Pathological and healthy cases apart:", "", *_head(["Cases of the model", *_COLUMNS])]
    for name, values in evaluation.apart.items():
        lines.append(_row([f"{name} ({values['cases']})", *(_cell(values.get(key)) for key in _COLUMNS.values())]))
    return lines


def _measures(evaluation: Evaluation) -> list[str]:
    rows = list(evaluation.table)
    lines = _head(["measure", *rows])
    for name in HEADLINE:
        cells = [_cell(evaluation.table[row].get(name)) for row in rows]
        cells[0] += _interval(evaluation.intervals.get(name))
        lines.append(_row([name.replace("_", " "), *cells]))
    return lines


def _keywords(evaluation: Evaluation) -> list[str]:
    lines = [
        "The published evaluation's keyword F1, for comparison with its figures alone: it counts bare words, so that",
        '"no edema" is edema, and a report that never looks scores high.',
        "",
        *_head(["Model", *_KEYWORDS]),
    ]
    for row, values in evaluation.table.items():
        lines.append(_row([row, *(_cell(values.get(key)) for key in _KEYWORDS.values())]))
    return lines


def _doubt(evaluation: Evaluation) -> list[str]:
    """What a reader can do with the model's doubt."""
    silent = evaluation.silent_errors
    lines = [
        f"Statements on presence and side: {silent['statements']}, {silent['wrong']} wrong, {silent['silent']} of them "
        f"without a warning ({_cell(silent['share'])} of all; {silent['lesion_silent']} on the lesion); warned though "
        f"right: {_cell(silent['false_alarms'])}. AUROC of doubt for wrong statements: {_cell(evaluation.auroc_wrong)}."
    ]
    if evaluation.risk_coverage is not None:
        risk = evaluation.risk_coverage["risk"]
        cells = [_cell(value) for value in risk.values()]
        lines += ["", *_head(["withheld, least certain first", *risk]), _row(["share wrong of the rest", *cells])]
    if evaluation.report_scores:
        lines.append(
            "Report scores: " + ", ".join(f"{n} {_cell(v)}" for n, v in evaluation.report_scores.items()) + "."
        )
    if evaluation.fade is not None:
        lines += ["", *_head(["brightness over the brain's", "lesions", "stated", "right side", "wrong, no warning"])]
        for ratio, row in evaluation.fade.items():
            shares = [_cell(row[key]) for key in ("stated", "right_side", "silent")]
            lines.append(_row([ratio, str(row["lesions"]), *shares]))
    return lines


def _notes(evaluation: Evaluation) -> list[str]:
    lines = [f"Left-right flip consistency: {_cell(evaluation.flip_consistency)}."]
    lines += [f"{reason}." for reason in evaluation.unmeasured.values()]
    if any(value is not None for value in evaluation.calibration.values()):
        errors = ", ".join(f"{n.replace('_', ' ')} {_cell(v)}" for n, v in evaluation.calibration.items())
        lines.append(f"Calibration error of the findings head: {errors}.")
    if any(value is not None for value in evaluation.grounding.values()):
        found = ", ".join(f"{n.replace('_', ' ')} {_cell(v)}" for n, v in evaluation.grounding.items())
        lines.append(f"Grounding map: {found}.")
    failures = [f"- {case.name}: {case.error}" for case in evaluation.cases if case.error is not None]
    return [*lines, *(["", "Failed cases:", "", *failures] if failures else [])]


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


# ---- CSV


def _write_cases(evaluation: Evaluation, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        stated = [f"{n} {kind}" for n in FINDINGS for kind in ("true", "stated", "probability")]
        writer.writerow(["case", "error", "report", "reference", "mirrored report", "grounding inside", *stated])
        for case in evaluation.cases:
            inside = case.grounding.inside if case.grounding is not None else None
            cells = [case.name, case.error or "", case.report, case.reference, case.mirrored or "", _blank(inside)]
            for name in FINDINGS:
                truth, predicted = finding(case.truth, name), finding(case.predicted, name)
                cells += [_short(truth), _short(predicted), _blank(case.probabilities.get(name))]
            writer.writerow(cells)


def _blank(value: float | bool | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).lower()


def _short(entry: Finding) -> str:
    if entry.presence != "present":
        return entry.presence
    return " ".join(filter(None, [entry.laterality or "", "/".join(entry.sites)])) or "present"


# ---- pictures


def _plot_measures(evaluation: Evaluation, title: str, path: Path) -> None:
    """The card's measures of every row, side by side; whiskers are the model's intervals."""
    shown = {label: key for label, key in _COLUMNS.items() if key != "cider"}
    rows = list(evaluation.table)
    width = 0.8 / len(rows)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(rows):
            values = [evaluation.table[row].get(key) for key in shown.values()]
            places = [i + number * width for i, v in enumerate(values) if v is not None]
            axes.bar(places, [v for v in values if v is not None], width, label=row)
        for i, key in enumerate(shown.values()):
            if key in evaluation.intervals:
                axes.plot([i, i], evaluation.intervals[key], color="black", linewidth=1)
        axes.set_xticks([i + 0.4 - width / 2 for i in range(len(shown))], list(shown), rotation=20)
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_ylim(top=1.02)
        axes.set_title(f"{title}: {len(evaluation.cases)} cases, {evaluation.failed} failed")
        axes.legend(ncols=len(rows), loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        figure.savefig(path, dpi=110)


def _plot_reliability(evaluation: Evaluation, title: str, path: Path) -> None:
    """How often each finding was there, by the probability that was given; the diagonal is perfect."""
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(5, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle=":")
        for name, bins in evaluation.reliability.items():
            label = f"{name.replace('_', ' ')} (error {_cell(evaluation.calibration[name])})"
            # Areas go with the number of cases; no lines, which would give a bin of one case the weight of the others.
            sizes = [10 + 2 * b.count for b in bins]
            axes.scatter([b.probability for b in bins], [b.frequency for b in bins], s=sizes, alpha=0.6, label=label)
        axes.set_xlabel("probability given")
        axes.set_ylabel("share of cases with the finding")
        axes.set_title("\n".join(textwrap.wrap(f"Reliability: {title}", 55)), fontsize=9)
        legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([40])
        figure.savefig(path, dpi=110)
