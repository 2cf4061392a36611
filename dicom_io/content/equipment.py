"""Recognise our own objects when a PACS sends them back."""

from __future__ import annotations

from pydicom import Dataset

MANUFACTURER = "BrainGemma3D for PACS"
"""Manufacturer of every object that we make, and of our item in its Contributing Equipment Sequence."""

MODEL_NAME = "BrainGemma3D research report"
"""Manufacturer's Model Name, likewise."""

TELLING = ("Manufacturer", "ManufacturerModelName", "ContributingEquipmentSequence")
"""The attributes by which `is_own_result` judges."""


def is_own_result(dataset: Dataset) -> bool:
    """Whether an instance was made by this software, judged by its header alone.

    A PACS that coerces the equipment of what it stores leaves the Contributing Equipment Sequence, and the other way
    round: either is enough.

    Args:
        dataset: Header of an instance; no pixel data needed.
    """
    return any(_is_ours(item) for item in (dataset, *(dataset.get("ContributingEquipmentSequence") or ())))


def _is_ours(equipment: Dataset) -> bool:
    manufacturer = str(equipment.get("Manufacturer") or "").strip()
    model = str(equipment.get("ManufacturerModelName") or "").strip()
    return manufacturer == MANUFACTURER and model == MODEL_NAME
