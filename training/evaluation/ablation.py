"""What each phase and the compressor contribute: the same data and budget for every run, several seeds.

Rows: after phase 1, 2A and 2B, with the card's Perceiver and with the published code's average pooling and positions.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from braingemma.findings.text import findings_from_text
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.language import GenerationSettings
from training.data.cases import Cases
from training.data.patches import patch_share
from training.data.phantom_cases import phantom_cases, training_cases
from training.evaluation.metrics import Pair, measure
from training.evaluation.text.text_measures import TEXT_MEASURES, text_measures
from training.phases.run import PhaseRunner, make_accelerator, prepare_language, start_model
from training.phases.run_folder import RunFolder, data_digest
from training.phases.weights import TrainingData
from training.progress import Progress, Say, no_progress, silent
from training.settings import TrainingSettings

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "Perceiver": {},
    "published pooling and positions": {"weights_format": "published"},
}
"""Changes of the model's table for each variant."""
_JUDGED_FROM: Final = 1_000_000
"""Phantoms to judge start this far behind the training ones."""
_BATCH: Final = 16
SHOWN: Final = (
    *TEXT_MEASURES,
    "laterality_f1",
    "laterality_kappa",
    "anatomy_f1",
    "anatomy_kappa",
    "pathology_f1",
    "pathology_kappa",
    "healthy_specificity",
    "peak_inside_lesion",
)


@dataclass(frozen=True)
class AblationResult:
    """Measures of one variant and seed after one phase; `minutes` is its training time up to there."""

    variant: str
    seed: int
    phase: str
    minutes: float
    scores: dict[str, float | None]


def run_ablation(
    settings: TrainingSettings,
    out: Path,
    *,
    seeds: int = 3,
    count: int = 100,
    progress: Progress = no_progress,
    say: Say = silent,
) -> list[AblationResult]:
    """Train and judge every variant with every seed; writes `ablation.md`, `.csv`, `.json` and `.png` to `out`.

    A run that is finished in `out` is not repeated; one that was killed goes on.
    """
    cases = _load(settings, out, count, say)
    results: list[AblationResult] = []
    for seed in range(seeds):
        for variant, changes in VARIANTS.items():
            folder = out / f"{variant.split()[0].lower()}-seed{seed}"
            kept = folder / "result.json"
            if kept.exists():
                results += [AblationResult(**entry) for entry in json.loads(kept.read_text())]
                continue
            say(f"ablation: {variant}, seed {seed}")
            _share_language(out, seed, folder)
            found = _run(_varied(settings, changes, seed), folder, cases, variant, seed, progress, say)
            kept.write_text(json.dumps([asdict(result) for result in found], indent=1))
            results += found
    write_ablation(results, out, count)
    return results


def _varied(settings: TrainingSettings, changes: dict[str, Any], seed: int) -> TrainingSettings:
    pooled = changes.get("weights_format") == "published"  # average pooling has nothing to train
    phases = tuple(
        replace(phase, seed=seed, trainable=tuple(n for n in phase.trainable if not (pooled and n == "resampler")))
        for phase in settings.phases
    )
    language = replace(settings.language, seed=seed)
    return replace(settings, model={**settings.model, **changes}, language=language, phases=phases)


def _load(settings: TrainingSettings, out: Path, count: int, say: Say) -> tuple[Cases, Cases, Cases]:
    """(training, validation, judged) phantoms, the same for every run."""
    config = start_model(settings, torch.device("cpu")).config
    data = settings.data
    cache = data.cache or str(out / "cases")
    train, validation = training_cases(data, config, cache, say)
    return train, validation, phantom_cases(config, data.seed + _JUDGED_FROM, count, cache, say)


