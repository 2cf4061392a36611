"""Judge reports on cases with truth, beside reports that never look at the picture.

Everything is read from the reports' text. A case that fails is a failed case: it is listed, counted, and scored as a
report that says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from braingemma.errors import BrainGemmaError
from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import FINDINGS, Finding, mirror_text, mirrored_findings
from braingemma.model.braingemma3d import BrainGemma3D
from training.errors import TrainingError
from training.evaluation.cases import EvaluationCase, phantom_cases
from training.evaluation.fade import RATIOS, FadedReading, fade_case, fade_curve
from training.evaluation.metrics import (
    Findings,
    ReliabilityBin,
    bootstrap,
    calibration_error,
    finding,
    fixed_case,
    majority_findings,
    measure,
    permuted,
    reliability,
)
from training.evaluation.reporters import Grounding, ModelReporter, Reporter, judge_grounding
from training.evaluation.text.text_measures import keyword_f1, meteor, text_intervals, text_measures
from training.evaluation.uncertainty import (
    Statement,
    Witnesses,
    auroc_wrong,
    expected_calibration_error,
    risk_coverage,
    silent_errors,
    statements,
)
from training.phantoms.wording import write_report

HEADLINE: Final = (
    "laterality_f1",
    "laterality_kappa",
    "anatomy_f1",
    "anatomy_kappa",
    "pathology_f1",
    "pathology_kappa",
    "side_accuracy",
    "side_accuracy_one_sided",
    "wrong_side",
    "side_kappa",
    "site_f1",
    "site_kappa",
    "presence_f1",
    "presence_kappa",
    "lesion_presence_accuracy",
    "lesion_sensitivity",
    "healthy_specificity",
    "crg",
    *(f"{name}_{kind}" for name in FINDINGS for kind in ("presence_f1", "kappa", "informedness")),
)
"""What the tables show of `measure`, each F1 with its chance-corrected agreement."""
_FOREIGN: Final = (RuntimeError, ValueError)
"""What a third-party model may raise on a case: torch and transformers raise these two."""
_TEXT_ORDERS: Final = 5
Progress = Callable[[int], None]


@dataclass(frozen=True)
class CaseResult:
    """One case: what is true, what the report says, what it says of the mirrored picture."""

    name: str
    truth: Findings
    reference: str
    report: str
    mirrored: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    sides: dict[str, tuple[float, float]] = field(default_factory=dict)
    doubted: frozenset[tuple[str, str]] = frozenset()
    chances: dict[tuple[str, str], float] = field(default_factory=dict)
    grounding: Grounding | None = None
    error: str | None = None

    @property
    def predicted(self) -> Findings:
        """What the report says."""
        return findings_from_text(self.report)

    def statements(self) -> list[Statement]:
        """What the report states of findings whose truth is known."""
        return statements(
            self.truth, self.predicted, Witnesses(self.probabilities, self.sides, self.doubted, self.chances)
        )

    @property
    def healthy(self) -> bool:
        """Whether there is truly no lesion."""
        return finding(self.truth, "lesion").presence == "absent"


@dataclass(frozen=True)
class Row:
    """Reports of one writer, true or not, on the same cases."""

    truths: tuple[Findings, ...]
    references: tuple[str, ...]
    reports: tuple[str, ...]

    def pairs(self) -> list[tuple[Findings, Findings]]:
        """(truth, stated) of each case."""
        return [(t, findings_from_text(r)) for t, r in zip(self.truths, self.reports, strict=True)]

    def scores(self) -> dict[str, Any]:
        """All measures."""
        return {**self.texts(), **measure(self.pairs()), **keyword_f1(self.references, self.reports)}

    def texts(self) -> dict[str, float | None]:
        """Overlap with the references."""
        return text_measures(self.references, self.reports)

    def select(self, index: Sequence[int]) -> Row:
        """Some of the cases."""
        return Row(
            tuple(self.truths[i] for i in index),
            tuple(self.references[i] for i in index),
            tuple(self.reports[i] for i in index),
        )


@dataclass(frozen=True)
class Evaluation:
    """Results of all cases and the tables made of them.

    Attributes:
        cases: In order.
        table: Measures of each row: "model", then the reports that never look, then the mirrored pictures.
        apart: The model's measures on "pathological" and on "healthy" cases.
        intervals: 95 % bootstrap intervals of the model's measures.
        flip_consistency: Share of cases whose mirrored picture gets the mirrored side.
        calibration: Expected calibration error of each finding.
        reliability: Its bins.
        grounding: Peak of the map inside the lesion, its side, its height on healthy cases.
        risk_coverage: Share of wrong statements as the least certain are withheld.
        auroc_wrong: How well doubt tells wrong statements from right ones.
        silent_errors: Wrong statements without a warning.
        ece: Calibration error of each finding's presence, and of all together.
        fade: By brightness of the lesion; None where none was faded.
        report_scores: Means of `training.evaluation.text.report_scores`, those that were asked for.
        unmeasured: Why a measure is empty.
    """

    cases: tuple[CaseResult, ...]
    table: dict[str, dict[str, Any]]
    apart: dict[str, dict[str, Any]]
    intervals: dict[str, tuple[float, float]]
    flip_consistency: float | None
    calibration: dict[str, float | None]
    reliability: dict[str, list[ReliabilityBin]]
    grounding: dict[str, float | None]
    risk_coverage: dict[str, Any] | None
    auroc_wrong: float | None
    silent_errors: dict[str, Any]
    ece: dict[str, float | None]
    fade: dict[str, Any] | None
    report_scores: dict[str, float] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Cases that gave no report."""
        return sum(case.error is not None for case in self.cases)


