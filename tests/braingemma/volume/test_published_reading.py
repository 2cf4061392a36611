"""The public code's reading of a file, to the digit, and volumes that say how they were read."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform
from public_code import public_volume
from tiny_models import tiny_config, tiny_model

from braingemma import load_nifti_volume
from braingemma.configuration import PUBLISHED_VOLUME, VolumeSettings
from braingemma.errors import CheckpointError, VolumeError
from braingemma.published import load_nifti_volume as public_name
from braingemma.volume.brain import NOTHING_FOUND, BrainMask
from braingemma.volume.loaded import LoadedVolume
from braingemma.volume.preprocess import FALLBACK, NO_BRAIN, prepare_image, prepare_volume


def head(code: str = "RAS", dtype: type = np.int16, scale: float = 1.0) -> nibabel.Nifti1Image:
    """A head of a noisy background, a scalp, a brain and a bright mark on the patient's left."""
    shape, spacing = (60, 70, 44), (3.0, 2.8, 4.0)
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    radius = np.sqrt((axes[0] / 65) ** 2 + (axes[1] / 82) ** 2 + (axes[2] / 70) ** 2)
    noise = np.random.default_rng(5).normal(0, 9, shape)
    volume = np.where(radius < 1, 300 + 60 * np.cos(axes[1] / 9), np.where(radius < 1.2, 120, 10)) + noise
    volume[(axes[0] + 35) ** 2 + (axes[1] - 20) ** 2 + (axes[2] - 10) ** 2 < 26**2] = 900  # over 1 % of all voxels
    volume = volume.clip(0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]
    image = nibabel.Nifti1Image(volume.astype(dtype), affine)
    image.header.set_slope_inter(scale, 0)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    return image.as_reoriented(turn)


@pytest.mark.parametrize("size", [(64, 128, 128), (32, 128, 128), (7, 30, 95)])
@pytest.mark.parametrize(("code", "dtype"), [("RAS", np.int16), ("LPS", np.float32), ("SAL", np.uint16)])
def test_the_tensor_is_the_public_codes(tmp_path: Path, code: str, dtype: type, size: tuple[int, int, int]) -> None:
    path = tmp_path / "healthy" / "flair.nii.gz"  # their rule for such a path is not ours
    path.parent.mkdir()
    nibabel.save(head(code, dtype), path)
    plain = tmp_path / "flair.nii.gz"
    nibabel.save(head(code, dtype), plain)
    expected = public_volume(plain, size)
    assert expected.max() > 0.99
    for read in (load_nifti_volume(path, size, config=PUBLISHED_VOLUME), public_name(path, target_size=size)):
        assert read.dtype == torch.float32
        torch.testing.assert_close(read.plain, expected, atol=1e-6, rtol=0)
    prepared = prepare_volume(path, PUBLISHED_VOLUME, size)
    voxel = np.argwhere(np.asarray(prepared.tensor[0, 0]) > 0.9).mean(axis=0)
    world = prepared.grid_affine @ [voxel[2], voxel[1], voxel[0], 1]
    np.testing.assert_allclose(world[:3], [-35, 20, 10], atol=12)
    assert prepared.foreground.shape == size
    assert 1000 < prepared.brain_volume_ml < 2200
    assert prepared.facts()["reading"] == "whole"


def test_the_default_size_is_theirs(tmp_path: Path) -> None:
    nibabel.save(head(), tmp_path / "a.nii")
    assert public_name(tmp_path / "a.nii").shape == (1, 1, 64, 128, 128)


def test_a_volume_without_contrast_becomes_zeros_there_and_says_so(tmp_path: Path) -> None:
    flat = nibabel.Nifti1Image(np.full((20, 20, 20), 7, np.float32), np.eye(4))
    nibabel.save(flat, tmp_path / "flat.nii")
    assert torch.equal(public_name(tmp_path / "flat.nii").plain, public_volume(tmp_path / "flat.nii"))
    prepared = prepare_image(flat, PUBLISHED_VOLUME)
    assert not prepared.tensor.any()
    assert any("no contrast" in warning for warning in prepared.warnings)
    with pytest.raises(VolumeError, match="every voxel is 7"):
        prepare_image(flat)  # what the conversion of every study asks, whatever the weights


BY_PEELING = FALLBACK.format(failure=NOTHING_FOUND)


