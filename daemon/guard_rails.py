"""Checks before the model: what a site wants done about a picture that does not look like a whole brain FLAIR."""

from __future__ import annotations

from pathlib import Path

from braingemma.checkpoint.weights import WeightsInfo
from braingemma.checks.domain import load_domain
from braingemma.checks.input import Check, check_input
from daemon.config.sections import Checks
from daemon.errors import Rejected


def check_picture(volume: Path, weights: WeightsInfo, wanted: Checks) -> tuple[Check, ...]:
    """Check a converted volume as `[checks]` asks.

    Args:
        volume: RAS NIfTI.
        weights: Whose training pictures it is held against.
        wanted: What is checked, and what a failure means.

    Returns:
        The checks that are switched on, failed ones included: they become warnings.

    Raises:
        Rejected: a check failed that the site wants to refuse by.
    """
    wishes = wanted.model_dump()
    if all(wish == "off" for wish in wishes.values()):
        return ()
    found = tuple(check for check in check_input(volume, load_domain(weights)) if wishes[check.name] != "off")
    refused = [check for check in found if check.passed is False and wishes[check.name] == "refuse"]
    if refused:
        why = " ".join(check.detail for check in refused)
        raise Rejected(f"refused before the model by [checks] {', '.join(check.name for check in refused)}: {why}")
    return found
