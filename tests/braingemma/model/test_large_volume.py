"""Attention and eight-bit layers of the library: against torch in float32, and the encoder before, within and after."""

from __future__ import annotations

import copy
import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model
from transformers import SiglipVisionConfig

from braingemma.model import cost, large_volume
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.model.large_volume import EightBitLinear, attend, large_volumes

SOURCE = Path(large_volume.__file__).with_name("_large_volume.c")
FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
"""As pyproject.toml builds it."""


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    file = tmp_path_factory.mktemp("large") / "large.so"
    run = subprocess.run(["cc", *FLAGS, "-o", file, SOURCE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    library = large_volume.open_library(file)
    if library is None:
        pytest.skip("this processor has no bfloat16 or no eight bits")
    return library


@pytest.fixture
def in_use(opened: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small volumes count as large ones, on whatever processor has the instructions."""
    monkeypatch.setattr(large_volume, "library", lambda: opened)
    monkeypatch.setattr(large_volume, "FEWEST_TOKENS", 1)


def wide_model() -> BrainGemma3D:
    """Heads of 72 dimensions, in bfloat16; 27 patches."""
    vision = SiglipVisionConfig(
        hidden_size=144, intermediate_size=304, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    return tiny_model(vision_config=vision).to(torch.bfloat16)


@pytest.mark.parametrize(("tokens", "dim"), [(1, 64), (61, 72), (256, 64), (331, 72)])
def test_attention_is_exact_within_bfloat16(opened: ctypes.CDLL, tokens: int, dim: int) -> None:
    torch.manual_seed(tokens)
    together = torch.randn(
        2, tokens, 3, 3, dim
    ).bfloat16()  # query, key and value lie beside each other, as one reads them
    together[:, :, 0] *= 4  # far from even: the maximum moves from block to block
    query, key, value = (together[:, :, part].transpose(1, 2) for part in range(3))
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=0.3).transpose(1, 2)
    torch.testing.assert_close(attend(opened, query, key, value, 0.3).float(), exact, atol=0.03, rtol=0.02)
    apart = attend(opened, query.contiguous(), key, value.contiguous(), 0.3)
    assert torch.equal(apart, attend(opened, query, key, value, 0.3))


def test_scores_of_any_size_stay_finite(opened: ctypes.CDLL) -> None:
    query = torch.full((1, 1, 300, 64), 60.0).bfloat16()
    key, value = -query, torch.ones_like(query)
    key[:, :, 299] = 60.0  # alone in the last block, and far above all before it
    value[:, :, 299] = 7.0
    assert attend(opened, query, key, value, 1.0).float().eq(7).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(opened: ctypes.CDLL, wrong: float) -> None:
    """A broken tensor must not become a map."""
    torch.manual_seed(0)
    for part in range(3):
        given = [torch.randn(1, 1, 300, 72).bfloat16() for _ in range(3)]
        given[part][0, 0, 7, 3] = wrong
        exact = F.scaled_dot_product_attention(*(t.float() for t in given), scale=0.3)
        assert not exact.isfinite().all()
        assert torch.equal(attend(opened, *given, 0.3).transpose(1, 2).isfinite(), exact.isfinite())
    x = torch.randn(40, 64).bfloat16()
    x[5, 1] = wrong
    for gelu in (False, True):
        finite = EightBitLinear(opened, torch.nn.Linear(64, 32), gelu=gelu)(x).isfinite().any(dim=1)
        assert finite.nonzero().squeeze(1).tolist() == [n for n in range(40) if n != 5]


@pytest.mark.parametrize(("rows", "width", "out"), [(1, 16, 16), (97, 64, 80), (200, 304, 144)])
def test_eight_bits_are_exact_where_nothing_is_rounded(opened: ctypes.CDLL, rows: int, width: int, out: int) -> None:
    torch.manual_seed(rows)
    linear = torch.nn.Linear(width, out)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-2, 3, (out, width)))
        linear.weight[:, 0] = 127
        linear.bias.copy_(torch.randint(-9, 9, (out,)))
    x = torch.randint(-1, 2, (rows, width)).float()
    x[:, 0] = 127 * (torch.arange(rows) % 2 * 2 - 1)
    y = EightBitLinear(opened, linear)(x.bfloat16())
    assert torch.equal(y, linear(x).bfloat16())
    assert EightBitLinear(opened, linear)(torch.zeros(2, 3, width).bfloat16()).shape == (2, 3, out)


@pytest.mark.parametrize("gelu", [False, True])
def test_eight_bits_round_by_a_hundredth(opened: ctypes.CDLL, gelu: bool) -> None:
    torch.manual_seed(1)
    linear, x = torch.nn.Linear(288, 208), torch.randn(150, 288).bfloat16()
    with torch.no_grad():
        exact = linear(x.float())
        exact = F.gelu(exact, approximate="tanh") if gelu else exact
    error = EightBitLinear(opened, linear, gelu=gelu)(x).float() - exact
    assert 0 < error.square().mean().sqrt() < 0.02 * exact.std()


def test_what_the_library_cannot_read_never_reaches_it(opened: ctypes.CDLL) -> None:
    right = torch.zeros(1, 1, 4, 64).bfloat16()
    for wrong in (right.float(), right[:, :, :2], torch.zeros(1, 1, 4, 72).bfloat16()):
        with pytest.raises(ValueError, match="expected bfloat16"):
            attend(opened, right, wrong, right, 1.0)
    odd = torch.zeros(1, 1, 4, 48).bfloat16()
    with pytest.raises(ValueError, match="64 or 72 dimensions"):
        attend(opened, odd, odd, odd, 1.0)
    with pytest.raises(ValueError, match="multiples of 16"):
        EightBitLinear(opened, torch.nn.Linear(20, 16))
    with pytest.raises(ValueError, match="expected bfloat16"):
        EightBitLinear(opened, torch.nn.Linear(16, 16))(torch.zeros(1, 32).bfloat16())


@pytest.mark.usefixtures("in_use")
def test_the_encoder_reads_nearly_the_same_within_and_the_same_afterwards() -> None:
    model = wide_model()
    volumes = torch.randn(2, 1, *model.config.grid)
    with torch.inference_mode():
        before = model.patch_features(volumes)
        with large_volumes(model.vision, eight_bits=False):
            by_library = model.patch_features(volumes)
        with large_volumes(model.vision):
            rounded = model.patch_features(volumes)
            assert torch.equal(rounded, model.patch_features(volumes))
        after = model.patch_features(volumes)
    assert torch.equal(before, after)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(model).patch_features(volumes), before), "a model stays one that can be copied"
    close, far = ((found.float() - before.float()).abs().mean() for found in (by_library, rounded))
    assert 0 < close < 0.01
    assert close < far < 0.05
    with torch.no_grad():  # weights that change are rounded anew
        model.vision.siglip.encoder.layers[1].mlp.fc2.weight.zero_()
    with torch.inference_mode(), large_volumes(model.vision):
        changed = model.patch_features(volumes)
    assert (changed.float() - rounded.float()).abs().mean() > 2 * far


@pytest.mark.usefixtures("in_use")
def test_float32_small_volumes_and_training_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide_model()
    volume = torch.randn(1, 1, *model.config.grid)
    assert large_volume.is_large(model, model.config.grid)
    exact = model.patch_features(volume)
    with large_volumes(model.vision):
        assert torch.equal(model.patch_features(volume), exact)  # with gradients
    model.float()
    with torch.inference_mode(), large_volumes(model.vision):
        assert torch.equal(model.patch_features(volume), model.patch_features(volume.clone()))
        assert not large_volume.is_large(model, model.config.grid)
    model.to(torch.bfloat16)
    monkeypatch.setattr(large_volume, "FEWEST_TOKENS", 28)  # one more than there are
    with torch.inference_mode():
        plain = model.patch_features(volume)
        with large_volumes(model.vision):
            assert torch.equal(model.patch_features(volume), plain)
    assert not large_volume.is_large(model, model.config.grid)


def test_without_the_library_nothing_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    assert large_volume.open_library(tmp_path / "broken.so") is None
    monkeypatch.setattr(large_volume, "library", lambda: None)
    monkeypatch.setattr(large_volume, "FEWEST_TOKENS", 1)
    model = wide_model()
    volume = torch.randn(1, 1, *model.config.grid)
    with torch.inference_mode():
        plain = model.patch_features(volume)
        with large_volumes(model.vision):
            assert torch.equal(model.patch_features(volume), plain)
    assert not large_volume.is_large(model, model.config.grid)


@pytest.mark.usefixtures("in_use")
def test_scores_by_either_way_are_close_and_a_report_is_untouched() -> None:
    model = wide_model()
    volume = torch.randn(1, 1, *model.config.grid)
    report = model.generate(volume, max_new_tokens=8)
    exact, rounded = (
        model.score_reports(volume, [report.token_ids], encoding=how)[0] for how in ("exact", "eight bits")
    )
    assert torch.allclose(exact, rounded, atol=0.1)
    assert model.generate(volume, max_new_tokens=8) == report


def test_what_a_volume_takes_follows_from_sizes_alone() -> None:
    model = tiny_model()
    grid = model.config.grid
    small = cost.volume_seconds(model, grid, 10)
    assert 0 < small < 0.1
    assert cost.volume_seconds(model, grid, 1000) > small
    assert cost.volume_seconds(model, (2 * grid[0], *grid[1:]), 10) > small
    sizes = SimpleNamespace(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27)
    assert cost.vision_operations(sizes, 5265) == pytest.approx(7.78e12, rel=0.01)  # multiplied out by hand
