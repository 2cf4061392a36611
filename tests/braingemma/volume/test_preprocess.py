"""RAS by the header alone, one path, clear errors."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage, optimize

from braingemma.configuration import VolumeSettings
from braingemma.errors import VolumeError
from braingemma.volume.brain import find_brain
from braingemma.volume.preprocess import load_nifti_volume, prepare_image, prepare_volume
from braingemma.volume.resampling import resample_box

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "nifti"
SMALL = VolumeSettings(grid=(16, 32, 28))
ORIENTATIONS = [
    "".join(code) for axes in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*axes)
]


def head(skull: bool = True, shape: tuple[int, int, int] = (80, 96, 70), spacing: float = 2.5) -> nibabel.Nifti1Image:
    """An ellipsoid brain, with a dark skull and a gray scalp around it, and a bright mark on the patient's left."""
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing for n in shape], indexing="ij")
    radius = np.sqrt((axes[0] / 65) ** 2 + (axes[1] / 82) ** 2 + (axes[2] / 60) ** 2)
    texture = np.random.default_rng(5).normal(0, 6, shape)
    volume = np.where(radius < 1, 200 + 30 * np.cos(axes[1] / 9) + texture, 0)
    if skull:
        volume = np.where((radius > 1.12) & (radius < 1.25), 90 + texture, volume)
        volume += np.abs(np.random.default_rng(6).normal(0, 3, shape))
    mark = (axes[0] + 35) ** 2 + (axes[1] - 20) ** 2 + (axes[2] - 10) ** 2 < 12**2  # RAS: negative x is left
    volume[mark] = 400
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * spacing for n in shape]
    return nibabel.Nifti1Image(volume.astype(np.float32), affine)


