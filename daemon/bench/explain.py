"""What an explanation of a full-size volume takes on a processor, each step apart: `bench generate --explain`.

The step that reads a volume is measured in every arithmetic there is; then the whole explanation runs as it is served.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import torch

from braingemma.explain.explanation import ExplainSettings
from braingemma.explain.record import ExplanationRecord
from braingemma.explain.run import CPU_MINUTES, affordable, run_interpretability
from braingemma.explain.targets import TargetPlan, plan_targets
from braingemma.model import language
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.cost import volume_seconds
from braingemma.model.large_volume import is_large, large_volumes
from braingemma.volume.preprocess import prepare_volume
from daemon.bench.generate import resident_gib
from training.phantoms.phantom import make_phantom

SEED = 7_700_000
REPORT = "The lesion is in the left frontal lobe with edema around it."
"""Random weights state nothing: an explanation needs a report with a finding."""
TOGETHER = 4
"""Volumes whose texts are scored together, as in an explanation of the full grid."""

Times = dict[str, float]


def measure_explanation(folder: Path, minutes: float = CPU_MINUTES) -> dict[str, Any]:
    """Load the weights in four bits on the CPU and time each step, then the explanation as a whole.

    Returns:
        `read`: wall and processor seconds of one volume in float32, by torch as a report is read, by the library in
        bfloat16, in eight bits, and of rounding the weights, once in a process; `text`: of scoring one volume's texts;
        `regions`, `volumes` (design), `curve_points` and `expected_volume_s` as they were chosen; `explanation`: of the
        whole, with `evaluations`, `description` and `rounding`; `peak_gib`.
    """
    model = BrainGemma3D.from_pretrained(folder, device="cpu", quantization="4bit")
    with tempfile.TemporaryDirectory(prefix="braingemma-explain-") as temporary:
        path = Path(temporary) / "flair.nii.gz"
        nibabel.save(make_phantom(SEED, stripped=True).volume, path)
        volume = prepare_volume(path, model.config).tensor
        plan = plan_targets(REPORT, model.tokenizer, contrast=True)
        grid = tuple(volume.shape[2:])
        size = affordable(model, plan, ExplainSettings(), minutes, grid)
        steps: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "in_eight_bits": is_large(model, grid),
            "text_tokens": len(model._prompt_ids(None)) + plan.tokens_read,
            "read": reading(model, volume),
            "text": texts(model, plan),
            "regions": size.segments,
            "curve_points": size.curve_points,
            "expected_volume_s": round(volume_seconds(model, grid, plan.tokens_read), 2),
        }
        whole, _ = _timed(
            lambda: run_interpretability(
                model=model, mri_path=path, report=REPORT, output_dir=Path(temporary) / "out", cpu_minutes=minutes
            )
        )
        made = ExplanationRecord.read(Path(temporary) / "out")
    facts = {"description": made.description, "evaluations": made.evaluations, "rounding": made.rounding}
    return {**steps, "explanation": {**whole, **facts}, "peak_gib": round(resident_gib("VmHWM"), 2)}


@torch.inference_mode()
def reading(model: BrainGemma3D, volume: torch.Tensor) -> dict[str, Times]:
    """One volume through the encoder, in each arithmetic."""
    found = {"as_for_a_report": _timed(lambda: model.vision(volume))[0]}
    with large_volumes(model.vision, eight_bits=False):
        found["bfloat16"] = _timed(lambda: model.vision(volume))[0]
    with large_volumes(model.vision):
        first = _timed(lambda: model.vision(volume))[0]
        found["eight_bits"] = _timed(lambda: model.vision(volume))[0]
    found["rounding_the_weights_once"] = {k: round(first[k] - found["eight_bits"][k], 2) for k in first}
    exact = copy.deepcopy(model.vision).float()
    found["float32"] = _timed(lambda: exact(volume))[0]
    return found


@torch.inference_mode()
def texts(model: BrainGemma3D, plan: TargetPlan) -> Times:
    """The report and its mirror image after visual tokens, for each of `TOGETHER` volumes."""
    config = model.config
    visual = torch.randn(TOGETHER, config.num_visual_tokens, config.text_config.hidden_size).to(torch.bfloat16)
    reports = [list(ids) for ids in plan.reports]
    wanted = [list(places) for places in plan.asked if places]

    def score() -> Any:
        return language.score_after(model.language_model, visual, model._prompt_ids(None), reports, wanted)

    score()
    return {name: round(value / TOGETHER, 2) for name, value in _timed(score)[0].items()}


def _timed(call: Callable[[], Any]) -> tuple[Times, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    times = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
    return {name: round(value, 2) for name, value in times.items()}, result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_explanation(Path(sys.argv[1]))) + "\n")
