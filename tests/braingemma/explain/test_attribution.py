from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from braingemma.errors import ExplainError
from braingemma.explain.attribution import METHODS, hadamard, method_named, weighted_r2

Game = Callable[[np.ndarray], np.ndarray]


def pairwise_game(features: int, seed: int) -> Game:
    """Main effects and interactions of pairs."""
    rng = np.random.default_rng(seed)
    main, pairs = rng.normal(size=features) ** 3, rng.normal(size=(features, features)) * 0.3
    return lambda masks: masks @ main + np.einsum("ni,ij,nj->n", masks.astype(float), pairs, masks.astype(float))


def curved_game(features: int, seed: int) -> Game:
    """Interactions of every order."""
    main = np.random.default_rng(seed).normal(size=features)
    return lambda masks: np.tanh(masks @ main) + 0.4 * masks[:, :3].prod(axis=1)


def shapley_values(game: Game, features: int) -> np.ndarray:
    """By the definition: the mean contribution over all coalitions, weighted by their size."""
    values = np.zeros(features)
    for feature in range(features):
        others = [f for f in range(features) if f != feature]
        for size in range(features):
            weight = factorial(size) * factorial(features - size - 1) / factorial(features)
            for members in combinations(others, size):
                mask = np.zeros((2, features), bool)
                mask[:, list(members)] = True
                mask[1, feature] = True
                without, with_it = game(mask)
                values[feature] += weight * (with_it - without)
    return values


def weights_of(name: str, game: Game, features: int, samples: int, seed: int) -> np.ndarray:
    method = method_named(name)
    masks = method.masks(features, samples, seed)
    return method.fit(masks, game(masks)).weights


@pytest.mark.parametrize("features", [2, 3, 5, 6, 7])
def test_kernelshap_with_all_coalitions_gives_shapley_values(features: int) -> None:
    game = curved_game(max(features, 3), 3)
    padded = lambda masks: game(np.pad(masks, ((0, 0), (0, max(0, 3 - features)))))  # noqa: E731
    found = weights_of("kernelshap", padded, features, 2**features, 0)
    assert found == pytest.approx(shapley_values(padded, features), abs=1e-9)


def test_kernelshap_of_first_order_is_exact_for_interactions_of_pairs() -> None:
    game = pairwise_game(7, 1)
    assert weights_of("kernelshap", game, 7, 2 + 14, 0) == pytest.approx(shapley_values(game, 7), abs=1e-9)


