"""The overlay as RGB Secondary Capture images: one single-frame instance for each source slice, in one series.

Secondary Capture has no Frame of Reference module; with its geometry an instance is of a Standard Extended SOP Class
(PS3.2 7.3), which viewers need for orientation letters, reference lines and synchronised scrolling. A source without a
Frame of Reference gives pictures with spacing and orientation letters only: positions would mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.content import codes
from dicom_io.content.context import ResultContext, decimals, orthonormal
from dicom_io.content.received_text import holds_received_bytes
from dicom_io.content.regions import SourceVolumes
from dicom_io.content.sources import Sources
from dicom_io.objects.case import Case
from dicom_io.objects.kinds import SC
from dicom_io.objects.overlay import OverlayRenderer, direction_letters
from dicom_io.objects.rules import Faults, orientation_faults, value_faults
from dicom_io.volume.geometry import SeriesGeometry


def make(case: Case) -> Iterator[Dataset]:
    """One overlay for each source slice."""
    return encode_sc(case.context, case.volumes)


def faults(dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    """What a picture must say of itself, and where it lies."""
    del sources
    yield from value_faults(
        dataset,
        {
            "FrameOfReferenceUID": geometry.frame_of_reference_uid,
            "PhotometricInterpretation": "RGB",
            "BurnedInAnnotation": "YES",
            "ConversionType": "WSD",
            "BodyPartExamined": "BRAIN",
        },
    )
    if geometry.frame_of_reference_uid is not None:
        yield from orientation_faults(dataset.get("ImageOrientationPatient"), geometry)


def encode_sc(context: ResultContext, volumes: SourceVolumes) -> Iterator[Dataset]:
    """Build the overlay instances, in the order of the geometry's slices."""
    renderer = OverlayRenderer(context.geometry, volumes, context.content)
    shared = _shared(context, renderer)
    common = _encoded(context, shared)
    for index, picture in enumerate(renderer):
        image = _instance(context, renderer, index, common)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = shared.file_meta.TransferSyntaxUID
        image.file_meta.ImplementationClassUID = shared.file_meta.ImplementationClassUID
        image.file_meta.ImplementationVersionName = shared.file_meta.ImplementationVersionName
        image.add_new("PixelData", "OB", picture.tobytes())
        yield image


def _shared(context: ResultContext, renderer: OverlayRenderer) -> SCImage:
    """What all instances have in common: building it once takes most of the time out of a pack."""
    image = SCImage.from_ref_dataset(
        ref_dataset=context.sources.header,
        pixel_array=renderer.render(0),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # overwritten below: highdicom takes single letters only
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **context.identification(SC),
    )
    image.update({element.tag: element for element in context.sources.patient_and_study()})
    _describe(context, image)
    _orient(context, renderer, image)
    context.finish(image)
    return image


def _encoded(context: ResultContext, shared: SCImage) -> dict[BaseTag, DataElement | RawDataElement]:
    """What all instances share, as bytes: each is then written as it is, and not encoded again for each slice.

    Texts that are to go out as received bytes are not, as they are no UTF-8 (`received_text`).
    """
    if holds_received_bytes(context.sources.header):
        return {element.tag: element for element in shared if element.keyword not in SC.own}
    file = BytesIO()
    shared.save_as(file, enforce_file_format=True)
    file.seek(0)
    read = dcmread(file, stop_before_pixels=True)
    return {tag: read.get_item(tag) for tag in read.keys() if keyword_for_tag(tag) not in SC.own}  # noqa: SIM118


def _instance(
    context: ResultContext, renderer: OverlayRenderer, index: int, common: dict[BaseTag, DataElement | RawDataElement]
) -> Dataset:
    """One instance without its pixels.

    Setting an attribute changes a data element that is there already, so only what all share may be in `common`.
    """
    image = Dataset()
    image.update(common)
    image.set_original_encoding(False, True, image._character_set)  # of `common`, which is then not encoded again
    image.SOPInstanceUID = context.instance_uid(SC.name, index)
    image.InstanceNumber = index + 1
    if context.geometry.frame_of_reference_uid:
        image.ImagePositionPatient = decimals(renderer.layout.position(context.geometry, index))
    source = context.slice_reference(index)
    source.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.SOURCE_IMAGE)]
    image.SourceImageSequence = [source]
    return image


def _describe(context: ResultContext, image: Dataset) -> None:
    image.ConversionType = "WSD"
    image.BurnedInAnnotation = "YES"
    image.ImageType = ["DERIVED", "SECONDARY", "OVERLAY"]
    image.DerivationDescription = "Saliency of an AI draft report, drawn over the source slice"
    context.comment(image)
    if context.content.face_removed:
        image.RecognizableVisualFeatures = "NO"
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in context.sources.header:
            image[keyword] = context.sources.header[keyword]


def _orient(context: ResultContext, renderer: OverlayRenderer, image: Dataset) -> None:
    geometry, layout = context.geometry, renderer.layout
    along_row, along_column = geometry.orientation[:3], geometry.orientation[3:]
    image.PatientOrientation = [direction_letters(along_row), direction_letters(along_column)]
    image.PixelSpacing = decimals(layout.pixel_spacing(geometry))
    if geometry.frame_of_reference_uid:
        image.ImageOrientationPatient = decimals(orthonormal(geometry.orientation))
        image.SliceThickness = decimals([geometry.slice_spacing])[0]
        image.FrameOfReferenceUID = geometry.frame_of_reference_uid
        image.PositionReferenceIndicator = context.sources.header.get("PositionReferenceIndicator", "")
