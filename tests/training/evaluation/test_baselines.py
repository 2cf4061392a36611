"""Baselines on tiny checkpoints of their architectures: pictures, sides, prompts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from braingemma.errors import CheckpointError, GenerationError
from training.errors import SettingsError
from training.evaluation.baselines import load_baseline
from training.evaluation.baselines.med3dvlm import PATCH_MARK
from training.evaluation.baselines.medgemma_2d import MedGemma2D
from training.evaluation.baselines.pictures import axial_slices, volume_cube

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKS = ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>"]


@pytest.fixture
def head() -> Any:
    """A block of a head with one bright spot: the patient's left, in front, on top (RAS)."""
    data = np.random.default_rng(0).uniform(0.3, 0.5, (20, 24, 12)).astype(np.float32)
    data[0] = data[-1] = 0.0
    data[2:7, 16:22, 7:11] = 1.0
    return nib.Nifti1Image(data, np.diag([2.0, 2.0, 4.0, 1.0]))


def bright_centre(picture: np.ndarray) -> tuple[float, ...]:
    return tuple(
        float(np.mean(axis)) / size for axis, size in zip(np.nonzero(picture > 0.9), picture.shape, strict=True)
    )


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL"])
def test_slices_are_in_radiological_convention_whatever_the_file_says(head: Any, axes: str) -> None:
    turned = head.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    )
    pictures = axial_slices(turned, 6)
    assert len(pictures) == 6
    assert all(p.mode == "RGB" and p.width == p.height for p in pictures)
    bright = [np.asarray(p)[..., 0] / 255 for p in pictures]
    assert max(range(6), key=lambda i: (bright[i] > 0.9).sum()) >= 3  # bottom to top
    row, column = bright_centre(bright[4])
    assert column > 0.6  # the patient's left is on the right of the picture
    assert row < 0.4  # the front is on top


def test_cubes_are_in_the_order_of_axial_series(head: Any) -> None:
    cube = volume_cube(head, (12, 24, 20))
    assert cube.shape == (1, 1, 12, 24, 20)
    depth, row, column = bright_centre(cube[0, 0].numpy())
    assert depth > 0.6
    assert row < 0.4
    assert column > 0.6


# ---- MedGemma


def image_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *MARKS]
    letters = [chr(c) for c in range(33, 127)] + ["\u0120", "\u010a"]
    core = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(dict.fromkeys(special + letters))}, merges=[], unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        extra_special_tokens={
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        },
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer


