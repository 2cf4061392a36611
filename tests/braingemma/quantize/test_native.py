"""Few rows times packed weights: what bitsandbytes' unpacked weights give, on every path of this processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from published_files import GRID, write_published

from braingemma.errors import CheckpointError
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.quantize import few_rows as native
from braingemma.quantize import nf4 as quantize
from braingemma.quantize.few_rows import LEVELS, EightBitHead, FewRows, FewRowsLinear

REPO = Path(__file__).resolve().parents[3]
BUILD = "from setuptools import setup; setup()"


def build(folder: Path, **environment: str) -> list[Path]:
    """What an installation builds, by the project's own settings."""
    run = subprocess.run(
        [sys.executable, "-c", BUILD, "build_ext", "--build-lib", folder / "lib", "--build-temp", folder / "tmp"],
        cwd=REPO,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return list((folder / "lib").rglob("_few_rows*.so"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FewRows:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    (file,) = build(tmp_path_factory.mktemp("built"))
    library = native.open_library(file)
    if library is None:
        pytest.skip("this processor has no AVX2")
    return library


@pytest.fixture(params=LEVELS, ids=list(LEVELS.values()))
def library(built: FewRows, request: pytest.FixtureRequest) -> FewRows:
    if request.param > built.level:
        pytest.skip(f"this processor has no {LEVELS[request.param]}")
    return FewRows(built.library, request.param)


def packed(rows: int, width: int, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes, scales, the weight that they stand for) by bitsandbytes."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    codes, state = bnb.functional.quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=True)
    scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return codes.view(rows, -1), scales.view(rows, -1), quantize.unpack(codes, state.as_dict(packed=True))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("rows", "width", "block"),
    [
        (256, 640, 64),
        (1, 64, 64),
        (131, 320, 64),
        (50, 160, 32),
        (7, 96, 32),
        (3, 32, 32),
        (6, 384, 128),
        (5, 512, 256),
    ],
)
def test_nf4_is_what_the_unpacked_weight_gives(library: FewRows, rows: int, width: int, block: int, count: int) -> None:
    codes, scales, weight = packed(rows, width, block)
    x = torch.randn(count, width)
    exact = x.double() @ weight.double().T
    spread = exact.abs().max() + 1
    assert (library.nf4(x, codes, scales, block) - exact).abs().max() < 1e-6 * spread
    short = x.to(torch.bfloat16)
    exact = short.double() @ weight.double().T
    # The codes may be rounded to bfloat16 then, by at most one part in 512 each, at random.
    assert (library.nf4(short, codes, scales, block) - exact).norm() < 2**-8 * (short.float().norm() * weight.norm())
    assert (library.nf4(short, codes, scales, block) - exact).abs().max() < 2e-2 * spread


@pytest.mark.parametrize(("rows", "width", "count"), [(300, 128, 1), (5, 34, 3), (2, 2, 1), (129, 1152, 2)])
def test_bfloat16_is_exact(library: FewRows, rows: int, width: int, count: int) -> None:
    weight, x = torch.randn(rows, width).to(torch.bfloat16), torch.randn(count, width)
    exact = x.double() @ weight.double().T
    assert (library.bf16(x, weight) - exact).abs().max() < 1e-6 * (exact.abs().max() + 1)
    head = FewRowsLinear(width, rows, bias=False).to(torch.bfloat16).requires_grad_(False)
    head.weight.data = weight
    stock = torch.nn.functional.linear(x.to(torch.bfloat16), weight)
    torch.testing.assert_close(head(x.to(torch.bfloat16)), stock, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_row_is_the_same_alone_and_among_others(library: FewRows, count: int) -> None:
    """Bit for bit: writing with guesses must not round otherwise than writing without."""
    codes, scales, _ = packed(70, 320, 64)
    x, weight = torch.randn(count, 320), torch.randn(70, 320).to(torch.bfloat16)
    head = EightBitHead.of(weight)
    for rows in (x, x.to(torch.bfloat16)):
        for product in (
            lambda part: library.nf4(part, codes, scales, 64),
            lambda part: library.bf16(part, weight),
            lambda part: library.int8(part, head.codes, head.scales),
        ):
            assert torch.equal(product(rows), torch.cat([product(row[None]) for row in rows]))


@pytest.mark.parametrize(("rows", "width", "count"), [(300, 128, 1), (5, 32, 3), (9000, 64, 2)])
def test_int8_is_exact_and_near_the_weight_that_was_rounded(
    library: FewRows, rows: int, width: int, count: int
) -> None:
    weight, x = torch.randn(rows, width).to(torch.bfloat16), torch.randn(count, width)
    weight[1] = 0
    head = EightBitHead.of(weight)
    assert head.nbytes == rows * (width + 4)
    rounded = head.codes.double() * head.scales[:, None].double()
    exact = x.double() @ rounded.T
    assert (library.int8(x, head.codes, head.scales) - exact).abs().max() < 1e-6 * (exact.abs().max() + 1)
    assert (rounded - weight.double()).abs().max() <= weight.float().abs().max() / 254 + 1e-6
    many = head(x.repeat(native.FEW, 1))  # by torch, some rows of the weight at a time
    torch.testing.assert_close(many[:count].double(), exact, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="multiple of 32"):
        library.int8(torch.zeros(1, 40), torch.zeros(2, 40, dtype=torch.int8), torch.zeros(2))


def test_an_8_bit_head_is_asked_for_and_is_not_saved(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "weights")
    exact, rounded = (
        BrainGemma3D.from_pretrained(folder, quantization="none", dtype=torch.float32, head_bits=bits)
        for bits in (16, 8)
    )
    assert isinstance(exact.language_model.lm_head, FewRowsLinear)
    ids = torch.randint(4, 90, (1, 9))
    with torch.no_grad():
        near, far = (model.language_model(ids).logits for model in (exact, rounded))
    assert 0 < (near - far).abs().max() < 0.02 * near.abs().max()
    assert torch.equal(exact.get_submodule("language_model.model.embed_tokens").weight,
                       rounded.get_submodule("language_model.model.embed_tokens").weight)  # fmt: skip
    with pytest.raises(CheckpointError, match="load with head_bits=16 to save"):
        rounded.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="head_bits must be 8 or 16; got 4"):
        BrainGemma3D.from_pretrained(folder, head_bits=4)


@pytest.mark.parametrize(
    ("x", "codes", "scales", "block"),
    [
        (torch.zeros(1, 64, dtype=torch.float64), torch.zeros(4, 31, dtype=torch.uint8), torch.zeros(4, 1), 64),
        (torch.zeros(1, 64), torch.zeros(4, 32), torch.zeros(4, 1), 64),
        (torch.zeros(1, 64), torch.zeros(32, 4, dtype=torch.uint8).T, torch.zeros(4, 1), 64),
        (torch.zeros(1, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 2), 64),
        (torch.zeros(1, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 1), 48),
    ],
)
def test_c_is_told_nothing_that_is_not_so(
    built: FewRows, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, block: int
) -> None:
    with pytest.raises(ValueError, match="must be"):
        built.nf4(x, codes, scales, block)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5, native.FEW, native.FEW + 1])
