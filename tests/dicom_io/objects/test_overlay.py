"""Left and right in the pictures: every test here guards against the worst error the product could make."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from results_factory import PLANES, Case, content, left_mark, make_case

from dicom_io.content.regions import MapDisplay, brain_window, head_middle, key_slices, load_volumes, top_region
from dicom_io.content.report import FindingRecord
from dicom_io.objects.overlay import OverlayRenderer, direction_letters, edge_letters, slice_centre, slice_side
from dicom_io.objects.seg import segments

EVERY_ACQUISITION = [(plane, tilted) for plane in PLANES for tilted in (False, True)]


def renderer_of(case: Case) -> OverlayRenderer:
    volumes = load_volumes(case.geometry, case.content, case.volume_path, case.saliency_path, case.lesion_path)
    return OverlayRenderer(case.geometry, volumes, case.content)


def mark_lps(case: Case) -> np.ndarray:
    """Centre of the bright ball, mm, LPS, straight from the RAS volume."""
    affine = nib.load(case.volume_path).affine
    centre = np.argwhere(left_mark()).mean(axis=0)
    return np.asarray(np.diag([-1.0, -1, 1]) @ (affine @ [*centre, 1])[:3])


def red(picture: np.ndarray) -> np.ndarray:
    """Pixels tinted as support or on its outline, in the slice only: letters are grey."""
    values = picture.astype(int)
    return np.asarray((values[..., 0] - values[..., 2] > 70) & (values[..., 0] > 120))


def slice_area(renderer: OverlayRenderer, case: Case, picture: np.ndarray) -> np.ndarray:
    layout = renderer.layout
    rows, columns = case.geometry.rows * layout.scale, case.geometry.columns * layout.scale
    return picture[layout.top : layout.top + rows, layout.left : layout.left + columns]


@pytest.mark.parametrize(("plane", "tilted"), EVERY_ACQUISITION)
def test_support_is_drawn_where_the_left_mark_lies_in_the_patient(plane: str, tilted: bool, tmp_path: Path) -> None:
    case = make_case(tmp_path, plane, tilted=tilted)
    renderer = renderer_of(case)
    middles = np.array([slice_centre(case.geometry, k) for k in range(len(case.geometry.slices))])
    index = int(np.abs((middles - mark_lps(case)) @ case.geometry.normal).argmin())
    drawn = red(renderer.render(index))
    drawn[: renderer.layout.top + 45, : renderer.layout.left + 100] = False  # the side letter has this colour too
    drawn[: renderer.layout.top] = False
    drawn[renderer.layout.top + case.geometry.rows * renderer.layout.scale :] = False
    row, column = np.argwhere(drawn).mean(axis=0)
    # From the picture's own geometry, as a viewer would compute it.
    spacing = renderer.layout.pixel_spacing(case.geometry)
    along_row, along_column = np.array(case.geometry.orientation).reshape(2, 3)
    position = np.array(renderer.layout.position(case.geometry, index))
    found = position + along_row * spacing[1] * column + along_column * spacing[0] * row
    assert np.linalg.norm(found - mark_lps(case)) < 4.5  # one voxel
    assert found[0] > 0  # LPS: the patient's left


@pytest.mark.parametrize(("plane", "tilted"), [(p, t) for p, t in EVERY_ACQUISITION if p != "sagittal"])
def test_the_left_is_on_the_right_hand_side_of_axial_and_coronal_pictures(
    plane: str, tilted: bool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, plane, tilted=tilted)
    renderer = renderer_of(case)
    assert edge_letters(case.geometry)["right"].startswith("L")
    assert edge_letters(case.geometry)["left"].startswith("R")
    pictures = [slice_area(renderer, case, picture) for picture in renderer]
    columns = np.concatenate([np.argwhere(red(picture))[:, 1] for picture in pictures])
    assert len(columns) > 100
    assert columns.min() > pictures[0].shape[1] / 2
    # The mark itself, not only its tint, is on that side: the brightest pixels but for the letters.
    bare = renderer_of(replace(case, saliency_path=None))
    pictures = [slice_area(bare, case, picture) for picture in bare]
    letters = pictures[0].max(axis=2) > 0  # the first slice is empty
    columns = np.concatenate([np.argwhere((p[..., 0] > 230) & ~letters)[:, 1] for p in pictures])
    assert len(columns) > 100
    assert columns.min() > pictures[0].shape[1] / 2


@pytest.mark.parametrize("tilted", [False, True])
def test_sagittal_pictures_of_the_mark_are_labelled_left(tilted: bool, tmp_path: Path) -> None:
    case = make_case(tmp_path, "sagittal", tilted=tilted)
    renderer = renderer_of(case)
    letter = {name: glyph(name) for name in "LR"}
    sides = []
    for index, picture in enumerate(renderer):
        area = slice_area(renderer, case, picture)
        corner, rest = area[:50, :60], area[50:]
        shown = [name for name, mask in letter.items() if np.array_equal(yellow(corner), mask)]
        sides.append(shown[0] if shown else None)
        if red(rest).sum() > 100:
            assert shown == ["L"], f"slice {index} shows the left mark and is labelled {shown}"
        x = slice_centre(case.geometry, index)[0]
        if abs(x) > case.geometry.slice_spacing:
            assert shown == ["L" if x > 0 else "R"]
    assert {"L", "R"} <= set(sides)


def yellow(picture: np.ndarray) -> np.ndarray:
    values = picture.astype(int)
    return np.asarray((values[..., 0] > 200) & (values[..., 2] < 150) & (values[..., 1] > 150))


def glyph(letter: str) -> np.ndarray:
    """Where the side letter stands in the corner, drawn anew."""
    image = Image.new("RGB", (60, 50))
    font = ImageFont.load_default(36)
    draw = ImageDraw.Draw(image)
    draw.text((10, 6), letter, fill=(255, 210, 60), font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return yellow(np.asarray(image))


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_letter_burned_in_at_the_right_edge_is_an_l(plane: str, tmp_path: Path) -> None:
    case = make_case(tmp_path, plane)
    renderer = renderer_of(case)
    area = slice_area(renderer, case, renderer.render(0))  # the first slice is empty
    height, width = area.shape[:2]
    for edge, letter, x, anchor in (("right", "L", width - 8, "rm"), ("left", "R", 8, "lm")):
        image = Image.new("RGB", (width, height))
        font = ImageFont.load_default(28)
        ImageDraw.Draw(image).text((x, height / 2), letter, fill=(235,) * 3, font=font, anchor=anchor)
        wanted = np.asarray(image)[..., 0] > 128
        band = slice(width - 60, width) if edge == "right" else slice(0, 60)
        middle = slice(height // 2 - 25, height // 2 + 25)
        found = area[middle, band, 0] > 128
        assert wanted.sum() > 20
        assert np.array_equal(found, wanted[middle, band]), f"{edge}: expected {letter}"


def test_letters_of_the_standard_planes(tmp_path: Path) -> None:
    letters = {plane: edge_letters(make_case(tmp_path / plane, plane).geometry) for plane in PLANES}
    assert letters == {
        "axial": {"right": "L", "left": "R", "bottom": "P", "top": "A"},
        "coronal": {"right": "L", "left": "R", "bottom": "I", "top": "S"},
        "sagittal": {"right": "P", "left": "A", "bottom": "I", "top": "S"},
    }


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1))
def test_opposite_directions_have_opposite_letters(vector: tuple[float, float, float]) -> None:
    direction = np.array(vector) / np.linalg.norm(vector)
    letters, opposite = direction_letters(direction), direction_letters(-direction)
    swapped = letters.translate(str.maketrans("RLAPHF", "LRPAFH"))
    assert opposite == swapped
    assert (
        letters[0]
        == ("RL", "AP", "FH")[int(np.abs(direction).argmax())][int(direction[np.abs(direction).argmax()] > 0)]
    )


@pytest.mark.parametrize("turned", [0, 12, -12])
def test_side_is_judged_from_the_middle_of_the_head_not_from_the_scanner(tmp_path: Path, turned: int) -> None:
    plain = make_case(tmp_path / "plain", "sagittal")
    image = nib.load(plain.volume_path)
    shifted = image.affine.copy()
    shifted[:2, 3] -= (60, 90)  # the head lies 60 mm to the patient's left of the isocentre, and behind it
    yaw = np.radians(turned)  # head and slices alike
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    shifted[:3] = turn @ shifted[:3]
    case = make_case(tmp_path / "shifted", "sagittal", nib.Nifti1Image(np.asanyarray(image.dataobj), shifted))
    volumes = load_volumes(case.geometry, case.content, case.volume_path, None, None)
    middle = head_middle(volumes.flair, case.geometry)
    sides = [slice_side(case.geometry, k, middle) for k in range(len(case.geometry.slices))]
    shown = [side[0] for side in sides if side is not None]
    assert shown == ["L"] * 19 + ["MID"] * 2 + ["R"] * 19  # slices ascend to the right


def test_axial_slices_have_no_side(tmp_path: Path) -> None:
    geometry = make_case(tmp_path).geometry
    assert slice_side(geometry, 0, 0.0) is None


@pytest.mark.parametrize(
    ("said", "with_saliency", "reason"),
    [
        ({"findings": (FindingRecord("lesion", "absent"),)}, True, "The text names no abnormal finding as present."),
        ({"findings": ()}, True, "No finding could be coded"),
        ({}, False, "No explanation was computed"),
    ],
)
def test_without_support_no_hot_spot_is_drawn(
    said: dict[str, object], with_saliency: bool, reason: str, tmp_path: Path
) -> None:
    case = make_case(tmp_path, said=content(**said))
    saliency = case.saliency_path if with_saliency else None
    volumes = load_volumes(case.geometry, case.content, case.volume_path, saliency, None)
    assert volumes.support is None
    assert volumes.no_support_reason is not None
    assert reason in volumes.no_support_reason
    renderer = OverlayRenderer(case.geometry, volumes, case.content)
    for picture in renderer:
        area = slice_area(renderer, case, picture)
        assert np.ptp(area.astype(int), axis=2).max() == 0  # grey throughout
    assert key_slices(volumes) == (18,)


def both_sides(case: Case) -> MapDisplay:
    """The ball, in the patient's left half, and its mirror image are outlined, though only the ball has colour."""
    image, ball = nib.load(case.volume_path), left_mark()
    labels = case.volume_path.with_name("supervoxels.nii.gz")
    nib.save(nib.Nifti1Image((ball * 7 + ball[::-1] * 3).astype(np.int16), image.affine), labels)
    return MapDisplay(limit=0.8, least_share=0.4, labels_path=labels, regions=((7, "left"), (3, "right")))


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_what_the_explanation_says_is_shown_on_both_sides(plane: str, tmp_path: Path) -> None:
    case = make_case(tmp_path, plane)
    display = both_sides(case)
    load = partial(load_volumes, case.geometry, case.content, case.volume_path, case.saliency_path, None)
    volumes = load(display)
    assert [region.side for region in volumes.supports] == ["left", "right"]
    index = int(np.argmax(volumes.supports[1].mask.sum(axis=(1, 2))))
    left, right = (np.argwhere(region.mask[index])[:, 1].mean() for region in volumes.supports)
    assert left > case.geometry.columns / 2 > right
    renderer = OverlayRenderer(case.geometry, volumes, case.content)
    area = slice_area(renderer, case, renderer.render(index)).astype(int)
    lines = np.argwhere((area[..., 0] > 220) & (area[..., 1] > 180) & (area[..., 2] < 60))[:, 1] / area.shape[1]
    for side, found in (("left", left), ("right", right)):
        near = np.abs(lines - found / case.geometry.columns) < 0.2
        assert near.sum() > 40, f"{side}: expected an outline"
    # 0.4 is half of full colour; the slab that speaks against has 0.2, a quarter: below the least share.
    strength = volumes.strength(index)
    assert np.unique(strength).tolist() == [0, 0.5]
    assert np.argwhere(strength)[:, 1].mean() == pytest.approx(left, abs=1)
    assert [region.side for region in load(replace(display, regions=((7, "left"),))).supports] == [""]
    nothing = load(replace(display, regions=()))
    assert nothing.no_support_reason == "No region supports the draft's findings: none is drawn."
    assert not nothing.strength(index).any()