@pytest.mark.parametrize(("method", "said"), [("deepbet", ()), ("peeling", (BY_PEELING,)), (None, (NO_BRAIN,))])
def test_how_the_brain_was_found_is_said_with_this_reading_too(
    method: str | None, said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensor needs no brain, but map and explanation stay within its mask."""
    image = head()
    found = None if method is None else BrainMask(np.asarray(image.dataobj) > 200, method, 1000.0)
    monkeypatch.setattr("braingemma.volume.preprocess.find_brain", lambda *_: found)
    prepared = prepare_image(image, PUBLISHED_VOLUME)
    assert {BY_PEELING, NO_BRAIN} & set(prepared.warnings) == set(said)


def test_settings_that_this_reading_does_not_know_are_refused() -> None:
    for other in ({"normalization": "zscore"}, {"crop": "field"}, {"brain_extraction": "auto"}):
        with pytest.raises(CheckpointError, match=f"volume.{next(iter(other))} with reading = whole"):
            VolumeSettings(**{**vars(PUBLISHED_VOLUME), **other})  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the record


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedVolume:
    nibabel.save(head(), tmp_path / "a.nii")
    return load_nifti_volume(tmp_path / "a.nii", config=tiny_config())


@pytest.mark.parametrize(
    "step",
    [
        lambda v: v.to("cpu"),
        lambda v: v.to(torch.float64).float(),
        lambda v: v.unsqueeze(0),
        lambda v: v.clone().detach().contiguous(),
        lambda v: torch.cat([v, v]),
        copy.deepcopy,
        lambda v: pickle.loads(pickle.dumps(v)),
    ],
)
def test_the_record_stays_where_it_holds(loaded: LoadedVolume, step: Any) -> None:
    assert step(loaded).settings == tiny_config().volume_settings


@pytest.mark.parametrize(
    "step",
    [
        lambda v: v * 2,
        lambda v: v.flip(4),
        lambda v: v.permute(0, 1, 4, 3, 2),
        lambda v: v[:, :, :4],
        lambda v: torch.cat([v, torch.zeros_like(v.plain)]),
        lambda v: v.plain,
    ],
)
def test_the_record_goes_where_it_holds_no_more(loaded: LoadedVolume, step: Any) -> None:
    assert type(step(loaded)) is torch.Tensor


def test_a_model_takes_its_own_reading_and_plain_tensors_and_refuses_others(
    tmp_path: Path, loaded: LoadedVolume
) -> None:
    model = tiny_model()
    with torch.no_grad():
        assert torch.equal(model.encode_volume(loaded), model.encode_volume(loaded.plain))
    other = load_nifti_volume(tmp_path / "a.nii", config=VolumeSettings(grid=model.config.grid, normalization="unit"))
    with pytest.raises(VolumeError, match=r"read with normalization unit, but these weights need normalization zscore"):
        model.encode_volume(other)
    with pytest.raises(VolumeError, match=r"need normalization zscore, .*load_nifti_volume\(path, config=model.config"):
        model.generate_report(public_name(tmp_path / "a.nii", model.config.grid))
    with pytest.raises(VolumeError, match=r"read with grid \(10, 24, 20\)"):
        model.encode_volume(load_nifti_volume(tmp_path / "a.nii", (10, 24, 20), config=model.config))
    with pytest.raises(VolumeError, match=r"expected a volume tensor of shape"):
        model.encode_volume(torch.zeros(1, 1, 10, 24, 20))


def test_published_weights_take_any_size_but_no_other_reading(tmp_path: Path) -> None:
    nibabel.save(head(), tmp_path / "a.nii")
    model = tiny_model(weights_format="published", volume=vars(PUBLISHED_VOLUME), resampler_dim=32)
    for size in ((12, 24, 20), (5, 40, 33)):
        assert model.encode_volume(public_name(tmp_path / "a.nii", size)).shape == (1, 8, 32)
    with pytest.raises(VolumeError, match=r"read with normalization zscore, .*reading brain, but these weights need"):
        model.encode_volume(load_nifti_volume(tmp_path / "a.nii"))
    with pytest.raises(VolumeError, match=r"H and W of 8 or more, got \(1, 1, 12, 7, 20\)"):
        model.encode_volume(torch.zeros(1, 1, 12, 7, 20))
