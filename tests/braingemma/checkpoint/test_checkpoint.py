"""Weights come back bit by bit, in four bits too, and what does not fit is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional
import pytest
import torch
from published_files import vision_config, write_published
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_model, tiny_tokenizer
from transformers import BitsAndBytesConfig, Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from braingemma.checkpoint import load as checkpoint
from braingemma.checkpoint.weights import CHECKSUM_FILE
from braingemma.errors import CheckpointError
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.quantize import nf4 as quantize


def load_exact(folder: Path) -> BrainGemma3D:
    return BrainGemma3D.from_pretrained(folder, device="cpu", quantization="none", dtype=torch.float32)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged; without its list of digests, so that the strict loader itself is tested."""
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    (copied / CHECKSUM_FILE).unlink()
    return copied


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("inflation", ["center", "mean"])
def test_a_round_trip_is_bit_exact(tmp_path: Path, inflation: str) -> None:
    model = tiny_model(lora=True, grounding_head=True, findings_head=True, inflation=inflation)
    model.vision.patch_embedding.weight.data += 0.01  # trained away from its inflation
    model.vision.depth_position.data += 0.01
    model.findings_head.scale += 0.5
    model.save_pretrained(tmp_path)
    again = load_exact(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.config.to_dict() == model.config.to_dict()
    again.save_pretrained(tmp_path / "again")
    for file in tmp_path.glob("**/*.safetensors"):
        if "again" not in file.parts:
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path)).read_bytes(), file.name


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_numbers_are_stored_as_the_config_says(tmp_path: Path, stored: str) -> None:
    model = tiny_model(storage_dtype=stored)
    model.save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "braingemma.safetensors").values()} == {getattr(torch, stored)}
    again = load_exact(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value.to(getattr(torch, stored)).float(), again.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_parts_are_what_other_tools_load(tiny_checkpoint: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    mine = load_exact(tiny_checkpoint)
    tower = AutoModel.from_pretrained(tiny_checkpoint / "vision_model")
    assert torch.equal(tower.post_layernorm.weight, mine.vision.siglip.post_layernorm.weight)
    base = Gemma3ForCausalLM.from_pretrained(tiny_checkpoint / "language_model")
    adapted = PeftModel.from_pretrained(base, tiny_checkpoint / "lora_adapters").eval()
    ids = torch.randint(4, 90, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, mine.language_model(ids).logits, atol=1e-5, rtol=1e-5)
        mine.language_model.disable_adapters()
        assert not torch.allclose(adapted(ids).logits, mine.language_model(ids).logits, atol=1e-4)


def test_four_bits_on_the_cpu_are_close_and_reproducible(tiny_checkpoint: Path) -> None:
    exact = load_exact(tiny_checkpoint)
    packed = BrainGemma3D.from_pretrained(tiny_checkpoint, device="cpu", quantization="4bit", dtype=torch.float32)
    language = packed.language_model
    kinds = {type(m.base_layer).__name__ for n, m in language.named_modules() if n.endswith("self_attn.q_proj")}
    assert kinds == {"PackedLinear"}
    assert packed.quantization == "4bit"
    assert not quantize.is_four_bit(packed.language_model.lm_head)
    state = packed.language_model.model.layers[0].mlp.up_proj.weight.quant_state
    assert state.quant_type == "nf4"
    assert state.nested, "the scales are quantised too"
    true = exact.language_model.model.layers[0].mlp.up_proj.weight
    held = bitsandbytes.functional.dequantize_4bit(packed.language_model.model.layers[0].mlp.up_proj.weight, state)
    error = (held - true).square().mean().sqrt() / true.square().mean().sqrt()
    assert 0.05 < error < 0.12, "the rounding error of NF4 on normal weights is about 9 %"
    ids = torch.randint(4, 90, (1, 9))
    with torch.no_grad():
        got = packed.language_model(ids).logits
    again = BrainGemma3D.from_pretrained(tiny_checkpoint, quantization="4bit", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again.language_model(ids).logits, got)


def test_weights_in_four_bits_are_saved_and_loaded_as_they_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    packed = BrainGemma3D.from_pretrained(tiny_checkpoint, quantization="4bit", dtype=torch.float32)
    packed.save_pretrained(tmp_path)
    again = BrainGemma3D.from_pretrained(tmp_path, quantization="auto", dtype=torch.float32)
    unpacked = load_exact(tmp_path)
    ids = torch.randint(4, 90, (1, 9))
    with torch.no_grad():
        expected = packed.language_model(ids).logits
        assert torch.equal(again.language_model(ids).logits, expected)
        torch.testing.assert_close(unpacked.language_model(ids).logits, expected, atol=1e-4, rtol=1e-3)
    assert BrainGemma3D.verify_pretrained(tmp_path).sha256


@pytest.mark.parametrize(("width", "kind"), [(128, "PackedLinear"), (160, "PackedLinear"), (72, "Linear")])
def test_rows_that_are_no_whole_blocks_are_not_garbled(width: int, kind: str) -> None:
    """bitsandbytes' CPU kernels read the wrong scales there."""
    stack = torch.nn.Sequential(torch.nn.Linear(width, 48, bias=False, device="meta"))
    quantize.make_linears_four_bit(stack, torch.float32)
    assert type(stack[0]).__name__ == kind
    if kind == "Linear":
        return
    weight, x = torch.randn(48, width), torch.randn(5, width)
    quantize.put_quantized(stack[0], weight.clone(), torch.device("cpu"))
    expected = x @ weight.T
    assert (stack(x) - expected).norm() < 0.12 * expected.norm()
    packed = torch.nn.Parameter(stack[0].weight.data, requires_grad=False)
    restored = quantize.unpack(packed, stack[0].weight.quant_state.as_dict(packed=True))
    assert (restored - weight).norm() < 0.12 * weight.norm()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 7])
