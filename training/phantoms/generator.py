"""Which phantoms are drawn: sets of choices, each kept once weights were judged by it, faults of the drawing apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Difficulty = Literal["plain", "hard"]
"""Names of the generators, see `GENERATORS`."""


@dataclass(frozen=True)
class Generator:
    """What differs between phantoms of one name and another.

    Attributes:
        ventricles: Range of the lateral ventricles' size: 0 is the atlas's, 0.5 is larger, -1 about half as wide.
        asymmetry: Standard deviation of what one of them is larger or smaller than that by nature.
        least_ml: The smallest lesion that is drawn, ml, infarcts apart.
        faint: Whether edema and core begin at `FAINTEST` times the brain; otherwise at 1.4 times gray matter.
        fat: Whether orbits and skull base hold fat up to 2.5 times as bright as the brain.
        measured_plaques: Whether plaques have the burden that was measured in patients; otherwise at most 7 ml.
        infarcts: Share of the heads with a lesion whose lesion is an infarct.
        deep: Whether lesions are as often deep (thalamus, basal ganglia, callosum) as in a stroke or tumour ward.
    """

    ventricles: tuple[float, float]
    least_ml: float
    asymmetry: float = 0.03
    faint: bool = False
    fat: bool = False
    measured_plaques: bool = False
    infarcts: float = 0.0
    deep: bool = False


GENERATORS: Final[dict[Difficulty, Generator]] = {
    "plain": Generator(ventricles=(0.0, 0.5), least_ml=10.0),
    "hard": Generator(
        ventricles=(-1.0, 0.5),
        asymmetry=0.1,
        least_ml=4.0,
        faint=True,
        fat=True,
        measured_plaques=True,
        infarcts=0.16,
        deep=True,
    ),
}
""""plain": the choices that demo weights 5 were trained and judged on. "hard": as hard as scanners were found to be.
A mass drew the septum towards itself for weights 5 to 7; their figures on such phantoms are comparable with each other
only."""
