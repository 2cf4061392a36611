"""Ventricles and midline, measured on phantoms whose truth is known, and in their mirror images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from braingemma.measure.brain import BrainMeasures, measure_brain
from braingemma.measure.sizes import Measured, shift, signed_shift, ventricles
from training.phantoms.phantom import Phantom, make_phantom, mirror

CASES = (
    (7300205, "hard", (2.2, 2.2, 5.0)),
    (7300241, "plain", (2.0, 2.0, 5.0)),
    (7300206, "hard", (2.5, 2.5, 2.5)),
)
"""Lesion, mass effect and slices differ: (seed, difficulty, voxels)."""


@lru_cache(maxsize=4)
def drawn(number: int) -> Phantom:
    seed, difficulty, spacing = CASES[number]
    return make_phantom(seed, difficulty=difficulty, spacing=spacing)  # type: ignore[arg-type]


def measured(phantom: Phantom, brightness: float = 1.0) -> BrainMeasures:
    assert phantom.extracted is not None
    volume = np.asarray(phantom.volume.dataobj, np.float32) * np.float32(brightness)
    return measure_brain(volume, phantom.extracted, phantom.volume.affine[:3, :3])


def truth(phantom: Phantom) -> tuple[Measured, ...]:
    return tuple(Measured.from_json(entry) for entry in phantom.truth["measurements"])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_shift_and_ventricles_are_those_drawn(number: int) -> None:
    found, true = measured(drawn(number)).measured, truth(drawn(number))
    assert abs(signed_shift(found) - signed_shift(true)) < 1.5  # type: ignore[operator]
    for side, size in ventricles(true).items():
        assert ventricles(found)[side] == pytest.approx(size, rel=0.25)


def test_the_mirrored_head_gives_the_mirrored_measurements() -> None:
    shifted = next(p for p in map(drawn, range(len(CASES))) if abs(signed_shift(truth(p))) > 1.8)  # type: ignore[arg-type]
    seen, mirrored = measured(shifted), measured(mirror(shifted))
    back = tuple(m.mirrored() for m in mirrored.measured)
    assert signed_shift(back) == pytest.approx(signed_shift(seen.measured), abs=0.7)
    assert np.sign(signed_shift(truth(mirror(shifted)))) == np.sign(signed_shift(mirrored.measured))  # type: ignore[arg-type]
    for side, size in ventricles(seen.measured).items():
        assert ventricles(back)[side] == pytest.approx(size, rel=0.1)


def test_brightness_does_not_change_a_size() -> None:
    once, thrice = measured(drawn(2)), measured(drawn(2), 1000.0)
    assert ventricles(thrice.measured)["left"] == pytest.approx(ventricles(once.measured)["left"], rel=0.02)


def test_what_is_not_dark_is_not_measured() -> None:
    phantom = drawn(2)
    assert phantom.extracted is not None
    volume = np.asarray(phantom.volume.dataobj, np.float32).copy()
    middle = np.median(volume[phantom.extracted])
    volume[phantom.extracted] = np.maximum(volume[phantom.extracted], 0.9 * middle)
    found = measure_brain(volume, phantom.extracted, phantom.volume.affine[:3, :3])
    assert not found.measured
    assert {u.name for u in found.unmeasured} == {"midline_shift", "ventricle_volume_left", "ventricle_volume_right"}
    assert all(u.reason for u in found.unmeasured)


def test_a_cut_field_of_view_is_not_measured() -> None:
    phantom = drawn(2)
    assert phantom.extracted is not None
    volume = np.asarray(phantom.volume.dataobj, np.float32)
    inside = np.flatnonzero(phantom.extracted.any(axis=(0, 1)))
    stop = int(inside[0] + 0.5 * (inside[-1] - inside[0]))
    found = measure_brain(
        np.ascontiguousarray(volume[..., :stop]), phantom.extracted[..., :stop], phantom.volume.affine[:3, :3]
    )
    assert not found.measured
    assert len(found.unmeasured) == 3


def test_a_shift_is_a_size_and_a_side() -> None:
    assert (shift(-2.34, "x").value, shift(-2.34, "x").laterality) == (2.3, "left")
    assert shift(2.34, "x").laterality == "right"
    assert shift(0.01, "x").laterality is None
    assert signed_shift([shift(-2.34, "x")]) == -2.3
