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
"""The top region of a map that does not say what is shown holds weights of at least this share of the greatest one."""
LEAST_SHARE, FULL_PERCENTILE = 0.4, 99
"""Of such a map: the share of full colour from which on there is colour, and the percentile that has full colour."""

VOLUME_TOLERANCE = 0.01
"""Share by which the lesion that is drawn may differ from the volume that is stated."""

FOREGROUND_SHARE = 0.1
"""A voxel counts as head where it reaches this share of the 99th percentile."""


@dataclass(frozen=True)
class MapDisplay:
    """What is shown of a saliency, as its explanation says: the same in whatever shows it.

    Attributes:
        limit: Weight of full colour, either way; 0 where nothing is coloured.
        least_share: Share of it below which nothing is coloured.
        labels_path: RAS NIfTI of labels, on the grid of the saliency.
        regions: Label and side of each region that is outlined, the strongest first.
    """

    limit: float
    least_share: float
    labels_path: Path
    regions: tuple[tuple[int, str], ...]


@dataclass(frozen=True, eq=False)
class Support:
    """A region that supports the draft most.

    Attributes:
        mask: (slices, rows, columns).
        side: Of the two that are shown, where there are two; else empty.
    """

    mask: BoolArray
    side: str = ""


@dataclass(frozen=True, eq=False)
class SourceVolumes:
    """The volumes of one case on the grid of its source slices.

    Attributes:
        flair: Intensities.
        saliency: Weights; positive supports the draft, negative speaks against it. None: no explanation.
        supports: The strongest region, of each side where the draft states both; none where nothing supports a finding.
        lesion: Mask of the estimated lesion, of the volume that the report states; None where there is none.
        no_support_reason: Why there are no `supports`, in words for the reader.
        limit: Weight of full colour.
        least_share: Share of it below which nothing is coloured.
        confirmed: Whether a finding stands as present: what the text states may be undetermined all the same.
        lesion_in_text: Whether a lesion stands as present among the findings, too.
    """

    flair: FloatArray
    saliency: FloatArray | None
    supports: tuple[Support, ...]
    lesion: BoolArray | None
    no_support_reason: str | None
    limit: float = 1.0
    least_share: float = LEAST_SHARE
    confirmed: bool = True
    lesion_in_text: bool = True

    @property
    def support(self) -> BoolArray | None:
        """All of `supports` as one mask; None where there are none."""
        return np.logical_or.reduce([region.mask for region in self.supports]) if self.supports else None

    def strength(self, index: int) -> FloatArray:
        """Share of full colour with the sign of the weight, (rows, columns) of a slice, 0 where nothing is coloured."""
        if self.saliency is None or not self.supports:
            return np.zeros(self.flair.shape[1:], np.float32)
        share = np.clip(self.saliency[index] / np.float32(max(self.limit, 1e-12)), -1, 1)
        return np.where(np.abs(share) >= self.least_share, share, np.float32(0))


def load_volumes(
    geometry: SeriesGeometry,
    content: ReportContent,
    volume_path: Path,
    saliency_path: Path | None,
    lesion_path: Path | None,
    display: MapDisplay | None = None,
) -> SourceVolumes:
    """Bring the RAS volumes onto the source grid.

    Saliency is constant within each supervoxel, so it is resampled without interpolation and keeps its exact weights;
    so are the labels of its regions, and the mask of the lesion, which keeps its volume.

    Args:
        geometry: Of the source series.
        content: What is said of it.
        volume_path: RAS NIfTI.
        saliency_path: RAS NIfTI; None: no explanation.
        lesion_path: RAS NIfTI; None: no lesion was measured.
        display: What is shown of the saliency; None: it does not say so, and the region around its peak is shown.

    Raises:
        PackError: the lesion's mask is of another volume than the report states.
    """
    flair = _on_source(volume_path, geometry, order=1)
    saliency = None if saliency_path is None else _on_source(saliency_path, geometry, order=0)
    reason = _no_support_reason(content, saliency)
    supports, limit = (), 1.0  # type: tuple[Support, ...], float
    if saliency is not None and reason is None:
        supports = _supports(saliency, geometry, display)
        limit = _limit(saliency) if display is None else display.limit
        reason = None if supports else NO_SUPPORT
    lesion = None
    if lesion_path is not None:  # whatever the text says: its volume is stated, and nobody should look for it in vain
        mask = _on_source(lesion_path, geometry, order=0) > 0
        _check_volume(mask, geometry, content)
        lesion = mask if mask.any() else None
    return SourceVolumes(
        flair,
        saliency,
        supports,
        lesion,
        reason,
        limit=limit,
        least_share=LEAST_SHARE if display is None else display.least_share,
        confirmed=not content.nothing_present,
        lesion_in_text=content.has_present("lesion"),
    )


def _on_source(path: Path, geometry: SeriesGeometry, order: int) -> FloatArray:
    return np.asarray(resample_to_source(nib.load(path), geometry, order=order), dtype=np.float32)


NO_SUPPORT = "No region supports the draft's findings: none is drawn."


def _no_support_reason(content: ReportContent, saliency: FloatArray | None) -> str | None:
    """Why no region is drawn.

    What the text states and nothing confirms has its region, with a word of that: a reader looks there first.
    """
    if content.nothing_present and not content.undetermined:
        return f"{content.nothing_present} No region is drawn."
    if saliency is None:
        return "No explanation was computed: no supporting region is drawn."
    if not (saliency > 0).any():
        return f"{content.nothing_present} No region is drawn." if content.nothing_present else NO_SUPPORT
    return None


def _supports(saliency: FloatArray, geometry: SeriesGeometry, display: MapDisplay | None) -> tuple[Support, ...]:
    if display is None:
        return (Support(top_region(saliency)),)
    labels = _on_source(display.labels_path, geometry, order=0)
    found = ((labels == label, side) for label, side in display.regions)
    named = len(display.regions) > 1
    return tuple(Support(mask, side if named else "") for mask, side in found if mask.any())


def _limit(saliency: FloatArray) -> float:
    """Weight of full colour of a map that does not say so: so high that one voxel cannot hide all others."""
    sizes = np.abs(saliency[saliency != 0])
    return float(np.percentile(sizes[:: max(1, sizes.size // 200_000)], FULL_PERCENTILE))


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
