"""NIfTI headers that cannot be trusted: said, or refused in one line; the side followed through."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from braingemma.errors import VolumeError
from braingemma.volume.source import read_image

MARK = np.array([-36.0, 21.0, 12.0])
"""Left, in front, above, mm."""


def marked(spacing: float = 3.0) -> nibabel.Nifti1Image:
    """Noise with one bright voxel at `MARK`, RAS."""
    voxels = np.random.default_rng(4).integers(40, 300, (40, 44, 30)).astype(np.int16)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (-60, -66, -45)
    voxels[tuple(np.rint((MARK - affine[:3, 3]) / spacing).astype(int))] = 900
    return nibabel.Nifti1Image(voxels, affine)


def place_of_mark(image: nibabel.Nifti1Image) -> np.ndarray:
    voxels = np.asarray(image.dataobj)
    return np.asarray((image.affine @ [*np.unravel_index(voxels.argmax(), voxels.shape), 1])[:3])


def saved(image: nibabel.Nifti1Image, path: Path) -> Path:
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR"])
def test_left_stays_left_and_nothing_is_said_of_a_sound_file(tmp_path: Path, axes: str) -> None:
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    image, warnings = read_image(saved(marked().as_reoriented(change), tmp_path / "a.nii.gz"))
    assert warnings == ()
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.array_equal(np.asarray(image.dataobj), np.asarray(marked().dataobj))
    assert np.allclose(place_of_mark(image), MARK)


def test_one_volume_of_four_dimensions_is_a_volume(tmp_path: Path) -> None:
    whole = nibabel.Nifti1Image(np.asarray(marked().dataobj)[..., None, None], marked().affine)
    image, warnings = read_image(saved(whole, tmp_path / "a.nii"))
    assert (image.shape, warnings) == ((40, 44, 30), ())
    assert np.allclose(place_of_mark(image), MARK)
    two = nibabel.Nifti1Image(np.stack([np.asarray(marked().dataobj)] * 2, axis=-1), marked().affine)
    with pytest.raises(VolumeError, match=r"^a.nii: expected one 3D volume, got 4 dimensions \(40, 44, 30, 2\)$"):
        read_image(saved(two, tmp_path / "a.nii"))


def test_an_ending_in_capitals(tmp_path: Path) -> None:
    saved(marked(), tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    assert np.allclose(place_of_mark(read_image(tmp_path / "A.NII.GZ")[0]), MARK)


def test_nan_around_the_picture_is_background_but_not_inside(tmp_path: Path) -> None:
    voxels = np.asarray(marked().dataobj).astype(np.float32)
    voxels[:5] = np.nan
    image, [said] = read_image(saved(nibabel.Nifti1Image(voxels, marked().affine), tmp_path / "a.nii"))
    assert said == f"{5 * 44 * 30} voxels around the picture are NaN: taken as background."
    assert (np.asarray(image.dataobj)[:5] == 0).all()
    assert np.allclose(place_of_mark(image), MARK)
    voxels[20, 20, 20] = np.nan  # a pocket that the same threshold left
    image, _ = read_image(saved(nibabel.Nifti1Image(voxels, marked().affine), tmp_path / "a.nii"))
    assert np.asarray(image.dataobj)[20, 20, 20] == 0
    voxels[:5] = voxels[20, 20, 20] = 1
    for place, value in (((20, 20, 20), np.nan), ((0, 0, 0), np.inf)):
        voxels[place] = value
        with pytest.raises(VolumeError, match="expected finite voxels, got 1 that"):
            read_image(saved(nibabel.Nifti1Image(voxels, marked().affine), tmp_path / "a.nii"))
        voxels[place] = 1


@pytest.mark.parametrize("steps", [(1, 1, 1), (-1, -1, 1), (-2, -2, 5)])
def test_a_tool_s_default_axes_are_warned_of(tmp_path: Path, steps: tuple[int, int, int]) -> None:
    """nibabel's identity, and what SimpleITK writes of a bare array."""
    image = nibabel.Nifti1Image(np.asarray(marked().dataobj), np.diag([*steps, 1.0]))
    _, [said] = read_image(saved(image, tmp_path / "a.nii"))
    assert "Left and right may be exchanged" in said


