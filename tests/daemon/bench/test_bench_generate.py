"""The bench measures what it says, on a small model of the same make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braingemma.errors import BrainGemmaError
from braingemma.model.braingemma3d import BrainGemma3D
from daemon.bench import generate as bench


def test_the_full_shape_is_the_cards() -> None:
    vision, text = bench.shapes_of("full")
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size) == (1152, 27, 14)
    with torch.device("meta"):
        stack = bench.Gemma3ForCausalLM(text)
    assert 3.8e9 < sum(p.numel() for p in stack.parameters()) < 4.0e9


@pytest.mark.slow
def test_a_tiny_run_reports_every_box(tmp_path: Path) -> None:
    result = bench.bench_generate("tiny", tmp_path)
    assert set(result["boxes"]) == {"vision_s", "resampler_s", "projector_s", "prefill_s", "decode_s"}
    assert result["same_tokens"], "our loop and transformers' generate write the same report"
    assert 0 < result["resting_gib"] <= result["peak_gib"]
    assert result["over_floor"] > 0
    model = BrainGemma3D.from_pretrained(tmp_path, quantization="4bit")
    layers = sum(p.numel() for p in model.language_model.model.layers.parameters() if p.dtype == torch.uint8)
    assert result["bytes_per_token"] > layers


def test_another_size_is_refused() -> None:
    with pytest.raises(BrainGemmaError, match="tiny or full"):
        bench.bench_generate("huge")  # type: ignore[arg-type]
