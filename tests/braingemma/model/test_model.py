"""The composed model: reports, scores, heads, gradients."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from tiny_models import tiny_config, tiny_model

import braingemma
from braingemma.configuration import FINDINGS, SITES
from braingemma.errors import GenerationError
from braingemma.model.braingemma3d import COMPONENTS, BrainGemma3D


def test_importing_the_package_needs_no_torch() -> None:
    code = "import sys, braingemma; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert braingemma.BrainGemma3D is BrainGemma3D
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = braingemma.nothing


def test_shapes_of_every_box(model: BrainGemma3D, volume: torch.Tensor) -> None:
    batch = volume.expand(2, -1, -1, -1, -1)
    assert model.patch_features(batch).shape == (2, 3, 3, 3, 32)
    assert model.encode_volume(batch).shape == (2, 8, 32)
    shares = model.ground(batch)
    assert shares is not None
    assert shares.shape == (2, 3, 3, 3)
    assert 0 <= shares.min() <= shares.max() <= 1


def test_finding_probabilities_are_named(model: BrainGemma3D, volume: torch.Tensor) -> None:
    one = model.finding_probabilities(volume)
    assert isinstance(one, dict)
    assert tuple(one) == FINDINGS
    assert set(one["lesion"]) == {"presence", "left", "right", "sites"}
    assert tuple(one["lesion"]["sites"]) == SITES
    both = model.finding_probabilities(volume.expand(2, -1, -1, -1, -1))
    assert isinstance(both, list)
    assert both[0]["edema"]["presence"] == pytest.approx(one["edema"]["presence"], abs=1e-5)


def test_weights_without_heads_say_so(volume: torch.Tensor) -> None:
    bare = tiny_model()
    assert bare.ground(volume) is None
    assert bare.finding_probabilities(volume) is None


def test_a_gpu_gets_mixed_precision_and_exact_weights_do_not(
    model: BrainGemma3D, volume: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor taken for a GPU: every path runs with autocast on, and says about the same."""
    exact = model.score_tokens(volume, range(10, 20))
    cudnn, told = torch.backends.cudnn, []
    patches = model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda x: told.append(cudnn.conv.fp32_precision) or patches(x))
    model.ground(volume)
    model.to(torch.bfloat16)
    model.ground(volume)
    assert told == ["ieee", "tf32"], "convolutions of float32 weights are exact, too"
    assert (cudnn.conv.fp32_precision, cudnn.allow_tf32) == ("tf32", True)
    assert not model.mixed_precision()._enabled
    monkeypatch.setattr("braingemma.model.braingemma3d.ACCELERATORS", ("cuda", "cpu"))
    assert model.mixed_precision()._enabled
    mixed = model.score_tokens(volume, range(10, 20))
    assert model.ground(volume) is not None
    assert model.finding_probabilities(volume)
    assert len(model.generate(volume, max_new_tokens=4).token_ids) == 4
    assert 0 < (mixed - exact).abs().max() < 0.5
    model.to(torch.float32)
    assert not model.mixed_precision()._enabled


def test_greedy_reports_are_reproducible_and_batches_agree(model: BrainGemma3D) -> None:
    volumes = torch.randn(3, 1, *model.config.grid, generator=torch.Generator().manual_seed(1))
    together = model.generate_report(volumes, max_new_tokens=12)
    assert isinstance(together, list)
    assert together == [model.generate_report(v[None], max_new_tokens=12) for v in volumes]
    assert together == model.generate_report(volumes, max_new_tokens=12)


def test_scores_are_the_probabilities_of_writing(model: BrainGemma3D, volume: torch.Tensor) -> None:
    written = model.generate(volume, max_new_tokens=10)
    assert len(written.token_ids) == len(written.token_logprobs) > 0
    other = torch.randn(1, 1, *model.config.grid)
    scores = model.score_tokens(torch.cat((volume, other)), written.token_ids)
    assert scores.shape == (2, len(written.token_ids))
    torch.testing.assert_close(scores[0], torch.tensor(written.token_logprobs), atol=1e-4, rtol=1e-4)
    assert (scores[0] - scores[1]).abs().max() > 1e-6
    with pytest.raises(GenerationError, match="at least one token"):
        model.score_tokens(volume, [])


