"""The report as an Enhanced SR with root template TID 2000 (PS3.16 Basic Diagnostic Imaging Report).

Viewers that show TID 2000 descend into containers only, so nothing that a reader needs is nested below a TEXT or CODE
item, each finding is a container of its own, and text is hard-wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    EnhancedSR,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_io.content import codes
from dicom_io.content.context import ResultContext
from dicom_io.content.equipment import MANUFACTURER, MODEL_NAME
from dicom_io.content.report import (
    MODEL_LIMITS,
    RESEARCH_USE_LINE,
    ComparisonRecord,
    FindingRecord,
    MeasurementRecord,
    ModelIdentity,
    ReportContent,
    in_words,
    wrap,
)
from dicom_io.content.sources import InstanceReference, Sources
from dicom_io.objects.case import Case
from dicom_io.objects.kinds import SR
from dicom_io.objects.rules import Faults
from dicom_io.objects.sr_rules import report_faults
from dicom_io.volume.geometry import SeriesGeometry

TEMPLATE_ID = "2000"
CONTAINS = RelationshipTypeValues.CONTAINS
INFERRED_FROM = RelationshipTypeValues.INFERRED_FROM
HAS_CONCEPT_MOD = RelationshipTypeValues.HAS_CONCEPT_MOD
HAS_OBS_CONTEXT = RelationshipTypeValues.HAS_OBS_CONTEXT


def make(case: Case) -> list[Dataset]:
    """The report."""
    return [encode_sr(case.context, case.key_slices, case.predecessors)]


def faults(dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Faults:
    """What makes it no report of its sources."""
    del geometry
    yield from report_faults(dataset, sources.instances)


def encode_sr(
    context: ResultContext, key_slices: Sequence[int], predecessors: Sequence[InstanceReference] = ()
) -> EnhancedSR:
    """Build the report document.

    Args:
        context: What to say, and of which study.
        key_slices: Indices into the geometry's slices that illustrate the findings best.
        predecessors: Documents that this one replaces (PS3.3 C.17.2, Predecessor Documents Sequence).
    """
    document = EnhancedSR(
        evidence=evidence_headers(context),
        content=_root(context, key_slices),
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=list(context.sources.requests) or None,
        previous_versions=[_header_of(reference) for reference in predecessors] or None,
        coding_schemes=[_private_scheme()],
        **context.identification(SR),
    )
    context.finish(document)
    return document


def _private_scheme() -> CodingSchemeIdentificationItem:
    return CodingSchemeIdentificationItem(
        designator=codes.PRIVATE_SCHEME,
        name="BrainGemma3D for PACS, concepts that DICOM has no code for",
        version="1",
        responsible_organization="BrainGemma3D for PACS",
    )


def evidence_headers(context: ResultContext) -> list[Dataset]:
    """What highdicom reads of each source instance to list it as evidence."""
    headers = []
    for reference in context.sources.instances:
        header = _header_of(reference)
        header.update(context.sources.header)
        headers.append(header)
    return headers


def _header_of(reference: InstanceReference) -> Dataset:
    header = Dataset()
    header.SOPClassUID = reference.sop_class_uid
    header.SOPInstanceUID = reference.sop_instance_uid
    header.SeriesInstanceUID = reference.series_uid
    header.StudyInstanceUID = reference.study_uid
    return header


def _root(context: ResultContext, key_slices: Sequence[int]) -> ContainerContentItem:
    content = context.content
    root = ContainerContentItem(
        name=codes.DIAGNOSTIC_IMAGING_REPORT, is_content_continuous=False, template_id=TEMPLATE_ID
    )
    root.ContentSequence = ContentSequence(
        [
            CodeContentItem(codes.LANGUAGE, codes.ENGLISH, HAS_CONCEPT_MOD),
            *_observer(context),
            _container(codes.IMPRESSIONS_SECTION, _impression(content)),
            _container(codes.FINDINGS_SECTION, _findings(context, key_slices)),
            *([_container(codes.COMPARISON_SECTION, _comparison(content.comparison))] if content.comparison else []),
            _container(codes.CURRENT_PROCEDURE_DESCRIPTIONS, _procedure(content)),
        ],
        is_root=False,
    )
    return root


def _observer(context: ResultContext) -> Iterator[ContentItem]:
    """Observer context of a device: TID 1002 and TID 1004."""
    model = context.content.model
    yield CodeContentItem(codes.OBSERVER_TYPE, codes.DEVICE, HAS_OBS_CONTEXT)
    yield UIDRefContentItem(codes.DEVICE_OBSERVER_UID, context.device_uid, HAS_OBS_CONTEXT)
    for name, value in (
        (codes.DEVICE_OBSERVER_NAME, f"{model.name} {model.version}"),
        (codes.DEVICE_OBSERVER_MANUFACTURER, MANUFACTURER),
        (codes.DEVICE_OBSERVER_MODEL_NAME, MODEL_NAME),
        (codes.DEVICE_OBSERVER_SERIAL_NUMBER, model.weights_sha256[:12]),
    ):
        yield TextContentItem(name, value, HAS_OBS_CONTEXT)


def _impression(content: ReportContent) -> Iterator[ContentItem]:
    """What a reader must know first, in one text each, so that it fits a screen: what it is, what is in doubt, what."""
    yield _text(codes.IMPRESSION, "\n".join(line for line in (RESEARCH_USE_LINE, content.banner) if line))
    if content.warnings:
        yield _text(codes.IMPRESSION, "\n".join(f"Warning: {warning}" for warning in content.warnings))
    yield _text(codes.IMPRESSION, "\n".join([*content.impression(), *content.processed()]))


def _procedure(content: ReportContent) -> Iterator[ContentItem]:
    """How far it may be trusted, by which algorithm it was made (TID 4019), and how."""
    yield _text(codes.PROCEDURE_DESCRIPTION, RESEARCH_USE_LINE)
    yield _text(codes.PROCEDURE_DESCRIPTION, content.intended_use)
    yield _text(codes.PROCEDURE_DESCRIPTION, MODEL_LIMITS)
    if content.explain:
        said = f"Explanation (saliency of the draft's findings): {in_words(content.explain)}"
        yield _text(codes.PROCEDURE_DESCRIPTION, said)
    yield from _algorithm(content.model)


def _algorithm(model: ModelIdentity) -> Iterator[ContentItem]:
    yield _text(codes.ALGORITHM_NAME, f"{model.name} ({model.manufacturer})")
    yield _text(codes.ALGORITHM_VERSION, model.version)
    for name, value in sorted(model.parameters.items()):
        yield _text(codes.ALGORITHM_PARAMETERS, f"{name.replace('_', ' ')}: {in_words(value)}")
    yield _text(codes.ALGORITHM_PARAMETERS, f"weights SHA-256: {model.weights_sha256}")


def _findings(context: ResultContext, key_slices: Sequence[int]) -> Iterator[ContentItem]:
    content = context.content
    left = list(content.measurements)
    for record in content.findings:
        shares = record.presence == "present" and not content.edited  # the reader may mean another place
        of_it = [m for m in left if shares and codes.MEASURED_FINDINGS.get(m.name) == record.finding]
        left = [m for m in left if m not in of_it]
        yield _container(codes.FINDINGS_SECTION, [*_finding(record), *map(_measured, of_it)])
    for measured in left:
        yield _container(codes.FINDINGS_SECTION, _measurement(measured))
    narrative = _text(codes.FINDING, f"{RESEARCH_USE_LINE}\n\n{content.report_text}")
    narrative.ContentSequence = ContentSequence([_key_image(context, index) for index in key_slices], is_root=False)
    yield narrative


def _comparison(compared: ComparisonRecord) -> Iterator[ContentItem]:
    """What changed since an earlier result, in words and as values."""
    yield _text(codes.PREVIOUS_FINDING, "\n".join(compared.lines))
    for measured in compared.values:
        yield _container(codes.COMPARISON_SECTION, _measurement(measured))


def _key_image(context: ResultContext, index: int) -> ImageContentItem:
    reference = context.slice_reference(index)
    return ImageContentItem(
        name=codes.BEST_ILLUSTRATION,
        referenced_sop_class_uid=reference.ReferencedSOPClassUID,
        referenced_sop_instance_uid=reference.ReferencedSOPInstanceUID,
        referenced_frame_numbers=context.frame_numbers(index),
        relationship_type=INFERRED_FROM,
    )


def _finding(record: FindingRecord) -> Iterator[ContentItem]:
    yield CodeContentItem(codes.FINDING, codes.FINDINGS[record.finding], CONTAINS)
    yield CodeContentItem(codes.PRESENCE, codes.PRESENCES[record.presence], CONTAINS)
    if record.laterality is not None:
        yield CodeContentItem(codes.LATERALITY, codes.LATERALITIES[record.laterality], CONTAINS)
    for site in record.sites:
        yield CodeContentItem(codes.FINDING_SITE, codes.SITES[site], CONTAINS)
    if record.confidence is not None:
        yield NumContentItem(codes.CERTAINTY, round(100 * record.confidence, 1), codes.PERCENT, None, CONTAINS)


def _measurement(measured: MeasurementRecord) -> Iterator[ContentItem]:
    """One value with what and where it was measured."""
    site = codes.MEASURED_SITES.get(measured.name, codes.BRAIN)
    yield CodeContentItem(codes.FINDING_SITE, site, CONTAINS)
    if measured.laterality is not None:
        yield CodeContentItem(codes.LATERALITY, codes.LATERALITIES[measured.laterality], CONTAINS)
    yield _measured(measured)


def _measured(measured: MeasurementRecord) -> NumContentItem:
    """The value alone, said to be estimated by image processing: nobody measured it by hand (TID 1402, TID 1400)."""
    unit = Code(measured.unit, "UCUM", measured.unit)
    number = NumContentItem(codes.measurement(measured.name), measured.value, unit, None, CONTAINS)
    number.ContentSequence = ContentSequence(
        [
            CodeContentItem(codes.MEASUREMENT_METHOD, codes.IMAGE_PROCESSING, HAS_CONCEPT_MOD),
            CodeContentItem(codes.DERIVATION, codes.ESTIMATED, HAS_CONCEPT_MOD),
        ],
        is_root=False,
    )
    return number


def _text(name: Code, text: str) -> TextContentItem:
    return TextContentItem(name, wrap(text), CONTAINS)


def _container(name: Code, items: Iterable[ContentItem]) -> ContainerContentItem:
    container = ContainerContentItem(name=name, is_content_continuous=False, relationship_type=CONTAINS)
    container.ContentSequence = ContentSequence(list(items), is_root=False)
    return container
