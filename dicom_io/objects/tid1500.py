"""Regions as a Comprehensive 3D SR of template TID 1500, for IHE AIR and 3D Slicer; never the only report.

Viewers show its polygons on the images but not the text of the report, which stands in the Enhanced SR.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from highdicom.seg import Segmentation
from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForRegion,
    SourceImageForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes as dictionary
from skimage.measure import find_contours

from dicom_io.content import codes
from dicom_io.content.context import ResultContext
from dicom_io.content.equipment import MANUFACTURER, MODEL_NAME
from dicom_io.content.regions import BoolArray, SourceVolumes, volume_ml
from dicom_io.content.report import RESEARCH_USE_LINE, wrap
from dicom_io.content.sources import Sources
from dicom_io.objects.case import Case
from dicom_io.objects.kinds import SEG, TID1500
from dicom_io.objects.rules import Faults
from dicom_io.objects.seg import Segment, segments
from dicom_io.objects.sr import evidence_headers
from dicom_io.objects.sr_rules import regions_faults
from dicom_io.volume.geometry import SeriesGeometry

TEMPLATE_ID = "1500"
CONTAINS = RelationshipTypeValues.CONTAINS


def make(case: Case) -> list[Dataset]:
    """The document, where there is a region."""
    if not segments(case.volumes):
        return []
    return [encode_tid1500(case.context, case.volumes, case.made.get(SEG.name))]


def faults(dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    """What makes it no document of regions in its sources."""
    del geometry
    yield from regions_faults(dataset, sources.instances)


def encode_tid1500(
    context: ResultContext, volumes: SourceVolumes, segmentation: Segmentation | None
) -> Comprehensive3DSR:
    """Build the document: a polygon for each region and, with a segmentation, a reference to its segment.

    Args:
        context: What to say, and of which study.
        volumes: Volumes on the source grid.
        segmentation: The pack's segmentation; None where it has none.

    Raises:
        ValueError: there is no region: viewers fail on such a document without coordinates.
    """
    found = segments(volumes)
    if not found:
        raise ValueError("TID 1500: expected at least one region, got none")
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(context)),
        procedure_reported=dictionary.LN.MRIUnspecifiedBodyRegion,
        imaging_measurements=list(_groups(context, found, segmentation)),
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(codes.ENGLISH),
    )
    evidence = [*evidence_headers(context), *([] if segmentation is None else [segmentation])]
    if context.content.warnings:
        report[0].ContentSequence.append(_evaluations(context))
    document = Comprehensive3DSR(
        evidence=evidence,
        content=report,
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=list(context.sources.requests) or None,
        **context.identification(TID1500),
    )
    context.finish(document)
    return document


def outline(mask: BoolArray) -> np.ndarray:
    """The outline of the largest part of a mask as a closed polygon, (n, 2) float: column, row.

    Coordinates are image-relative: (0.5, 0.5) is the centre of the first pixel (PS3.3 C.18.6.1.2).

    Args:
        mask: (rows, columns), not empty.
    """
    contours = find_contours(np.pad(mask, 1).astype(np.float64), 0.5)
    largest = max(contours, key=polygon_area) - 1  # undo the padding
    return np.asarray(largest[:, ::-1] + 0.5)


def polygon_area(points: np.ndarray) -> float:
    """Area inside a closed polygon, (n, 2) points of which the first comes again; in the square of their unit."""
    x, y = points.T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2


def _evaluations(context: ResultContext) -> ContainerContentItem:
    """What the reader must know of the case, as evaluations of the whole in text (TID 1500 rows 12 and 14)."""
    container = ContainerContentItem(name=codes.QUALITATIVE_EVALUATIONS, relationship_type=CONTAINS)
    said = (wrap(f"Warning: {warning}") for warning in context.content.warnings)
    container.ContentSequence = ContentSequence(
        [TextContentItem(codes.COMMENT, text, CONTAINS) for text in said], is_root=False
    )
    return container


def _observer(context: ResultContext) -> ObserverContext:
    model = context.content.model
    return ObserverContext(
        observer_type=codes.DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=context.device_uid,
            name=f"{model.name} {model.version}",
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=model.weights_sha256,
        ),
    )


def _groups(context: ResultContext, found: tuple[Segment, ...], segmentation: Segmentation | None) -> Iterator[Dataset]:
    for number, segment in enumerate(found, start=1):
        yield _planar(context, number, segment)
        if segmentation is not None:
            yield _volumetric(context, number, segment, segmentation)


def _planar(context: ResultContext, number: int, segment: Segment) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """Of the slice with most of the region, the largest part: what is drawn is what is measured."""
    index = int(segment.mask.sum(axis=(1, 2)).argmax())
    drawn = outline(segment.mask[index])
    region = ImageRegion(
        graphic_type="POLYLINE",  # closed: its first point comes again
        graphic_data=drawn,
        source_image=SourceImageForRegion(**_reference(context, index)),
    )
    area = polygon_area(drawn) * float(np.prod(context.geometry.pixel_spacing))
    measured = Measurement(name=dictionary.SCT.Area, value=round(area, 2), unit=dictionary.UCUM.SquareMillimeter)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=region, measurements=[measured], **_common(context, number, segment, "outline")
    )


def _volumetric(
    context: ResultContext, number: int, segment: Segment, segmentation: Segmentation
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    stated = context.content.lesion_volume if segment.property_type == codes.LESION else None
    volume = round(volume_ml(segment.mask, context.geometry), 2) if stated is None else stated.value
    shown = np.flatnonzero(segment.mask.any(axis=(1, 2)))
    sources = [SourceImageForSegmentation(**_reference(context, int(index))) for index in shown]
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_images=sources,
        ),
        measurements=[Measurement(name=codes.VOLUME, value=volume, unit=codes.MILLILITRE, derivation=codes.ESTIMATED)],
        **_common(context, number, segment, "volume"),
    )


def _reference(context: ResultContext, index: int) -> dict[str, Any]:
    source = context.geometry.slices[index]
    return {
        "referenced_sop_class_uid": source.sop_class_uid,
        "referenced_sop_instance_uid": source.sop_instance_uid,
        "referenced_frame_numbers": context.frame_numbers(index),
    }


def _parameters(context: ResultContext) -> Iterator[str]:
    """What decides the algorithm's output, and what it may not be used for: this template has no other place."""
    yield f"intended use: {RESEARCH_USE_LINE}"
    if context.content.banner:
        yield f"training: {context.content.banner}"
    yield f"weights SHA-256: {context.content.model.weights_sha256}"


def _common(context: ResultContext, number: int, segment: Segment, kind: str) -> dict[str, object]:
    model = context.content.model
    return {
        "tracking_identifier": TrackingIdentifier(
            uid=context.instance_uid(f"tracking {kind}", number), identifier=f"{segment.label} ({kind})"
        ),
        "finding_type": segment.property_type,
        "finding_sites": [FindingSite(anatomic_location=codes.BRAIN)],
        "algorithm_id": AlgorithmIdentification(
            name=model.name, version=model.version, parameters=list(_parameters(context))
        ),
    }
