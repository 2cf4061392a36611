"""The one table of result kinds: whoever makes, checks, sends, replaces, withdraws or lists results asks it.

A new kind is an entry here, a module that makes and checks its objects, and its test.
"""

from __future__ import annotations

from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_io.content.kind import ResultKind

SR = ResultKind(
    name="sr",
    meaning="The report: Enhanced SR of template TID 2000.",
    sop_class_uid=EnhancedSRStorage,
    modality="SR",
    series_number=9901,
    series_description="AI report - BrainGemma3D (research)",
    file_name="sr.dcm",
    by_default=True,
    replaced=False,
    withdrawn=False,
    made_by="dicom_io.objects.sr",
)

SC = ResultKind(
    name="sc",
    meaning="The overlay: one Secondary Capture image for each source slice.",
    sop_class_uid=SecondaryCaptureImageStorage,
    modality="OT",
    series_number=9902,
    series_description="AI overlay - BrainGemma3D (research)",
    file_name="sc/{}.dcm",
    by_default=True,
    replaced=True,
    withdrawn=True,
    made_by="dicom_io.objects.sc",
    own=frozenset({"SOPInstanceUID", "InstanceNumber", "ImagePositionPatient", "SourceImageSequence", "PixelData"}),
)

PM = ResultKind(
    name="pm",
    meaning="Parametric Map of the saliency; needs a saliency map and a Frame of Reference.",
    sop_class_uid=ParametricMapStorage,
    modality="OT",
    series_number=9903,
    series_description="AI map - BrainGemma3D (research)",
    file_name="pm.dcm",
    by_default=True,
    replaced=True,
    withdrawn=True,
    made_by="dicom_io.objects.pm",
)

SEG = ResultKind(
    name="seg",
    meaning="Segmentation of the supporting region and the lesion; needs one of them and a Frame of Reference.",
    sop_class_uid=SegmentationStorage,
    modality="SEG",
    series_number=9904,
    series_description="AI regions - BrainGemma3D (research)",
    file_name="seg.dcm",
    by_default=True,
    replaced=True,
    withdrawn=True,
    made_by="dicom_io.objects.seg",
)

TID1500 = ResultKind(
    name="tid1500",
    meaning="Comprehensive 3D SR with regions of interest, beside the report; needs a region.",
    sop_class_uid=Comprehensive3DSRStorage,
    modality="SR",
    series_number=9905,
    series_description="AI ROI SR - BrainGemma3D (research)",
    file_name="tid1500.dcm",
    by_default=False,
    replaced=True,
    withdrawn=True,
    made_by="dicom_io.objects.tid1500",
    needs=SR.name,
)

PDF = ResultKind(
    name="pdf",
    meaning="The report as a PDF, for viewers that do not show structured reports.",
    sop_class_uid=EncapsulatedPDFStorage,
    modality="DOC",
    series_number=9907,
    series_description="AI PDF - BrainGemma3D (research)",
    file_name="pdf.dcm",
    by_default=False,
    replaced=True,
    withdrawn=True,
    made_by="dicom_io.objects.pdf",
)

REJECTION = ResultKind(
    name="rejection",
    meaning="Key Object that withdraws the results of an earlier job (IHE RAD TF-2 4.66).",
    sop_class_uid=KeyObjectSelectionDocumentStorage,
    modality="KO",
    series_number=9906,
    series_description="AI replaced - BrainGemma3D (research)",
    file_name="rejection.dcm",
    by_default=False,
    replaced=False,
    withdrawn=False,
)

KINDS = (SR, SC, PM, SEG, TID1500, PDF, REJECTION)
"""All kinds in the order in which they are sent: the report first, what withdraws earlier results last."""

BY_NAME = {kind.name: kind for kind in KINDS}
