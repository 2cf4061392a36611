from __future__ import annotations

from pathlib import Path

import explain_support as support
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes
from PIL import Image

from braingemma.errors import ExplainError
from braingemma.explain.pictures import (
    View,
    acquired_plane,
    blend,
    montage,
    outline,
    point_text,
    position_text,
    to_picture,
)
from braingemma.explain.plots import Scene, draw_grid, draw_overlay_slices, draw_top_supervoxels
from braingemma.explain.supervoxels import segment


def scene_of(image: nib.Nifti1Image, *, drawn: bool = True, **changes: object) -> Scene:
    """Support in the leftmost supervoxel, none elsewhere."""
    volume = np.asarray(image.dataobj, np.float32)
    supervoxels = segment(volume, image.affine, 12)
    weights = np.zeros(len(supervoxels.regions))
    if drawn:
        weights[np.argmin([r.centroid_mm[0] for r in supervoxels.regions])] = 0.4
    return Scene(volume, supervoxels.paint(weights), supervoxels, weights, drawn, "Explained: left", **changes)  # type: ignore[arg-type]


def redness(path: Path) -> np.ndarray:
    """How much redder than grey each pixel is."""
    picture = np.asarray(Image.open(path).convert("RGB"), float)
    return picture[..., 0] - picture[..., 1:].max(axis=-1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of(support.head((4.0, 4.0, 4.0)))


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_patient_left_is_on_the_right_of_the_picture(scene: Scene, plane: str) -> None:
    view = scene.view(2.0)
    axis = {"coronal": 1, "axial": 2}[plane]
    middle = int(np.median(np.argwhere(scene.saliency > 0)[:, axis]))
    tile = scene.tile(view, plane, middle)  # type: ignore[arg-type]
    red = tile[..., 0] - tile[..., 2]
    columns = np.argwhere(red > 0.1)[:, 1]
    assert len(columns) > 50
    assert columns.min() > tile.shape[1] * 0.5


def test_pictures_are_turned_as_radiologists_hang_them() -> None:
    x, y, z = np.meshgrid(np.arange(4), np.arange(5), np.arange(6), indexing="ij")
    axial_x, axial_y = to_picture(x[:, :, 0]), to_picture(y[:, :, 0])
    assert axial_x.shape == (5, 4)
    assert axial_x[0, 0] == 3, "the patient's right is on the left"
    assert axial_y[0, 0] == 4, "anterior is on top"
    assert to_picture(z[:, 0, :])[0, 0] == 5, "coronal: superior is on top"
    assert to_picture(y[0])[0, 0] == 4, "sagittal: anterior is on the left"


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 5), "axial"), ((5, 1, 1), "sagittal"), ((1, 6, 1), "coronal"), ((1, 1, 1.2), "axial")],
)
def test_the_plane_of_thick_slices_is_shown(spacing: tuple[float, float, float], plane: str) -> None:
    assert acquired_plane(np.diag([*spacing, 1.0])) == plane


def test_positions_for_a_reader() -> None:
    assert position_text("axial", 31.6) == "S 32 mm"
    assert position_text("axial", -7.2) == "I 7 mm"
    assert position_text("sagittal", -12.0) == "L 12 mm"
    assert position_text("coronal", 12.0) == "A 12 mm"
    assert point_text((-32.2, 20.0, -14.0)) == "L 32 A 20 I 14 mm"


