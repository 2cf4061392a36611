"""The full-size model without its weights: random ones of the same shape, loaded in four bits, timed box by box.

`bench_generate("full", folder)` writes a checkpoint of MedSigLIP-448 and MedGemma-4B shape in the published layout,
one layer at a time, then loads it and writes one report in a process of its own, so that memory is its own too. The
ways to decode are taken in turn: by transformers, by this project's loop, with the output head in eight bits, with
guesses (see `guesses`), and with both.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from braingemma.checkpoint.weights import LANGUAGE_FOLDER, PUBLISHED_PROJECTOR, VISION_FOLDER
from braingemma.errors import BrainGemmaError
from braingemma.model import language
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.quantize import few_rows, nf4
from daemon.bench import guesses

Size = Literal["tiny", "full"]
TOKENS = {"tiny": 16, "full": 24}
"""Tokens that are written and timed."""

REPORTS = {"tiny": 2, "full": 12}
"""Reports of the demo that are written again with guesses."""

TURNS = 3
"""How often each way to decode, and the copy of the floor, is timed, by turns."""

STOCK_TOKENS = 6
"""Tokens that are timed without our layers, which is slow."""

GIB = 1024**3

POOL = (1 << 22) - 1
"""Random numbers that the weights are cut from; odd, so that the rows of a weight differ."""


# ---------------------------------------------------------------------- random weights


def shapes_of(size: Size) -> tuple[SiglipVisionConfig, Gemma3TextConfig]:
    """MedSigLIP-448's and MedGemma-4B's shape, or a small one of the same make."""
    if size == "full":
        vision = SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=448,
            patch_size=14,
            vision_use_head=False,
        )
        text = Gemma3TextConfig(
            vocab_size=262208,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=34,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            sliding_window=1024,
        )
        return vision, text
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(
        vocab_size=640,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=256,
    )
    return vision, text


def _random_tensors(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Random bfloat16 values for each parameter of a module without storage, one at a time.

    They are cut from one pool at random places: drawing four thousand million numbers afresh would take longer than
    everything that is measured.
    """
    pool = torch.randn(POOL).to(torch.bfloat16)
    for name, parameter in module.named_parameters():
        count, spread = parameter.numel(), 0.02 if parameter.ndim > 1 else 0.01
        start = int(torch.randint(POOL, ()))
        values = pool.roll(-start).mul_(spread)
        yield prefix + name, values.repeat(-(-count // POOL))[:count].view(parameter.shape).clone()


def _write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write one file for each layer, and for what stands between them, with the index that transformers writes."""
    weight_map: dict[str, str] = {}
    shards = itertools.groupby(tensors, key=lambda named: named[0].partition("layers.")[2].partition(".")[0])
    for number, (_, shard) in enumerate(shards, start=1):
        content, name = dict(shard), f"model-{number:05d}.safetensors"
        save_file(content, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(content, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _letters(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, for a vocabulary whose words are random anyhow."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    used = (special + letters)[:vocab_size]
    pieces = [*used, *(f"<unused{n}>" for n in range(vocab_size - len(used)))]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def write_random_weights(size: Size, folder: Path, seed: int = 0) -> Path:
    """Random weights in the published layout; never more than one layer of them in memory."""
    torch.manual_seed(seed)
    vision, text = shapes_of(size)
    for part in (VISION_FOLDER, LANGUAGE_FOLDER):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        tower, stack = SiglipVisionModel(vision), Gemma3ForCausalLM(text)
    _write_shards(_random_tensors(tower, "vision_model."), folder / VISION_FOLDER)
    # The multimodal class keeps its text stack under `model.language_model.`; its own picture tower has no part here.
    _write_shards(_random_tensors(stack.model, "model.language_model."), folder / LANGUAGE_FOLDER)
    vision.save_pretrained(folder / VISION_FOLDER)
    Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4).save_pretrained(
        folder / LANGUAGE_FOLDER
    )
    _letters(text.vocab_size).save_pretrained(folder / LANGUAGE_FOLDER)
    widths = {"0": (text.hidden_size, vision.hidden_size), "2": (text.hidden_size, text.hidden_size)}
    projector = {
        f"{layer}.{kind}": torch.randn(shape if kind == "weight" else shape[:1]).mul(0.02).to(torch.bfloat16)
        for layer, shape in widths.items()
        for kind in ("weight", "bias")
    }
    torch.save({"vision_projector": projector, "vis_scale": 1.0}, folder / PUBLISHED_PROJECTOR)
    return folder


# ---------------------------------------------------------------------- measuring


def bench_generate(
    size: Size = "tiny",
    folder: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
    *,
    explain: bool = False,
) -> dict[str, Any]:
    """Write random weights, load them in four bits on the CPU, make one report, and say what it took.

    Args:
        size: "full" needs 9 GB of disk and 9 GB of memory, and about a quarter of an hour on two cores.
        folder: Where the weights are written; None: a temporary folder, removed afterwards.
        log: Told what is going on.
        explain: Explain a report instead, each step apart; full size takes about twelve minutes on two cores.

    Returns:
        See `measure` and, for `explain`, `daemon.bench.explain.measure_explanation`; and `write_s`, `weights_gb`.

    Raises:
        BrainGemmaError: the measuring process failed.
    """
    if size not in TOKENS:
        raise BrainGemmaError(f"size must be tiny or full, got {size!r}")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="braingemma-bench-") as temporary:
            return bench_generate(size, Path(temporary), log, explain=explain)
    log(f"writing random weights ({size}) to {folder}")
    start = time.perf_counter()
    write_random_weights(size, folder)
    written = time.perf_counter() - start
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    log(f"loading in four bits and {'explaining' if explain else 'writing'} one report")
    wanted = (str(TOKENS[size]), str(REPORTS[size]))
    asked = ["daemon.bench.explain", str(folder)] if explain else [__name__, str(folder), *wanted]
    run = subprocess.run(
        [sys.executable, "-m", *asked],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        raise BrainGemmaError(f"the measuring process failed: {last[0]}")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return {"size": size, "write_s": round(written, 1), "weights_gb": round(total / 1e9, 2), **result}


def copy_bandwidth(size_bytes: int = GIB // 2, times: int = 7) -> float:
    """Bytes copied per second by `Tensor.copy_` between two buffers far larger than any cache: the best of some."""
    source = torch.ones(size_bytes, dtype=torch.uint8)
    target = torch.ones_like(source)
    return size_bytes / min(_timed(lambda: target.copy_(source))[0] for _ in range(times))


def bytes_per_token(model: BrainGemma3D) -> int:
    """Bytes of weights that one decoded token must read: every layer, and the output head; not the embeddings."""
    total = 0
    for module in model.language_model.model.layers.modules():
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            total += parameter.nbytes
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                total += state.absmax.nbytes
    head = model.language_model.lm_head
    return total + (head.nbytes if isinstance(head, few_rows.EightBitHead) else head.weight.nbytes)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def resident_gib(name: str) -> float:
    """VmRSS or VmHWM of this process in GiB (proc(5), so on Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(row for row in status.splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024 / GIB


@torch.inference_mode()
def measure(folder: Path, tokens: int, reports: int) -> dict[str, Any]:
    """Load in four bits on the CPU and time each box, then each way to decode.

    Returns:
        Memory in GiB, times in seconds: `load_s`, `resting_gib`, `peak_load_gib`, `peak_gib`, `boxes` (vision,
        resampler, projector, prefill, decode), `native` (what runs of `few_rows`), and what `decoding` gives.
    """
    load_s, model = _timed(lambda: BrainGemma3D.from_pretrained(folder, device="cpu", quantization="4bit"))
    resting, peak_load = resident_gib("VmRSS"), resident_gib("VmHWM")
    volume = torch.rand(1, 1, *model.config.grid)
    vision_s, features = _timed(lambda: model.patch_features(volume))
    resampler_s, pooled = _timed(lambda: model.resample(features))
    projector_s, visual = _timed(lambda: model.projector(pooled))
    ids = torch.tensor([model._prompt_ids(None)])
    prefix = language.embed_with_image(model.language_model, ids, visual)
    (prefill_s, *_), _ = _ours(model.language_model, prefix, 2)
    peak = resident_gib("VmHWM")
    found = decoding(model, prefix, tokens, guesses.demo_reports(reports))
    library = few_rows.few_rows()
    return {
        "threads": torch.get_num_threads(),
        "native": "none" if library is None else few_rows.LEVELS[library.level],
        "load_s": round(load_s, 1),
        "resting_gib": round(resting, 2),
        "peak_load_gib": round(peak_load, 2),
        "peak_gib": round(peak, 2),
        "boxes": {
            "vision_s": round(vision_s, 2),
            "resampler_s": round(resampler_s, 3),
            "projector_s": round(projector_s, 3),
            "prefill_s": round(prefill_s, 2),
            "decode_s": round(found["seconds_per_token"] * (tokens - 1), 2),
        },
        "prefix_tokens": prefix.shape[1],
        "tokens": tokens,
        **found,
    }


def decoding(model: BrainGemma3D, prefix: Tensor, tokens: int, reports: Sequence[guesses.Written]) -> dict[str, Any]:
    """Time each way to decode after a prefix (1, T, E), by turns; the model is of no more use afterwards.

    Returns:
        `seconds_per_token`; `floor_seconds_per_token` (bytes of weights that a token needs, the head in bfloat16, over
        the bandwidth of a copy, each byte counted once), `over_floor`, `copy_gb_per_s`; with the output head in eight
        bits `head8_seconds_per_token`, `head8_over_floor`; with guesses, `guesses.summary`: `guesses`, and `both` with
        the head in eight bits too. All of these are over the same floor. transformers' `generate` beside it: with
        these layers (`transformers_seconds_per_token`, `vs_transformers`) and with those of bitsandbytes and torch
        (`stock_seconds_per_token`, `vs_stock`); above 1: ours is quicker.
    """
    needed = bytes_per_token(model)
    turns = _turns(model.language_model, prefix, tokens, reports)
    bandwidth = statistics.median(turns.bandwidths)
    floor = needed / bandwidth
    ours, theirs, head8 = (_per_token(runs) for runs in (turns.ours, turns.theirs, turns.head8))
    stock = _stock(model.language_model, prefix, min(tokens, STOCK_TOKENS))
    return {
        "seconds_per_token": round(ours, 4),
        "transformers_seconds_per_token": round(theirs, 4),
        "vs_transformers": round(theirs / ours, 3),
        "same_tokens": len({written for _, written in (*turns.ours, *turns.theirs)}) == 1,
        "stock_seconds_per_token": round(stock, 4),
        "vs_stock": round(stock / ours, 3),
        "bytes_per_token": needed,
        "copy_gb_per_s": round(bandwidth / 1e9, 2),
        "floor_seconds_per_token": round(floor, 4),
        "over_floor": round(ours / floor, 2),
        "head8_seconds_per_token": round(head8, 4),
        "head8_over_floor": round(head8 / floor, 2),
        "guesses": guesses.summary(reports, turns.guesses, floor),
        "both": guesses.summary(reports, turns.both, floor),
    }


Run = tuple[list[float], tuple[int, ...]]
"""(seconds of the prefill and of each further token, tokens)."""


@dataclass
class _Turns:
    """What each turn gave: bytes per second of a copy, runs of each way to decode, seconds of each report."""

    bandwidths: list[float] = field(default_factory=list)
    ours: list[Run] = field(default_factory=list)
    theirs: list[Run] = field(default_factory=list)
    head8: list[Run] = field(default_factory=list)
    guesses: list[list[float]] = field(default_factory=list)
    both: list[list[float]] = field(default_factory=list)


def _turns(model: Any, prefix: Tensor, tokens: int, reports: Sequence[guesses.Written]) -> _Turns:
    """Each way once in each turn; the head is rounded once, and stays in full afterwards."""
    full = model.lm_head
    eight = few_rows.EightBitHead.of(full.weight)
    found = _Turns()
    for _ in range(TURNS):
        found.bandwidths.append(copy_bandwidth())
        found.ours.append(_ours(model, prefix, tokens))
        found.theirs.append(_theirs(model, prefix, tokens))
        found.guesses.append(guesses.rewrite(model, prefix, reports))
        model.lm_head = eight
        found.head8.append(_ours(model, prefix, tokens))
        found.both.append(guesses.rewrite(model, prefix, reports))
        model.lm_head = full
    return found


def _per_token(runs: Sequence[Run]) -> float:
    """Median seconds of a token after the first, of all turns."""
    return statistics.median(step for steps, _ in runs for step in steps[1:])


def _steps(times: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(times)]


def _ours(model: Any, prefix: Tensor, tokens: int) -> Run:
    """Of this project's loop."""
    stamps = [time.perf_counter()]
    settings = language.GenerationSettings(max_new_tokens=tokens)
    written = language.decode(model, prefix, settings, ends=(), progress=lambda _: stamps.append(time.perf_counter()))
    return _steps(stamps), written.token_ids[0]


class _Stamps:
    """A streamer that notes when each token of transformers' `generate` comes."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def put(self, value: Tensor) -> None:
        """Called with each token."""
        if value.numel():
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called once at the end."""


def _theirs(model: Any, prefix: Tensor, tokens: int) -> Run:
    """Of transformers' `generate`, on the same weights."""
    stamps = _Stamps()
    written = model.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        streamer=stamps,
    )
    return _steps(stamps.times), tuple(written[0].tolist())


def _stock(model: Any, prefix: Tensor, tokens: int) -> float:
    """Median seconds per token of transformers' `generate` with the layers of bitsandbytes and torch in place of ours.

    Afterwards the weights are packed as bitsandbytes wants them on this processor, and the model is of no more use.
    """
    stock: dict[type, type] = {nf4.PackedLinear: bnb.nn.Linear4bit, few_rows.FewRowsLinear: torch.nn.Linear}
    for module in model.modules():
        module.__class__ = stock.get(type(module), type(module))
    return _per_token([_theirs(model, prefix, tokens)])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
