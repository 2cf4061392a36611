from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import explain_support as support
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes
from PIL import Image

from braingemma.errors import ExplainError
from braingemma.explain.pictures import (
    REGION_COLOUR,
    View,
    acquired_plane,
    blend,
    montage,
    outline,
    position_text,
    to_picture,
)
from braingemma.explain.plots import (
    MAP_COLOUR,
    Scene,
    _centres,
    _most_influential,
    _note,
    _slices,
    draw_grid,
    draw_overlay_slices,
    draw_top_supervoxels,
)
from braingemma.explain.record import LEAST_COLOUR
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


def test_the_sheet_has_axial_slices_of_the_brain_and_no_others(tmp_path: Path) -> None:
    image = support.head((4.0, 4.0, 2.0))
    with_neck = np.zeros((*image.shape[:2], image.shape[2] + 40), np.float32)
    with_neck[:, :, 40:] = np.asarray(image.dataobj)
    affine = image.affine.copy()
    affine[2, 3] -= 40 * affine[2, 2]
    tall = scene_of(nib.Nifti1Image(with_neck, affine), banner="Synthetic images only.")
    indices = _slices(tall)
    areas = (tall.supervoxels.labels > 0).sum(axis=(0, 1))
    brain = np.flatnonzero(areas >= 0.02 * areas.max())
    assert set(np.diff(indices)) == {2}, "4 mm apart"
    assert brain[0] <= indices[0] <= brain[0] + 1
    assert brain[-1] - 1 <= indices[-1] <= brain[-1]
    assert _centres(tall)[0][2] in indices, "the slice of the strongest region is shown"
    path = tmp_path / "overlay_slices.png"
    draw_overlay_slices(tall, path)
    assert min(redness(path).shape) > 600
    assert (redness(path) > 40).sum() > 2000


def lines(tile: np.ndarray, colour: tuple[float, float, float]) -> int:
    """Pixels of a tile that a line of this colour crosses."""
    return int((np.abs(tile - np.array(colour)).max(axis=-1) < 0.02).sum())


def test_the_strongest_region_and_the_lesion_map_are_lines_in_every_picture(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mapped = replace(scene, grounding=np.where(scene.saliency > 0, np.float32(0.8), np.float32(0)))
    x, y, z = _centres(mapped)[0]
    for plane, index in (("sagittal", x), ("coronal", y), ("axial", z)):
        tile = mapped.tile(mapped.view(1.0), plane, index)  # type: ignore[arg-type]
        assert lines(tile, MAP_COLOUR) > 20
        assert lines(mapped.tile(mapped.view(1.0), plane, index, overlay=False), MAP_COLOUR) == 0  # type: ignore[arg-type]
        assert lines(replace(mapped, grounding=None).tile(mapped.view(1.0), plane, index), REGION_COLOUR) > 20  # type: ignore[arg-type]
    assert "Cyan line: lesion map at 0.40" in mapped.statement
    assert "Cyan" not in replace(scene, grounding=np.zeros_like(scene.saliency)).statement
    drawn: list[str] = []
    monkeypatch.setattr(Scene, "lines", lambda _self, picture, *_: drawn.append("lines") or picture)
    for draw in (draw_overlay_slices, draw_grid, draw_top_supervoxels):
        drawn.clear()
        draw(mapped, tmp_path / "picture.png")
        assert drawn


def test_both_sides_are_shown_where_the_report_states_both(tmp_path: Path) -> None:
    one = scene_of(support.head((4.0, 4.0, 4.0)))
    order = np.argsort([r.centroid_mm[0] for r in one.supervoxels.regions])
    weights = np.zeros(len(order))
    weights[order[:5]] = [1.0, 0.9, 0.8, 0.7, 0.6]  # the left speaks louder than all of the right
    weights[order[-1]] = 0.2
    both = replace(one, weights=weights, saliency=one.supervoxels.paint(weights), bilateral=True)
    assert [r.side for r in both.strongest] == ["left", "right"]
    assert [c[0] < both.volume.shape[0] / 2 for c in _centres(both)] == [True, False]
    assert "right" in {r.side for r in _most_influential(both, 4)}
    assert len(_most_influential(both, 4)) == 4
    assert [r.side for r in replace(both, bilateral=False).strongest] == ["left"]
    assert both.shown.regions == tuple(r.label for r in both.strongest)
    middle = np.where([r.side == "midline" for r in one.supervoxels.regions], 2.0, weights)
    assert [r.side for r in replace(both, weights=middle).strongest] == ["midline"], "it lies on both sides"
    draw_grid(both, tmp_path / "both.png")
    draw_grid(replace(both, bilateral=False), tmp_path / "one.png")
    heights = [redness(tmp_path / name).shape[0] for name in ("both.png", "one.png")]
    assert heights[0] > 1.7 * heights[1]


@pytest.mark.parametrize(
    ("left", "right", "shown"),
    [([1.0], [0.03], ["left", "right"]), ([0.7], [0.2, -1.0, -0.9, -0.8], ["right", "right", "left", "right"])],
)
def test_the_strongest_of_both_sides_are_among_the_most_influential(
    left: list[float], right: list[float], shown: list[str]
) -> None:
    """One that is faint, or weaker than all that speak against, takes no other one's place."""
    one = scene_of(support.head((4.0, 4.0, 4.0)))
    order = np.argsort([r.centroid_mm[0] for r in one.supervoxels.regions])
    weights = np.zeros(len(order))
    weights[order[: len(left)]], weights[order[::-1][: len(right)]] = left, right
    kept = _most_influential(replace(one, weights=weights, bilateral=True), 4)
    assert [r.side for r in kept] == shown
    assert max(left) in [weights[r.label - 1] for r in kept]
    assert right[0] in [weights[r.label - 1] for r in kept]


def test_a_regions_side_is_told_against_the_brains_midline(scene: Scene) -> None:
    """A head that lies off the scanner's centre: coordinates of the scanner would name the other side."""
    region = scene.strongest[0]
    away = replace(region, centroid_mm=(70.0, 0.0, 0.0), right_mm=-30.0, side="left", site="frontal")
    assert _note(scene, 1, away).startswith("1. speaks for the finding, 100% of the strongest   left frontal")
    assert _note(scene, 1, away).endswith("centre 30 mm left of the midline")


def test_faint_weights_are_not_coloured(scene: Scene) -> None:
    """Below a stated share of the strongest there is no tint."""
    index = int(np.median(np.argwhere(scene.saliency > 0)[:, 2]))
    faint = scene.supervoxels.paint(np.where(scene.weights > 0, scene.weights, 0.3 * scene.weights.max()))
    tinted = replace(scene, saliency=faint, clip_q=1.0)
    coloured = [np.ptp(s.tile(s.view(4.0), "axial", index), axis=-1) > 0.02 for s in (tinted, scene)]
    assert abs(int(coloured[0].sum()) - int(coloured[1].sum())) < 0.05 * coloured[1].sum()
    assert f"{LEAST_COLOUR:.0%} of the strongest" in scene.statement


def test_the_three_pictures_show_the_map_and_a_colour_bar(scene: Scene, tmp_path: Path) -> None:
    draw_grid(scene, tmp_path / "grid.png")
    draw_top_supervoxels(scene, tmp_path / "top.png")
    for name in ("grid.png", "top.png"):
        assert (redness(tmp_path / name) > 60).sum() > 3000
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
    assert faint.shown.regions == ()
    assert "Yellow" not in faint.statement


def test_alpha_and_clip_are_checked_and_used(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scene, "lines", lambda _self, picture, *_: picture)
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
