"""Files that bring an image a second time: a resend, or a copy under a new SOP Instance UID.

Such files are set aside before geometry is judged, since "two images at one place" must mean two different images. A
second instance under a UID that is taken, with other pixels, is no repeat: it is set aside too, and named as that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicom_io import header
from dicom_io.reading import read_dataset

Read = tuple[Path, Dataset]

SAME_PLACE = ("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns")
SAME_KIND = ("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "InversionTime", "TriggerTime")


@dataclass(frozen=True)
class Repeat:
    """A file that is set aside.

    Attributes:
        path: The file.
        reason: What it repeats.
        series_uid: Its SeriesInstanceUID.
        other_pixels: Whether it has the UID of another instance, but not its pixels.
    """

    path: Path
    reason: str
    series_uid: str
    other_pixels: bool = False


def without_repeats(read: Iterable[Read]) -> tuple[list[Read], list[Repeat]]:
    """Keep one file of each image.

    Args:
        read: Paths and headers of any series; of several files with one image, or with one UID, the first is kept.

    Returns:
        The kept ones in their order, and the others.
    """
    kept, same_uid = _without_known_uids(read)
    return _without_copies(kept, same_uid)


def _without_known_uids(read: Iterable[Read]) -> tuple[list[Read], list[Repeat]]:
    first: dict[tuple[str, ...], Path] = {}
    kept: list[Read] = []
    repeats: list[Repeat] = []
    for path, dataset in read:
        key = tuple(header.uid(dataset, k) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
        if key not in first:
            first[key] = path
            kept.append((path, dataset))
            continue
        other = not _same_pixels(first[key], path)
        what = f"has SOP Instance UID {key[2]} of {first[key].name}, but other pixels" if other \
            else f"repeats SOP Instance UID {key[2]} of {first[key].name}"  # fmt: skip
        repeats.append(Repeat(path, what, key[1], other))
    return kept, repeats


def _same_pixels(one: Path, other: Path) -> bool:
    """Whether two files hold one picture; where they are encoded in two ways, as decoded."""
    with header.quiet("pydicom"):
        a, b = read_dataset(one), read_dataset(other)
        if header.value(a, "PixelData") == header.value(b, "PixelData"):
            return True
        if a.file_meta.TransferSyntaxUID == b.file_meta.TransferSyntaxUID:
            return False
        try:
            return bool(np.array_equal(a.pixel_array, b.pixel_array))
        except (*header.MALFORMED, RuntimeError):
            return False


def _without_copies(read: list[Read], repeats: list[Repeat]) -> tuple[list[Read], list[Repeat]]:
    """Of classic images at one place and of one kind, those with the same pixel bytes are one image."""
    places: dict[tuple[str, ...], list[Path]] = {}
    for path, dataset in read:
        if key := _place(dataset):
            places.setdefault(key, []).append(path)
    copies: dict[Path, Path] = {}
    for paths in places.values():
        if len(paths) > 1:
            copies.update(_copies(paths))
    uids = {path: header.uid(dataset, "SeriesInstanceUID") for path, dataset in read}
    reasons = [Repeat(p, f"holds the same image as {original.name}", uids[p]) for p, original in copies.items()]
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
            pixels = header.value(read_dataset(path), "PixelData") or b""
        original = first.setdefault(hashlib.sha256(pixels).digest(), path)
        if original != path:
            copies[path] = original
    return copies
