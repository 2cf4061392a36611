"""Phantoms as hard as scanners, beside the plain ones, which stay as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from braingemma.findings.text import findings_from_text
from training.phantoms.anatomy import load_atlas, sample_tissue
from training.phantoms.contrast import FAINTEST, draw_hard_contrast
from training.phantoms.extraction import draw_extraction, orbit
from training.phantoms.fields import Grid
from training.phantoms.generator import GENERATORS
from training.phantoms.infarcts import draw_infarct
from training.phantoms.lesions import DEEP, draw_lesion, paint
from training.phantoms.phantom import Phantom, _size_ventricles, _ventricle_size, make_phantom, mirror
from training.phantoms.spots import PLAQUE_BURDEN_ML, measured_plaques, ventricle_distance

COARSE = 4.0


@pytest.fixture(scope="module")
def hard() -> list[Phantom]:
    return [make_phantom(seed, spacing=COARSE, difficulty="hard", with_lesion=True) for seed in range(24)]


@pytest.fixture(scope="module")
def standard() -> Grid:
    """The standard brain at 3 mm."""
    return Grid((50, 66, 54), (3.0, 3.0, 3.0), (-74.0, -112.0, -74.0))


@pytest.mark.parametrize(
    ("seed", "lesion", "parts", "brightness"),
    [
        (7_000_000, ("present", "right", ("frontal", "parietal")), (837, 437, 212), 0.17649),
        (7_000_001, ("present", "right", ("frontal", "parietal")), (1981, 409, 0), 0.19172),
        (7_000_002, ("absent", None, ()), (0, 0, 0), 0.1906),
    ],
)
def test_plain_phantoms_stay_as_the_bundled_weights_were_judged_on(
    seed: int, lesion: tuple[object, ...], parts: tuple[int, ...], brightness: float
) -> None:
    """Truth, parts and brightness of the first judged seeds."""
    phantom = make_phantom(seed, spacing=3.0)
    found = phantom.findings[0]
    assert (found.presence, found.laterality, found.sites) == lesion
    assert [int((phantom.parts == part).sum()) for part in (1, 2, 3)] == pytest.approx(parts, abs=5)
    assert float(np.asarray(phantom.volume.dataobj).mean()) == pytest.approx(brightness, rel=1e-3)


def test_edema_and_core_begin_where_a_reader_can_see_them() -> None:
    drawn = [draw_hard_contrast(np.random.default_rng(seed)) for seed in range(400)]
    ratios = [min(c.edema, c.core) / c.brain for c in drawn]
    assert min(ratios) >= FAINTEST
    assert sum(ratio < 1.3 for ratio in ratios) > 100, "faint ones are no exception"
    assert all(not 0.88 < c.core / c.edema < 1.1 for c in drawn if c.core > c.gray * 1.04), "edema and core differ"


def test_one_brightness_on_request_and_what_it_hides() -> None:
    faint, fainter, bright = (
        make_phantom(3, spacing=COARSE, difficulty="hard", with_lesion=True, brightness=ratio)
        for ratio in (1.1, 1.04, 1.6)
    )
    assert [f.presence for f in fainter.findings] == ["undetermined"] * 4
    assert faint.findings[0].presence == "present"
    assert faint.findings[1].presence == "undetermined", "nothing tells edema from core"
    lesion = np.isin(faint.parts, (1, 2))
    assert np.array_equal(faint.parts, bright.parts)
    first, second = (float(np.median(np.asarray(p.volume.dataobj)[lesion])) for p in (faint, bright))
    assert second > first * 1.2
    with pytest.raises(ValueError, match="brightness needs difficulty='hard'"):
        make_phantom(3, brightness=1.2)
    with pytest.raises(ValueError, match="difficulty must be one of plain, hard, got 'soft'"):
        make_phantom(3, difficulty="soft")  # type: ignore[arg-type]


def test_the_truth_of_hard_phantoms_lies_where_their_lesion_is(hard: list[Phantom]) -> None:
    judged = 0
    for phantom in hard:
        voxels = np.argwhere(np.asarray(phantom.lesion.dataobj) > 0)
        brain = np.argwhere(phantom.extracted)
        side = phantom.findings[0].laterality
        if side in ("left", "right"):
            judged += 1
            assert (voxels[:, 0].mean() < brain[:, 0].mean()) == (side == "left"), phantom.truth
        for true, read in zip(phantom.findings, findings_from_text(phantom.truth["report"]), strict=True):
            assert (read.presence, read.laterality, read.sites) == (true.presence, true.laterality, true.sites)
    assert judged >= 16


def test_hard_lesions_are_also_small(hard: list[Phantom]) -> None:
    ml = [np.asarray(p.lesion.dataobj).sum() * np.prod(p.lesion.header.get_zooms()) / 1000 for p in hard]
    assert sum(size < 10 for size in ml) >= 3
    assert max(ml) > 50


def test_fat_in_the_orbits_is_brighter_than_the_brain(standard: Grid) -> None:
    bright = []
    for seed in range(6):
        phantom = make_phantom(seed, spacing=COARSE, difficulty="hard", with_lesion=False, stripped=False)
        picture = np.asarray(phantom.volume.dataobj)
        outside = ndimage.distance_transform_edt(~phantom.extracted, sampling=COARSE)
        near = (outside > 2) & (outside < 30)
        bright.append(float(np.percentile(picture[near], 99.5) / np.median(picture[phantom.extracted])))
    assert max(bright) > 1.5
    points = standard.points()
    assert orbit(points, -1)[points[0] > 10].min() > 1, "the left orbit lies on the left"


def test_infarcts_are_one_sided_and_have_no_parts(standard: Grid) -> None:
    atlas, points = load_atlas(), standard.points()
    tissue, regions = sample_tissue(atlas, points, 0.2), atlas.region_at(points)
    wedges = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        lesions = draw_infarct(rng)
        sides = {float(np.sign(lesion.centre[0])) for lesion in lesions}
        assert len(sides) == 1
        for lesion in lesions:
            masks = paint(lesion, rng, standard, points, regions, tissue)
            assert not masks.edema.any()
            assert not masks.necrosis.any()
            assert (np.sign(points[0][masks.core]) == sides.copy().pop()).all()
            if lesion.apex is not None and masks.core.any():
                wedges += 1
                depth = -tissue.outside[masks.core]
                width = [int((masks.core & (np.abs(tissue.outside + at) < 3)).sum()) for at in (4, 20)]
                assert depth.min() < 6, "its base is the cortex"
                assert width[0] > width[1], "it narrows inwards"
    assert wedges >= 8


def test_deep_lesions_name_no_lobe() -> None:
    places = [draw_lesion(np.random.default_rng(seed), side=-1, region=DEEP).centre for seed in range(20)]
    assert all(-36 < x < -8 and -20 < y < 30 for x, y, _ in places)


def test_plaques_have_the_burden_and_the_place_that_was_measured(standard: Grid) -> None:
    atlas, points = load_atlas(), standard.points()
    white = atlas.sample(atlas.standard.white, points)
    distance = atlas.sample(ventricle_distance(), points)
    burden, near = [], []
    for seed in range(40):
        spots = measured_plaques(np.random.default_rng(seed), atlas, standard, points, white) > 0.5
        burden.append(spots.sum() * 0.027)
        near.append(float(np.median(distance[spots])) if spots.any() else 8.0)
        assert not (spots & (white < 0.3)).any()
    _, _, least, most = PLAQUE_BURDEN_ML
    assert 0 <= min(burden) < 2
    assert 20 < max(burden) <= most + 1
    assert 3 < np.median(burden) < 15, "the middle of the patients measured lies between"
    assert 3 < np.median(near) < 18
    assert least < 1


def test_ventricles_are_also_smaller_than_the_atlas(standard: Grid) -> None:
    atlas, points = load_atlas(), standard.points()
    usual = _ventricle_size(atlas, points)["left"]

    def sized(amount: float) -> float:
        generator = replace(GENERATORS["hard"], ventricles=(amount, amount), asymmetry=0.0)
        return _ventricle_size(atlas, _size_ventricles(points, np.random.default_rng(0), generator))["left"]

    narrow, wide = sized(-1.0), sized(0.5)
    assert narrow < 0.6 * usual < usual < wide


def test_what_is_extracted_is_the_brain_with_errors(hard: list[Phantom], standard: Grid) -> None:
    outside = load_atlas().sample(load_atlas().standard.outside, standard.points())
    true = outside < 0
    overlaps, leaks = [], []
    for seed in range(20):
        found = draw_extraction(np.random.default_rng(seed), standard, outside, standard.points())
        overlaps.append(2 * (found & true).sum() / (found.sum() + true.sum()))
        leaks.append(int((found & (outside > 5)).sum()))
    assert 0.9 < min(overlaps) < max(overlaps) < 1
    assert min(leaks) == 0
    assert max(leaks) > 100
    flipped = mirror(hard[0])
    assert np.array_equal(flipped.extracted, hard[0].extracted[::-1])