def test_unpacking_by_blocks_gives_what_bitsandbytes_gives(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "BLOCK_ELEMENTS", 128 * 20)  # so that several blocks, and a last short one, are used
    monkeypatch.setattr(quantize.native, "few_rows", lambda: None)
    stack = torch.nn.Sequential(torch.nn.Linear(128, 50, device="meta"))
    quantize.make_linears_four_bit(stack, torch.float32)
    quantize.put_quantized(stack[0], torch.randn(50, 128), torch.device("cpu"))
    stack[0].bias = torch.nn.Parameter(torch.randn(50))
    x = torch.randn(2, rows, 128)
    weight = bitsandbytes.functional.dequantize_4bit(stack[0].weight.data, stack[0].weight.quant_state)
    torch.testing.assert_close(stack(x), x @ weight.T + stack[0].bias, atol=1e-5, rtol=1e-5)


def test_writing_a_report_leaves_the_packed_weights_as_they_were(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """bitsandbytes' own layer packs them anew at first use on some processors, with coarser scales."""
    model = BrainGemma3D.from_pretrained(tiny_checkpoint, quantization="4bit")
    model.save_pretrained(tmp_path / "before")
    model.generate_report(torch.randn(1, 1, *model.config.grid), max_new_tokens=3)
    model.save_pretrained(tmp_path / "after")
    name = "language_model/model.safetensors"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


@pytest.mark.parametrize("multimodal", [True, False])
def test_weights_quantised_by_bitsandbytes_elsewhere_load(tmp_path: Path, multimodal: bool) -> None:
    folder = write_published(tmp_path, multimodal)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    kind: Any = Gemma3ForConditionalGeneration if multimodal else Gemma3ForCausalLM
    reference = kind.from_pretrained(folder / "language_model", quantization_config=settings, dtype=torch.float32)
    shutil.rmtree(folder / "language_model")
    reference.save_pretrained(folder / "language_model")
    tiny_tokenizer().save_pretrained(folder / "language_model")
    model = BrainGemma3D.from_pretrained(folder, quantization="4bit", dtype=torch.float32)
    ids = torch.randint(4, 90, (1, 9))
    with torch.no_grad():
        # In training bitsandbytes keeps the weights as they are; else, where the CPU has avx512_bf16, it refuses widths
        # that are no multiple of 32. Nothing here is random in training.
        expected = reference.train()(ids).logits
        torch.testing.assert_close(model.language_model(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_multimodal_config_is_read_where_the_layout_states_none(tmp_path: Path) -> None:
    folder = write_published(tmp_path)
    assert isinstance(Gemma3Config.from_pretrained(folder / "language_model"), Gemma3Config)
    config = checkpoint.read_config(folder)
    assert config.text_config.num_hidden_layers == tiny_config().text_config.num_hidden_layers
    assert config.vision_config.patch_size == vision_config().patch_size


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("braingemma.safetensors", lambda t: t.pop("resampler.latents"), "missing keys: resampler.latents"),
        ("braingemma.safetensors", lambda t: t.update(new=torch.ones(1)), "key new is unexpected"),
        (
            "braingemma.safetensors",
            lambda t: t.update({"projector.scale": torch.ones(2)}),
            r"key projector\.scale: expected shape \(\), got \(2,\)",
        ),
        ("vision_model/model.safetensors", lambda t: t.pop("post_layernorm.bias"), r"vision_model: missing keys"),
        (
            "language_model/model.safetensors",
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"language_model: missing keys: model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (
            "language_model/model.safetensors",
            lambda t: t["model.norm.weight"].fill_(float("nan")),
            r"key model\.norm\.weight: holds values that are not finite",
        ),
        (
            "lora_adapters/adapter_model.safetensors",
            lambda t: t.pop(next(iter(t))),
            r"adapter_model\.safetensors: missing keys",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tiny_checkpoint: Path, tmp_path: Path, file: str, change: Callable[[Any], Any], message: str
) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    change_tensors(folder / file, change)
    for load in (load_exact, BrainGemma3D.verify_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(folder)


@pytest.mark.parametrize(
    "file", ["braingemma.safetensors", "vision_model/model.safetensors", "language_model/model.safetensors"]
)
def test_a_truncated_file_is_named(tiny_checkpoint: Path, tmp_path: Path, file: str) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{Path(file).name}: not readable as safetensors"):
        load_exact(folder)


def test_a_flipped_bit_is_seen_by_the_digests(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flipped"
    shutil.copytree(tiny_checkpoint, folder)
    file = folder / "braingemma.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"braingemma\.safetensors: damaged or changed"):
        load_exact(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "not readable as JSON"),
        ("config.json", "[]", "expected a JSON object"),
        ("language_model/tokenizer.json", "{}", "no readable tokenizer"),
    ],
)
def test_broken_json_is_named(tiny_checkpoint: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_exact(folder)


def test_a_config_that_does_not_fit_the_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["num_visual_tokens"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"key .*: expected shape"):
        load_exact(folder)
    config["inflation"] = "sideways"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="inflation must be one of center, mean"):
        load_exact(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "8bit"}, "quantization must be"),
        ({"device": "tpu9"}, "device must be"),
        ({"dtype": "int8"}, "dtype must be"),
    ],
)
def test_wrong_choices_are_refused(tiny_checkpoint: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        BrainGemma3D.from_pretrained(tiny_checkpoint, **arguments)


def test_the_default_type_suits_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, small = torch.device("cpu"), tiny_config()
    large = tiny_config(text_config={**small.text_config.to_dict(), "vocab_size": 262208, "hidden_size": 2560})
    monkeypatch.setattr(quantize, "fast_bfloat16", lambda _device: False)
    assert checkpoint.resolve_dtypes(None, cpu, small) == (torch.float32, torch.float32)
    assert checkpoint.resolve_dtypes(None, cpu, large) == (torch.float32, torch.bfloat16)
    assert checkpoint.resolve_dtypes("bfloat16", cpu, small) == (torch.bfloat16, torch.bfloat16)
    monkeypatch.setattr(quantize, "fast_bfloat16", lambda _device: True)
    assert checkpoint.resolve_dtypes(None, cpu, small) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("lost", ["absmax", "nested_absmax", "quant_state.bitsandbytes__nf4"])
def test_what_is_lost_beside_a_packed_weight_is_named(tiny_checkpoint: Path, tmp_path: Path, lost: str) -> None:
    BrainGemma3D.from_pretrained(tiny_checkpoint, quantization="4bit").save_pretrained(tmp_path / "packed")
    folder, weight = copy_of(tmp_path / "packed", tmp_path), "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder / "language_model" / "model.safetensors", lambda t: t.pop(f"{weight}.{lost}"))
    for load in (load_exact, BrainGemma3D.from_pretrained, BrainGemma3D.verify_pretrained):
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: key {weight}: .*{lost} beside it is missing"):
            load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("r"), "r is missing"),
        (lambda c: c.update(target_modules=".*proj"), "expected target_modules as a list, got '.*proj'"),
        (lambda c: c.update(use_rslora=True), "expected plain LoRA, got use_rslora = True"),
        (lambda c: c.update(alpha_pattern={"q_proj": 3}), "expected plain LoRA, got alpha_pattern"),
    ],
)
def test_adapters_that_would_mean_something_else_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    config = json.loads((folder / "lora_adapters" / "adapter_config.json").read_text())
    change(config)
    (folder / "lora_adapters" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {message}"):
        load_exact(folder)


def test_a_model_without_tokenizer_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        BrainGemma3D(tiny_config()).save_pretrained(tmp_path)
