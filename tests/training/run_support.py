"""A run small enough to be trained whole within a test, and what starts it in processes of its own."""

from __future__ import annotations

import csv
import multiprocessing
import os
import socket
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from training.settings import TrainingSettings, load_settings

TINY = """
[model]
name = "tiny"
patch_depth = 4
inflation = "mean"
num_visual_tokens = 8
resampler_layers = 1
resampler_heads = 4
[model.volume]
grid = [16, 32, 32]
crop = "brain"
brain_extraction = "none"
[model.vision]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 4
num_channels = 3
image_size = 64
patch_size = 8
[model.text]
vocab_size = 640
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 1
head_dim = 16
query_pre_attn_scalar = 16
sliding_window = 512
max_position_embeddings = 1024
tie_word_embeddings = true
layer_types = ["full_attention"]
[data]
kind = "manifest"
manifest = "{manifest}"
[phase1]
trainable = ["vision", "resampler", "projector", "grounding", "findings", "auxiliary"]
steps = 5
batch = 4
warmup = 1
validate_every = 2
[phase2a]
trainable = ["projector"]
steps = 3
batch = 4
[phase2b]
trainable = ["projector", "lora"]
steps = 3
batch = 4
"""


def write_config(folder: Path, manifest: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY.replace("{manifest}", str(manifest)))
    return path


def tiny_settings(config: Path) -> TrainingSettings:
    return load_settings(config)


def losses(run: Path, phase: str) -> list[float]:
    with (run / f"{phase}.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def processes() -> ForkServerContext:
    """Starts processes that have imported what they need: once, for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.run_support", "training.phases.run"])
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_as_rank(rank: int, world: int, port: int, config: Path, out: Path) -> None:
    """What `accelerate launch` does for one of several processes: the environment, then the same call."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    from training.phases.run import make_accelerator, train_phases

    settings = tiny_settings(config)
    accelerator = make_accelerator(settings)
    assert accelerator.num_processes == world
    train_phases(settings, out, ["phase1", "phase2a", "phase2b"], accelerator=accelerator)
    torch.distributed.destroy_process_group()


def train_slowly(config: Path, out: Path) -> None:
    """Train until somebody kills this process: no step is taken after the third."""
    import time

    torch.set_num_threads(1)
    from training.phases.run import train_phases

    def wait_at_three(_phase: str, step: int, _total: int, _losses: dict[str, float]) -> None:
        if step == 3:
            (out / "third").touch()
            time.sleep(600)

    train_phases(tiny_settings(config), out, ["phase1"], wait_at_three)
