"""The face goes and the brain stays, in any direction of slices; not at all where it is not sure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from braingemma.configuration import VolumeSettings
from braingemma.errors import VolumeError
from braingemma.volume.brain import BrainMask, Mask, find_brain
from braingemma.volume.face import brain_of_head, outside_face, without_face
from braingemma.volume.preprocess import prepare_image
from braingemma.volume.source import read_source
from training.phantoms.phantom import make_phantom

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "nifti" / "py_synthsr_FLAIR_Apache2.nii.gz"
TILTED = np.array([[0.9397, -0.3214, 0.1170], [0.3420, 0.8830, -0.3214], [0.0, 0.3420, 0.9397]])
FACE = {
    "nose": ((0, 98, -48), (12, 14, 16)),
    "mouth": ((0, 84, -84), (22, 10, 10)),
    "chin": ((0, 76, -104), (16, 12, 8)),
}
EYES = {"left eye": ((-32, 76, -36), (11, 9, 11)), "right eye": ((32, 76, -36), (11, 9, 11))}
"""Centre and semi-axes of ellipsoids, RAS mm."""
LESION = ((38, 20, 10), (10, 10, 10))
"""In the patient's right half."""


class Head:
    """A drawn head with a brain and a face, on any grid."""

    def __init__(self, affine: np.ndarray, shape: tuple[int, ...]) -> None:
        self.affine = affine
        self.points = np.stack(np.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]
        cerebrum = self.inside((0, 0, 0), (66, 82, 58)) & ~self.inside((0, 60, -62), (90, 48, 40))
        self.brain = cerebrum | self.inside((0, -45, -45), (48, 32, 26))
        skull = self.inside((0, 0, 0), (78, 94, 70)) | self.inside((0, 10, -70), (60, 70, 60))
        self.face = {name: self.inside(*place) for name, place in (FACE | EYES).items()}
        self.lesion = self.inside(*LESION) & self.brain
        voxels = np.zeros(shape, np.float32)
        for part in (skull, *self.face.values()):
            voxels[part] = 60
        voxels[self.brain] = 80 + np.arange(self.brain.sum()) % 40  # whole numbers with contrast
        voxels[self.lesion] = 180
        self.voxels = voxels

    def inside(self, centre: Sequence[float], axes: Sequence[float]) -> Mask:
        return np.asarray((((self.points - np.array(centre)) / np.array(axes)) ** 2).sum(-1) <= 1)

    def found(self, mask: Mask | None = None) -> BrainMask:
        return BrainMask.of(self.brain if mask is None else mask, np.linalg.norm(self.affine[:3, :3], axis=0))


def head(spacing: tuple[float, float, float], turn: np.ndarray | None = None) -> Head:
    size = np.ceil(np.array([190, 240, 240]) / spacing).astype(int)
    axes = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.array([0, 0, -25]) - axes @ ((size - 1) / 2)
    return Head(affine, tuple(size))


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (2.0, 2.0, 6.0), (6.0, 2.0, 2.0), (2.0, 6.0, 2.0)])
@pytest.mark.parametrize("turn", [None, TILTED], ids=["straight", "tilted"])
def test_the_face_goes_the_brain_stays_on_its_side(
    spacing: tuple[float, float, float], turn: np.ndarray | None
) -> None:
    drawn = head(spacing, turn)
    image = nibabel.Nifti1Image(drawn.voxels, drawn.affine)
    defaced = np.asarray(without_face(image, drawn.found()).dataobj)
    assert np.array_equal(defaced[drawn.brain], drawn.voxels[drawn.brain])
    assert set(np.unique(defaced[defaced != drawn.voxels])) == {0.0}
    for name in FACE:
        assert not defaced[drawn.face[name]].any(), name
    for name in EYES:  # all but what lies close to the frontal lobe
        assert (defaced[drawn.face[name]] > 0).mean() < 0.45, name
    assert drawn.points[defaced == 180][:, 0].min() > 0  # the lesion is on the patient's right, as before
    assert (defaced == 180).sum() == drawn.lesion.sum()


def test_the_model_is_given_the_same_as_before() -> None:
    drawn = head((3.0, 3.0, 4.0))
    image, settings = nibabel.Nifti1Image(drawn.voxels, drawn.affine), VolumeSettings(grid=(16, 32, 28))
    before = prepare_image(image, settings, brain=drawn.found())
    after = prepare_image(without_face(image, drawn.found()), settings, brain=drawn.found())
    assert (before.tensor == after.tensor).all()


