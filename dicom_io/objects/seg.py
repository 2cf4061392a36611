"""Segmentation of the regions that support the draft most and, where the weights ground it, of the estimated lesion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes as dictionary
from pydicom.sr.coding import Code

from dicom_io.content import codes
from dicom_io.content.context import ResultContext, as_lo
from dicom_io.content.regions import BoolArray, SourceVolumes
from dicom_io.content.sources import Sources
from dicom_io.objects.case import Case
from dicom_io.objects.kinds import SEG
from dicom_io.objects.rules import Faults, volume_faults
from dicom_io.volume.geometry import SeriesGeometry

RED, YELLOW = (55.0, 76.0, 60.0), (87.0, -2.0, 84.0)
"""CIELab. What supports the draft is red everywhere; the outline of the lesion must differ from it."""

SUPPORT_LABEL, LESION_LABEL = "Strongest support for the AI draft", "Lesion as estimated by AI"


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment: a mask on the source grid, and what it is.

    Attributes:
        mask: (slices, rows, columns).
        label: For the reader, at most 64 characters.
        category: Segmented property category (CID 7150).
        property_type: Segmented property type.
        colour: Recommended display colour, CIELab.
    """

    mask: BoolArray
    label: str
    category: Code
    property_type: Code
    colour: tuple[float, float, float]


def segments(volumes: SourceVolumes) -> tuple[Segment, ...]:
    """The segments that a case has, in the order of their numbers; none where nothing supports a finding."""
    return tuple(_segments(volumes))


def _segments(volumes: SourceVolumes) -> Iterator[Segment]:
    for region in volumes.supports:
        label = SUPPORT_LABEL + (f", {region.side}" if region.side else "")
        label = label if volumes.confirmed else f"{label}; nothing confirmed"
        yield Segment(region.mask, label, codes.SPATIAL_CONCEPT, codes.SELECTED_REGION, RED)
    if volumes.lesion is not None:
        label = LESION_LABEL if volumes.lesion_in_text else f"{LESION_LABEL}; the draft states none as present"
        yield Segment(volumes.lesion, label, codes.ABNORMAL_STRUCTURE, codes.LESION, YELLOW)


def make(case: Case) -> list[Dataset]:
    """The segmentation, where there is a segment and a Frame of Reference."""
    return [encode_seg(case.context, case.volumes)] if case.in_space and segments(case.volumes) else []


def faults(dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    """What puts it elsewhere than its source."""
    del sources
    yield from volume_faults(dataset, geometry)


def encode_seg(context: ResultContext, volumes: SourceVolumes) -> Segmentation:
    """Build the segmentation on the source grid.

    Raises:
        ValueError: there is no segment, or the source has no Frame of Reference, which a segmentation needs.
    """
    found = segments(volumes)
    if not found or context.geometry.frame_of_reference_uid is None:
        raise ValueError("segmentation: expected a segment and a source with a Frame of Reference")
    image = Segmentation(
        source_images=context.planes,
        pixel_array=np.stack([segment.mask for segment in found], axis=-1).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[_describe(context, number, segment) for number, segment in enumerate(found, start=1)],
        content_label="AI_REGIONS",
        content_description=context.content_description("Regions of an AI draft"),
        content_creator_name="",
        omit_empty_frames=True,
        **context.identification(SEG),
    )
    context.restore_references(image)
    context.finish(image)
    context.comment(image)
    return image


def _describe(context: ResultContext, number: int, segment: Segment) -> SegmentDescription:
    model = context.content.model
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.property_type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=as_lo(model.name),
            version=as_lo(model.version),
            family=dictionary.DCM.ArtificialIntelligence,
        ),
        tracking_uid=context.instance_uid("segment", number),
        tracking_id=f"BrainGemma3D segment {number}",
        anatomic_regions=[codes.BRAIN],
        display_color=CIELabColor(*segment.colour),
    )