def evaluate_cases(
    reporter: Reporter,
    cases: Iterable[EvaluationCase],
    *,
    flip: bool = True,
    samples: int = 300,
    fade: int = 0,
    progress: Progress = lambda _done: None,
) -> Evaluation:
    """Have every case reported, and judge the reports; intervals from `samples` draws.

    `fade`: of how many lesions, the first that have a mask, the brightness is also lowered step by step.
    """
    results, readings = judge_cases(reporter, cases, flip=flip, fade=fade, progress=progress)
    return summarise(results, samples, readings)


def judge_cases(
    reporter: Reporter, cases: Iterable[EvaluationCase], *, flip: bool, fade: int, progress: Progress
) -> tuple[list[CaseResult], list[FadedReading]]:
    """What was reported of each case, and of each lesion that was faded."""
    results: list[CaseResult] = []
    readings: list[FadedReading] = []
    for number, case in enumerate(cases, 1):
        results.append(judge_case(reporter, case, flip=flip))
        if len(readings) < fade * len(RATIOS) and isinstance(reporter, ModelReporter):
            readings += _faded(reporter, case, results[-1])
        progress(number)
    return results, readings


def _faded(reporter: ModelReporter, case: EvaluationCase, result: CaseResult) -> list[FadedReading]:
    """The case at each brightness; nothing where it failed, has no lesion, or no mask says where that is."""
    present = finding(result.truth, "lesion").presence == "present"
    masked = result.grounding is not None and result.grounding.inside is not None
    return fade_case(reporter, case) if present and masked and result.error is None else []


def evaluate_phantoms(
    model: BrainGemma3D, seeds: Sequence[int], *, flip: bool = True, progress: Progress = lambda _done: None
) -> Evaluation:
    """Draw phantoms as `braingemma phantom` does, prepare them as serving does, and judge the reports' text."""
    return evaluate_cases(ModelReporter(model), phantom_cases(seeds), flip=flip, progress=progress)


def judge_case(reporter: Reporter, case: EvaluationCase, *, flip: bool = True) -> CaseResult:
    """One report, and one of the mirrored picture; a refusal is kept as the case's error."""
    try:
        image, mask = case.open()
        reading = reporter.read(image, case.name, flip=flip)
        grounding = judge_grounding(reading, mask)
    except (BrainGemmaError, TrainingError, *_FOREIGN) as error:
        return CaseResult(case.name, case.truth, case.reference, "", error=str(error) or repr(error))
    return CaseResult(
        case.name,
        case.truth,
        case.reference,
        reading.report,
        reading.mirrored,
        dict(reading.probabilities),
        dict(reading.sides),
        reading.doubted,
        dict(reading.chances),
        grounding,
    )


# ---- the tables


def summarise(results: Sequence[CaseResult], samples: int = 300, readings: Sequence[FadedReading] = ()) -> Evaluation:
    """The model's measures beside those of reports that never look, on the same cases."""
    model = Row(tuple(c.truth for c in results), tuple(c.reference for c in results), tuple(c.report for c in results))
    pairs = model.pairs()
    table = {"model": model.scores(), **{name: row.scores() for name, row in _constant_rows(model).items()}}
    table["shuffled images"] = _shuffled(model)
    mirrored = _mirrored_row(results)
    if mirrored is not None:
        table["left-right flip"] = mirrored.scores()
    healthy = [case.healthy for case in results]
    apart = {
        name: model.select(index).scores()
        for name, wanted in (("pathological", False), ("healthy", True))
        if (index := [i for i, h in enumerate(healthy) if h == wanted])
    }
    known = {name: _known(results, name) for name in FINDINGS}
    stated = [statement for case in results for statement in case.statements()]
    return Evaluation(
        cases=tuple(results),
        table=table,
        apart=apart,
        intervals={
            **text_intervals(model.references, model.reports, min(samples, 100)),
            **bootstrap(pairs, HEADLINE, samples),
        },
        flip_consistency=_flip_consistency(results),
        calibration={name: calibration_error(*answers) for name, answers in known.items()},
        reliability={name: reliability(*answers) for name, answers in known.items() if answers[0]},
        grounding=_grounding(results),
        risk_coverage=risk_coverage(stated),
        auroc_wrong=auroc_wrong(stated),
        silent_errors=silent_errors(stated),
        ece=expected_calibration_error(known),
        fade=fade_curve(readings),
    )


