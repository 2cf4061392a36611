"""What a measurement is: a name, a number with its unit, a side, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from braingemma.findings.vocabulary import OTHER_SIDE, Laterality

MIDLINE_SHIFT: Final = "midline_shift"
VENTRICLES: Final[Mapping[Laterality, str]] = {"left": "ventricle_volume_left", "right": "ventricle_volume_right"}
"""The volume of the lateral ventricle of each side."""


@dataclass(frozen=True)
class Measured:
    """One measurement, as an entry of `measurements` in `report.json`.

    Attributes:
        name: `MIDLINE_SHIFT`, or one of `VENTRICLES`.
        value: In `unit`, at least 0.
        unit: UCUM: "mm" or "mL".
        method: How it was measured, in words.
        laterality: The side that is measured; of a shift, the side to which the septum moved, None where it did not.
    """

    name: str
    value: float
    unit: str
    method: str
    laterality: Laterality | None = None

    def mirrored(self) -> Self:
        """The same of the head seen in a mirror."""
        names = {VENTRICLES["left"]: VENTRICLES["right"], VENTRICLES["right"]: VENTRICLES["left"]}
        side = OTHER_SIDE.get(self.laterality, self.laterality)
        return replace(self, name=names.get(self.name, self.name), laterality=side)

    def to_json(self) -> dict[str, Any]:
        """As in `report.json`."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry of `measurements`."""
        return cls(**{key: entry[key] for key in ("name", "value", "unit", "method", "laterality")})


def shift(millimetres: float, method: str) -> Measured:
    """A midline shift from its signed size: above 0 towards the patient's right."""
    value = round(abs(millimetres), 1)
    side: Laterality | None = None if not value else "right" if millimetres > 0 else "left"
    return Measured(MIDLINE_SHIFT, value, "mm", method, side)


def signed_shift(measured: Sequence[Measured]) -> float | None:
    """The midline shift, mm, above 0 towards the patient's right; None where it was not measured."""
    found = next((m for m in measured if m.name == MIDLINE_SHIFT), None)
    if found is None:
        return None
    return -found.value if found.laterality == "left" else found.value


def ventricle(side: Laterality, millilitres: float, method: str) -> Measured:
    """The volume of one side's lateral ventricle."""
    return Measured(VENTRICLES[side], round(millilitres, 1), "mL", method, side)


def ventricles(measured: Sequence[Measured]) -> dict[Laterality, float]:
    """Volume of each side's lateral ventricle, ml; without what was not measured."""
    return {side: m.value for side, name in VENTRICLES.items() for m in measured if m.name == name}
