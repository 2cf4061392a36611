"""How far a picture is from those that weights were trained on, in a few features that a person can check.

The distance is Mahalanobis' (1936): each feature in units of its spread over the training pictures, their correlations
taken into account. It does not say that a picture near by is reported well; one far off was never seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from braingemma.checkpoint.weights import WeightsInfo, read_json
from braingemma.errors import CheckpointError

Float = npt.NDArray[np.float64]

FILE = "domain.json"
"""Beside weights: what they were trained on."""
PHANTOMS = Path(__file__).parents[1] / "weights" / "phantom_domain.json"
"""What weights that state `synthetic_only` were trained on: our phantoms."""
LEAST_SPREAD = 0.02
"""Smallest spread of a feature: below it, training pictures differ by chance only."""


@dataclass(frozen=True)
class Domain:
    """Features of training pictures.

    Attributes:
        name: What the pictures were, in words.
        count: How many were measured.
        features: Names of the features.
        mean: (F,) their mean.
        covariance: (F, F) their covariance.
    """

    name: str
    count: int
    features: tuple[str, ...]
    mean: Float
    covariance: Float

    @classmethod
    def measure(cls, name: str, pictures: Sequence[Mapping[str, float]]) -> Domain:
        """The domain of pictures, each given by the same features.

        Raises:
            ValueError: fewer than three pictures for each feature.
        """
        features = tuple(pictures[0]) if pictures else ()
        if not features or len(pictures) < 3 * len(features):
            raise ValueError(f"a domain of {len(features)} features needs {3 * len(features)} pictures or more")
        values = np.array([[picture[f] for f in features] for picture in pictures], dtype=np.float64)
        return cls(name, len(pictures), features, values.mean(axis=0), np.cov(values, rowvar=False))

    def distance(self, picture: Mapping[str, float]) -> tuple[float, str]:
        """(distance in standard deviations, name of the feature that lies farthest off by itself).

        Raises:
            CheckpointError: the picture lacks a feature of this domain, which is of another version.
        """
        absent = [f for f in self.features if f not in picture]
        if absent:
            raise CheckpointError(f"{FILE}: expected features {', '.join(picture)}, got also {', '.join(absent)}")
        off = np.array([picture[f] for f in self.features]) - self.mean
        covariance = self.covariance + LEAST_SPREAD**2 * np.eye(len(self.features))
        squared = float(off @ np.linalg.solve(covariance, off))
        worst = int(np.argmax(np.abs(off) / np.sqrt(np.diag(covariance))))
        return float(np.sqrt(max(0.0, squared))), self.features[worst]

    def save(self, path: Path) -> None:
        """Write it; `load_domain` reads it where it lies beside weights as `domain.json`."""
        facts = {
            "name": self.name,
            "count": self.count,
            "features": list(self.features),
            "mean": np.round(self.mean, 5).tolist(),
            "covariance": np.round(self.covariance, 7).tolist(),
        }
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_domain(weights: WeightsInfo) -> Domain | None:
    """What weights were trained on; None where they do not say.

    Raises:
        CheckpointError: the file beside them is not what `Domain.save` writes.
    """
    path = weights.folder / FILE
    if not path.exists():
        if not weights.synthetic_only:
            return None
        path = PHANTOMS
    facts = read_json(path)
    try:
        features = tuple(str(f) for f in facts["features"])
        mean, covariance = (np.array(facts[k], dtype=np.float64) for k in ("mean", "covariance"))
        domain = Domain(str(facts["name"]), int(facts["count"]), features, mean, covariance)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected name, count, features, mean and covariance: {error}") from error
    if mean.shape != (len(features),) or covariance.shape != (len(features),) * 2:
        raise CheckpointError(f"{path}: expected mean and covariance of {len(features)} features, got {mean.shape}")
    return domain
