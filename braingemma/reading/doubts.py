"""What the text says, held against the image classifier, the lesion map, the second look and the measured ventricles.

Each doubt names who disagrees about what. A wrong side is the worst error: whoever can tell a side is compared with the
text, "bilateral" against one side included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from braingemma.explain.grounding import LIKELY, LesionEstimate
from braingemma.findings.vocabulary import COMPRESSION, OTHER_SIDE, Finding, Laterality
from braingemma.measure.sizes import Measured, signed_shift, ventricles
from braingemma.reading.second_look import LesionLook

Witness = Literal["classifier", "lesion map", "second look", "measurement", "calibration"]
Probabilities = Mapping[str, Mapping[str, Any]]

OWN_SHARE: Final = 0.5
"""A text that names one side is doubted where the map shows less than this share of the lesion there."""
NARROWED: Final = 0.85
"""A ventricle that is said to be narrowed is smaller than this share of the other one; errors of both allowed for."""
MUCH_SMALLER: Final = (0.5, 0.65, 2.0)
"""One is surely narrowed below the first share of the other, and below the second with a shift of so many mm."""
STEPS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Steps in which a probability is printed: what calibration on drawn heads carries on real scanners is coarse, and no
finding of a model is certain."""


@dataclass(frozen=True)
class Doubt:
    """One disagreement.

    Attributes:
        finding: Of which finding.
        witness: Who disagrees with the text.
        about: What about.
        text: The warning, a sentence.
    """

    finding: str
    witness: Witness
    about: Literal["presence", "side"]
    text: str


def printed(probability: float) -> float:
    """The step nearest to a probability."""
    return min(STEPS, key=lambda step: abs(step - probability))


def _next_step(probability: float) -> float:
    """The lowest step above a probability: what may be said to be more than it."""
    return next((step for step in STEPS if step > probability), 1.0)


def doubts(
    findings: Sequence[Finding],
    probabilities: Probabilities | None,
    look: LesionLook | None,
    measured: Sequence[Measured] = (),
) -> tuple[Doubt, ...]:
    """All disagreements with the text.

    Args:
        findings: What the text says.
        probabilities: Of the findings head, as `BrainGemma3D.finding_probabilities` gives them for one volume; None:
            the weights have none.
        look: The lesion map; None: the weights have none.
        measured: Midline shift and ventricles' volumes, where they could be measured.
    """
    found = [d for f in findings for d in _by_classifier(f, (probabilities or {}).get(f.finding))]
    lesion = next((f for f in findings if f.finding == "lesion"), None)
    if lesion is not None and look is not None:
        found += _by_map(lesion, look)
    compression = next((f for f in findings if f.finding == COMPRESSION), None)
    if compression is not None:
        found += _by_measurement(compression, measured)
    return tuple(found)


def with_verdicts(
    findings: Sequence[Finding],
    probabilities: Probabilities | None,
    look: LesionLook | None,
    measured: Sequence[Measured] = (),
    chance: Mapping[Any, float] | None = None,
) -> list[Finding]:
    """The findings with the classifier's printed probability; "undetermined" where all who can tell deny the text.

    The lesion has two witnesses, classifier and map; compression has the classifier and, where both ventricles were
    measured and one can be held against the other, their volumes; the other findings have the classifier. A presence
    that is more likely wrong than right by `chance` (see `braingemma.reading.chance`) is undetermined too. Side and
    sites stay as the text states them. What is undetermined has no probability: the classifier's would be that of the
    text's word, which does not stand beside it any more.
    """
    doubted = doubts(findings, probabilities, look, measured)
    result = []
    for finding in findings:
        witnesses = {"classifier"} if finding.finding in (probabilities or {}) else set()
        witnesses |= {"lesion map"} if finding.finding == "lesion" and look is not None else set()
        witnesses |= {"measurement"} if _measurable(finding, measured) else set()
        against = {d.witness for d in doubted if d.finding == finding.finding and d.about == "presence"}
        unlikely = (chance or {}).get((finding.finding, "presence"), 0.0) > 0.5
        denied = (bool(witnesses) and witnesses <= against) or unlikely
        sure = stated_probability(finding, (probabilities or {}).get(finding.finding))
        result.append(
            replace(
                finding,
                presence="undetermined" if denied else finding.presence,
                confidence=None if sure is None or denied else printed(sure),
            )
        )
    return result


def stated_probability(finding: Finding, known: Mapping[str, Any] | None) -> float | None:
    """The classifier's probability that the finding is as the text says; None where either says nothing."""
    if known is None:
        return None
    present = float(known["presence"])
    return {"present": present, "absent": 1 - present}.get(finding.presence)


def side_probability(finding: Finding, known: Mapping[str, Any] | None) -> float | None:
    """The classifier's probability that both sides are as the text says, as if they were independent."""
    if known is None or finding.laterality is None:
        return None
    left, right = float(known["left"]), float(known["right"])
    side = finding.laterality
    return (left if side != "right" else 1 - left) * (right if side != "left" else 1 - right)


