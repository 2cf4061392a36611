"""One brain mask: by the nets, by what has no skull, by the fallback; sides, normalised files, nothing but the disk."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from braingemma.configuration import VolumeSettings
from braingemma.errors import VolumeError
from braingemma.volume.brain import NOTHING_FOUND, BrainMask, above_background, find_brain
from braingemma.volume.peeling import peel_brain
from braingemma.volume.preprocess import FALLBACK, prepare_image
from training.phantoms.phantom import make_phantom

SMALL = VolumeSettings(grid=(16, 32, 28))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def voxels(image: nibabel.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj, np.float32)


def scored(values: np.ndarray) -> np.ndarray:
    """Scaled to a mean of 0 and a deviation of 1 over what is not 0, which stays the background."""
    inside = values != 0
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), np.float32(0))


@pytest.fixture(scope="module")
def head() -> nibabel.Nifti1Image:
    return make_phantom(900_002, spacing=(2.0, 2.0, 4.0), stripped=False).volume


@pytest.fixture(scope="module")
def stripped() -> nibabel.Nifti1Image:
    return make_phantom(900_002, spacing=(3.0, 3.0, 4.0), stripped=True).volume


@pytest.mark.nets
def test_the_nets_find_the_brain_of_a_head_and_of_its_mirror_image(head) -> None:
    spacing = head.header.get_zooms()
    straight, mirrored = (find_brain(v, spacing) for v in (voxels(head), voxels(head)[::-1]))
    assert straight is not None
    assert mirrored is not None
    assert (straight.method, mirrored.method) == ("deepbet", "deepbet")
    assert dice(straight.mask, mirrored.mask[::-1]) > 0.97
    peeled = peel_brain(voxels(head), np.array(spacing, float))
    assert peeled is not None
    assert dice(straight.mask, peeled) > 0.93
    assert 1000 < straight.volume_ml < 2000


@pytest.mark.nets
def test_the_nets_need_neither_a_screen_nor_a_network() -> None:
    code = (
        "import socket, sys; sys.modules |= {'tkinter': None, 'customtkinter': None}; socket.socket.connect = None;"
        "from braingemma.volume.brain import _nets; assert _nets() is _nets()"
    )
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True)


def test_the_fallback_is_named(head) -> None:
    prepared = prepare_image(head, SMALL)
    assert prepared.extraction == "peeling"
    assert prepared.facts()["brain_extraction"] == "peeling"
    assert FALLBACK.format(failure=NOTHING_FOUND) in prepared.warnings


@pytest.mark.nets
def test_nets_that_fail_are_not_said_to_have_found_nothing(head, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_model(_volume: np.ndarray) -> np.ndarray:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\n you tried 8 GB")

    monkeypatch.setattr("braingemma.volume.brain._nets", lambda: SimpleNamespace(run_model=run_model, postprocess=None))
    monkeypatch.setattr("braingemma.volume.brain._KNOWN", OrderedDict())
    [warning] = [w for w in prepare_image(head, SMALL).warnings if "deepbet" in w]
    assert "failed (DefaultCPUAllocator: can't allocate memory: you tried 8 GB): a simpler method" in warning


@pytest.mark.parametrize("lowest", [-1.7, -1000.0, 300.0])
def test_the_background_of_a_normalised_file_is_no_brain(stripped, lowest: float) -> None:
    """Files scaled to a mean of 0 have their background at the lowest value, some at one that is above 0."""
    raw = voxels(stripped)
    scaled = raw / np.float32(raw.max()) + np.float32(lowest)
    found = find_brain(scaled, stripped.header.get_zooms())
    assert found is not None
    assert found.stripped
    assert (found.mask == (raw > raw.min())).mean() > 0.999
    assert above_background(scaled).min() == 0
    as_it_came, normalised = (
        prepare_image(nibabel.Nifti1Image(v, stripped.affine), SMALL).tensor for v in (raw, scaled)
    )
    assert float((as_it_came - normalised).abs().max()) < 0.02


@pytest.mark.parametrize("moved", [0.0, 5.0])
def test_a_stripped_brain_that_was_scaled_around_zero_is_its_own_mask(stripped, moved: float) -> None:
    """As training sets have them: the background of 0 lies among the brain's values."""
    raw = voxels(stripped)
    raw = np.where(raw > raw.min(), raw, 0)
    found = find_brain(scored(raw) + np.float32(moved), stripped.header.get_zooms())
    assert found is not None
    assert found.stripped
    assert (found.mask == (raw > 0)).mean() > 0.9999
    as_it_came, normalised = (
        prepare_image(nibabel.Nifti1Image(v, stripped.affine), SMALL).tensor for v in (raw, scored(raw))
    )
    assert float((as_it_came - normalised).abs().max()) < 0.02


def test_a_large_brain_that_came_stripped_needs_no_nets() -> None:
    large = make_phantom(8_100_000, spacing=4.0, stripped=True).volume
    found = find_brain(voxels(large), large.header.get_zooms())
    assert found is not None
    assert found.volume_ml > 2000
    assert found.stripped


@pytest.mark.parametrize("kind", ["below 0", "around 0", "around 5", "around 0 and padded"])
def test_a_head_that_was_normalised_keeps_its_skull_out(head, kind: str) -> None:
    """The air around a head, zeroed by the scanner and then moved, is neither brain nor "came stripped"."""
    raw = voxels(head)
    zeroed = np.where(raw < 0.12 * np.percentile(raw, 99), 0, raw)
    moved, spacing = (zeroed - 250) / 90, head.header.get_zooms()
    if kind == "around 0 and padded":
        moved = np.pad(moved, [(9, 9)] * 3)
    elif kind != "below 0":
        moved = scored(zeroed) + np.float32(kind.split()[1])
    found, other = find_brain(zeroed, spacing), find_brain(moved.astype(np.float32), spacing)
    assert found is not None
    assert other is not None
    assert not found.stripped
    assert not other.stripped
    mask = other.mask[9:-9, 9:-9, 9:-9] if "padded" in kind else other.mask
    # Where it is lost how far above the air the darkest were, they become as dark as it: peeling sees that.
    assert dice(found.mask, mask) > {"below 0": 0.99, "around 0 and padded": 0.97}.get(kind, 0.9)


def test_a_mask_that_is_given_is_used(stripped) -> None:
    given = np.zeros(stripped.shape, bool)
    given[10:30, 12:40, 8:24] = True
    prepared = prepare_image(stripped, SMALL, brain=BrainMask.of(given, stripped.header.get_zooms()))
    assert prepared.extraction == "given"
    assert (prepared.brain == given).all()
    assert prepared.brain_volume_ml == pytest.approx(given.sum() * 36 / 1000)
    with pytest.raises(VolumeError, match="expected a brain mask of shape"):
        prepare_image(stripped, SMALL, brain=BrainMask.of(given[1:], (3, 3, 4)))