@pytest.mark.parametrize(("angle", "said"), [(0.5, None), (4.0, "4.0 degrees off right angles"), (15.0, "refused")])
def test_shear(tmp_path: Path, angle: float, said: str | None) -> None:
    affine = marked().affine.copy()
    affine[:3, 1] = 3 * np.array([np.sin(np.radians(angle)), np.cos(np.radians(angle)), 0])
    path = saved(nibabel.Nifti1Image(np.asarray(marked().dataobj), affine), tmp_path / "a.nii")
    if said == "refused":
        with pytest.raises(VolumeError, match=r"expected axes at right angles, got a shear of 15.0 degrees"):
            read_image(path)
    else:
        assert [said in w for w in read_image(path)[1]] == ([True] if said else [])


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1e-3), ("mm", 1e3)])
def test_lengths_that_are_no_millimetres_are_refused(tmp_path: Path, unit: str, factor: float) -> None:
    affine = marked().affine.copy()
    affine[:3] *= factor
    image = nibabel.Nifti1Image(np.asarray(marked().dataobj), affine)
    image.header.set_xyzt_units(unit)
    with pytest.raises(VolumeError, match=r"^a.nii: expected (an affine|a head) in millimetres, got [^\n]*$"):
        read_image(saved(image, tmp_path / "a.nii"))


def test_a_wrong_unit_of_right_numbers_is_said(tmp_path: Path) -> None:
    image = marked()
    image.header.set_xyzt_units("meter")
    read, [said] = read_image(saved(image, tmp_path / "a.nii"))
    assert said.startswith("The header gives lengths in meters")
    assert np.allclose(place_of_mark(read), MARK)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Header fields at random extremes, some bytes at random, sometimes cut."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        offset, kind = FIELDS[int(rng.integers(len(FIELDS)))]
        value = EXTREMES[int(rng.integers(len(EXTREMES)))]
        with np.errstate(all="ignore"):
            packed = np.array([value]).astype(kind).tobytes()
        changed[offset : offset + len(packed)] = packed
    if rng.random() < 0.3:
        for place in rng.integers(0, 352, int(rng.integers(1, 12))):
            changed[place] = rng.integers(256)
    if rng.random() < 0.1:
        del changed[int(rng.integers(len(changed))) :]
    return bytes(changed)


FIELDS = [
    (0, "<i4"), *((40 + 2 * i, "<i2") for i in range(8)), (70, "<i2"), (72, "<i2"),
    *((76 + 4 * i, "<f4") for i in range(8)), (108, "<f4"), (112, "<f4"), (116, "<f4"), (123, "u1"),
    (252, "<i2"), (254, "<i2"), *((256 + 4 * i, "<f4") for i in range(18)), (344, "<i4"),
]  # fmt: skip
"""(offset, type) in nifti1.h: size, dim, datatype, bitpix, pixdim, vox_offset, scl, units, codes, affines, magic."""
EXTREMES = [0, 1, -1, 2, 3, 7, 255, 32767, -32768, 1e9, -1e9, 1e-30, 1e38, 3.4e38, np.inf, -np.inf, np.nan, 2**31 - 1]


def refuse_or_read(path: Path) -> None:
    said = ""
    try:
        image, _ = read_image(path)
    except VolumeError as error:
        said = str(error)
    else:
        assert np.isfinite(np.asarray(image.dataobj)).all()
    assert "\n" not in said
    assert len(said) < 600


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 2060), marks=pytest.mark.slow)])
def test_mutated_headers_give_a_volume_or_one_line(tmp_path: Path, seeds: range) -> None:
    content = marked().to_bytes()
    for seed in seeds:
        path = tmp_path / "mutant.nii"
        path.write_bytes(mutate(content, np.random.default_rng(seed)))
        try:
            refuse_or_read(path)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