def test_a_layer_gives_the_same_with_and_without_the_library(
    built: FewRows, monkeypatch: pytest.MonkeyPatch, count: int, dtype: torch.dtype
) -> None:
    stack = torch.nn.Sequential(torch.nn.Linear(128, 50, device="meta"))
    quantize.make_linears_four_bit(stack, dtype)
    quantize.put_quantized(stack[0], torch.randn(50, 128), torch.device("cpu"))
    stack[0].bias = torch.nn.Parameter(torch.randn(50))
    x, given = torch.randn(2, count, 128).to(dtype), []
    for library in (None, built):
        monkeypatch.setattr(native, "few_rows", lambda library=library: library)
        given.append(stack(x))
    assert given[0].shape == (2, count, 50)
    assert given[0].dtype == given[1].dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(given[0], given[1], atol=near, rtol=near / 10)


def test_a_report_is_the_same_with_and_without_the_library(
    built: FewRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BrainGemma3D.from_pretrained(write_published(tmp_path), quantization="4bit", dtype=torch.float32)
    volume, written = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(4)), []
    for library in (None, built):
        monkeypatch.setattr(native, "few_rows", lambda library=library: library)
        written.append(model.generate(volume, max_new_tokens=16, temperature=None))
    assert written[0].token_ids == written[1].token_ids
    assert written[0].token_logprobs == pytest.approx(written[1].token_logprobs, abs=1e-3)


def test_without_a_compiler_the_rest_is_installed(tmp_path: Path) -> None:
    assert build(tmp_path, CC="/bin/false") == []
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    assert native.open_library(broken) is None
