"""How well reports agree with the truth, by finding: presence, side, site, each with its chance-corrected agreement.

Everything is counted on structured findings read from text with negation, never on bare keywords: a report that
denies everything scores as one that denies everything. Where nothing can be counted the measure is None, never 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from braingemma.findings.vocabulary import FINDINGS, SITES, Finding

Findings = Sequence[Finding]
Pair = tuple[Findings, Findings]
_SILENT: Final = {name: Finding(name, "undetermined") for name in FINDINGS}
PRESENCE_FINDINGS: Final = ("edema", "necrosis", "ventricular_compression")


def finding(findings: Findings, name: str) -> Finding:
    """The finding of this name; "undetermined" where it is missing."""
    for entry in findings:
        if entry.finding == name:
            return entry
    return _SILENT[name] if name in _SILENT else Finding(name, "undetermined")


def kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa (1960); None without pairs or where chance alone agrees always."""
    return pooled_kappa([pairs])


def pooled_kappa(strata: Sequence[Sequence[tuple[Hashable, Hashable]]]) -> float | None:
    """Cohen's kappa over several questions, with the chance of each by its own answers.

    Pooling answers to different questions into one kappa would credit a constant report for knowing which finding or
    lobe is common; here each constant answer agrees exactly as often as chance.
    """
    observed = expected = total = 0.0
    for pairs in strata:
        total += len(pairs)
        observed += sum(a == b for a, b in pairs)
        first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
        expected += sum(times * second[label] for label, times in first.items()) / max(1, len(pairs))
    return None if total - expected <= 1e-9 else (observed - expected) / (total - expected)


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives, true negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @staticmethod
    def total(parts: Sequence[Counts]) -> Counts:
        """All of them together."""
        return Counts(*(sum(getattr(p, name) for p in parts) for name in ("tp", "fp", "fn", "tn")))

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where there is nothing to find and nothing was found."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else None

    @property
    def informedness(self) -> float | None:
        """Sensitivity + specificity - 1 (Youden, 1950); None without cases of either kind."""
        positive, negative = self.tp + self.fn, self.tn + self.fp
        return self.tp / positive + self.tn / negative - 1 if positive and negative else None


def count(truth: Sequence[bool], stated: Sequence[bool]) -> Counts:
    """Counts over paired answers."""
    t, s = np.asarray(truth, bool), np.asarray(stated, bool)
    return Counts(int((t & s).sum()), int((~t & s).sum()), int((t & ~s).sum()), int((~t & ~s).sum()))


def presence_counts(pairs: Sequence[Pair], name: str) -> Counts:
    """Presence of one finding; what a report leaves open counts as not stated."""
    stated = [(finding(t, name), finding(p, name)) for t, p in pairs]
    known = [(t, p) for t, p in stated if t.presence != "undetermined"]
    return count([t.presence == "present" for t, _ in known], [p.presence == "present" for _, p in known])


def site_counts(pairs: Sequence[Pair], name: str) -> Counts:
    """Sites of one finding over the cases that truly have it, all sites together."""
    tp = fp = fn = 0
    for truth, predicted in pairs:
        t, p = finding(truth, name), finding(predicted, name)
        if t.presence != "present":
            continue
        tp += len(set(t.sites) & set(p.sites))
        fp += len(set(p.sites) - set(t.sites))
        fn += len(set(t.sites) - set(p.sites))
    return Counts(tp, fp, fn)


def sides(pairs: Sequence[Pair], name: str) -> list[tuple[str, str]]:
    """(true side, stated side) of the cases that truly have the finding on a known side; "none" where not stated."""
    both = [(finding(t, name), finding(p, name)) for t, p in pairs]
    return [(t.laterality, p.laterality or "none") for t, p in both if t.presence == "present" and t.laterality]


def _side_set(entry: Finding) -> set[str]:
    if entry.laterality == "bilateral":
        return {"left", "right"}
    return {entry.laterality} if entry.laterality else set()


