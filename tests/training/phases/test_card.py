"""The card's configuration, smaller in its sizes alone: 4-bit, bf16, BraTS with TextBraTS and a BIDS folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from transformers import Gemma3ForCausalLM

from braingemma.model.braingemma3d import BrainGemma3D
from tests.braingemma.tiny_models import tiny_config
from tests.training.card_support import fabricate_card
from tests.training.run_support import losses
from training.phases import plan
from training.phases.plan import plan_run
from training.phases.run import train_phases
from training.settings import load_settings

ALL = ("phase1", "phase2a", "phase2b")
REPO = Path(__file__).parents[3]
SEVERAL = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_card(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def whole(card: Path) -> Path:
    out = card.parent / "whole"
    train_phases(load_settings(card), out)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(card: Path, out: Path, *before: str) -> list[str]:
    """As it is documented; `before`: what starts several processes."""
    return [sys.executable, *before, "-m", "daemon.cli", "train", "run", "--config", str(card), "--out", str(out)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.mark.timeout(900)
def test_the_card_trains_to_its_end_in_four_bits_and_bf16(card: Path, whole: Path) -> None:
    settings = load_settings(card)
    assert (settings.quantization, settings.precision) == ("4bit", "bf16")
    assert settings.phase("phase1").contrast_loss == "infonce"
    assert settings.phase("phase2a").trainable == ("projector",)
    facts = json.loads((whole / "run.json").read_text())
    assert {name: facts["phases"][name]["steps"] for name in ALL} == {"phase1": 5, "phase2a": 4, "phase2b": 4}
    model = BrainGemma3D.from_pretrained(whole / "weights", device="cpu", quantization="4bit")
    assert model.config.training_domain == "8 BraTS 2020 with TextBraTS reports, 5 healthy controls of a BIDS folder"
    assert (model.config.synthetic_only, model.config.banner) == (False, None)
    adapters = list(model.component_parameters("lora"))
    assert {p.dtype for p in adapters} == {torch.float32}
    changed = [bool(p.abs().sum() > 0) for n, p in model.named_parameters() if "lora_B" in n]
    assert changed
    assert all(changed)
    BrainGemma3D.verify_pretrained(whole / "weights")


@pytest.mark.timeout(900)
def test_a_plan_counts_and_times_and_trains_nothing(card: Path) -> None:
    found = plan_run(load_settings(card), ["phase2b"])
    (phase,) = found.phases
    assert (found.cases, found.device, phase.name, phase.steps) == (13, "cpu", "phase2b", 4)
    assert set(phase.trainable) == {"projector", "lora"}
    assert phase.hours > 0
    assert phase.memory_gib > 0.1
    text = Gemma3ForCausalLM(tiny_config().text_config)  # in four bits here, which pack two numbers into one
    assert found.parameters["language_model"] - phase.trainable["lora"] == sum(p.numel() for p in text.parameters())
    assert "phase2b" in found.text()
    assert not (card.parent / "cases").exists()


def test_a_plan_counts_the_runs_that_a_run_starts_from() -> None:
    demo = load_settings("demo")
    names = [name for name, _ in plan._earlier(demo)]
    assert names == ["demo-plain", "demo-hard"]
    assert plan._case_count(demo.data) == demo.data.count + demo.data.bilateral + demo.data.plain + demo.data.plaques


@pytest.fixture(scope="module")
def two(card: Path, whole: Path) -> Path:
    """A run of two processes that nothing interrupted."""
    out = card.parent / "two"
    shutil.copytree(whole / "cases", out / "cases")
    subprocess.run(command(card, out, *SEVERAL), env=environment(), check=True, capture_output=True, timeout=1700)
    return out


def kill_at_three_moments(out: Path, words: list[str]) -> None:
    """Start it, and end all its processes before the first state of a phase, between two states, in the last phase."""
    for moment in ("phase1 1/5", "phase1 3/5", "phase2b 3/4"):
        with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            seen = [line for line in iter(process.stderr.readline, "") if _reached(line, moment, process)]
            process.wait()
        assert seen, moment
        assert process.returncode == -signal.SIGKILL
        assert not (out / "weights").exists()


def _reached(line: str, moment: str, process: subprocess.Popen[str]) -> bool:
    """Kills it and its workers, which torchrun starts as sessions of their own; first itself, or it would end them."""
    if moment in line and process.poll() is None:
        starter = psutil.Process(process.pid)
        for one in [starter, *starter.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    return moment in line


def same_in_the_end(out: Path, uninterrupted: Path) -> None:
    for name in ALL:
        assert losses(out, name) == losses(uninterrupted, name)
    assert digests(out / "weights") == digests(uninterrupted / "weights")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_three_moments_it_ends_in_the_same_bytes(card: Path, whole: Path) -> None:
    out = card.parent / "killed"
    shutil.copytree(whole / "cases", out / "cases")
    kill_at_three_moments(out, command(card, out))
    subprocess.run(command(card, out), env=environment(), check=True, capture_output=True)
    same_in_the_end(out, whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_of_the_documented_command_give_the_curve_of_one(two: Path, whole: Path) -> None:
    for name in ALL:
        # Sums in bfloat16 over other halves.
        assert losses(two, name) == pytest.approx(losses(whole, name), rel=5e-3)
    assert (two / "weights" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_killed_at_three_moments_end_in_the_same_bytes(card: Path, two: Path) -> None:
    out = card.parent / "two killed"
    shutil.copytree(two / "cases", out / "cases")
    kill_at_three_moments(out, command(card, out, *SEVERAL))
    subprocess.run(command(card, out, *SEVERAL), env=environment(), check=True, capture_output=True)
    same_in_the_end(out, two)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_training_in_the_same_folder_is_refused(card: Path, whole: Path) -> None:
    out = card.parent / "twice"
    shutil.copytree(whole / "cases", out / "cases")
    with subprocess.Popen(command(card, out), env=environment(), stderr=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 600
        while not (out / "run.json").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command(card, out), env=environment(), capture_output=True, text=True, check=False)
        first.kill()
    assert second.returncode == 1
    assert "another training works in this folder" in second.stderr
    assert "Traceback" not in second.stderr