def stored_as(image: nibabel.Nifti1Image, code: str) -> nibabel.Nifti1Image:
    """The same picture of the same patient, stored with its axes in another order and direction."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    data = nibabel.orientations.apply_orientation(np.asarray(image.dataobj), change)
    return nibabel.Nifti1Image(np.ascontiguousarray(data), image.affine @ inv_ornt_aff(change, image.shape))


def brightest(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(tensor[0, 0].argmax()), tensor.shape[2:]))


@pytest.mark.parametrize("skull", [True, False])
def test_the_48_orientations_give_the_same_tensor(skull: bool) -> None:
    image = head(skull, shape=(40, 48, 36), spacing=5.0)
    expected = prepare_image(image, SMALL)
    assert len(set(ORIENTATIONS)) == 48
    for code in ORIENTATIONS:
        stored = stored_as(image, code)
        assert "".join(nibabel.aff2axcodes(stored.affine)) == code
        got = prepare_image(stored, SMALL)
        torch.testing.assert_close(got.tensor, expected.tensor, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got.grid_affine, expected.grid_affine, atol=1e-6)


@pytest.mark.parametrize("crop", ["field", "brain", "none"])
@pytest.mark.parametrize("skull", [True, False])
def test_left_is_left(skull: bool, crop: str) -> None:
    settings = VolumeSettings(grid=(16, 32, 28), crop=crop)  # type: ignore[arg-type]
    prepared = prepare_image(stored_as(head(skull), "LPS"), settings)
    tensor = prepared.tensor[0, 0].clone()
    centre = np.argwhere((tensor > tensor.max() - 0.1).numpy()).mean(axis=0)  # the mark's voxels
    world = prepared.grid_affine @ [centre[2], centre[1], centre[0], 1]
    np.testing.assert_allclose(world[:3], [-35, 20, 10], atol=8)
    assert centre[2] < (28 - 1) / 2, "W grows from left to right"
    assert centre[1] > (32 - 1) / 2, "H grows from posterior to anterior"


def test_the_file_name_never_matters(tmp_path: Path) -> None:
    names = ("healthy/sub-01.nii.gz", "tumour_left.nii", "x.nii.gz")
    tensors = []
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nibabel.save(head(), path)
        tensors.append(load_nifti_volume(path, config=SMALL))
    assert all(torch.equal(tensors[0], t) for t in tensors[1:])


def test_values_are_zscores_of_the_clipped_brain(tmp_path: Path) -> None:
    image = head(skull=False)
    settings = VolumeSettings(grid=(70, 96, 80), crop="none")  # the volume's own grid: no interpolation
    prepared = prepare_image(image, settings)
    source = np.asarray(image.dataobj)
    low, high = np.percentile(source[source != 0], (1, 99))
    clipped = np.clip(source, low, high)
    inside = clipped[source != 0]
    expected = np.where(source != 0, (clipped - inside.mean()) / inside.std(), -3.0).transpose(2, 1, 0)
    np.testing.assert_allclose(prepared.tensor[0, 0].numpy(), expected, atol=1e-4)
    assert prepared.extraction == "came without skull"
    assert (prepared.foreground == (source != 0).transpose(2, 1, 0)).all()


def test_unit_range_and_default_grid() -> None:
    prepared = prepare_image(head(), VolumeSettings(normalization="unit"))
    assert prepared.tensor.shape == (1, 1, 64, 128, 128)
    assert prepared.tensor.dtype == torch.float32
    assert prepared.tensor.min() == 0
    assert 0.9 < prepared.tensor.max() <= 1


def test_target_size_overrides(tmp_path: Path) -> None:
    nibabel.save(head(), tmp_path / "a.nii.gz")
    assert load_nifti_volume(tmp_path / "a.nii.gz", target_size=(32, 40, 36)).shape == (1, 1, 32, 40, 36)
    with pytest.raises(VolumeError, match="target_size"):
        load_nifti_volume(tmp_path / "a.nii.gz", target_size=(32, 40))  # type: ignore[arg-type]


def test_the_skull_is_removed_and_the_brain_kept() -> None:
    image = head(skull=True)
    truth = np.asarray(head(skull=False).dataobj) > 0
    brain = find_brain(np.asarray(image.dataobj), np.full(3, 2.5))
    assert brain is not None
    assert not brain.stripped
    dice = 2 * (brain.mask & truth).sum() / (brain.mask.sum() + truth.sum())
    assert dice > 0.95


def test_extraction_treats_left_and_right_alike() -> None:
    data = np.asarray(head().dataobj)
    straight, mirrored = (find_brain(v, np.full(3, 2.5)) for v in (data, data[::-1]))
    assert straight is not None
    assert mirrored is not None
    assert (straight.mask == mirrored.mask[::-1]).mean() > 0.9999


def test_a_volume_without_a_brain_is_used_whole_and_says_so() -> None:
    sheets = np.zeros((40, 40, 40), dtype=np.float32)
    sheets[:, ::8, :] = 1 + np.arange(40, dtype=np.float32)  # thin, so that nothing is left after peeling
    prepared = prepare_image(nibabel.Nifti1Image(sheets, np.diag([3.0, 3, 3, 1])), SMALL)
    assert prepared.extraction == "none"
    assert "whole volume" in prepared.warnings[0]


def test_resampling_is_trilinear() -> None:
    volume = np.random.default_rng(2).normal(size=(9, 11, 13)).astype(np.float32)
    edges = np.full(3, -0.5), np.array(volume.shape) - 0.5
    got = resample_box(volume, *edges, (18, 22, 26), 0.0)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(volume)[None, None], size=(18, 22, 26), mode="trilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    outside = resample_box(volume, edges[0] - 20, edges[1] + 20, (53, 53, 53), -3.0)
    assert outside[0, 0, 0] == -3.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((20, 20, 20), np.nan), "finite"),
        (np.full((20, 20, 20), 7.0), "every voxel is 7"),
        (np.zeros((20, 20, 20)), "every voxel is 0"),
        (np.ones((20, 20, 20, 3)), "4 dimensions"),
        (np.ones((20, 20)), "2 dimensions"),
        (np.ones((20, 20, 9)), "at least 10 slices"),
        (np.ones((20, 20, 20), dtype=np.complex64), "complex64"),
    ],
)
def test_what_cannot_be_reported_is_refused(data: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        prepare_image(nibabel.Nifti1Image(data.astype(data.dtype if data.dtype.kind == "c" else np.float32), np.eye(4)))


def test_one_voxel_that_is_not_finite_is_refused() -> None:
    image = head()
    data = np.array(image.dataobj)
    data[3, 4, 5] = np.inf
    with pytest.raises(VolumeError, match="got 1 that are NaN or infinite"):
        prepare_image(nibabel.Nifti1Image(data, image.affine))


def test_a_header_without_orientation_is_refused() -> None:
    image = head()
    image.header["qform_code"] = image.header["sform_code"] = 0
    with pytest.raises(VolumeError, match="left and right are unknown"):
        prepare_image(image)


def test_affines_that_disagree_about_the_side_are_told() -> None:
    image = head()
    mirrored = image.affine.copy()
    mirrored[0] *= -1
    image.set_qform(mirrored, code=1)
    image.set_sform(image.affine, code=1)
    assert "check left and right" in prepare_image(image, SMALL).warnings[0]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no such file"):
        prepare_volume(tmp_path / "none.nii.gz")
    (tmp_path / "text.nii.gz").write_text("not a volume")
    with pytest.raises(VolumeError, match=r"text\.nii\.gz"):
        prepare_volume(tmp_path / "text.nii.gz")
    nibabel.save(head(), tmp_path / "whole.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:100_000])
    with pytest.raises(VolumeError, match=r"cut\.nii"):
        prepare_volume(tmp_path / "cut.nii")


@pytest.mark.nets
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["open_ms_data_CCBY/patient04_study1_FLAIR", "py_synthsr_FLAIR_Apache2"])
def test_real_heads_give_a_brain_of_human_size(name: str) -> None:
    path = SHARED / f"{name}.nii.gz"
    if not path.exists():
        pytest.skip("the shared test data is not beside this checkout")
    prepared = prepare_volume(path, VolumeSettings(grid=(32, 64, 64)))
    assert prepared.extraction == "deepbet"
    assert 1000 < prepared.brain_volume_ml < 1800
    halves = prepared.foreground[:, :, :32].sum(), prepared.foreground[:, :, 32:].sum()
    assert 0.85 < halves[0] / halves[1] < 1.18


def affine_overlap(brain: np.ndarray, spacing: np.ndarray, standard: np.ndarray, standard_spacing: float) -> float:
    """Dice of two masks after the affine map of 12 parameters that brings them closest, in the first one's field."""
    soft = ndimage.gaussian_filter(standard.astype(np.float32), 0.7)
    inside = brain.ravel().astype(np.float32)
    places = (np.indices(brain.shape).reshape(3, -1).T - ndimage.center_of_mass(brain)) * spacing

    def mapped(p: np.ndarray) -> np.ndarray:
        target = places @ (np.eye(3) + p[:9].reshape(3, 3)).T + p[9:]
        return ndimage.map_coordinates(soft, (target / standard_spacing + ndimage.center_of_mass(standard)).T, order=1)

    def dice(other: np.ndarray) -> float:
        return float(2 * (other * inside).sum() / (other.sum() + inside.sum()))

    options = {"maxiter": 6, "xtol": 1e-3, "ftol": 1e-4}
    found = optimize.minimize(lambda p: 1 - dice(mapped(p)), np.zeros(12), method="Powell", options=options)
    return dice(mapped(found.x) > 0.5)


