"""The checks before the model: right about what they were made for, and silent about real FLAIR volumes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from braingemma.checkpoint.weights import describe_weights
from braingemma.checks.domain import Domain, load_domain
from braingemma.checks.input import NAMES, Check, check_input, picture_features
from braingemma.errors import CheckpointError
from training.phantoms import phantom as phantoms
from training.phantoms.contrast import Contrast

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "nifti"
REAL = sorted(SHARED.rglob("*.nii.gz"))
T1 = Contrast(white=0.7, gray=0.5, fluid=0.18, edema=0.42, core=0.45, necrosis=0.25, spots=0.5)
T2 = Contrast(white=0.3, gray=0.42, fluid=0.9, edema=0.6, core=0.55, necrosis=0.8, spots=0.5)
PROTON_DENSITY = Contrast(white=0.55, gray=0.66, fluid=0.6, edema=0.7, core=0.68, necrosis=0.62, spots=0.65)


@pytest.fixture(scope="module")
def flair() -> nib.Nifti1Image:
    return head(stripped=False)


@functools.cache
def head(stripped: bool) -> nib.Nifti1Image:
    return phantoms.make_phantom(5_500_003, stripped=stripped).volume


def checks(image: nib.Nifti1Image, folder: Path, domain: Domain | None = None) -> dict[str, Check]:
    nib.save(image, folder / "picture.nii.gz")
    return {check.name: check for check in check_input(folder / "picture.nii.gz", domain)}


def failed(found: dict[str, Check]) -> list[str]:
    return [name for name, check in found.items() if check.passed is False]


def changed(image: nib.Nifti1Image, change: Callable[[np.ndarray], np.ndarray]) -> nib.Nifti1Image:
    return nib.Nifti1Image(change(np.asarray(image.dataobj, dtype=np.float32)).astype(np.float32), image.affine)


def test_a_phantom_passes_and_every_check_says_what_it_saw(flair, tmp_path) -> None:
    domain = load_domain(describe_weights("demo"))
    found = checks(flair, tmp_path, domain)
    assert tuple(found) == NAMES
    assert failed(found) == []
    assert "standard deviations from" in found["domain"].detail
    assert all(check.detail for check in found.values())


@pytest.mark.nets
@pytest.mark.shared_data
@pytest.mark.skipif(not REAL, reason="the shared FLAIR volumes are not beside the checkout")
@pytest.mark.parametrize(
    "path",
    [*REAL[-1:], *(pytest.param(p, marks=pytest.mark.slow) for p in REAL[:-1])],
    ids=lambda p: p.name.split(".")[0],
)
def test_no_check_complains_about_a_real_flair(path) -> None:
    found = check_input(path, load_domain(describe_weights("demo")))
    assert [check for check in found if check.passed is not True] == []


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize(
    ("contrast", "said"),
    [(T1, "white matter is bright as on T1"), (T2, "fluid is not dark"), (PROTON_DENSITY, "fluid is not dark")],
    ids=["t1", "t2", "proton density"],
)
def test_another_contrast_is_told(contrast, said, stripped, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(phantoms, "draw_contrast", lambda _rng: contrast)
    seed = 5_500_004 if stripped else 5_500_001
    found = checks(phantoms.make_phantom(seed, stripped=stripped).volume, tmp_path)
    if not stripped and failed(found) == ["brain"]:  # brain extraction is made for FLAIR: that it fails is told, too
        return
    assert failed(found) == ["contrast"]
    assert said in found["contrast"].detail


@pytest.mark.parametrize(
    ("seed", "gray", "told"),
    [
        (5_500_001, 0.54, {"contrast", "domain"}),
        (5_500_001, 0.57, {"contrast"}),  # 3.9 standard deviations from the training pictures by the fallback's mask
        (5_500_004, 0.57, {"contrast", "domain"}),
    ],
)
def test_contrast_and_domain_tell_t1_after_contrast_medium_though_gray_matter_is_nearly_as_bright(
    seed, gray, told, monkeypatch, tmp_path
) -> None:
    enhanced = Contrast(white=0.6, gray=gray, fluid=0.28, edema=0.48, core=1.1, necrosis=0.3, spots=1.2)
    monkeypatch.setattr(phantoms, "draw_contrast", lambda _rng: enhanced)
    domain = load_domain(describe_weights("demo"))
    found = checks(phantoms.make_phantom(seed, stripped=seed % 2 == 0).volume, tmp_path, domain)
    assert set(failed(found)) == told
    assert "gray over white" in found["domain"].detail or "domain" not in told
    assert "white matter is bright as on T1" in found["contrast"].detail


@pytest.mark.parametrize("seed", [5_500_024, 5_500_030])
def test_flair_with_little_contrast_between_gray_and_white_matter_passes(seed, tmp_path) -> None:
    assert failed(checks(phantoms.make_phantom(seed, stripped=True).volume, tmp_path)) == []


def lit(image: nib.Nifti1Image, rim: float) -> nib.Nifti1Image:
    """As a coil shows it whose brightness at the rim is so many times that in the middle."""

    def under(volume: np.ndarray) -> np.ndarray:
        places = np.mgrid[tuple(slice(-1, 1, n * 1j) for n in volume.shape)]
        return volume * rim ** (places**2).sum(axis=0)

    return changed(image, under)


@pytest.mark.parametrize("rim", [0.7, 1.4])
def test_an_uneven_coil_makes_neither_flair_of_t1_nor_t1_of_flair(rim, monkeypatch, tmp_path) -> None:
    assert failed(checks(lit(head(True), rim), tmp_path)) == []
    enhanced = Contrast(white=0.6, gray=0.52, fluid=0.24, edema=0.46, core=1.1, necrosis=0.3, spots=1.2)
    monkeypatch.setattr(phantoms, "draw_contrast", lambda _rng: enhanced)
    t1 = phantoms.make_phantom(5_500_004, stripped=True).volume
    assert failed(checks(lit(t1, rim), tmp_path)) == ["contrast"]


@pytest.mark.parametrize("seed", [9_000_010, 9_000_012])
def test_a_large_lesion_in_white_matter_does_not_make_t1_of_flair(seed, tmp_path) -> None:
    assert "contrast" not in failed(checks(phantoms.make_phantom(seed, stripped=bool(seed % 2)).volume, tmp_path))


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize(("axis", "end"), [(0, "left"), (0, "right"), (1, "front"), (2, "top")])
def test_half_a_head_in_a_whole_picture_is_told(axis, end, stripped, tmp_path) -> None:
    image = head(stripped)

    def blank(volume: np.ndarray) -> np.ndarray:
        half = volume.shape[axis] // 2
        volume = volume.copy()
        np.moveaxis(volume, axis, 0)[slice(half) if end == "left" else slice(half, None)] = 0
        return volume

    found = checks(changed(image, blank), tmp_path)
    if failed(found) == ["brain"]:  # where no brain is found in what is left, that is told
        return
    assert found["coverage"].passed is False
    assert f"at the {end} (" in found["coverage"].detail


@pytest.mark.parametrize(
    ("axis", "start", "stop", "end"),
    [(2, 0.0, 0.6, "top"), (2, 0.45, 1.0, "bottom"), (0, 0.4, 1.0, "left"), (0, 0.0, 0.6, "right"),
     (1, 0.4, 1.0, "back"), (1, 0.0, 0.6, "front")],
)  # fmt: skip
def test_the_end_at_which_the_head_is_cut_is_named(axis, start, stop, end, flair, tmp_path) -> None:
    size = flair.shape[axis]
    cut = flair.slicer[
        tuple(slice(int(start * size), int(stop * size)) if a == axis else slice(None) for a in range(3))
    ]
    found = checks(cut, tmp_path)
    assert found["coverage"].passed is False
    assert f"at the {end} (" in found["coverage"].detail
    assert found["contrast"].passed is None


def test_the_patients_side_is_named_whatever_the_order_of_voxels(flair, tmp_path) -> None:
    """The patient's left is missing; stored from right to left, that is the end of the first axis."""
    cut = flair.slicer[int(0.4 * flair.shape[0]) :]
    mirrored = nib.Nifti1Image(
        np.asarray(cut.dataobj)[::-1],
        cut.affine @ [[-1, 0, 0, cut.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    assert nib.aff2axcodes(mirrored.affine) == ("L", "A", "S")
    assert "at the left (" in checks(mirrored, tmp_path)["coverage"].detail


def test_noise_is_measured(flair, tmp_path) -> None:
    rng = np.random.default_rng(0)
    brightness = float(np.percentile(np.asarray(flair.dataobj), 90))
    noisy = changed(flair, lambda v: np.hypot(v + 0.2 * brightness * rng.standard_normal(v.shape), 0))
    assert "noise" in failed(checks(noisy, tmp_path))


@pytest.mark.parametrize("kind", ["noise", "ball", "gradient"])
def test_what_is_no_brain_is_told(kind, tmp_path) -> None:
    rng = np.random.default_rng(1)
    axes = np.mgrid[-1:1:80j, -1:1:80j, -1:1:50j]
    radius = np.sqrt((axes**2).sum(axis=0))
    pictures = {
        "noise": np.hypot(*rng.normal(0, 20, (2, *radius.shape))),
        "ball": np.where(radius < 0.7, 100, 3) + rng.normal(0, 2, radius.shape),
        "gradient": axes[0] * 50 + 60,
    }
    image = nib.Nifti1Image(pictures[kind].astype(np.float32), np.diag([2.6, 2.6, 3.6, 1]))
    found = checks(image, tmp_path)
    assert failed(found) == ["brain"]
    assert len(found) == 1


def test_the_training_domain_is_measured_saved_and_held_against(tmp_path) -> None:
    domain = load_domain(describe_weights("demo"))
    assert domain is not None
    assert domain.count >= 100
    picture = dict(zip(domain.features, domain.mean, strict=True))
    assert domain.distance(picture)[0] == pytest.approx(0)
    far, worst = domain.distance({**picture, "noise": picture["noise"] + 5})
    assert far > 5
    assert worst == "noise"
    with pytest.raises(CheckpointError, match="got also noise"):
        domain.distance({k: v for k, v in picture.items() if k != "noise"})


def test_the_bundled_domain_is_of_todays_features(flair) -> None:
    """Phantoms of other seeds lie within it; a change of the features without measuring anew would show here."""
    domain = load_domain(describe_weights("demo"))
    features = picture_features(np.asarray(flair.dataobj, dtype=np.float32), flair.affine[:3, :3])
    assert domain is not None
    assert features is not None
    assert tuple(features) == domain.features
    assert domain.distance(features)[0] < 4
