"""The other rows of the card's table: models that are judged beside ours, each from a local checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from training.errors import SettingsError
from training.evaluation.reporters import Reporter

BASELINES: Final = ("medgemma-2d", "med3dvlm")


def load_baseline(
    name: str, folder: Path, *, slices: int | None = None, trust_remote_code: bool = False, device: str = "auto"
) -> Reporter:
    """A baseline's model, ready to write reports.

    Args:
        name: One of `BASELINES`.
        folder: Its checkpoint, on this machine.
        slices: Pictures of each volume that MedGemma is shown; None: its default.
        trust_remote_code: Whether code that lies in the folder may run; Med3DVLM cannot do without.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        SettingsError: no such baseline, no such folder, another architecture, or code that was not allowed.
    """
    if name not in BASELINES:
        raise SettingsError(f"baseline must be one of {', '.join(BASELINES)}, got {name!r}")
    if not (folder / "config.json").is_file():
        raise SettingsError(f"{folder}: expected a checkpoint folder with config.json")
    if name == "medgemma-2d":
        from training.evaluation.baselines.medgemma_2d import SLICES, MedGemma2D

        return MedGemma2D(folder, slices=SLICES if slices is None else slices, device=device)
    if slices is not None:
        raise SettingsError(f"{name} reads whole volumes: slices are for medgemma-2d alone")
    from training.evaluation.baselines.med3dvlm import Med3DVLM

    return Med3DVLM(folder, trust_remote_code=trust_remote_code, device=device)
