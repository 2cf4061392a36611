"""Every way in which a published checkpoint may lie there: it loads equal, or it is refused, by `verify` as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from public_code import public_report, public_tokens
from published_files import gemma_like_tokenizer, text_config, vision_config, write_published
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from braingemma.errors import CheckpointError
from braingemma.model.braingemma3d import BrainGemma3D

SIZE = (16, 56, 56)
PROJECTOR, VISION, LANGUAGE = "projector_vis_scale.pt", "vision_model", "language_model"


def scaled(value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = torch.load(folder / PROJECTOR, weights_only=True)
        torch.save({**content, "vis_scale": value}, folder / PROJECTOR)

    return change


def without_scale(folder: Path) -> None:
    content = torch.load(folder / PROJECTOR, weights_only=True)
    del content["vis_scale"]
    torch.save(content, folder / PROJECTOR)


def stored_in(part: str, dtype: torch.dtype) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part / "model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})

    return change


def in_shards(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part / "model.safetensors"
        tensors = list(load_file(file).items())
        file.unlink()
        shards = {f"model-{n:05d}-of-00003.safetensors": dict(tensors[n::3]) for n in range(3)}
        for name, content in shards.items():
            save_file(content, folder / part / name, metadata={"format": "pt"})
        weight_map = {key: name for name, content in shards.items() for key in content}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / part / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def as_pickle(folder: Path) -> None:
    file = folder / VISION / "model.safetensors"
    torch.save(load_file(file), folder / VISION / "pytorch_model.bin")
    file.unlink()


def with_siglips_text_tower(folder: Path) -> None:
    """MedSigLIP as it is on the hub: both towers; only the one that sees counts."""
    tower = load_file(folder / VISION / "model.safetensors")
    shutil.rmtree(folder / VISION)
    vision = vision_config().to_dict()
    both = SiglipModel(SiglipConfig(vision_config=vision, text_config={"hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50, "projection_size": 32}))  # fmt: skip
    both.vision_model.load_state_dict({k.removeprefix("vision_model."): v for k, v in tower.items()})
    both.save_pretrained(folder / VISION)


def no_head(folder: Path) -> None:
    """The tower alone, without SigLIP's pooling head, which has no part here."""
    file = folder / VISION / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if ".head." not in k and not k.startswith("head.")}
    save_file(tensors, file, metadata={"format": "pt"})


def truncated(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def removed(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def shard_removed(folder: Path) -> None:
    in_shards(LANGUAGE)(folder)
    (folder / LANGUAGE / "model-00001-of-00003.safetensors").unlink()


def other_tokenizer(size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"word{n}" for n in range(size - 4))]
        core = Tokenizer(models.WordLevel({p: n for n, p in enumerate(pieces)}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        removed(f"{LANGUAGE}/tokenizer.json")(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
        ).save_pretrained(folder / LANGUAGE)

    return change


def grown_tokenizer(folder: Path) -> None:
    tokenizer = gemma_like_tokenizer()
    tokenizer.add_tokens([f"<new{n}>" for n in range(text_config().vocab_size)])
    tokenizer.save_pretrained(folder / LANGUAGE)


EQUAL = {
    "as written": lambda _folder: None,
    "vis_scale missing": without_scale,
    "vis_scale None": scaled(None),
    "vis_scale float": scaled(0.6),
    "vis_scale whole number": scaled(2),
    "vis_scale tensor": scaled(torch.tensor(1.4)),
    "vis_scale of one element": scaled(torch.tensor([1.4], dtype=torch.bfloat16)),
    "vis_scale Parameter": scaled(torch.nn.Parameter(torch.tensor(0.8))),
    "vision in bfloat16": stored_in(VISION, torch.bfloat16),
    "vision in float16": stored_in(VISION, torch.float16),
    "language in bfloat16": stored_in(LANGUAGE, torch.bfloat16),
    "vision in shards": in_shards(VISION),
    "language in shards": in_shards(LANGUAGE),
    "vision pickled": as_pickle,
    "vision tower alone": no_head,
    "SigLIP with its text tower": with_siglips_text_tower,
}
REFUSED = {
    "vis_scale numpy": (scaled(np.float32(0.5)), r"projector_vis_scale\.pt: not readable as tensors alone"),
    "vis_scale array": (scaled(np.ones(1)), r"projector_vis_scale\.pt: not readable as tensors alone"),
    "vis_scale text": (scaled("1.0"), "key vis_scale: expected one number, got str"),
    "vis_scale many": (scaled(torch.ones(3)), r"key vis_scale: expected one number, got \(3,\)"),
    "vis_scale whole tensor": (scaled(torch.tensor(2)), "key vis_scale: expected one number"),
    "vis_scale not finite": (scaled(float("nan")), "key scale: holds values that are not finite"),
    "projector truncated": (truncated(PROJECTOR), r"projector_vis_scale\.pt: not readable"),
    "vision truncated": (truncated(f"{VISION}/model.safetensors"), "not readable as safetensors"),
    "language truncated": (truncated(f"{LANGUAGE}/model.safetensors"), "not readable as safetensors"),
    "vision missing": (removed(f"{VISION}/model.safetensors"), "vision_model/ holds no weights"),
    "language missing": (removed(f"{LANGUAGE}/model.safetensors"), "language_model/ holds no weights"),
    "a shard missing": (shard_removed, r"language_model/model-00001-of-00003\.safetensors is missing"),
    "projector missing": (removed(PROJECTOR), r"projector_vis_scale\.pt is missing"),
    "tokenizer missing": (
        removed(f"{LANGUAGE}/tokenizer.json", f"{LANGUAGE}/tokenizer_config.json"),
        "language_model/ holds no tokenizer",
    ),
    "tokenizer too large": (grown_tokenizer, r"the tokenizer has 2\d\d tokens, but the embeddings 128"),
    "tokenizer too small": (other_tokenizer(40), "the tokenizer has 40 tokens, but the embeddings 128"),
    "tokenizer of other words": (other_tokenizer(128), "the tokenizer knows no word of the prompt"),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("written"))


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "published"))


@pytest.mark.parametrize("variant", EQUAL)
def test_a_variant_loads_equal(folder: Path, variant: str) -> None:
    EQUAL[variant](folder)
    BrainGemma3D.verify_pretrained(folder)
    model = BrainGemma3D.from_pretrained(folder, quantization="none", dtype=torch.float32)
    volume = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    reference = folder
    if variant == "SigLIP with its text tower":  # the reference knows the tower alone
        reference = write_published(folder.parent / "tower")
    with torch.no_grad():
        tokens = model.encode_volume(volume)
    torch.testing.assert_close(tokens, public_tokens(reference, volume), atol=1e-5, rtol=0)
    greedy = {"temperature": None, "max_new_tokens": 12}
    assert model.generate_report(volume, **greedy) == public_report(reference, volume, **greedy)


@pytest.mark.parametrize("variant", REFUSED)
def test_a_variant_is_refused(folder: Path, variant: str) -> None:
    change, message = REFUSED[variant]
    change(folder)
    for load in (BrainGemma3D.verify_pretrained, lambda f: BrainGemma3D.from_pretrained(f, quantization="none")):
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_the_text_stack_is_the_multimodal_ones(folder: Path) -> None:
    model = BrainGemma3D.from_pretrained(folder, quantization="none", dtype=torch.float32)
    whole = Gemma3ForConditionalGeneration.from_pretrained(folder / LANGUAGE).eval()
    assert torch.equal(model.language_model.lm_head.weight, whole.lm_head.weight)