@pytest.fixture(scope="module")
def medgemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3 with its SigLIP tower and its own processor, as transformers writes them."""
    folder = tmp_path_factory.mktemp("medgemma")
    tokenizer = image_tokenizer()
    vocabulary = tokenizer.get_vocab()
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16,
            max_position_embeddings=2048, eos_token_id=1, bos_token_id=2, pad_token_id=0,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            image_size=32, patch_size=8,
        ),
        mm_tokens_per_image=4,
        boi_token_index=vocabulary["<start_of_image>"],
        eoi_token_index=vocabulary["<end_of_image>"],
        image_token_index=vocabulary["<image_soft_token>"],
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros, until trained
    model.save_pretrained(folder)
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    Gemma3Processor(pictures, tokenizer, chat_template=TEMPLATE, image_seq_length=4).save_pretrained(folder)
    return folder


def test_medgemma_reports_slices_through_its_own_processor(medgemma: Path, head: Any) -> None:
    reporter = load_baseline("medgemma-2d", medgemma, device="cpu")
    assert isinstance(reporter, MedGemma2D)
    reporter.max_new_tokens, reporter.slices = 6, 5
    content = reporter.messages(head)[0]["content"]
    kinds = [part["type"] for part in content]
    assert kinds == ["text", *["image", "text"] * 5, "text"]
    assert [part["text"] for part in content[2:-1:2]] == [f"SLICE {n}" for n in range(1, 6)]
    reading = reporter.read(head, "head", flip=True)
    assert isinstance(reading.report, str)
    assert isinstance(reading.mirrored, str)
    inputs = reporter.processor.apply_chat_template(
        reporter.messages(head), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (5, 3, 32, 32)
    assert int((inputs["input_ids"] == reporter.model.config.image_token_id).sum()) == 5 * 4


def test_medgemma_sees_the_pictures(medgemma: Path, head: Any) -> None:
    """The same prompt with another picture gives other logits."""
    reporter = MedGemma2D(medgemma, slices=3, device="cpu")

    def logits(image: Any) -> torch.Tensor:
        inputs = reporter.processor.apply_chat_template(
            reporter.messages(image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            return reporter.model(**inputs).logits[0, -1]

    other = nib.Nifti1Image(np.ascontiguousarray(head.get_fdata()[::-1]).astype(np.float32), head.affine)
    assert not torch.allclose(logits(head), logits(other), atol=1e-5)


def test_medgemma_refuses_what_it_cannot_use(medgemma: Path, head: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForCausalLM"]}))
    with pytest.raises(SettingsError, match="expected a Gemma3ForConditionalGeneration"):
        load_baseline("medgemma-2d", tmp_path, device="cpu")
    with pytest.raises(GenerationError, match="do not fit into 2048"):
        MedGemma2D(medgemma, slices=4, max_new_tokens=4000, device="cpu").read(head, "head", flip=False)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in medgemma.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import load_file, save_file

    state = load_file(broken / "model.safetensors")
    state.pop(next(name for name in state if "q_proj" in name))
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weights are missing"):
        MedGemma2D(broken, device="cpu")


# ---- Med3DVLM

CODE = '''
"""A stand-in with the interface of Med3DVLM: a 3D tower, a projector, and generate(images=, inputs=)."""
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM


class StandInConfig(Qwen2Config):
    model_type = "vlm_qwen"


class StandIn(Qwen2ForCausalLM):
    config_class = StandInConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.vision_tower = nn.Conv3d(1, config.hidden_size, kernel_size=8, stride=8)
        self.post_init()

    def get_model(self):
        return self.model

    def generate(self, images=None, inputs=None, **options):
        tower = self.model.vision_tower(images).flatten(2).transpose(1, 2)
        tokens = tower[:, : self.config.proj_out_num]
        embeddings = self.model.embed_tokens(inputs)
        patches = inputs == self.config.im_patch_id
        assert int(patches.sum()) == tokens.shape[1], (int(patches.sum()), tokens.shape)
        embeddings = embeddings.masked_scatter(patches.unsqueeze(-1), tokens)
        return super().generate(inputs_embeds=embeddings, **options)
'''


@pytest.fixture
def med3dvlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights, tokenizer and code in one folder, as on the hub; the vision tower in a file of its own."""
    import importlib.util
    import sys

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "Med3DVLM-tiny"
    folder.mkdir()
    (folder / "modeling_standin.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("standin", folder / "modeling_standin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = image_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [PATCH_MARK]})
    torch.manual_seed(0)
    config = module.StandInConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=2, eos_token_id=1, pad_token_id=0,
        proj_out_num=8, input_size=[16, 16, 16], im_patch_id=tokenizer.get_vocab()[PATCH_MARK],
    )  # fmt: skip
    model = module.StandIn(config)
    torch.save(model.model.vision_tower.state_dict(), folder / "vision_tower.bin")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    stated["auto_map"] = {
        "AutoConfig": "modeling_standin.StandInConfig",
        "AutoModelForCausalLM": "modeling_standin.StandIn",
    }
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def test_med3dvlm_runs_no_code_that_was_not_allowed(med3dvlm: Path) -> None:
    (med3dvlm / "modeling_standin.py").write_text(f"open({str(med3dvlm / 'ran')!r}, 'w').close()\n" + CODE)
    with pytest.raises(SettingsError, match="--trust-remote-code"):
        load_baseline("med3dvlm", med3dvlm, device="cpu")
    assert not (med3dvlm / "ran").exists()


def test_med3dvlm_reports_whole_volumes(med3dvlm: Path, head: Any) -> None:
    reporter = load_baseline("med3dvlm", med3dvlm, trust_remote_code=True, device="cpu")
    reporter.max_new_tokens = 5  # type: ignore[attr-defined]
    reading = reporter.read(head, "head", flip=True)
    assert isinstance(reading.report, str)
    assert isinstance(reading.mirrored, str)
    assert "Med3DVLM-tiny" in reporter.name


def test_unknown_baselines_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="medgemma-2d, med3dvlm"):
        load_baseline("gpt", tmp_path)
    with pytest.raises(SettingsError, match=r"config\.json"):
        load_baseline("medgemma-2d", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="no Med3DVLM"):
        load_baseline("med3dvlm", tmp_path, trust_remote_code=True)
