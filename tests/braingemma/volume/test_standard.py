"""The standard brain is read from nilearn's files as nilearn reads them."""

from __future__ import annotations

import numpy as np
import pytest

from braingemma.volume.standard import standard_brain, template


@pytest.mark.parametrize("name", ["t1", "gm", "wm"])
def test_a_template_is_the_one_that_nilearn_gives(name: str) -> None:
    from nilearn import datasets

    load = {"t1": datasets.load_mni152_template, "gm": datasets.load_mni152_gm_template}.get(
        name, datasets.load_mni152_wm_template
    )
    theirs = load(resolution=1)
    values, affine = template(name)  # type: ignore[arg-type]
    np.testing.assert_array_equal(values, np.asarray(theirs.dataobj, np.float32))
    np.testing.assert_allclose(affine, theirs.affine)


def test_the_lateral_ventricles_are_equal_and_apart() -> None:
    brain = standard_brain()
    x = brain.origin[0] + brain.spacing * np.arange(brain.lateral.shape[0])
    left, right = float(brain.lateral[x < 0].sum()), float(brain.lateral[x > 0].sum())
    assert left == pytest.approx(right, rel=1e-3)
    assert 6 < left * brain.spacing**3 / 1000 < 12
    assert float(brain.lateral[x == 0].sum()) < 0.1 * left
