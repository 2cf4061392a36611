"""What the volumes say, on the grid of the source slices: window, supporting region, lesion estimate, midline.

Arrays are source arrays of shape (slices, rows, columns) in the order of the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom_io.content.report import ReportContent
from dicom_io.errors import PackError
from dicom_io.volume.geometry import SeriesGeometry
from dicom_io.volume.nifti import resample_to_source

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

TOP_SHARE = 0.9
"""The top supporting region holds weights of at least this share of the greatest one."""

VOLUME_TOLERANCE = 0.01
"""Share by which the lesion that is drawn may differ from the volume that is stated."""

FOREGROUND_SHARE = 0.1
"""A voxel counts as head where it reaches this share of the 99th percentile."""


@dataclass(frozen=True, eq=False)
class SourceVolumes:
    """The volumes of one case on the grid of its source slices.

    Attributes:
        flair: Intensities.
        saliency: Weights; positive supports the draft, negative speaks against it. None: no explanation.
        support: Mask of the top supporting region; None where nothing supports a finding.
        lesion: Mask of the estimated lesion, of the volume that the report states; None where there is none.
        no_support_reason: Why `support` is None, in words for the reader.
        lesion_in_text: Whether a lesion stands as present among the findings, too.
    """

    flair: FloatArray
    saliency: FloatArray | None
    support: BoolArray | None
    lesion: BoolArray | None
    no_support_reason: str | None
    lesion_in_text: bool = True


def load_volumes(
    geometry: SeriesGeometry,
    content: ReportContent,
    volume_path: Path,
    saliency_path: Path | None,
    lesion_path: Path | None,
) -> SourceVolumes:
    """Bring the RAS volumes onto the source grid.

    Saliency is constant within each supervoxel, so it is resampled without interpolation and keeps its exact weights;
    so is the mask of the lesion, which keeps its volume.

    Raises:
        PackError: the lesion's mask is of another volume than the report states.
    """
    flair = _on_source(volume_path, geometry, order=1)
    saliency = None if saliency_path is None else _on_source(saliency_path, geometry, order=0)
    reason = _no_support_reason(content, saliency)
    support = top_region(saliency) if saliency is not None and reason is None else None
    lesion = None
    if lesion_path is not None:  # whatever the text says: its volume is stated, and nobody should look for it in vain
        mask = _on_source(lesion_path, geometry, order=0) > 0
        _check_volume(mask, geometry, content)
        lesion = mask if mask.any() else None
    return SourceVolumes(flair, saliency, support, lesion, reason, lesion_in_text=content.has_present("lesion"))


def _on_source(path: Path, geometry: SeriesGeometry, order: int) -> FloatArray:
    return np.asarray(resample_to_source(nib.load(path), geometry, order=order), dtype=np.float32)


def _no_support_reason(content: ReportContent, saliency: FloatArray | None) -> str | None:
    if content.nothing_present:
        return f"{content.nothing_present} No region is drawn."
    if saliency is None:
        return "No explanation was computed: no supporting region is drawn."
    if not (saliency > 0).any():
        return "No region supports the draft's findings: none is drawn."
    return None


def top_region(saliency: FloatArray) -> BoolArray:
    """The connected region around the greatest weight, with weights of at least 90 % of it.

    Raises:
        ValueError: no weight is positive.
    """
    peak = float(saliency.max())
    if not peak > 0:
        raise ValueError(f"top region: expected a positive weight, got at most {peak}")
    labels, _ = ndimage.label(saliency >= TOP_SHARE * peak)
    return np.asarray(labels == labels[np.unravel_index(int(saliency.argmax()), saliency.shape)])


def volume_ml(mask: BoolArray, geometry: SeriesGeometry) -> float:
    """Volume of a mask on the source grid, ml."""
    return float(mask.sum()) * float(np.prod(geometry.pixel_spacing)) * geometry.slice_spacing / 1000


def _check_volume(mask: BoolArray, geometry: SeriesGeometry, content: ReportContent) -> None:
    """What is drawn is what is stated: a reader who measures the segment finds the report's number."""
    drawn, stated = volume_ml(mask, geometry), content.lesion_volume
    if stated is None or abs(drawn - stated.value) > max(VOLUME_TOLERANCE * drawn, 0.1):
        said = "none" if stated is None else f"{stated.value} {stated.unit}"
        raise PackError(f"lesion: expected the volume of its mask, {drawn:.1f} mL, to be stated, got {said}")


def brain_window(flair: FloatArray) -> tuple[float, float]:
    """Intensities shown as black and as white: 1st and 99th percentile of the head."""
    head = flair[_foreground(flair)]
    if head.size == 0:
        return float(flair.min()), float(flair.min()) + 1
    low, high = (float(v) for v in np.percentile(head[:: max(1, head.size // 200_000)], (1, 99)))
    return low, max(high, low + 1e-6)


def head_middle(flair: FloatArray, geometry: SeriesGeometry) -> float:
    """Place of the middle of the head along the normal of the slices, mm, as `slice_place` has it.

    The middle of its extent, not its centre of mass: a bright or missing part on one side must not move it.
    """
    head = np.cumsum(_foreground(flair).sum(axis=(1, 2)))
    if head[-1] == 0:
        head = np.arange(1, flair.shape[0] + 1)
    ends = np.searchsorted(head, [0.01 * head[-1], 0.99 * head[-1]])
    return (slice_place(geometry, int(ends[0])) + slice_place(geometry, int(ends[1]))) / 2


def slice_place(geometry: SeriesGeometry, index: int) -> float:
    """Place of a slice along the normal of the slices, mm from the plane through the scanner's centre."""
    return float(np.array(geometry.slices[index].position, dtype=np.float64) @ geometry.normal)


def key_slices(volumes: SourceVolumes) -> tuple[int, ...]:
    """The slices that show best what supports the findings, at most three; the middle one where nothing does."""
    shown = volumes.lesion if volumes.lesion is not None else volumes.support
    if shown is None:
        return (volumes.flair.shape[0] // 2,)
    area = shown.sum(axis=(1, 2))
    best = [int(k) for k in np.argsort(-area, kind="stable")[:3] if area[k] > 0]
    return tuple(sorted(best))


def _foreground(flair: FloatArray) -> BoolArray:
    sample = flair[:: max(1, flair.shape[0] // 32), ::2, ::2]
    return np.asarray(flair > FOREGROUND_SHARE * np.percentile(sample, 99))
