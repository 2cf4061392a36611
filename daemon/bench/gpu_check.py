"""`make gpu-check`: does a machine's GPU give what its processor gives, and does the full-size model fit and run there?

Each part is a process of its own, so that its memory is its own too. With `--device cpu` everything runs small on a
processor, which shows that the script works and nothing about a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import torch

from braingemma.errors import BrainGemmaError
from braingemma.explain.record import ExplanationRecord
from braingemma.explain.run import run_interpretability
from braingemma.findings.text import findings_from_text
from braingemma.model import language
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.volume.preprocess import prepare_image, prepare_volume
from daemon.bench.generate import GIB, resident_gib, write_random_weights
from training.phantoms.phantom import make_phantom
from training.phases.run import train_phases
from training.settings import load_settings

Device = Literal["cuda", "cpu"]
CARD_GB = 16.0
"""The card's limit for inference."""
SEED = 7_700_000
REPORT = "The lesion is in the left frontal lobe with edema around it."
"""Stated by no random weights: an explanation needs a report with a finding."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        weights: Random weights of the card's size, or tiny ones.
        phantoms: Whose reports are compared.
        tokens: Written by the random weights.
        samples, segments: Of their explanation.
        train_cases, train_seconds: Of the demo's training.
    """

    weights: Literal["tiny", "full"]
    phantoms: int
    tokens: int
    samples: int
    segments: int
    train_cases: int
    train_seconds: float


