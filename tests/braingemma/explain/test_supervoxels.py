from __future__ import annotations

from pathlib import Path

import explain_support as support
import nibabel as nib
import numpy as np
import pytest
from standard_head import AFFINE, lying

from braingemma.errors import ExplainError
from braingemma.explain.supervoxels import segment, side_of, site_of
from braingemma.findings.vocabulary import SITES

SHARED = Path(__file__).parents[4] / "shared/data/nifti"


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("skull", [True, False])
def test_supervoxels_fill_the_brain_and_leave_the_scalp_out(skull: bool) -> None:
    image = support.head(skull=skull)
    found = segment(image.get_fdata(), image.affine, 20)
    assert dice(found.labels > 0, support.brain_of(image)) > 0.96


@pytest.mark.nets
@pytest.mark.shared_data
@pytest.mark.parametrize(
    "path",
    sorted(SHARED.glob("*.nii.gz"))
    + [pytest.param(p, marks=pytest.mark.slow) for p in sorted(SHARED.rglob("*9*.nii.gz"))],
    ids=lambda p: p.name,
)
def test_brain_mask_of_real_heads_has_the_size_of_a_brain(path: Path) -> None:
    image = nib.as_closest_canonical(nib.load(path))
    found = segment(image.get_fdata(dtype=np.float32), image.affine, 20)
    assert 1100 < sum(r.size_ml for r in found.regions) < 1700
    assert len(found.regions) == 20
    assert {r.side for r in found.regions} >= {"left", "right"}


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (1.5, 1.5, 6.0), (6.0, 2.0, 2.0)])
def test_supervoxels_are_compact_in_mm_whatever_the_slices(spacing: tuple[float, float, float]) -> None:
    image = support.head(spacing)
    found = segment(image.get_fdata(), image.affine, 20)
    assert 18 <= len(found.regions) <= 20
    assert set(np.unique(found.labels)) == set(range(len(found.regions) + 1))
    assert sum(r.size_ml for r in found.regions) == pytest.approx(1440, rel=0.06)
    points = {r.label: np.argwhere(found.labels == r.label) * spacing for r in found.regions}
    spreads = np.array([p.std(axis=0) for p in points.values()])
    # Each reaches about as far along the thick axis as along the thin ones.
    assert 0.6 < np.median(spreads[:, np.argmax(spacing)]) / np.median(spreads) < 1.6


def test_sides_are_the_patients() -> None:
    image = support.head()
    found = segment(image.get_fdata(), image.affine, 20)
    for region in found.regions:
        expected = "midline" if abs(region.right_mm) <= 5 else "left" if region.centroid_mm[0] < 0 else "right"
        assert region.side == expected
    assert side_of(-30) == "left"
    assert side_of(30) == "right"
    assert side_of(2) == "midline"


def test_side_is_told_from_the_brains_own_midline_not_from_the_scanners_centre() -> None:
    image = support.head()
    moved = image.affine.copy()
    moved[0, 3] += 100  # the patient lies 10 cm to the right of the isocentre
    found = segment(image.get_fdata(), moved, 20)
    assert {r.side for r in found.regions if r.centroid_mm[0] < 90} == {"left"}


@pytest.mark.parametrize("axis", [1, 2], ids=["roll", "yaw"])
@pytest.mark.parametrize("degrees", [-15, 15])
def test_side_and_site_are_told_along_slices_that_are_turned_with_the_head(axis: int, degrees: int) -> None:
    """The scanner's axes lie across the head then: in front, or above, what is left lies on the right of them."""
    picture, brain, _ = lying((0, 0, 0))
    straight = segment(picture, AFFINE, 12, brain)
    turned = segment(picture, support.turned(AFFINE, axis, degrees), 12, brain)
    assert {r.side for r in straight.regions} >= {"left", "right"}
    assert [(r.side, r.site) for r in turned.regions] == [(r.side, r.site) for r in straight.regions]
    distances = [[r.right_mm for r in found.regions] for found in (straight, turned)]
    np.testing.assert_allclose(distances[1], distances[0], atol=2.5)


@pytest.mark.parametrize(
    ("position", "site"),
    [
        ((-35, 45, 10), "frontal"),
        ((30, -10, 60), "frontal"),
        ((-40, -50, 45), "parietal"),
        ((20, -92, 5), "occipital"),
        ((-52, -15, -22), "temporal"),
        ((36, 2, 2), "insula"),
        ((-25, -65, -40), "cerebellum"),
        ((0, -26, -30), "brainstem"),
        ((12, -18, 8), "thalamus"),
        ((0, 10, 22), "corpus callosum"),
    ],
)
def test_sites_of_known_mni_positions(position: tuple[int, int, int], site: str) -> None:
    assert site_of(position) == site
    assert site_of((-position[0], *position[1:])) == site
    assert site in SITES


def test_painting_gives_each_voxel_the_weight_of_its_region() -> None:
    image = support.head((4.0, 4.0, 4.0))
    found = segment(image.get_fdata(), image.affine, 8)
    weights = np.arange(1, len(found.regions) + 1)
    painted = found.paint(weights)
    assert painted.shape == image.shape
    assert (painted == found.labels).all()
    with pytest.raises(ExplainError, match="weights"):
        found.paint(weights[:-1])


@pytest.mark.parametrize("factor", [(1.0, 1.0, 1.0), (2.0, 1.5, 2.5)])
def test_labels_land_on_the_model_grid_at_the_same_place_in_mm(factor: tuple[float, float, float]) -> None:
    image = support.head((4.0, 4.0, 4.0))
    found = segment(image.get_fdata(), image.affine, 12)
    size = np.ceil(np.array(image.shape) / factor).astype(int)
    grid_affine = image.affine @ np.diag([*factor, 1.0])
    on_grid = found.on_grid((size[2], size[1], size[0]), grid_affine)
    assert on_grid.shape == (size[2], size[1], size[0])
    for w, h, d in np.argwhere(on_grid.transpose(2, 1, 0) > 0)[::97]:
        source = np.rint(np.array([w, h, d]) * factor).astype(int)
        if (source < image.shape).all():
            assert on_grid[d, h, w] == found.labels[tuple(source)]


def test_a_grid_beyond_the_volume_is_outside() -> None:
    image = support.head((4.0, 4.0, 4.0))
    found = segment(image.get_fdata(), image.affine, 8)
    far = image.affine.copy()
    far[0, 3] += 1000
    assert not found.on_grid((4, 4, 4), far).any()


def test_segmentation_is_the_same_each_time() -> None:
    image = support.head((4.0, 4.0, 4.0))
    first, second = (segment(image.get_fdata(), image.affine, 20).labels for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("volume", "segments", "reason"),
    [(np.zeros((20, 20)), 20, "shape"), (np.zeros((20, 20, 20)), 1, "at least 2")],
)
def test_senseless_arguments_are_refused(volume: np.ndarray, segments: int, reason: str) -> None:
    with pytest.raises(ExplainError, match=reason):
        segment(volume, np.eye(4), segments)


def test_an_empty_brain_is_refused() -> None:
    with pytest.raises(ExplainError, match="empty mask"):
        segment(np.ones((20, 20, 20)), np.eye(4), 5, brain=np.zeros((20, 20, 20), bool))