@pytest.mark.slow
@pytest.mark.nets
@pytest.mark.shared_data
@pytest.mark.parametrize("path", sorted(SHARED.rglob("*FLAIR*.nii.gz")), ids=lambda p: p.name.partition("_FLAIR")[0])
def test_real_brains_have_the_shape_of_the_standard_brain(path: Path) -> None:
    """Dice with the MNI152 brain mask: 0.967, 0.968, 0.964 and 0.960 when this was written."""
    from nilearn.datasets import load_mni152_brain_mask

    image = nibabel.as_closest_canonical(nibabel.load(path))
    spacing = np.array(image.header.get_zooms()[:3], dtype=float)
    brain = find_brain(image.get_fdata(dtype=np.float32), spacing)
    assert brain is not None
    every = np.maximum(1, np.round(4 / spacing)).astype(int)
    standard = np.asarray(nibabel.as_closest_canonical(load_mni152_brain_mask(resolution=4)).dataobj) > 0
    assert affine_overlap(brain.mask[:: every[0], :: every[1], :: every[2]], spacing * every, standard, 4.0) > 0.95


@pytest.mark.slow
@pytest.mark.nets
def test_a_large_volume_stays_under_2_5_gb(tmp_path: Path) -> None:
    image = head(shape=(512, 512, 400), spacing=0.45)
    counts = np.asarray(image.dataobj).clip(0).astype(np.int16)  # a scanner's picture has no brightness below 0
    nibabel.save(nibabel.Nifti1Image(counts, image.affine), tmp_path / "large.nii")
    # VmHWM, not ru_maxrss: that one is inherited from the process that drew the volume.
    code = (
        "import sys, pathlib; from braingemma import load_nifti_volume; load_nifti_volume(sys.argv[1]);"
        "print(next(r for r in pathlib.Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in r).split()[1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large.nii"], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) * 1024 < 2.5e9, "of which the nets of the extraction take about 1.3"