def test_what_the_text_states_and_nothing_confirms_is_drawn_and_said_to_be_so(tmp_path: Path) -> None:
    """As in the other pictures of the explanation: the reader looks there, and knows what it is worth."""
    said = content(findings=(FindingRecord("lesion", "undetermined", "left"),), measurements=())
    case = make_case(tmp_path, said=said)
    volumes = load_volumes(case.geometry, said, case.volume_path, case.saliency_path, None, both_sides(case))
    assert [segment.label for segment in segments(volumes)] == [
        "Strongest support for the AI draft, left; nothing confirmed",
        "Strongest support for the AI draft, right; nothing confirmed",
    ]
    renderer = OverlayRenderer(case.geometry, volumes, said)
    other = renderer_of(make_case(tmp_path / "b"))
    assert renderer.layout.top > other.layout.top  # one more line above: nothing could be confirmed
    assert red(slice_area(renderer, case, renderer.render(21))).sum() > 100


def test_weights_that_only_speak_against_draw_nothing(tmp_path: Path) -> None:
    case = make_case(tmp_path, weights=np.full((40, 48, 36), -0.2, dtype=np.float32))
    volumes = load_volumes(case.geometry, case.content, case.volume_path, case.saliency_path, None)
    assert volumes.support is None
    assert volumes.no_support_reason == "No region supports the draft's findings: none is drawn."