SIZES: dict[str, Size] = {
    "cuda": Size("full", 4, 64, 100, 20, 96, 60.0),
    "cpu": Size("tiny", 1, 8, 10, 4, 16, 1.0),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, its value, what was expected (empty: nothing), whether it held."""

    name: str
    value: str
    expected: str = ""
    passed: bool | None = None


def gpu_check(device: Device, out: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run all parts, and write `gpu-check.md` and `gpu-check.json` into `out`.

    Args:
        device: "cuda", or "cpu" for a small trial of the script itself.
        out: Folder; made where it is missing.
        say: Told what is going on.

    Returns:
        What `gpu-check.json` holds: `device`, `machine`, `passed`, `rows`, `parts` and `seconds`.

    Raises:
        BrainGemmaError: there is no such device, or a part of the check failed.
    """
    if device not in SIZES:
        raise BrainGemmaError(f"device must be cuda or cpu, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BrainGemmaError("device cuda was asked for, but torch sees no CUDA device here")
    out.mkdir(parents=True, exist_ok=True)
    start, parts = time.perf_counter(), {}
    with tempfile.TemporaryDirectory(prefix="braingemma-gpu-") as temporary:
        for part in PARTS:
            say(part)
            parts[part] = _in_process(part, device, Path(temporary))
    rows = _rows(parts)
    result = {
        "device": device,
        "machine": machine(device),
        "passed": all(row.passed is not False for row in rows),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": [dataclasses.asdict(row) for row in rows],
        "parts": parts,
    }
    (out / "gpu-check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "gpu-check.md").write_text(markdown(result), encoding="utf-8")
    return result


def machine(device: Device) -> str:
    """Name of the device, and of the software that ran on it."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({os.cpu_count()} cores)"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def markdown(result: dict[str, Any]) -> str:
    """The table for a README."""
    marks = {True: "yes", False: "**NO**", None: ""}
    lines = [f"{result['machine']}; {result['seconds']:.0f} s in all.", "", "| measured | value | expected | held |"]
    lines.append("|---|---|---|---|")
    lines += [f"| {r['name']} | {r['value']} | {r['expected']} | {marks[r['passed']]} |" for r in result["rows"]]
    return "\n".join(lines) + "\n"


def _in_process(part: str, device: Device, folder: Path) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "daemon.bench.gpu_check", part, device, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **({"ACCELERATE_USE_CPU": "1"} if device == "cpu" else {})},
    )
    if run.returncode:
        last = " ".join(run.stderr.split()[-60:]) or f"exit status {run.returncode}"
        raise BrainGemmaError(f"{part}: the measuring process failed: {last}")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def _rows(parts: dict[str, dict[str, Any]]) -> list[Row]:
    same, full, trained = (parts[name] for name in ("agreement", "full size", "training"))
    rows = [Row("same tokens as the CPU, float32", same["tokens"], "all", same["same_tokens"])]
    rows += [
        Row(f"same findings as the CPU, {kind}", facts["findings"], "all", facts["same"])
        for kind, facts in same["findings"].items()
    ]
    peak = full["peak_gib"] * GIB / 1e9
    rows += [
        Row(f"{full['weights']} size, 4 bit: load", f"{full['load_s']:.1f} s"),
        Row("memory at rest", f"{full['resting_gib']:.2f} GiB"),
        Row("encode a volume", f"{full['encode_s']:.3f} s"),
        Row("seconds per token", f"{full['seconds_per_token']:.4f}"),
        Row(f"explanation, {full['evaluations']} volumes", f"{full['explain_s']:.1f} s"),
        Row("peak memory", f"{peak:.1f} GB", f"at most {CARD_GB:.0f} GB", peak <= CARD_GB),
        Row("demo training, phase 1", f"{trained['steps']} steps in {trained['seconds']:.0f} s"),
        Row("its loss, first to last", f"{trained['first']:.3f} to {trained['last']:.3f}"),
        Row("its peak memory", f"{trained['peak_gib']:.2f} GiB"),
    ]
    return rows


# ---------------------------------------------------------------------- the parts


def agreement(device: Device, folder: Path) -> dict[str, Any]:  # noqa: ARG001 - one signature for all parts
    """Reports of the demo weights on the processor and on the device."""
    volumes = [make_phantom(SEED + n, stripped=True).volume for n in range(SIZES[device].phantoms)]
    exact = {"dtype": "float32", "quantization": "none"}
    tokens = [_written(where, volumes, **exact)[0] for where in ("cpu", device)]
    kinds = {"bfloat16": {"dtype": "bfloat16", "quantization": "none"}, "4 bit": {"quantization": "4bit"}}
    findings = {}
    for kind, how in kinds.items():
        ours, theirs = (_written(where, volumes, **how)[1] for where in ("cpu", device))
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        findings[kind] = {"findings": f"{equal} of {len(ours)} reports", "same": ours == theirs}
    equal = sum(a == b for a, b in zip(*tokens, strict=True))
    return {
        "tokens": f"{equal} of {len(volumes)} reports",
        "same_tokens": tokens[0] == tokens[1],
        "findings": findings,
    }


def _written(device: str, volumes: list[Any], **how: Any) -> tuple[list[list[int]], list[Any]]:
    """(tokens, findings) of each report."""
    model = BrainGemma3D.from_pretrained("demo", device=device, **how)
    reports = [model.generate(prepare_image(v, model.config).tensor) for v in volumes]
    found = [[f.to_json() for f in findings_from_text(r.text)] for r in reports]
    return [list(r.token_ids) for r in reports], found


def full_size(device: Device, folder: Path) -> dict[str, Any]:
    """Random weights of the card's shape in four bits: memory and times."""
    size = SIZES[device]
    weights = write_random_weights(size.weights, folder / "weights")
    load_s, model = _timed(lambda: BrainGemma3D.from_pretrained(weights, device=device, quantization="4bit"), device)
    resting = _memory(device, peak=False)
    path = folder / "flair.nii.gz"
    nibabel.save(make_phantom(SEED, stripped=True).volume, path)
    volume = prepare_volume(path, model.config).tensor
    with torch.inference_mode(), model.mixed_precision():
        model.encode_volume(volume)  # the first run chooses kernels
        encode_s, visual = _timed(lambda: model.encode_volume(volume), device)
        ids = torch.tensor([model._prompt_ids(None)], device=visual.device)
        prefix = language.embed_with_image(model.language_model, ids, visual)
        settings = language.GenerationSettings(max_new_tokens=size.tokens)
        stamps: list[float] = []
        language.decode(model.language_model, prefix, settings, (), progress=lambda _: stamps.append(_now(device)))
    per_token = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    explain_s, _ = _timed(
        lambda: run_interpretability(
            model=model,
            mri_path=path,
            report=REPORT,
            output_dir=folder / "explain",
            lime_samples=size.samples,
            n_segments=size.segments,
        ),
        device,
    )
    evaluations = ExplanationRecord.read(folder / "explain").evaluations
    return {
        "weights": size.weights,
        "load_s": load_s,
        "resting_gib": resting,
        "encode_s": encode_s,
        "seconds_per_token": per_token,
        "explain_s": explain_s,
        "evaluations": evaluations,
        "peak_gib": _memory(device, peak=True),
    }


class _TimeIsUpError(Exception):
    """Ends the training from its own progress."""


def training(device: Device, folder: Path) -> dict[str, Any]:
    """The demo's phase 1 from its weights on, for a while, in this one process."""
    size = SIZES[device]
    demo = load_settings("demo")
    data = dataclasses.replace(demo.data, count=size.train_cases, validation=4, seed=SEED, bilateral=0, plaques=0)
    first = dataclasses.replace(demo.phases[0], validate_every=10**6)
    settings = dataclasses.replace(demo, start="", weights="demo", data=data, phases=(first,))
    stamps: list[float] = []
    losses: list[float] = []

    def progress(_phase: str, _step: int, _total: int, parts: dict[str, float]) -> None:
        stamps.append(_now(device))
        losses.append(parts["loss"])
        if stamps[-1] - stamps[0] >= size.train_seconds and len(stamps) > 2:
            raise _TimeIsUpError

    with contextlib.suppress(_TimeIsUpError):
        train_phases(settings, folder / "run", ["phase1"], progress, lambda _: None)
    return {
        "steps": len(stamps) - 1,
        "seconds": stamps[-1] - stamps[0],
        "first": losses[0],
        "last": losses[-1],
        "peak_gib": _memory(device, peak=True),
    }


PARTS: dict[str, Callable[[Device, Path], dict[str, Any]]] = {
    "agreement": agreement,
    "full size": full_size,
    "training": training,
}


def _now(device: Device) -> float:
    """Seconds, after the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _timed(call: Callable[[], Any], device: Device) -> tuple[float, Any]:
    start = _now(device)
    result = call()
    return _now(device) - start, result


def _memory(device: Device, *, peak: bool) -> float:
    """GiB on the device."""
    if device == "cuda":
        return (torch.cuda.max_memory_reserved() if peak else torch.cuda.memory_allocated()) / GIB
    return resident_gib("VmHWM" if peak else "VmRSS")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(PARTS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))) + "\n")  # type: ignore[arg-type]
