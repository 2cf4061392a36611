"""The saliency as a Parametric Map: the weights themselves, on the source grid, for software to read."""

from __future__ import annotations

import numpy as np
from highdicom.content import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.sr import CodedConcept
from pydicom import Dataset

from dicom_io.content import codes
from dicom_io.content.context import ResultContext
from dicom_io.content.regions import SourceVolumes
from dicom_io.content.sources import Sources
from dicom_io.objects.case import Case
from dicom_io.objects.kinds import PM
from dicom_io.objects.rules import Faults, volume_faults
from dicom_io.volume.geometry import SeriesGeometry


def _anatomy() -> Dataset:
    """What every frame shows (PS3.3 C.7.6.16.2.8), which highdicom leaves out and readers ask for."""
    item = Dataset()
    item.AnatomicRegionSequence = [CodedConcept.from_code(codes.BRAIN)]
    item.FrameLaterality = "U"  # unpaired
    return item


def _in_order(image: ParametricMap, geometry: SeriesGeometry) -> None:
    """Put the frames into the order of their places along the normal, in place.

    highdicom writes them the other way round where it sorts so. Readers that take the order of the frames for that of
    the places (dcmqi does) would show such a map mirrored: head for feet or, in sagittal series, left for right.
    """
    frames = list(image.PerFrameFunctionalGroupsSequence)
    places = [np.array(f.PlanePositionSequence[0].ImagePositionPatient, dtype=float) @ geometry.normal for f in frames]
    order = np.argsort(places, kind="stable")
    pixels = np.frombuffer(image.FloatPixelData, dtype="<f4").reshape(len(frames), -1)
    image.FloatPixelData = pixels[order].tobytes()
    image.PerFrameFunctionalGroupsSequence = [frames[k] for k in order]
    for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence, start=1):
        frame.FrameContentSequence[0].DimensionIndexValues = [number]


def make(case: Case) -> list[Dataset]:
    """The map, where there is a saliency and a Frame of Reference."""
    return [encode_pm(case.context, case.volumes)] if case.in_space and case.volumes.saliency is not None else []


def faults(dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    """What puts it elsewhere than its source."""
    del sources
    yield from volume_faults(dataset, geometry)


def encode_pm(context: ResultContext, volumes: SourceVolumes) -> ParametricMap:
    """Build the map: one float32 frame for each source slice.

    Raises:
        ValueError: there is no saliency, or the source has no Frame of Reference, which the map needs.
    """
    if volumes.saliency is None or context.geometry.frame_of_reference_uid is None:
        raise ValueError("parametric map: expected a saliency map and a source with a Frame of Reference")
    weights = volumes.saliency.astype(np.float32)
    limit = max(float(np.abs(weights).max()), 1e-6)
    mapping = RealWorldValueMapping(
        lut_label="SALIENCY",
        lut_explanation="Weight of the supervoxel: > 0 supports the draft",
        unit=codes.NO_UNITS,
        value_range=(float(weights.min()), float(weights.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.SALIENCY,
    )
    # LINEAR_EXACT: with LINEAR a window narrower than 1 would be illegal (PS3.3 C.11.2.1.2.1).
    window = VOILUTTransformation(window_center=0.0, window_width=2 * limit, voi_lut_function="LINEAR_EXACT")
    image = ParametricMap(
        source_images=context.planes,
        pixel_array=weights,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="SALIENCY",
        content_description=context.content_description("Saliency of an AI draft"),
        content_creator_name="",
        **context.identification(PM),
    )
    image.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy()]
    _in_order(image, context.geometry)
    context.restore_references(image)
    context.finish(image)
    context.comment(image)
    return image
