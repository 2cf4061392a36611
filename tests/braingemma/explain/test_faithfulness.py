from __future__ import annotations

import numpy as np
import pytest

from braingemma.errors import ExplainError
from braingemma.explain.faithfulness import (
    Curves,
    curve_masks,
    curve_steps,
    curves,
    dilate_mm,
    mass_ratio,
    peak_voxel,
    points_into,
    rank_agreement,
)


def test_curves_of_an_additive_score() -> None:
    truth = np.array([0.1, 1.0, 0.4, 0.0])
    found = curves(truth, lambda masks: masks @ truth - 1.5)
    assert found.steps == (0, 1, 2, 3, 4)
    assert np.log(found.deletion) == pytest.approx(np.array([0.0, -1.0, -1.4, -1.5, -1.5]))
    assert np.log(found.insertion) == pytest.approx(np.array([-1.5, -0.5, -0.1, 0.0, 0.0]))


def test_the_true_order_beats_the_reverse_order() -> None:
    truth = np.linspace(0, 0.3, 20)
    score = lambda masks: masks @ truth - truth.sum()  # noqa: E731
    right, wrong = curves(truth, score), curves(-truth, score)
    assert right.deletion_auc < wrong.deletion_auc
    assert right.insertion_auc > wrong.insertion_auc
    assert 0 < right.deletion_auc < right.insertion_auc < 1


def test_curve_masks_delete_and_keep_the_best_first() -> None:
    steps, deletion, insertion = curve_masks(np.array([0.2, 0.9, -0.5]))
    assert steps == (0, 1, 2, 3)
    assert deletion.tolist() == [[True, True, True], [True, False, True], [False, False, True], [False] * 3]
    assert (insertion == ~deletion).all()


@pytest.mark.parametrize("features", [1, 2, 3, 20, 100])
def test_steps_go_from_none_to_all(features: int) -> None:
    steps = curve_steps(features)
    assert steps[0] == 0
    assert steps[-1] == features
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= 10


def test_area_of_a_flat_curve_is_its_height() -> None:
    flat = Curves((0, 1, 4), (0.3, 0.3, 0.3), (0.6, 0.6, 0.6))
    assert flat.deletion_auc == pytest.approx(0.3)
    assert flat.insertion_auc == pytest.approx(0.6)


def test_rank_agreement() -> None:
    assert rank_agreement([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([1, 1, 1], [3, 2, 1]) is None
    with pytest.raises(ExplainError, match="one length"):
        rank_agreement([1, 2], [1, 2, 3])


def test_pointing_game_takes_the_highest_voxel_and_the_middle_of_equals() -> None:
    saliency = np.zeros((9, 9, 9))
    saliency[2:7, 4, 4] = 1.0
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    assert peak_voxel(saliency) == (4, 4, 4)
    assert points_into(saliency, mask)
    saliency[0, 0, 0] = 2.0
    assert not points_into(saliency, mask)


def test_a_map_without_support_points_nowhere() -> None:
    assert peak_voxel(-np.ones((3, 3, 3))) is None
    assert not points_into(np.zeros((3, 3, 3)), np.ones((3, 3, 3), bool))


def test_mass_ratio_is_one_for_an_even_map_and_counts_support_only() -> None:
    brain = np.zeros((10, 10, 10), bool)
    brain[1:9] = True
    mask = np.zeros_like(brain)
    mask[1:3] = True  # a quarter of the brain
    assert mass_ratio(np.ones(brain.shape), mask, brain) == pytest.approx(1)
    assert mass_ratio(np.where(mask, 1.0, -5.0), mask, brain) == pytest.approx(4)
    assert mass_ratio(np.zeros(brain.shape), mask, brain) is None


def test_dilation_is_in_mm() -> None:
    mask = np.zeros((11, 11, 11), bool)
    mask[5, 5, 5] = True
    grown = dilate_mm(mask, (1.0, 2.0, 5.0), 4.0)
    assert np.flatnonzero(grown[:, 5, 5]).tolist() == list(range(1, 10))
    assert np.flatnonzero(grown[5, :, 5]).tolist() == [3, 4, 5, 6, 7]
    assert np.flatnonzero(grown[5, 5, :]).tolist() == [5]
    assert not dilate_mm(np.zeros_like(mask), (1, 1, 1), 4).any()
