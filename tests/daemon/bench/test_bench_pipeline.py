import numpy as np

from daemon.bench.pipeline import SHAPE, Passage, brats_like_volume


def test_the_study_has_the_grid_of_brats_and_grey_values() -> None:
    volume = brats_like_volume(20)
    values = np.asarray(volume.dataobj)
    assert volume.shape == (*SHAPE[:2], 20)
    assert np.unique(values).size > 200
    assert values.max() > 1000
    assert not np.array_equal(values, np.asarray(brats_like_volume(20, seed=30108).dataobj))


def test_the_model_and_the_explainer_are_not_the_daemons_own() -> None:
    assert Passage({"select": 1.0, "report": 20.0, "explain": 30.0, "encode": 2.5}).own == 3.5
