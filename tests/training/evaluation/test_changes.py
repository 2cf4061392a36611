"""Pairs of phantoms with a lesion that grew and one that did not, and what is counted of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.change import stated_change, uncertainty_ml
from training.evaluation.changes import LEAST_GROWTH, Pair, markdown, measure_changes, summary, visit
from training.phantoms.phantom import make_phantom

COARSE = (4.0, 4.0, 6.0)


def test_only_the_lesion_grows() -> None:
    drawn = ({}, {"growth": 1.0}, {"growth": 2.0})
    plain, same, larger = (make_phantom(7_300_002, spacing=COARSE, with_lesion=True, **more) for more in drawn)
    assert np.array_equal(np.asarray(plain.volume.dataobj), np.asarray(same.volume.dataobj))
    small, large = (np.asarray(p.lesion.dataobj).astype(bool) for p in (plain, larger))
    assert 1.2 * small.sum() < large.sum() < 2.5 * small.sum()
    assert (small & large).sum() > 0.6 * small.sum()
    centres = [ndimage.center_of_mass(mask)[0] * COARSE[0] for mask in (small, large)]
    assert centres[0] == pytest.approx(centres[1], abs=4.0), "on the same side"
    outside = ~ndimage.binary_dilation(large, iterations=4)
    one, other = (np.asarray(p.volume.dataobj)[outside] for p in (plain, larger))
    assert np.corrcoef(one, other)[0, 1] > 0.99


def test_another_visit_moves_the_head_and_mirrors_nothing() -> None:
    phantom = make_phantom(7_300_002, spacing=COARSE, with_lesion=True)
    moved = visit(phantom.volume, np.random.default_rng(3))
    assert not np.array_equal(np.asarray(moved.dataobj)[: phantom.volume.shape[0]], np.asarray(phantom.volume.dataobj))
    places = [nibabel_centre(image) for image in (phantom.volume, moved)]
    assert np.abs(np.subtract(*places)).max() < 12
    assert all(np.sign(np.diag(moved.affine)[:3]) == np.sign(np.diag(phantom.volume.affine)[:3]))
    totals = [float(np.asarray(image.dataobj).sum()) for image in (phantom.volume, moved)]
    assert totals[1] == pytest.approx(totals[0], rel=0.1), "nothing left the picture"


def nibabel_centre(image: object) -> np.ndarray:
    voxels = np.asarray(image.dataobj, float)  # type: ignore[attr-defined]
    return image.affine[:3, :3] @ ndimage.center_of_mass(voxels) + image.affine[:3, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize("volume", [10.0, 40.0, 150.0])
def test_a_change_is_stated_in_five_of_a_hundred_unchanged_pairs(volume: float) -> None:
    """By a model of the measurement with the error that the uncertainty is made of."""
    from braingemma.reading.change import VOLUME_ERROR, VOLUME_FLOOR_ML

    rng = np.random.default_rng(5)
    sd = np.hypot(VOLUME_ERROR * volume, VOLUME_FLOOR_ML)
    pairs = rng.normal(volume, sd, (20_000, 2))
    told = [stated_change(before, now) for before, now in pairs]
    assert 0.03 < np.mean([word != "not distinguishable" for word in told]) < 0.07
    assert told.count("larger") == pytest.approx(told.count("smaller"), rel=0.2)
    assert stated_change(volume, 2 * volume) == "larger"
    assert stated_change(2 * volume, volume) == "smaller"
    assert uncertainty_ml(volume, volume) < 0.5 * volume


def test_what_was_not_measured_counts_as_not_stated() -> None:
    unchanged = [Pair(1, (20, 20), (20.0, 20.4)), Pair(2, (20, 20), (20.0, None))]
    grown = [Pair(1, (20, 40), (20.0, 44.0)), Pair(2, (20, 30), (20.0, 5.0)), Pair(3, (20, 30), (None, 30.0))]
    found = summary(unchanged, grown)
    assert found["unchanged_stated"] == 0
    assert found["grown_stated"] == pytest.approx(2 / 3)
    assert found["sign_right_of_stated"] == 0.5
    assert all(pair.grew for pair in grown)
    assert "0.667" in markdown(found)


@pytest.mark.slow
@pytest.mark.nets
@pytest.mark.timeout(3600)
def test_the_bundled_weights_tell_grown_lesions_from_unchanged_ones() -> None:
    """Few pairs; `braingemma evaluate --changes 200` gives them on many."""
    found = measure_changes(BrainGemma3D.from_pretrained("demo").eval(), 12, 7_300_000, lambda _: None)
    assert found["grown_stated"] >= 0.5
    assert found["sign_right_of_stated"] >= 0.95
    assert found["unchanged_stated"] <= 1 / 12
    assert LEAST_GROWTH == 1.2