def test_stored_bits_scale_and_header_stay(tmp_path: Path) -> None:
    drawn = head((3.0, 3.0, 4.0))
    stored = drawn.voxels.astype(np.int16) + 7  # background is not 0
    image = nibabel.Nifti1Image(stored, drawn.affine)
    image.header.set_slope_inter(0.5, 3)
    image.header["descrip"] = b"kept"
    nibabel.save(image, tmp_path / "a.nii.gz")
    nibabel.save(without_face(nibabel.load(tmp_path / "a.nii.gz"), drawn.found()), tmp_path / "b.nii.gz")
    before, after = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "b.nii.gz")
    assert (after.dataobj.slope, after.dataobj.inter) == (before.dataobj.slope, before.dataobj.inter) == (0.5, 3)
    assert after.header == before.header
    kept = outside_face(stored, drawn.affine, drawn.found())
    assert np.array_equal(after.dataobj.get_unscaled()[kept], stored[kept])
    assert set(np.unique(after.dataobj.get_unscaled()[~kept])) == {7}


def masks_that_are_not_believed() -> dict[str, tuple[BrainMask, str]]:
    drawn = head((3.0, 3.0, 4.0))
    face = np.logical_or.reduce(list(drawn.face.values())) | drawn.inside((0, 60, -70), (60, 60, 60))
    half = drawn.brain & (drawn.points[..., 0] > 25)
    two = drawn.brain & (np.abs(drawn.points[..., 0]) > 12)
    spacing = (3.0, 3.0, 4.0)
    return {
        "with the face": (drawn.found(drawn.brain | face), "may take in the face"),
        "a part": (drawn.found(half), "expected a brain mask of 500 to 2300 ml"),
        "two parts": (drawn.found(two), "expected one connected brain mask, got 2 parts"),
        "simpler method": (BrainMask.of(drawn.brain, spacing, "peeling"), "simpler method"),
    }


@pytest.mark.parametrize("kind", ["with the face", "a part", "two parts", "simpler method"])
def test_an_implausible_mask_is_refused(kind: str) -> None:
    drawn = head((3.0, 3.0, 4.0))
    brain, expected = masks_that_are_not_believed()[kind]
    with pytest.raises(VolumeError, match=expected):
        outside_face(drawn.voxels, drawn.affine, brain)


