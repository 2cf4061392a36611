"""Coded concepts of the results. Codes come from pydicom's copy of PS3.16 wherever it holds them.

Concepts that PS3.16 lacks stand in a private scheme, `99BRAINGEMMA3D`, which every object that uses it declares in
its Coding Scheme Identification Sequence (PS3.3 C.12.1.1, PS3.16 8.2).
"""

from __future__ import annotations

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99BRAINGEMMA3D"

# Document and sections (CID 7000, CID 7001)
DIAGNOSTIC_IMAGING_REPORT: Code = codes.LN.DiagnosticImagingReport
COMPARISON_SECTION: Code = codes.LN.PreviousFindings  # LOINC 18834-2: radiology comparison study
CURRENT_PROCEDURE_DESCRIPTIONS: Code = codes.LN.CurrentProcedureDescriptions
FINDINGS_SECTION: Code = codes.LN.Findings
IMPRESSIONS_SECTION: Code = codes.LN.Impressions
SECTIONS: tuple[Code, ...] = (IMPRESSIONS_SECTION, FINDINGS_SECTION, CURRENT_PROCEDURE_DESCRIPTIONS)

# Elements of a section (CID 7002)
PROCEDURE_DESCRIPTION: Code = codes.DCM.ProcedureDescription
FINDING: Code = codes.DCM.Finding
IMPRESSION: Code = codes.DCM.Impression
PREVIOUS_FINDING: Code = codes.DCM.PreviousFinding

# Context (TID 1204, TID 1002, TID 1004, TID 4019)
LANGUAGE: Code = codes.DCM.LanguageOfContentItemAndDescendants
ENGLISH = Code("en", "RFC5646", "English")
OBSERVER_TYPE: Code = codes.DCM.ObserverType
DEVICE: Code = codes.DCM.Device
DEVICE_OBSERVER_UID: Code = codes.DCM.DeviceObserverUID
DEVICE_OBSERVER_NAME: Code = codes.DCM.DeviceObserverName
DEVICE_OBSERVER_MANUFACTURER: Code = codes.DCM.DeviceObserverManufacturer
DEVICE_OBSERVER_MODEL_NAME: Code = codes.DCM.DeviceObserverModelName
DEVICE_OBSERVER_SERIAL_NUMBER: Code = codes.DCM.DeviceObserverSerialNumber
ALGORITHM_NAME: Code = codes.DCM.AlgorithmName
ALGORITHM_VERSION: Code = codes.DCM.AlgorithmVersion
ALGORITHM_PARAMETERS: Code = codes.DCM.AlgorithmParameters

# What is said of a finding
FINDING_SITE: Code = codes.SCT.FindingSite
LATERALITY: Code = codes.SCT.Laterality
PRESENCE: Code = codes.DCM.PresenceOfProperty
CERTAINTY: Code = codes.DCM.CertaintyOfFinding
VOLUME: Code = codes.SCT.Volume
MEASUREMENT_METHOD: Code = codes.SCT.MeasurementMethod
IMAGE_PROCESSING: Code = codes.DCM.ImageProcessing
DERIVATION: Code = codes.DCM.Derivation
ESTIMATED: Code = codes.SCT.Estimated
PERCENT: Code = codes.UCUM.Percent
MILLILITRE = Code("ml", "UCUM", "ml")
NO_UNITS: Code = codes.UCUM.NoUnits

# References to images
BEST_ILLUSTRATION: Code = codes.DCM.BestIllustrationOfFinding
SOURCE_IMAGE: Code = codes.DCM.SourceImageForImageProcessingOperation
SELECTED_REGION: Code = codes.DCM.SelectedRegion
SALIENCY: Code = codes.DCM.Saliency
SPATIAL_CONCEPT: Code = codes.SCT.SpatialAndRelationalConcept
ABNORMAL_STRUCTURE: Code = codes.SCT.MorphologicallyAbnormalStructure
LESION: Code = codes.SCT.Lesion
BRAIN: Code = codes.SCT.Brain
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT: Code = codes.DCM.Comment
PROCESSING_EQUIPMENT: Code = codes.DCM.ProcessingEquipment

PRESENCES: dict[str, Code] = {
    "present": codes.SCT.Present,
    "absent": codes.SCT.Absent,
    "undetermined": codes.SCT.Undetermined,
}
LATERALITIES: dict[str, Code] = {
    "left": codes.SCT.Left,
    "right": codes.SCT.Right,
    "bilateral": codes.SCT.Bilateral,
}
SITES: dict[str, Code] = {
    "frontal": codes.SCT.FrontalLobe,
    "parietal": codes.SCT.ParietalLobe,
    "temporal": codes.SCT.TemporalLobe,
    "occipital": codes.SCT.OccipitalLobe,
    "insula": codes.SCT.Insula,
    "cerebellum": codes.SCT.Cerebellum,
    "brainstem": codes.SCT.BrainStem,
    "thalamus": codes.SCT.Thalamus,
    "corpus callosum": codes.SCT.CorpusCallosum,
    "ventricle": codes.SCT.BrainVentricle,
    "white matter": codes.SCT.CerebralWhiteMatter,
}
FINDINGS: dict[str, Code] = {
    "lesion": codes.SCT.Lesion,
    "edema": codes.SCT.Edema,
    "necrosis": codes.SCT.Necrosis,
    "mass": codes.SCT.Mass,
    "hemorrhage": codes.SCT.Hemorrhage,
    "cyst": codes.SCT.Cyst,
    "white_matter_hyperintensity": codes.DCM.WhiteMatterT2Hyperintensity,
    "ventricular_compression": Code("VENTRICULAR_COMP", PRIVATE_SCHEME, "Ventricular compression"),
    "mass_effect": Code("MASS_EFFECT", PRIVATE_SCHEME, "Mass effect"),
    "midline_shift": Code("MIDLINE_SHIFT", PRIVATE_SCHEME, "Midline shift"),
}


MEASUREMENTS: dict[str, Code] = {
    "earlier_lesion_volume": codes.SCT.Volume,
    "lesion_volume_change": Code("VOLUME_CHANGE", PRIVATE_SCHEME, "Change of lesion volume"),
    "change_uncertainty": Code("CHANGE_95", PRIVATE_SCHEME, "Smallest change that is told from none (95 %)"),
    "lesion_volume": codes.SCT.Volume,
    "midline_shift": Code("MIDLINE_SHIFT", PRIVATE_SCHEME, "Midline shift"),
    "ventricle_volume_left": codes.SCT.Volume,
    "ventricle_volume_right": codes.SCT.Volume,
}
"""What is measured, by the name that it has in a report."""
MEASURED_FINDINGS = {"lesion_volume": "lesion"}
"""The finding that a measurement belongs to, where that is present."""
MEASURED_SITES: dict[str, Code] = {
    "ventricle_volume_left": codes.SCT.LateralVentricle,
    "ventricle_volume_right": codes.SCT.LateralVentricle,
}
"""Where it is measured, if not in the brain as a whole."""


def measurement(name: str) -> Code:
    """The concept of a measurement; one without a code gets a private one that is made of its name."""
    if name in MEASUREMENTS:
        return MEASUREMENTS[name]
    meaning = name.replace("_", " ").strip()
    return Code(name.upper()[:16], PRIVATE_SCHEME, meaning[:1].upper() + meaning[1:64])
