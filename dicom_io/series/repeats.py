"""Files that bring an image a second time: a resend, or a copy under a new SOP Instance UID.

Such files are set aside before geometry is judged, since "two images at one place" must mean two different images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from dicom_io import header

Read = tuple[Path, Dataset]

SAME_PLACE = ("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns")
SAME_KIND = ("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "InversionTime", "TriggerTime")


def without_repeats(read: Iterable[Read]) -> tuple[list[Read], list[tuple[Path, str]]]:
    """Keep one file of each image.

    Args:
        read: Paths and headers of any series; of several files with one image the first is kept.

    Returns:
        The kept ones in their order, and (path, reason) of the others.
    """
    kept, same_uid = _without_known_uids(read)
    return _without_copies(kept, same_uid)


def _without_known_uids(read: Iterable[Read]) -> tuple[list[Read], list[tuple[Path, str]]]:
    first: dict[tuple[str, str], Path] = {}
    kept: list[Read] = []
    repeats: list[tuple[Path, str]] = []
    for path, dataset in read:
        key = (header.uid(dataset, "SeriesInstanceUID"), header.uid(dataset, "SOPInstanceUID"))
        if key in first:
            repeats.append((path, f"repeats SOP Instance UID {key[1]} of {first[key].name}"))
        else:
            first[key] = path
            kept.append((path, dataset))
    return kept, repeats


def _without_copies(read: list[Read], repeats: list[tuple[Path, str]]) -> tuple[list[Read], list[tuple[Path, str]]]:
    """Of classic images at one place and of one kind, those with the same pixel bytes are one image."""
    places: dict[tuple[str, ...], list[Path]] = {}
    for path, dataset in read:
        if key := _place(dataset):
            places.setdefault(key, []).append(path)
    copies: dict[Path, Path] = {}
    for paths in places.values():
        if len(paths) > 1:
            copies.update(_copies(paths))
    reasons = [(path, f"holds the same image as {original.name}") for path, original in copies.items()]
    return [pair for pair in read if pair[0] not in copies], [*repeats, *reasons]


def _place(dataset: Dataset) -> tuple[str, ...]:
    """Where a classic image lies and what sets it apart; empty where it does not say where it lies."""
    if header.is_multiframe(dataset) or not header.numbers(dataset, "ImagePositionPatient"):
        return ()
    return tuple(header.text(dataset, k) for k in (*SAME_PLACE, *SAME_KIND))


def _copies(paths: list[Path]) -> dict[Path, Path]:
    first: dict[bytes, Path] = {}
    copies: dict[Path, Path] = {}
    for path in paths:
        with header.quiet("pydicom"):
            pixels = header.value(pydicom.dcmread(path), "PixelData") or b""
        original = first.setdefault(hashlib.sha256(pixels).digest(), path)
        if original != path:
            copies[path] = original
    return copies