def with_meteor(evaluation: Evaluation) -> Evaluation:
    """METEOR in the rows that one report a case stands behind; where Java is absent, why it is empty."""
    cases = evaluation.cases
    model = Row(tuple(c.truth for c in cases), tuple(c.reference for c in cases), tuple(c.report for c in cases))
    mirrored = _mirrored_row(cases)
    rows = {"model": model, **_constant_rows(model), **({"left-right flip": mirrored} if mirrored else {})}
    values, reason = meteor({name: (row.references, row.reports) for name, row in rows.items()})
    table = {name: {**scores, "meteor": values.get(name)} for name, scores in evaluation.table.items()}
    return replace(evaluation, table=table, unmeasured={"meteor": reason} if reason else {})


def _constant_rows(model: Row) -> dict[str, Row]:
    """One case's reference for all, and a report of the commonest answers."""
    count = len(model.truths)
    fixed = model.references[fixed_case(model.truths)]
    common = [
        Finding(f.finding, "absent") if f.presence == "undetermined" else f for f in majority_findings(model.truths)
    ]
    majority = write_report(common, np.random.default_rng(0))
    return {
        "constant report": Row(model.truths, model.references, (fixed,) * count),
        "majority report": Row(model.truths, model.references, (majority,) * count),
    }


def _shuffled(model: Row) -> dict[str, Any]:
    """Means over random orders: one order of a few hundred cases may agree by luck."""
    rng = np.random.default_rng(2)
    texts = []
    for _ in range(_TEXT_ORDERS):
        order = rng.permutation(len(model.reports))
        row = Row(model.truths, model.references, tuple(model.reports[i] for i in order))
        texts.append({**row.texts(), **keyword_f1(row.references, row.reports)})
    means = {name: _mean([t[name] for t in texts]) for name in texts[0]}
    return {**means, **permuted(model.pairs())}


def _mirrored_row(results: Sequence[CaseResult]) -> Row | None:
    """The mirrored pictures against the mirrored truth; a failed case says nothing."""
    if all(case.mirrored is None for case in results):
        return None
    return Row(
        tuple(mirrored_findings(tuple(c.truth)) for c in results),
        tuple(mirror_text(c.reference) for c in results),
        tuple(c.mirrored or "" for c in results),
    )


def _flip_consistency(results: Sequence[CaseResult]) -> float | None:
    """Share of cases whose mirrored picture gets the mirrored side of the lesion (both "none" agree as well)."""
    answers = []
    for case in results:
        if case.mirrored is not None:
            back = mirrored_findings(findings_from_text(case.mirrored))
            first, second = finding(case.predicted, "lesion"), finding(back, "lesion")
            answers.append((first.presence, first.laterality) == (second.presence, second.laterality))
    return float(np.mean(answers)) if answers else None


def _known(results: Sequence[CaseResult], name: str) -> tuple[list[float], list[bool]]:
    """(probability, truth) of the cases where both are known."""
    known = [c for c in results if name in c.probabilities and finding(c.truth, name).presence != "undetermined"]
    return [c.probabilities[name] for c in known], [finding(c.truth, name).presence == "present" for c in known]


def _grounding(results: Sequence[CaseResult]) -> dict[str, float | None]:
    """Of the grounding maps: where they peak in lesion cases, and how high in healthy ones."""
    mapped = [(case, case.grounding) for case in results if case.grounding is not None]
    sided = [(finding(c.truth, "lesion").laterality, g) for c, g in mapped]
    right_side = [(g.left_share > 0.5) == (side == "left") for side, g in sided if side in ("left", "right")]
    inside = [float(g.inside) for _, g in mapped if g.inside is not None]
    return {
        "peak_inside_lesion": _mean(inside),
        "more_on_true_side": _mean([float(r) for r in right_side]),
        "peak_lesion_median": _median([g.peak for c, g in mapped if not c.healthy]),
        "peak_healthy_median": _median([g.peak for c, g in mapped if c.healthy]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