def test_view_keeps_proportions_in_mm_and_tells_positions(scene: Scene) -> None:
    affine = np.diag([1.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = [-50, -60, -70]
    view = View(affine, ((0, 100), (0, 60), (0, 20)), 0.5)
    assert view.tile_shape("axial") == (240, 200)
    assert view.tile_shape("coronal") == (200, 200)
    assert view.tile_shape("sagittal") == (200, 240)
    assert view.position("axial", 3) == pytest.approx(-55)
    assert view.position("sagittal", 10) == pytest.approx(-40)


def test_blending_and_outlines() -> None:
    grey = np.full((5, 5, 3), 0.5, np.float32)
    weights = np.zeros((5, 5), np.float32)
    weights[0, 0], weights[4, 4] = 1, -1
    mixed = blend(grey, weights, 1.0, 0.5)
    assert mixed[0, 0, 0] > 0.7 > 0.35 > mixed[0, 0, 2]
    assert mixed[4, 4, 2] > 0.7 > 0.35 > mixed[4, 4, 0]
    assert (mixed[2, 2] == 0.5).all()
    assert (blend(grey, weights, 0.0, 0.5) == grey).all()
    square = np.zeros((9, 9), bool)
    square[2:7, 2:7] = True
    drawn = outline(np.zeros((9, 9, 3), np.float32), square, (1, 1, 1), width=1)
    assert drawn[2, 2, 0] == 1
    assert drawn[4, 4, 0] == 0
    assert drawn[..., 0].sum() == 16


def test_montage_places_tiles_row_by_row() -> None:
    sheet, corners = montage([np.full((2, 3, 3), n, np.float32) for n in (1, 2, 3)], 2, gap=1)
    assert sheet.shape == (5, 7, 3)
    assert corners == [(0, 0), (0, 4), (3, 0)]
    assert [sheet[r, c, 0] for r, c in corners] == [1, 2, 3]


def test_every_slice_is_on_the_sheet(tmp_path: Path) -> None:
    thick = scene_of(support.head((4.0, 4.0, 8.0)), banner="Synthetic images only.")
    path = tmp_path / "overlay_slices.png"
    draw_overlay_slices(thick, path)
    tiles = thick.volume.shape[2]
    red = redness(path)
    assert min(red.shape) > 600
    assert tiles == 20
    assert (red > 40).sum() > 2000


def test_the_three_pictures_show_the_map_and_a_colour_bar(scene: Scene, tmp_path: Path) -> None:
    draw_grid(scene, tmp_path / "grid.png")
    draw_top_supervoxels(scene, tmp_path / "top.png")
    for name in ("grid.png", "top.png"):
        assert (redness(tmp_path / name) > 60).sum() > 5000
    red = redness(tmp_path / "grid.png")
    bar = red[:, -95:-60]
    assert (bar > 150).any()
    assert (bar < -20).any(), "the bar runs from red to blue"
    upper = red[60 : red.shape[0] // 2 - 30, :-110]
    assert (upper > 40).sum() == 0, "the upper row is without overlay"


def test_without_a_finding_no_spot_is_drawn_and_the_picture_says_so(tmp_path: Path) -> None:
    healthy = scene_of(support.head((4.0, 4.0, 4.0)), drawn=False)
    assert healthy.limit == 0
    assert "Nothing supports a finding" in healthy.statement
    for draw in (draw_overlay_slices, draw_grid, draw_top_supervoxels):
        draw(healthy, tmp_path / "picture.png")
        red = redness(tmp_path / "picture.png")
        # Below the picture stands the research-use line in light red.
        assert (red[:-60, :-110] > 70).sum() == 0


def test_noise_stays_faint(scene: Scene) -> None:
    faint = Scene(scene.volume, scene.saliency * 1e-3, scene.supervoxels, scene.weights * 1e-3, True, "")
    tile = faint.tile(faint.view(4.0), "axial", scene.volume.shape[2] // 2)
    assert (tile[..., 0] - tile[..., 2]).max() < 0.02


def test_alpha_and_clip_are_checked_and_used(scene: Scene) -> None:
    with pytest.raises(ExplainError, match="alpha"):
        Scene(scene.volume, scene.saliency, scene.supervoxels, scene.weights, True, "", alpha=1.5)
    with pytest.raises(ExplainError, match="one shape"):
        Scene(scene.volume[1:], scene.saliency, scene.supervoxels, scene.weights, True, "")
    opaque, clear = (
        Scene(scene.volume, scene.saliency, scene.supervoxels, scene.weights, True, "", alpha=a) for a in (1.0, 0.1)
    )
    index = int(np.median(np.argwhere(scene.saliency > 0)[:, 2]))
    strengths = [np.ptp(s.tile(s.view(4.0), "axial", index), axis=-1).max() for s in (opaque, clear)]
    assert strengths[0] > 0.85 > 0.15 > strengths[1]


def test_left_mark_of_a_real_position_lands_where_the_view_says() -> None:
    image = support.head((4.0, 4.0, 4.0), mark=support.LEFT_MARK)
    marked = scene_of(image)
    view = marked.view(1.0)
    voxel = np.rint(apply_affine(np.linalg.inv(image.affine), support.LEFT_MARK)).astype(int)
    cut = view.cut(marked.volume, "axial", int(voxel[2]))
    row, column = np.argwhere(cut > 450).mean(axis=0)
    spacing = voxel_sizes(image.affine)
    expected = (view.box[0][1] - 1 - voxel[0]) * spacing[0], (view.box[1][1] - 1 - voxel[1]) * spacing[1]
    assert column == pytest.approx(expected[0], abs=5)
    assert row == pytest.approx(expected[1], abs=5)
    assert column > cut.shape[1] / 2