def side_counts(pairs: Sequence[Pair], name: str) -> Counts:
    """Sides of one finding over the cases that truly have it; bilateral is left and right."""
    tp = fp = fn = 0
    for truth, predicted in pairs:
        t, p = finding(truth, name), finding(predicted, name)
        if t.presence == "present" and t.laterality:
            true, stated = _side_set(t), _side_set(p)
            tp, fp, fn = tp + len(true & stated), fp + len(stated - true), fn + len(true - stated)
    return Counts(tp, fp, fn)


def _presence_pairs(pairs: Sequence[Pair], name: str) -> list[tuple[bool, bool]]:
    both = [(finding(t, name), finding(p, name)) for t, p in pairs]
    return [(t.presence == "present", p.presence == "present") for t, p in both if t.presence != "undetermined"]


def _site_strata(pairs: Sequence[Pair], name: str) -> list[list[tuple[bool, bool]]]:
    """For each site, whether it is true and whether it is stated, over the cases that truly have the finding."""
    both = [(finding(t, name), finding(p, name)) for t, p in pairs]
    ill = [(t, p) for t, p in both if t.presence == "present"]
    return [[(site in t.sites, site in p.sites) for t, p in ill] for site in SITES] if ill else []


def clinical(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Laterality, anatomy and pathology over all findings: F1, and beside each its chance-corrected agreement.

    Pathology: whether each finding is there. Laterality and anatomy: its sides, and its sites, where it truly is. The
    site of a ventricular compression is no question, and is left out.
    """
    placed = [name for name in FINDINGS if name != "ventricular_compression"]
    return {
        "laterality_f1": Counts.total([side_counts(pairs, name) for name in FINDINGS]).f1,
        "laterality_kappa": pooled_kappa([sides(pairs, name) for name in FINDINGS]),
        "anatomy_f1": Counts.total([site_counts(pairs, name) for name in placed]).f1,
        "anatomy_kappa": pooled_kappa([stratum for name in placed for stratum in _site_strata(pairs, name)]),
        "pathology_f1": Counts.total([presence_counts(pairs, name) for name in FINDINGS]).f1,
        "pathology_kappa": pooled_kappa([_presence_pairs(pairs, name) for name in FINDINGS]),
    }


def crg_score(pairs: Sequence[Pair]) -> float | None:
    """CRG score (Hamamci et al., MIDL 2025, arXiv 2505.17167) over the presence of all findings.

    A false negative costs as much as a true positive gives, so weighted by how common positives are that denying all
    and stating all are equally poor: 1 is perfect, 1/3 is what a report gets that denies everything. None without
    positive or without negative truths.
    """
    counts = Counts.total([presence_counts(pairs, name) for name in FINDINGS])
    positives, labels = counts.tp + counts.fn, counts.tp + counts.fn + counts.fp + counts.tn
    if positives in (0, labels):
        return None
    most = (labels - positives) / 2
    weight = most / positives
    return most / (2 * most - (weight * (counts.tp - counts.fn) - counts.fp))


def measure(pairs: Sequence[Pair]) -> dict[str, Any]:
    """All measures of a set of (truth, predicted) findings; values are floats or None."""
    lesion = presence_counts(pairs, "lesion")
    healthy, ill = lesion.tn + lesion.fp, lesion.tp + lesion.fn
    one_sided = [(t, p) for t, p in sides(pairs, "lesion") if t != "bilateral"]
    result: dict[str, Any] = {
        "cases": len(pairs),
        "lesion_presence_accuracy": (lesion.tp + lesion.tn) / len(pairs) if pairs else None,
        "lesion_sensitivity": lesion.tp / ill if ill else None,
        "healthy_specificity": lesion.tn / healthy if healthy else None,
        "side_accuracy": _share([t == p for t, p in sides(pairs, "lesion")]),
        "side_accuracy_one_sided": _share([t == p for t, p in one_sided]),
        "wrong_side": _share([{t, p} == {"left", "right"} for t, p in one_sided]),
        "side_kappa": kappa(sides(pairs, "lesion")),
        "site_f1": site_counts(pairs, "lesion").f1,
        "site_kappa": pooled_kappa(_site_strata(pairs, "lesion")),
        "presence_f1": _mean([presence_counts(pairs, name).f1 for name in PRESENCE_FINDINGS]),
        "presence_kappa": pooled_kappa([_presence_pairs(pairs, name) for name in PRESENCE_FINDINGS]),
        **clinical(pairs),
        "crg": crg_score(pairs),
    }
    for name in FINDINGS:
        counts = presence_counts(pairs, name)
        result[f"{name}_presence_f1"] = counts.f1
        result[f"{name}_informedness"] = counts.informedness
        result[f"{name}_kappa"] = kappa([(finding(t, name).presence, finding(p, name).presence) for t, p in pairs])
        result[f"{name}_side_accuracy"] = _share([t == p for t, p in sides(pairs, name)])
        result[f"{name}_side_f1"] = side_counts(pairs, name).f1
        result[f"{name}_side_kappa"] = kappa(sides(pairs, name))
        if name in ("edema", "necrosis"):
            result[f"{name}_site_f1"] = site_counts(pairs, name).f1
            result[f"{name}_site_kappa"] = pooled_kappa(_site_strata(pairs, name))
    return result


def _share(answers: Sequence[bool]) -> float | None:
    return float(np.mean(answers)) if answers else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def bootstrap(
    pairs: Sequence[Pair], names: Sequence[str], samples: int = 300, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of measures by resampling cases (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(samples):
        drawn = measure([pairs[i] for i in rng.integers(len(pairs), size=len(pairs))])
        for name in names:
            if drawn[name] is not None:
                values[name].append(drawn[name])
    return {n: (float(np.percentile(v, 2.5)), float(np.percentile(v, 97.5))) for n, v in values.items() if v}


def calibration_error(probability: Sequence[float], truth: Sequence[bool], bins: int = 10) -> float | None:
    """Expected calibration error (Naeini et al., 2015) over equal-width bins."""
    if not probability:
        return None
    found = reliability(probability, truth, bins)
    return sum(b.count * abs(b.probability - b.frequency) for b in found) / len(probability)


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose probability lies in one bin: how many, their mean probability, how often it was so."""

    count: int
    probability: float
    frequency: float


def reliability(probability: Sequence[float], truth: Sequence[bool], bins: int = 10) -> list[ReliabilityBin]:
    """The bins that have cases, of equal width over [0, 1]: what a reliability plot shows."""
    p, t = np.asarray(probability, float), np.asarray(truth, float)
    which = np.minimum((p * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(int((which == b).sum()), float(p[which == b].mean()), float(t[which == b].mean()))
        for b in np.unique(which)
    ]


def majority_findings(truths: Sequence[Findings]) -> tuple[Finding, ...]:
    """The commonest answer for each finding."""
    return tuple(_commonest([finding(t, name) for t in truths]) for name in FINDINGS)


def fixed_case(truths: Sequence[Findings], seed: int = 0) -> int:
    """The case whose report is given for all: drawn out of those with a lesion, where there are any."""
    ill = [i for i, t in enumerate(truths) if finding(t, "lesion").presence == "present"]
    return ill[int(np.random.default_rng(seed).integers(len(ill)))] if ill else 0


def permuted(pairs: Sequence[Pair], samples: int = 100, seed: int = 1) -> dict[str, Any]:
    """Means of all measures when each case gets the answer of another one, over random orders."""
    rng = np.random.default_rng(seed)
    drawn = [
        measure([(truth, pairs[j][1]) for (truth, _), j in zip(pairs, rng.permutation(len(pairs)), strict=True)])
        for _ in range(samples)
    ]
    return {name: _mean([row[name] for row in drawn]) for name in drawn[0]}


def _commonest(findings: Sequence[Finding]) -> Finding:
    key: Callable[[Finding], str] = lambda f: repr((f.presence, f.laterality, f.sites))  # noqa: E731
    keys = [key(f) for f in findings]
    return findings[keys.index(max(sorted(set(keys)), key=keys.count))]