def test_reports_that_begin_alike_are_scored_as_if_each_came_alone(
    model: BrainGemma3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = torch.randn(2, 1, *model.config.grid)
    reports = [[10, 11, 12, 13, 14, 15], [10, 11, 20, 13, 14, 99], [10, 11, 12], [50, 11, 12]]
    alone = [model.score_tokens(volumes, ids) for ids in reports]
    assert (alone[0][:, 3] - alone[1][:, 3]).abs().max() > 1e-6, "what stands before a token counts"
    wanted = [[0, 3, 5], [2, 4], [0, 2], [0, 1]]
    read: list[int] = []
    forward = model.language_model.forward

    def counted(inputs_embeds: torch.Tensor, **others: object) -> object:
        read.append(inputs_embeds.shape[1])
        return forward(inputs_embeds=inputs_embeds, **others)

    monkeypatch.setattr(model.language_model, "forward", counted)
    together = model.score_reports(volumes, reports)
    some = model.score_reports(volumes, reports, wanted=wanted)
    for whole, part, places, one in zip(together, some, wanted, alone, strict=True):
        torch.testing.assert_close(whole, one, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(part, one[:, places], atol=1e-5, rtol=1e-5)
    prompt = len(model._prompt_ids(None))
    # Of the second report only what follows "11", which is read again because it predicts what differs.
    assert read[len(reports) :] == [prompt + 5, 4, 3, 3]
    model.language_model.config.sliding_window = prompt + 6  # nothing is read again behind a window
    read.clear()
    model.score_reports(volumes, reports, wanted=wanted)
    assert read == [prompt + 5, prompt + 5, prompt + 2, prompt + 2]


def test_any_reports_are_scored_as_if_each_came_alone(model: BrainGemma3D) -> None:
    """Also where a later one is like the first for longer than like the one before it."""
    volume, draw = torch.randn(1, 1, *model.config.grid), random.Random(5)
    several = [[[10, 11, 12, 13, 14, 15], [10, 11, 20, 13, 14, 99], [10, 11, 12, 13, 77]]]
    several += [[[draw.choice((10, 10, 11)) for _ in range(draw.randint(1, 7))] for _ in range(4)] for _ in range(5)]
    for reports in several:
        wanted = [[len(ids) - 1] for ids in reports]
        together = model.score_reports(volume, reports, wanted=wanted)
        for ids, places, found in zip(reports, wanted, together, strict=True):
            alone = model.score_tokens(volume, ids)[:, places]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def test_stop_strings_end_a_report_and_are_cut(model: BrainGemma3D, volume: torch.Tensor) -> None:
    text = model.generate_report(volume, max_new_tokens=12)
    stop = text[3:5]
    stopped = model.generate(volume, max_new_tokens=12, stop=(stop,))
    assert stopped.text == text[: text.index(stop)].strip()
    assert len(stopped.token_ids) < 12
    assert stopped.ended
    assert not model.generate(volume, max_new_tokens=12).ended


def test_generate_is_for_one_volume(model: BrainGemma3D, volume: torch.Tensor) -> None:
    with pytest.raises(GenerationError, match="use generate_batch"):
        model.generate(volume.expand(2, -1, -1, -1, -1))


def test_a_model_without_tokenizer_says_so(volume: torch.Tensor) -> None:
    with pytest.raises(GenerationError, match="no tokenizer"):
        BrainGemma3D(tiny_config()).generate(volume)


def test_the_loss_is_on_the_report_alone_and_reaches_every_part(volume: torch.Tensor) -> None:
    model = tiny_model(lora=True, grounding_head=True, findings_head=True).train()
    batch = model.training_batch(["left edema.", "no mass at all."])
    kept = batch["labels"] != -100
    prefix = len(model._prompt_ids(None))
    assert not kept[:, :prefix].any()
    ends = [row[mask][-1].item() for row, mask in zip(batch["labels"], kept, strict=True)]
    assert ends == [model.tokenizer.eos_token_id] * 2
    out = model(volume.expand(2, -1, -1, -1, -1), **batch)
    assert out.loss is not None
    assert out.grounding_logits is not None
    assert out.findings_logits is not None
    (out.loss + out.grounding_logits.mean() + out.findings_logits.mean()).backward()
    for component in COMPONENTS:
        parameters = [p for p in model.component_parameters(component) if p.requires_grad]
        assert component == "language" or parameters, component
        assert all(p.grad is not None for p in parameters), component


def test_padding_does_not_change_the_loss(volume: torch.Tensor) -> None:
    model = tiny_model()
    long, short = "left frontal edema.", "none."
    both = model(volume.expand(2, -1, -1, -1, -1), **model.training_batch([long, short])).logits
    alone = model(volume, **model.training_batch([short])).logits
    torch.testing.assert_close(both[1, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


def test_components_do_not_overlap_and_miss_nothing() -> None:
    model = tiny_model(lora=True, grounding_head=True, findings_head=True)
    parts = [id(p) for c in COMPONENTS for p in model.component_parameters(c)]
    assert len(parts) == len(set(parts))
    unused = {"vision.siglip.embeddings.patch_embedding.weight", "vision.siglip.embeddings.patch_embedding.bias"}
    everything = {id(p) for n, p in model.named_parameters() if n not in unused}
    assert set(parts) == everything
    with pytest.raises(ValueError, match="component must be one of"):
        list(model.component_parameters("tail"))


def test_adapters_sit_on_the_attention_of_the_text_stack_only() -> None:
    names = [n for n, _ in tiny_model(lora=True).named_parameters() if "lora_" in n]
    assert names
    assert all(n.startswith("language_model.model.layers.") and ".self_attn." in n for n in names)
    assert {n.split(".self_attn.")[1].split(".")[0] for n in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(4 in p.shape for n, p in tiny_model(lora=True).named_parameters() if "lora_" in n)