def _by_classifier(finding: Finding, known: Mapping[str, Any] | None) -> list[Doubt]:
    sure = stated_probability(finding, known)
    if known is None or sure is None:
        return []
    name = finding.finding.replace("_", " ")
    if sure < 0.5:
        text = (
            f"The text calls {name} {finding.presence}, but the image classifier gives that less than "
            f"{_next_step(sure):.0%}: read with care."
        )
        return [Doubt(finding.finding, "classifier", "presence", text)]
    seen = _classifier_side(known)
    if finding.presence != "present" or None in (finding.laterality, seen) or finding.laterality == seen:
        return []
    text = f"The text places {name} {_on(finding.laterality)}, but the image classifier {_on(seen)}: check the side."
    return [Doubt(finding.finding, "classifier", "side", text)]


def _classifier_side(known: Mapping[str, Any]) -> Laterality | None:
    left, right = known["left"] >= 0.5, known["right"] >= 0.5
    if left and right:
        return "bilateral"
    return "left" if left else "right" if right else None


def _on(side: Laterality | None) -> str:
    return "on both sides" if side == "bilateral" else f"on the {side}"


def _by_map(lesion: Finding, look: LesionLook) -> list[Doubt]:
    if lesion.presence == "present":
        return _stated_lesion(lesion, look)
    denied = lesion.presence == "absent"
    if look.certainty == "likely":
        said = "The text denies a lesion, but" if denied else "The text leaves open whether there is a lesion;"
        text = f"{said} the lesion map shows {_what(look.first)}: read with care."
        return [Doubt("lesion", "lesion map", "presence", text)]
    if look.certainty == "possible":
        said = "denies a lesion" if denied else "leaves open whether there is a lesion"
        text = (
            f"The text {said}, and the lesion map shows none; with brightness stretched (second look) it shows a "
            f"possible one, {_what(look.second)}: look for a faint lesion."
        )
        return [Doubt("lesion", "second look", "presence", text)]
    return []


def _what(estimate: LesionEstimate) -> str:
    size = "less than 1 ml" if estimate.volume_ml < 1 else f"about {estimate.volume_ml:.0f} ml"
    return f"one of {size} {_on(estimate.laterality)}"


def _stated_lesion(lesion: Finding, look: LesionLook) -> list[Doubt]:
    found = []
    if look.certainty == "possible":
        text = (
            "The text states a lesion, but the lesion map shows it only with brightness stretched (second look): "
            "it may be faint, or not there."
        )
        found.append(Doubt("lesion", "second look", "presence", text))
    elif look.certainty == "none":
        above = (math.floor(100 * look.first.peak) + 1) / 100
        text = (
            f"The text states a lesion, but the lesion map stays below {above:.2f} everywhere, and shows one from "
            f"{LIKELY:.2f} on: read with care."
        )
        found.append(Doubt("lesion", "lesion map", "presence", text))
    estimate = look.estimate
    if look.certainty != "none" and lesion.laterality and _other_side(lesion.laterality, estimate):
        text = (
            f"The text places the lesion {_on(lesion.laterality)}, but the lesion map {_on(estimate.laterality)}: "
            "check the side."
        )
        found.append(Doubt("lesion", "lesion map", "side", text))
    return found


def _other_side(stated: Laterality, estimate: LesionEstimate) -> bool:
    """Whether the map's side contradicts the stated one; a little on the other side does not."""
    if estimate.laterality is None or estimate.left_share is None or stated == estimate.laterality:
        return False
    own = {"left": estimate.left_share, "right": 1 - estimate.left_share}.get(stated)
    return own is None or own < OWN_SHARE


def _measurable(finding: Finding, measured: Sequence[Measured]) -> bool:
    """Whether the ventricles' volumes can tell for or against: of what is said of both, or of neither, they cannot."""
    if finding.finding != COMPRESSION or len(ventricles(measured)) < 2:
        return False
    return finding.presence == "absent" or finding.laterality in ("left", "right")


def _by_measurement(compression: Finding, measured: Sequence[Measured]) -> list[Doubt]:
    """Compression as stated against the ventricles' volumes, allowing for errors of both."""
    if not _measurable(compression, measured):
        return []
    size = ventricles(measured)
    smaller: Laterality = "left" if size["left"] < size["right"] else "right"
    larger = OTHER_SIDE[smaller]
    share = size[smaller] / max(size[larger], 0.1)
    seen = f"{size['left']:.1f} ml left and {size['right']:.1f} ml right"
    side = compression.laterality
    if compression.presence == "absent":
        shift = signed_shift(measured)
        much, less, moved = MUCH_SMALLER
        if share < much or (share < less and shift is not None and abs(shift) >= moved):
            beside = "" if shift is None else f", with a midline shift of {abs(shift):.1f} mm"
            text = (
                f"The text denies ventricular compression, but the ventricles measure {seen}{beside}: "
                f"look at the {smaller} ventricle."
            )
            return [Doubt(COMPRESSION, "measurement", "presence", text)]
    elif side == larger and share < MUCH_SMALLER[0]:
        text = f"The text calls the {side} ventricle compressed, but the ventricles measure {seen}: check the side."
        return [Doubt(COMPRESSION, "measurement", "side", text)]
    elif side == larger or share > NARROWED:
        text = f"The text calls the {side} ventricle compressed, but the ventricles measure {seen}: read with care."
        return [Doubt(COMPRESSION, "measurement", "presence", text)]
    return []