def _share_language(out: Path, seed: int, folder: Path) -> None:
    """Variants of one seed steer the same language model: the first run's is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in sorted(out.glob(f"*-seed{seed}/language.safetensors")):
        if not (folder / other.name).exists():
            shutil.copy(other, folder / other.name)


def _run(
    settings: TrainingSettings,
    folder: Path,
    cases: tuple[Cases, Cases, Cases],
    variant: str,
    seed: int,
    progress: Progress,
    say: Say,
) -> list[AblationResult]:
    train, validation, judged = cases
    accelerator = make_accelerator(settings)
    run = RunFolder(folder)
    digest = data_digest(train)
    run.check_same(settings, digest)
    run.start(settings, digest)
    model = start_model(settings, accelerator.device)
    prepare_language(model, settings, run, progress)
    data = TrainingData(train, validation, "phantoms")
    runner = PhaseRunner(model, settings, data, run, accelerator, progress, say)
    results, minutes = [], 0.0
    for phase in settings.phases:
        began = time.monotonic()
        runner.train(phase)
        minutes += (time.monotonic() - began) / 60
        results.append(AblationResult(variant, seed, phase.name, minutes, judge(model, judged)))
    return results


def judge(model: BrainGemma3D, cases: Cases) -> dict[str, float | None]:
    """Measures of the reports on prepared cases, and of the grounding map where there is one."""
    reports: list[str] = []
    inside: list[bool] = []
    for start in range(0, len(cases), _BATCH):
        volumes = cases.volumes[start : start + _BATCH].float().to(model.compute_device)
        written = model.generate_batch(volumes, settings=GenerationSettings(max_new_tokens=120))
        reports += [report.text for report in written]
        inside += _peaks(model, volumes, cases.masks[start : start + _BATCH])
    pairs: list[Pair] = [(t, findings_from_text(r)) for t, r in zip(cases.findings, reports, strict=True)]
    scores = {**text_measures(cases.reports, reports), **measure(pairs)}
    scores["peak_inside_lesion"] = float(np.mean(inside)) if inside else None
    return {name: scores[name] for name in SHOWN}


def _peaks(model: BrainGemma3D, volumes: torch.Tensor, masks: torch.Tensor) -> list[bool]:
    """For each case with a lesion, whether the map's highest patch touches it."""
    found = model.ground(volumes)
    if found is None:
        return []
    share = patch_share(masks, model.vision.patch, tuple(found.shape[1:]))
    highest = found.flatten(1).argmax(dim=1).cpu()
    return [bool(s.flatten()[i] > 0) for s, i in zip(share, highest, strict=True) if bool((s > 0).any())]


# ---- files


def write_ablation(results: Sequence[AblationResult], out: Path, count: int) -> None:
    """The table in four forms."""
    (out / "ablation.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    with (out / "ablation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", "phase", "minutes", *SHOWN])
        for r in results:
            values = (r.scores[name] for name in SHOWN)
            writer.writerow([r.variant, r.seed, r.phase, f"{r.minutes:.2f}", *("" if v is None else v for v in values)])
    (out / "ablation.md").write_text(ablation_markdown(results, count))
    _plot(results, out / "ablation.png")


def ablation_markdown(results: Sequence[AblationResult], count: int) -> str:
    """Mean and spread over seeds of each variant after each phase."""
    seeds = len({result.seed for result in results})
    lines = [
        "# Ablation: phases and compressor",
        "",
        f"The same phantoms and steps for every run; {seeds} seeds, mean ± standard deviation over them, judged on "
        f"{count} unseen phantoms from the reports' text. κ is 0 at chance.",
        "",
        "| Compressor | after | minutes | " + " | ".join(name.replace("_", " ") for name in SHOWN) + " |",
        "|---" * (len(SHOWN) + 3) + "|",
    ]
    for (variant, phase), group in _groups(results).items():
        minutes = _spread([result.minutes for result in group])
        cells = [_spread([result.scores[name] for result in group]) for name in SHOWN]
        lines.append(f"| {variant} | {phase} | {minutes} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _groups(results: Sequence[AblationResult]) -> dict[tuple[str, str], list[AblationResult]]:
    groups: dict[tuple[str, str], list[AblationResult]] = {}
    for result in results:
        groups.setdefault((result.variant, result.phase), []).append(result)
    return dict(sorted(groups.items(), key=lambda item: (list(VARIANTS).index(item[0][0]), item[0][1])))


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.3f} ± {np.std(known):.3f}" if known else "–"


def _plot(results: Sequence[AblationResult], path: Path) -> None:
    shown = ("laterality_kappa", "anatomy_kappa", "pathology_kappa", "peak_inside_lesion")
    groups = _groups(results)
    width = 0.8 / len(groups)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        for number, ((variant, phase), group) in enumerate(groups.items()):
            values = [[v for r in group if (v := r.scores[name]) is not None] for name in shown]
            places = np.arange(len(shown)) + number * width
            means = [float(np.mean(v)) if v else 0.0 for v in values]
            axes.bar(
                places, means, width, yerr=[float(np.std(v)) if v else 0.0 for v in values], label=f"{variant}, {phase}"
            )
        axes.set_xticks(np.arange(len(shown)) + 0.4 - width / 2, [name.replace("_", " ") for name in shown])
        axes.axhline(0, color="black", linewidth=0.5)
        axes.legend(fontsize=7)
        figure.savefig(path, dpi=110)