def test_what_came_without_skull_stays_as_it_is_where_the_nets_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values alone may take a head for a brain that came stripped: then nothing would be removed from it."""
    drawn, spacing = head((3.0, 3.0, 4.0)), (3.0, 3.0, 4.0)
    monkeypatch.setattr("braingemma.volume.brain._by_nets", lambda *_: drawn.brain)
    stripped = np.where(drawn.brain, drawn.voxels, 0)
    for scaled in (stripped, np.where(drawn.brain, (stripped - 100) / 20, 0)):
        came = BrainMask.of(scaled != 0, spacing, "came without skull")
        assert outside_face(scaled, drawn.affine, came).all()
    whole = drawn.voxels > 0
    whole[..., : whole.shape[2] // 3] = False  # cut, so that it has no more than a large brain
    wrong = BrainMask.of(whole, spacing, "came without skull")
    assert wrong.volume_ml < 2300
    with pytest.raises(VolumeError, match=r"agree with its outline by 0\.[78]"):
        outside_face(np.where(whole, drawn.voxels, 0), drawn.affine, wrong)
    with pytest.raises(VolumeError, match="expected a brain mask of 500 to 2300 ml"):
        outside_face(drawn.voxels, drawn.affine, BrainMask.of(drawn.voxels > 0, spacing, "came without skull"))


def test_nets_that_failed_are_not_taken_for_nets_that_saw_another_brain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braingemma.volume.brain._by_nets", lambda *_: "failed (can't allocate memory)")
    drawn = head((3.0, 3.0, 4.0))
    stripped = np.where(drawn.brain, drawn.voxels, 0)
    came = BrainMask.of(stripped > 0, (3.0, 3.0, 4.0), "came without skull")
    with pytest.raises(VolumeError, match=r"cannot be removed: .* failed \(can't allocate memory"):
        outside_face(stripped, drawn.affine, came)


def test_a_head_scaled_around_zero_loses_its_face_and_no_side() -> None:
    drawn = head((3.0, 3.0, 4.0))
    shown = drawn.voxels > 0
    raw = drawn.voxels + np.where(drawn.lesion, 0, np.indices(shown.shape).sum(0) % 30)  # skin is not of one brightness
    scored = np.where(shown, (raw - raw[shown].mean()) / raw[shown].std(), 0).astype(np.float32)
    after = np.asarray(without_face(nibabel.Nifti1Image(scored, drawn.affine), drawn.found()).dataobj)
    for name in FACE:
        assert not after[drawn.face[name]].any(), name
    assert np.array_equal(after[drawn.brain], scored[drawn.brain])
    assert drawn.points[after == scored.max()][:, 0].min() > 0  # the lesion is on the patient's right, as before


def below_and_in_front(brain: Mask, affine: np.ndarray) -> Mask:
    """Where a face is: in front of the frontal pole but for 5 mm, and more than 15 mm below its underside."""
    points = np.stack(np.indices(brain.shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    inside = points[brain]
    front = inside[:, 1].max()
    underside = inside[inside[:, 1] > front - 10][:, 2].min()
    return np.asarray((points[..., 1] > front - 5) & (points[..., 2] < underside - 15))


@pytest.mark.parametrize("spacing", [(2.5, 2.5, 4.0), (5.0, 2.5, 2.5)])
def test_phantoms_with_skull_lose_what_lies_before_and_below_the_brain(spacing: tuple[float, float, float]) -> None:
    phantom = make_phantom(900_002, spacing=spacing, stripped=False, with_lesion=True)
    assert phantom.extracted is not None
    before, lesion = np.asarray(phantom.volume.dataobj), np.asarray(phantom.lesion.dataobj) > 0
    brain = BrainMask.of(phantom.extracted, spacing)
    after = np.asarray(without_face(phantom.volume, brain).dataobj)
    face = below_and_in_front(phantom.extracted, phantom.volume.affine)
    assert before[face].any()
    assert len(np.unique(after[face])) == 1
    assert np.array_equal(after[phantom.extracted], before[phantom.extracted])
    assert np.array_equal(after[lesion], before[lesion])


@pytest.mark.nets
@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="no shared test data")
def test_a_real_head_of_1_mm_has_no_face_any_more() -> None:
    image, source = nibabel.as_closest_canonical(nibabel.load(SHARED)), read_source(SHARED)
    brain = brain_of_head(source.voxels, source.affine)
    after = np.asarray(without_face(image, brain).dataobj, np.float32)
    assert np.array_equal(after[brain.mask], source.voxels[brain.mask])
    head = source.voxels > 0.1 * np.percentile(source.voxels, 99)
    face = below_and_in_front(brain.mask, source.affine)
    assert (head & face).sum() > 20_000  # nose, lips, chin: there was one
    assert len(np.unique(after[face])) == 1
    assert 0.02 < (head & (after != source.voxels)).sum() / head.sum() < 0.4


@pytest.mark.slow
@pytest.mark.nets
@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="no shared test data")
@pytest.mark.parametrize("path", sorted(SHARED.parent.rglob("*.nii.gz")), ids=lambda path: path.name)
def test_real_scans_scaled_around_zero_are_heads_and_lose_their_faces(path: Path) -> None:
    image, source = nibabel.as_closest_canonical(nibabel.load(path)), read_source(path)
    raw, spacing = source.voxels, image.header.get_zooms()
    inside = raw != 0
    scored = np.where(inside, (raw - raw[inside].mean()) / raw[inside].std(), np.float32(0))
    brain, as_it_is = brain_of_head(scored, source.affine), find_brain(raw, spacing)
    assert brain.method == "deepbet"
    assert as_it_is is not None
    assert 2 * (brain.mask & as_it_is.mask).sum() / (brain.mask.sum() + as_it_is.mask.sum()) > 0.98
    after = np.asarray(without_face(nibabel.Nifti1Image(scored, source.affine), brain).dataobj)
    face = below_and_in_front(brain.mask, source.affine)
    assert not after[face].any()
    assert np.array_equal(after[brain.mask], scored[brain.mask])
    stripped = np.where(brain.mask, scored, np.float32(0))
    came = brain_of_head(stripped, source.affine)
    assert came.stripped
    assert outside_face(stripped, source.affine, came).all()