def test_the_strips_differ_with_the_banner(tmp_path: Path) -> None:
    with_banner = make_case(tmp_path / "a")
    without = make_case(tmp_path / "b", said=content(banner=None))
    pictures = [renderer_of(case).render(18) for case in (with_banner, without)]
    assert pictures[0].shape[0] > pictures[1].shape[0]
    for picture in pictures:
        assert yellow(picture[:18]).sum() > 300  # the research line


def test_against_is_blue_and_support_red(tmp_path: Path) -> None:
    case = make_case(tmp_path, "axial")
    renderer = renderer_of(case)
    area = slice_area(renderer, case, renderer.render(21)).astype(int)
    blue = area[..., 2] - area[..., 0] > 15
    assert np.argwhere(blue)[:, 1].max() < area.shape[1] * 0.4  # the slab on the patient's right
    assert np.argwhere(red(area))[:, 1].min() > area.shape[1] * 0.5


def test_small_matrices_are_enlarged_and_large_ones_are_not(tmp_path: Path) -> None:
    small = renderer_of(make_case(tmp_path / "s")).layout
    assert small.scale == 10
    volume = nib.Nifti1Image(np.random.default_rng(0).integers(0, 900, (512, 460, 4), dtype=np.int16), np.eye(4))
    zeros = np.zeros(volume.shape, dtype=np.float32)
    large = renderer_of(make_case(tmp_path / "l", image=volume, weights=zeros, lesion=zeros)).layout
    assert large.scale == 1
    assert (large.width, large.left) == (512, 0)
    thin = np.zeros((320, 448, 12), dtype=np.int16)
    zeros = thin.astype(np.float32)
    case = make_case(tmp_path / "t", "coronal", nib.Nifti1Image(thin, np.eye(4)), weights=zeros, lesion=zeros)
    layout = renderer_of(case).layout
    assert layout.scale * case.geometry.rows >= 128


def test_window_spans_the_head(tmp_path: Path) -> None:
    flair = np.zeros((10, 20, 20), dtype=np.float32)
    flair[2:8, 5:15, 5:15] = np.linspace(100, 200, 600).reshape(6, 10, 10)
    low, high = brain_window(flair)
    assert low == pytest.approx(101, abs=2)
    assert high == pytest.approx(199, abs=2)
    assert brain_window(np.zeros((4, 4, 4), dtype=np.float32)) == (0.0, 1.0)


def test_top_region_is_the_connected_part_around_the_greatest_weight() -> None:
    weights = np.zeros((6, 8, 8), dtype=np.float32)
    weights[1:3, 1:3, 1:3] = 0.5
    weights[4, 6, 6] = 0.49  # near as strong, elsewhere
    weights[1:3, 1:3, 3:5] = 0.2
    assert np.array_equal(top_region(weights), weights == 0.5)
    with pytest.raises(ValueError, match="positive"):
        top_region(-weights)
