"""Phantoms: sides, truth, repeatability, files."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from braingemma.findings.text import findings_from_text
from braingemma.findings.vocabulary import Finding
from braingemma.measure.sizes import Measured, signed_shift
from training.phantoms.fields import Grid
from training.phantoms.lesions import CORE, EDEMA, LEAST_ML, NECROSIS
from training.phantoms.phantom import (
    NARROWING,
    Phantom,
    _narrow,
    _shift_midline,
    make_phantom,
    mirror,
    write_phantom,
)
from training.phantoms.spots import _add_large_plaques, _add_plaques
from training.phantoms.truth import measured_truth

COARSE = 4.0


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed, spacing=COARSE, with_lesion=True) for seed in range(12)]


def lesion_centre_mm(phantom: Phantom) -> np.ndarray:
    voxels = np.argwhere(np.asarray(phantom.lesion.dataobj) > 0)
    return nib.affines.apply_affine(phantom.lesion.affine, voxels.mean(axis=0))


def brain_centre_mm(phantom: Phantom) -> np.ndarray:
    data = np.asarray(phantom.volume.dataobj)
    return nib.affines.apply_affine(phantom.volume.affine, np.argwhere(data > 0.3 * data.max()).mean(axis=0))


def test_equal_seeds_give_equal_voxels_and_others_do_not() -> None:
    first, again, other = (make_phantom(seed, spacing=COARSE) for seed in (5, 5, 6))
    assert np.array_equal(first.volume.dataobj, again.volume.dataobj)
    assert first.truth == again.truth
    assert first.volume.shape != other.volume.shape or not np.array_equal(first.volume.dataobj, other.volume.dataobj)


def test_volumes_are_ras_and_finite(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert nib.aff2axcodes(phantom.volume.affine) == ("R", "A", "S")
        assert np.isfinite(np.asarray(phantom.volume.dataobj)).all()
        assert phantom.lesion.shape == phantom.volume.shape


def test_left_is_at_negative_x(phantoms: list[Phantom]) -> None:
    judged = 0
    for phantom in phantoms:
        side = phantom.findings[0].laterality
        if side in ("left", "right"):
            offset = lesion_centre_mm(phantom)[0] - brain_centre_mm(phantom)[0]
            assert (offset < 0) == (side == "left"), phantom.truth
            judged += 1
    assert judged >= 6


def test_the_mirrored_phantom_has_the_mirrored_truth(phantoms: list[Phantom]) -> None:
    swap = {"left": "right", "right": "left"}
    for phantom in phantoms:
        flipped = mirror(phantom)
        for before, after in zip(phantom.findings, flipped.findings, strict=True):
            assert after.laterality == swap.get(before.laterality, before.laterality)
            assert (after.presence, after.sites) == (before.presence, before.sites)
        assert lesion_centre_mm(flipped)[0] == pytest.approx(-lesion_centre_mm(phantom)[0])
        assert findings_from_text(flipped.truth["report"])[0].laterality == flipped.findings[0].laterality
        assert np.array_equal(mirror(flipped).volume.dataobj, phantom.volume.dataobj)
        sizes, mirrored = (
            {m["name"]: (m["value"], m["laterality"]) for m in p.truth["measurements"]} for p in (phantom, flipped)
        )
        moved, side = sizes["midline_shift"]
        assert mirrored["midline_shift"] == (moved, swap.get(side))
        assert mirrored["ventricle_volume_left"] == (sizes["ventricle_volume_right"][0], "left")
        assert 1 < sizes["ventricle_volume_left"][0] < 30


def test_the_report_states_the_truth(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        for true, read in zip(phantom.findings, findings_from_text(phantom.truth["report"]), strict=True):
            assert (read.presence, read.laterality, read.sites) == (true.presence, true.laterality, true.sites)


def test_lesions_are_large_enough_to_be_called_so(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        voxel_ml = float(np.prod(phantom.lesion.header.get_zooms())) / 1000
        assert np.asarray(phantom.lesion.dataobj).sum() * voxel_ml > 3.0


def test_edema_is_brighter_than_the_brain_around_it(phantoms: list[Phantom]) -> None:
    swollen = [p for p in phantoms if p.findings[1].presence == "present" and p.findings[2].presence == "absent"]
    assert swollen
    for phantom in swollen:
        data, mask = np.asarray(phantom.volume.dataobj), np.asarray(phantom.lesion.dataobj) > 0
        brain = data[(data > 0.3 * np.median(data[mask])) & ~mask]
        assert np.median(data[mask]) > np.median(brain)


def test_parts_are_there_or_not_and_never_in_doubt(phantoms: list[Phantom]) -> None:
    """Edema and necrosis hold 8 % of a lesion or more, or nothing, and the truth says which."""
    doubtful = 0
    for phantom in phantoms:
        whole = int(np.isin(phantom.parts, (EDEMA, CORE, NECROSIS)).sum())
        stated = {finding.finding: finding.presence == "present" for finding in phantom.findings}
        for name, part in (("edema", EDEMA), ("necrosis", NECROSIS)):
            share = int((phantom.parts == part).sum()) / whole
            doubtful += 0 < share < 0.08
            assert stated[name] == (share > 0.03)
    assert doubtful <= 1, "a case is drawn anew eight times at most"


def test_necrosis_is_dark_and_plaques_stay_small(phantoms: list[Phantom]) -> None:
    dark = 0
    for phantom in phantoms:
        data = np.asarray(phantom.volume.dataobj)
        necrosis, core = (data[phantom.parts == part] for part in (NECROSIS, CORE))
        if len(necrosis) > 10 and len(core) > 10:
            dark += 1
            assert np.median(necrosis) < 0.8 * np.median(core)
    assert dark >= 3
    grid = Grid((60, 60, 60), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    spots, white = np.zeros((60, 60, 60), np.float32), np.ones((60, 60, 60), np.float32)
    _add_plaques(spots, np.random.default_rng(3), grid, white * 0, white)
    labels, count = ndimage.label(spots > 0.5)
    assert count >= 3
    assert np.median(np.bincount(labels.ravel())[1:]) < 500  # mm3


def test_lesions_on_both_sides_on_request() -> None:
    asked = [make_phantom(seed, spacing=COARSE, both_sides=True).findings[0] for seed in range(6)]
    assert [finding.presence for finding in asked] == ["present"] * 6
    assert sum(finding.laterality == "bilateral" for finding in asked) >= 5, "a small second one may not count"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"both_sides": True, "with_lesion": False}, "both_sides=True needs a lesion, got with_lesion=False"),
        ({"large_plaques": True}, "large_plaques=True needs with_lesion=False, got None"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_phantom(0, spacing=COARSE, **asked)


def test_large_plaques_on_request() -> None:
    changed = 0
    for seed in range(8):
        usual = make_phantom(seed, spacing=COARSE, with_lesion=False)
        asked = make_phantom(seed, spacing=COARSE, with_lesion=False, large_plaques=True)
        assert {finding.presence for finding in asked.findings} == {"absent"}
        changed += not np.array_equal(usual.volume.dataobj, asked.volume.dataobj)
    assert 3 <= changed < 8, "three of ten have them anyway"


def test_some_healthy_heads_have_plaques_nearly_as_large_as_a_lesion() -> None:
    grid = Grid((80, 80, 40), (1.5, 1.5, 3.0), (0.0, 0.0, 0.0))
    white = np.ones(grid.shape, np.float32)
    largest = []
    for seed in range(60):
        spots = np.zeros(grid.shape, np.float32)
        _add_large_plaques(spots, np.random.default_rng(seed), grid, white * 0, white)
        labels, _ = ndimage.label(spots > 0.3)
        largest.append(np.bincount(labels.ravel(), minlength=2)[1:].max() * np.prod(grid.spacing) / 1000)
    assert min(largest) > 0
    assert 4.0 < max(largest) <= 7.0 < LEAST_ML


def test_a_healthy_phantom_has_no_lesion() -> None:
    phantom = make_phantom(3, spacing=COARSE, with_lesion=False)
    assert not np.asarray(phantom.lesion.dataobj).any()
    assert {finding.presence for finding in phantom.findings} == {"absent"}


def test_written_folders_can_be_read_back(tmp_path, phantoms: list[Phantom]) -> None:
    write_phantom(tmp_path / "case", phantoms[0])
    truth = json.loads((tmp_path / "case" / "truth.json").read_text())
    assert tuple(Finding.from_json(entry) for entry in truth["findings"]) == phantoms[0].findings
    picture, lesion = (nib.load(tmp_path / "case" / name) for name in ("flair.nii.gz", "lesion.nii.gz"))
    assert picture.get_data_dtype() == np.int16
    assert picture.shape == lesion.shape
    assert set(np.unique(lesion.dataobj)) == {0, 1}


@pytest.mark.parametrize(("seed", "spacing"), [(-1, 2.0), (0, 0.1), (0, 40.0)])
def test_impossible_requests_are_refused(seed: int, spacing: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        make_phantom(seed, spacing=spacing)


def test_the_narrowed_ventricle_is_the_smaller_one(phantoms: list[Phantom]) -> None:
    """The measured truth agrees with the finding: a compressed ventricle is smaller than the other one."""
    judged = 0
    for phantom in phantoms:
        compressed = next(f for f in phantom.findings if f.finding == "ventricular_compression")
        size = {m["laterality"]: m["value"] for m in phantom.truth["measurements"] if "volume" in m["name"]}
        if compressed.laterality in ("left", "right"):
            other = {"left": "right", "right": "left"}[compressed.laterality]
            assert size[compressed.laterality] < 0.8 * size[other]
            judged += 1
    assert judged


def test_a_mass_pushes_the_septum_away_from_the_ventricle_that_it_narrows() -> None:
    """Held against the same head without the mass, whose septum lies where it does by nature."""
    moved = []
    for seed in range(40, 70):
        case = make_phantom(seed, spacing=COARSE, with_lesion=True)
        side = {"left": -1, "right": 1}.get(case.findings[3].laterality or "")
        if side is not None:
            healthy = make_phantom(seed, spacing=COARSE, with_lesion=False)
            moved.append(side * (septum_mm(case) - septum_mm(healthy)))
    assert len(moved) >= 6
    assert max(moved) <= 0.1, "never towards it"
    assert np.median(moved) < -0.8


@pytest.mark.parametrize("amount", [0.0, *NARROWING])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_true_shift_is_that_of_the_septum_whatever_is_narrowed_beside_it(side: float, amount: float) -> None:
    axes = [np.arange(-75.0, 75, 2), np.arange(-110.0, 80, 2), np.arange(-30.0, 60, 4)]
    head = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    pushed = _narrow(_shift_midline(head, 5.0), side, amount)
    column = pushed[0][:, np.searchsorted(axes[1], 10), np.searchsorted(axes[2], 14)]
    assert (np.diff(column) > 0).all(), "nothing is looked up twice"
    found = {m.name: m for m in measured_truth(head, pushed, (2.0, 2.0, 4.0), 1.0)}["midline_shift"]
    free = {m.name: m for m in measured_truth(head, _shift_midline(head, 5.0), (2.0, 2.0, 4.0), 1.0)}["midline_shift"]
    assert (found.laterality, free.laterality) == ("right", "right")
    assert found.value == pytest.approx(free.value, abs=0.2)


def septum_mm(phantom: Phantom) -> float:
    """How far the septum lies beside the midline, above 0 towards the right."""
    shift = signed_shift([Measured.from_json(entry) for entry in phantom.truth["measurements"]])
    assert shift is not None
    return shift