@given(features=st.integers(2, 21), samples=st.integers(2, 150), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_kernelshap_designs(features: int, samples: int, seed: int) -> None:
    masks = METHODS["kernelshap"].masks(features, samples, seed)
    assert len(masks) <= samples
    assert masks[0].all()
    assert not masks[1].any()
    # Every coalition comes with its complement, so the design is balanced.
    assert (masks.sum(axis=0) * 2 == len(masks)).all()
    if samples >= 2 + 2 * features:
        assert (masks == METHODS["kernelshap"].masks(features, samples, seed + 1)).all(), "all seeds agree"
    game = pairwise_game(features, seed)
    fit = METHODS["kernelshap"].fit(masks, game(masks))
    assert fit.weights.sum() == pytest.approx(game(masks)[0] - game(masks)[1], abs=1e-8)


def test_leave_one_out_is_part_of_the_kernelshap_design() -> None:
    left_out = {m.tobytes() for m in METHODS["leave_one_out"].masks(20, 100, 0)}
    assert left_out <= {m.tobytes() for m in METHODS["kernelshap"].masks(20, 100, 0)}


def test_leave_one_out_gives_what_is_lost() -> None:
    weights = np.array([0.5, -0.25, 0.0, 2.0])
    assert weights_of("leave_one_out", lambda m: m @ weights - 3, 4, 100, 0) == pytest.approx(weights)


@given(least=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_hadamard_matrices_are_orthogonal(least: int) -> None:
    matrix = hadamard(least)
    order = len(matrix)
    assert order >= least
    assert (matrix @ matrix.T == order * np.eye(order)).all()
    assert (matrix[0] == 1).all()
    assert (matrix[:, 0] == 1).all()


@given(features=st.integers(2, 24), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_balanced_design_gives_mean_effects_whatever_the_pairs_do(features: int, seed: int) -> None:
    method = METHODS["balanced"]
    masks = method.masks(features, 200, seed)
    assert masks[0].all()
    assert not masks[1].any()
    assert (masks[::2] == ~masks[1::2]).all()
    assert (masks == method.masks(features, 200, seed + 1)).all(), "all seeds agree"
    weights, pairs = np.random.default_rng(seed).normal(size=features), np.zeros((features, features))
    pairs[0, 1] = 3.0
    game: Game = lambda m: m @ weights + np.einsum("ni,ij,nj->n", m * 1.0, pairs, m * 1.0)  # noqa: E731
    # Half of the time the other one of the pair is there.
    assert method.fit(masks, game(masks)).weights == pytest.approx(weights + np.eye(features)[:2].sum(axis=0) * 1.5)


def test_two_that_can_stand_in_for_each_other_are_both_found_by_the_balanced_design() -> None:
    either: Game = lambda m: np.maximum(m[:, 3], m[:, 7]) * 1.0  # noqa: E731
    balanced, alone = (weights_of(name, either, 20, 100, 0) for name in ("balanced", "leave_one_out"))
    assert set(np.argsort(-balanced)[:2]) == {3, 7}
    assert balanced[[3, 7]].min() > 3 * np.abs(np.delete(balanced, [3, 7])).max()
    assert not alone.any()


def test_the_balanced_design_is_cut_to_the_samples() -> None:
    method = METHODS["balanced"]
    assert len(method.masks(20, 100, 0)) == 48
    masks = method.masks(20, 17, 0)
    assert masks.shape == (16, 20)
    assert np.isfinite(method.fit(masks, masks @ np.arange(20.0)).weights).all()


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_find_the_order_of_an_additive_score(name: str) -> None:
    truth = np.linspace(-1, 2, 12)
    found = weights_of(name, lambda m: m @ truth - 1, 12, 100, 0)
    assert spearmanr(found, truth).statistic > 0.98
    assert np.sign(found[0]) == -1
    assert np.sign(found[-1]) == 1


@pytest.mark.parametrize(
    ("name", "seeds_agree", "near_shapley"),
    [("balanced", 1.0, 1.0), ("lime", 0.6, 0.75), ("kernelshap", 1.0, 1.0), ("leave_one_out", 1.0, 0.85)],
)
def test_agreement_between_seeds_and_with_shapley_values(name: str, seeds_agree: float, near_shapley: float) -> None:
    features = 21
    agreements, fidelity = [], []
    for case in range(6):
        game = pairwise_game(features, case)
        first, second = (weights_of(name, game, features, 100, seed) for seed in (1, 2))
        exact = weights_of("kernelshap", game, features, 2 + 2 * features, 0)  # exact for pairs, as tested above
        agreements.append(spearmanr(first, second).statistic)
        fidelity.append(spearmanr(first, exact).statistic)
    assert np.mean(agreements) >= seeds_agree - 1e-9
    assert np.mean(fidelity) >= near_shapley - 1e-9


def test_lime_keeps_r2_and_starts_with_the_original() -> None:
    lime = METHODS["lime"]
    masks = lime.masks(10, 60, 3)
    assert masks.shape == (60, 10)
    assert masks[0].all()
    additive = lime.fit(masks, masks @ np.arange(10.0))
    noise = lime.fit(masks, np.random.default_rng(0).normal(size=60))
    assert additive.r2 is not None
    assert noise.r2 is not None
    assert additive.r2 > 0.95 > 0.6 > noise.r2
    assert (lime.masks(10, 60, 3) == masks).all()
    assert not (lime.masks(10, 60, 4) == masks).all()


@pytest.mark.parametrize("name", list(METHODS))
def test_scores_that_are_no_numbers_are_refused(name: str) -> None:
    method = method_named(name)
    masks = method.masks(5, 20, 0)
    scores = np.zeros(len(masks))
    scores[3] = np.nan
    with pytest.raises(ExplainError, match="finite"):
        method.fit(masks, scores)
    with pytest.raises(ExplainError, match="one score for each"):
        method.fit(masks, scores[:-1])


def test_unknown_methods_and_too_few_samples_are_refused() -> None:
    with pytest.raises(ExplainError, match="balanced, lime, kernelshap, leave_one_out"):
        method_named("gradcam")
    with pytest.raises(ExplainError, match="at least 2"):
        METHODS["lime"].masks(5, 1, 0)


def test_r2_of_a_constant_is_undefined() -> None:
    assert weighted_r2(np.ones(5), np.ones(5)) is None
    assert weighted_r2(np.arange(5.0), np.arange(5.0)) == pytest.approx(1)
