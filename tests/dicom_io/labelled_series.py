"""Series headers with the label that a neuroradiologist would give: vendors' naming habits, timings and traps.

Names, image types and timings follow vendors' conformance statements and published protocols; no patient's header is
among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from dicom_io.series.group import Series

SIEMENS = {"Manufacturer": "SIEMENS", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]}
GE = {"Manufacturer": "GE MEDICAL SYSTEMS", "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]}
PHILIPS = {"Manufacturer": "Philips Medical Systems", "ImageType": ["ORIGINAL", "PRIMARY", "M_IR", "M", "IR"]}
CANON = {"Manufacturer": "CANON_MEC", "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]}
TOSHIBA = {"Manufacturer": "TOSHIBA_MEC", "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]}
HITACHI = {"Manufacturer": "Hitachi Medical Corporation", "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]}
UIH = {"Manufacturer": "UIH", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}
HYPERFINE = {"Manufacturer": "Hyperfine Research", "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"]}

IR = {"ScanningSequence": ["SE", "IR"]}
PHILIPS_IR = {"ScanningSequence": "IR"}
SE = {"ScanningSequence": "SE"}
GR = {"ScanningSequence": "GR"}
EP = {"ScanningSequence": "EP"}


@dataclass(frozen=True)
class Labelled:
    """A series and whether it is a brain FLAIR that can be reported."""

    name: str
    flair: bool
    series: Series


@dataclass(frozen=True)
class Stack:
    """Slices of a made-up acquisition."""

    slices: int = 25
    every_mm: float = 5.5
    side_mm: float = 230.0
    pixels: int = 320
    plane: str = "axial"


WHOLE_2D = Stack()
WHOLE_3D = Stack(64, 2.5, 256.0, 256, "sagittal")
CORONAL = Stack(32, 5.0, 220.0, 288, "coronal")
LOW_FIELD = Stack(36, 5.0, 220.0, 112)
ORIENTATIONS = {"axial": [1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1], "coronal": [1, 0, 0, 0, 0, -1]}
NORMALS = {"axial": (0, 0, 1), "sagittal": (-1, 0, 0), "coronal": (0, 1, 0)}


def timing(ti: float | None, te: float | None, tr: float | None) -> dict[str, Any]:
    values = {"InversionTime": ti, "EchoTime": te, "RepetitionTime": tr}
    return {k: v for k, v in values.items() if v is not None}


def make(name: str, flair: bool, *parts: dict[str, Any], stack: Stack = WHOLE_2D, **more: Any) -> Labelled:
    """A classic series with these header values."""
    values: dict[str, Any] = {"SeriesDescription": name}
    for part in (*parts, more):
        values |= part
    first = _header(values, stack, 0)
    return Labelled(name, flair, _series([first, *(_further_slice(first, stack, i) for i in range(1, stack.slices))]))


def make_enhanced(
    name: str, flair: bool, *, ti: tuple[float, ...], te: float, tr: float, contrast: str, frame_type: list[str],
    stack: Stack = WHOLE_3D, **more: Any,
) -> Labelled:  # fmt: skip
    """An Enhanced MR series: everything physical in functional groups."""
    whole = _header({"SeriesDescription": name, "ImageType": frame_type, **more}, stack, 0)
    whole.SOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames = stack.slices
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=whole.PixelSpacing)]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=whole.ImageOrientationPatient)]
    shared.MRTimingAndRelatedParametersSequence = [_item(RepetitionTime=tr)]
    shared.MREchoSequence = [_item(EffectiveEchoTime=te)]
    recovery = {"InversionRecovery": "YES" if ti else "NO"} | ({"InversionTimes": list(ti)} if ti else {})
    shared.MRModifierSequence = [_item(**recovery)]
    shared.MRImageFrameTypeSequence = [_item(FrameType=frame_type, AcquisitionContrast=contrast)]
    whole.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(stack.slices):
        frame = Dataset()
        frame.PlanePositionSequence = [_item(ImagePositionPatient=_position(stack, index))]
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = frames
    del whole.ImagePositionPatient, whole.ImageOrientationPatient, whole.PixelSpacing
    return Labelled(f"enhanced {name}", flair, _series([whole]))


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _position(stack: Stack, index: int) -> list[float]:
    return [round(-100 + n * stack.every_mm * index, 4) for n in NORMALS[stack.plane]]


def _header(values: dict[str, Any], stack: Stack, index: int) -> Dataset:
    header = Dataset()
    header.SOPClassUID = MRImageStorage
    header.SOPInstanceUID = f"1.2.3.4.{index + 1}"
    header.SeriesInstanceUID, header.StudyInstanceUID, header.FrameOfReferenceUID = "1.2.3.4", "1.2.3", "1.2.5"
    header.Modality, header.PatientID, header.InstanceNumber = "MR", "P1", index + 1
    header.Rows = header.Columns = stack.pixels
    header.PixelSpacing = [stack.side_mm / stack.pixels] * 2
    header.ImageOrientationPatient = ORIENTATIONS[stack.plane]
    header.ImagePositionPatient = _position(stack, index)
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


def _further_slice(first: Dataset, stack: Stack, index: int) -> Dataset:
    """Elements that are the same in all slices are held once: there are a thousand series of them."""
    header = Dataset()
    header.update(first)
    header.add_new("SOPInstanceUID", "UI", f"1.2.3.4.{index + 1}")
    header.add_new("InstanceNumber", "IS", index + 1)
    if "ImagePositionPatient" in first:
        header.add_new("ImagePositionPatient", "DS", _position(stack, index))
    return header


def _series(headers: list[Dataset]) -> Series:
    files = tuple(Path(f"/folder/{i}.dcm") for i in range(len(headers)))
    return Series("1.2.3.4", "1.2.3", headers[0].get("Modality", ""), Path("/folder"), files, tuple(headers))


SIEMENS_FLAIRS = (
    "t2_tirm_tra_dark-fluid_4mm", "t2_tirm_tra_dark-fluid FS", "t2_flair_tra", "AX FLAIR", "t2_tirm_cor_dark-fluid",
    "T2 FLAIR TRA", "FLAIR_tra_fs", "t2_blade_tra_dark-fluid", "tirm_tra_dark-fluid_320", "ep2d_flair_tra",
    "t2_tse_dark-fluid_tra_p2", "Flair axial post", "t2_flair_tra_KM", "FLAIR tra nach KM", "T2 TIRM DARK FLUID AX",
    "*t2_tirm_tra_dark fluid", "DarkFluid_tra", "T2 darkfluid", "tra Flair 3mm", "t2_tirm_sag_darkfluid",
)  # fmt: skip
SIEMENS_3D = (
    "t2_space_dark-fluid_sag_p2_iso", "t2_spc_da-fl_sag_p2_iso", "t2_spc_flair_sag", "SAG 3D FLAIR SPACE",
    "t2_spc_ns_sag_p2_da-fl", "3D FLAIR CS SPACE", "FLAIR_SPACE_sag_iso1.0", "t2_space_flair_sag_p2_ns-t2prep",
    "sag 3d flair post gd", "3D-FLAIR", "T2 SPACE FLAIR +C", "Sagittal T2 SPACE FLAIR",
)  # fmt: skip
GE_FLAIRS = (
    "Ax T2 FLAIR", "AX FLAIR", "Ax FLAIR FS", "Ax T2 FLAIR +C", "AX FLAIR POST", "OAx T2 FLAIR", "Ax FLAIR PROPELLER",
    "Ax T2 FLAIR FSE", "AX T2-FLAIR", "T2flair ax", "COR T2 FLAIR", "Ax T2 Flair Propeller fs", "AXIAL FLAIR GAD",
    "FLAIR LONG TR", "Ax Flair T2 PROP", "AX T2 FLAIR 5/1", "s Ax FLAIR", "AX T2 FLR", "Ax T2W FLAIR",
    "O-Ax T2 FLAIR RT", "AIR Recon DL Ax T2 FLAIR",
)  # fmt: skip
GE_3D = ("Sag CUBE FLAIR", "Sag 3D T2 FLAIR CUBE", "CUBE T2 FLAIR FS", "Sag CUBE T2 FLAIR +C", "3D FLAIR CUBE")
PHILIPS_FLAIRS = (
    "FLAIR_TRA", "T2W_FLAIR", "FLAIR_longTR", "T2W_FLAIR_SPIR", "sFLAIR_longTR", "T2 FLAIR TRA", "FLAIR MV XD",
    "Ax T2 FLAIR", "FLAIR COR", "T2_FLAIR_MVXD", "FLAIR_SENSE", "T2 FLAIR gado", "WIP T2W_FLAIR SENSE", "FLAIR Cs ax",
    "ax T2 flair fatsat", "eFLAIR_longTR_CLEAR",
)  # fmt: skip
PHILIPS_3D = (
    "3D_FLAIR", "VISTA FLAIR", "3D_Brain_VIEW_FLAIR_SHC", "sag 3D FLAIR VISTA", "BrainVIEW FLAIR", "3D FLAIR SENSE",
    "3D FLAIR post", "s3D_FLAIR_CS",
)  # fmt: skip
OTHER_FLAIRS = (
    (CANON, "FLAIR Ax"), (CANON, "FSE3D MVOX FLAIR"), (CANON, "AX T2 FLAIR JET"), (CANON, "FLAIR AiCE"),
    (TOSHIBA, "AX FLAIR"), (TOSHIBA, "FASE FLAIR"), (TOSHIBA, "Fast FLAIR tra"), (TOSHIBA, "flair 7200"),
    (HITACHI, "FLAIR AX"), (HITACHI, "T2 FLAIR"), (HITACHI, "fastFLAIR_RADAR"), (HITACHI, "AX-FLAIR"),
    (UIH, "t2_fse_flair_tra"), (UIH, "t2_arms_flair_tra"), (UIH, "fse_mx_3d_flair"), (UIH, "t2_flair_tra_fs"),
)  # fmt: skip
WORLD_FLAIRS = (
    "T2 FLAIR coupes axiales", "FLAIR TRANSVERSAL", "FLAIR axial contraste", "FLAIR ASSIALE", "dunkle Flüssigkeit tra",
    "Fluid attenuated inversion recovery", "fluid-attenuated IR ax", "ФЛАИР акс", "Т2 FLAIR аксиал", "ФЛЭЙР",
    "FLAIR 横断", "フレア AX", "T2压水 横断位", "横断位 T2 FLAIR", "压水 Flair", "液体衰减反转恢复", "水抑制 T2",
    "플레어", "FLAIR رأس", "ＦＬＡＩＲ", "FLAIR eje axial post gadolinio", "T2 Flair TRA skupina",
)  # fmt: skip


def flairs() -> Iterator[Labelled]:
    """Series that must be found."""
    for i, name in enumerate(SIEMENS_FLAIRS):
        ti, te, tr = [(2500, 89, 9000), (2370, 85, 8000), (2000, 84, 6000), (2500, 136, 9000)][i % 4]
        yield make(name, True, SIEMENS, IR, timing(ti, te, tr), ProtocolName=name, SequenceName="*tir2d1_16",
                   BodyPartExamined="BRAIN", stack=CORONAL if "cor" in name else WHOLE_2D)  # fmt: skip
    for i, name in enumerate(SIEMENS_3D):
        ti, te, tr = [(1800, 387, 5000), (2200, 394, 6000), (1600, 335, 4800), (2050, 397, 7000)][i % 4]
        yield make(name, True, SIEMENS, IR, timing(ti, te, tr), ProtocolName=name, SequenceName="*spcir_278ns",
                   BodyPartExamined="HEAD", stack=WHOLE_3D)  # fmt: skip
    for i, name in enumerate(GE_FLAIRS):
        ti, te, tr = [(2250, 120, 9500), (2200, 147, 8800), (2250, 93, 11000), (2000, 128, 8000)][i % 4]
        protocol = ("BRAIN W/WO STIR", "MRA HEAD/BRAIN", "HEAD ROUTINE", "Brain T1 FLAIR + DWI")[i % 4]
        yield make(name, True, GE, IR, timing(ti, te, tr), ProtocolName=protocol, SequenceVariant=["SK", "OSP"])
    for name in GE_3D:
        yield make(name, True, GE, IR, timing(1900, 120, 7600), ProtocolName="SEIZURE", stack=WHOLE_3D)
    for i, name in enumerate(PHILIPS_FLAIRS):
        ti, te, tr = [(2800, 125, 11000), (2500, 120, 9000), (2800, 140, 10000), (2000, 100, 6000)][i % 4]
        yield make(name, True, PHILIPS, PHILIPS_IR, timing(ti, te, tr), ProtocolName=f"WIP {name}")
    for i, name in enumerate(PHILIPS_3D):
        ti, te, tr = [(1650, 386.75, 4800), (1650, 278, 4800), (2000, 340, 6000)][i % 3]
        yield make(name, True, PHILIPS, PHILIPS_IR, timing(ti, te, tr), stack=WHOLE_3D)
    for i, (vendor, name) in enumerate(OTHER_FLAIRS):
        ti, te, tr = [(2300, 105, 8000), (2000, 100, 7200), (1800, 110, 8000), (2500, 120, 10000)][i % 4]
        yield make(name, True, vendor, IR, timing(ti, te, tr))
    for i, name in enumerate(WORLD_FLAIRS):
        yield make(
            name, True, (SIEMENS, GE, PHILIPS)[i % 3], IR, timing(2400, 110, 8500), SpecificCharacterSet="ISO_IR 192"
        )
    yield from _special_flairs()
    yield from _unnamed_flairs()
    yield from _enhanced_flairs()


def _special_flairs() -> Iterator[Labelled]:
    """Field strengths, missing values, corrections in place, body parts in other languages."""
    for name, ti, te, tr in (
        ("FLAIR (Axial)", 1400, 194, 4000),
        ("FLAIR fast", 1200, 160, 3500),
        ("FLAIR", 1300, 90, 5000),
    ):
        yield make(name, True, HYPERFINE, IR, timing(ti, te, tr), stack=LOW_FIELD)
    for ti, tr in ((2900, 13000), (2700, 12000), (2325, 8000)):
        yield make("t2_flair_7T", True, SIEMENS, IR, timing(ti, 90, tr), MagneticFieldStrength=7)
    for values in (timing(None, 110, 9000), timing(2500, None, 9000), timing(2500, 110, None), timing(0, 120, 8000)):
        yield make("AX FLAIR", True, GE, IR, values)
    yield make("AX FLAIR", True, GE, timing(2200, 110, 9000))
    for corrected in (["DERIVED", "PRIMARY", "M", "DIS2D"], ["ORIGINAL", "PRIMARY", "M", "NORM", "DIS3D", "FIL"]):
        yield make("t2_flair_tra", True, SIEMENS, IR, timing(2500, 89, 9000), ImageType=corrected)
    for part in (
        "HEAD",
        "SKULL",
        "KOPF",
        "CABEZA",
        "Tête",
        "ГОЛОВА",
        "頭部",
        "头",
        "HEAD_NECK",
        "TESTA",
        "CEREBRO",
        "",
    ):
        yield make("FLAIR", True, GE, IR, timing(2250, 120, 9500), BodyPartExamined=part)
    for description in (
        "sub-01_FLAIR",
        "FLAIR_run-02",
        "Ax T2 FLAIR T1 positions",
        "FLAIR 2",
        "T2 FLAIR repeat motion",
    ):
        if "T1" not in description:
            yield make(description, True, GE, IR, timing(2250, 120, 9500))


def _unnamed_flairs() -> Iterator[Labelled]:
    """Names that say nothing, or only inversion recovery: the timing says the rest."""
    for name in ("", "AXIAL", "Series 5", "t2_tirm_tra", "T2 IR TSE", "TIRM tra", "IR-TSE T2", "Head 4mm", "cor"):
        for ti, te, tr in ((2500, 89, 9000), (2200, 394, 6000), (1650, 386, 4800)):
            yield make(name, True, SIEMENS, IR, timing(ti, te, tr))


def _enhanced_flairs() -> Iterator[Labelled]:
    for name in ("3D FLAIR", "t2_space_dark-fluid_sag", "T2W_FLAIR", "VISTA FLAIR", "unnamed"):
        for contrast, flavor in (("FLUID_ATTENUATED", "FLUID_ATTENUATED"), ("T2", "T2"), ("UNKNOWN", "M")):
            yield make_enhanced(name, True, ti=(1800.0,), te=340.0, tr=5000.0, contrast=contrast,
                                frame_type=["ORIGINAL", "PRIMARY", flavor, "NONE"])  # fmt: skip


FLAIR_TIMING = timing(2500, 110, 9000)
T1_FLAIR_NAMES = (
    "AX T1 FLAIR", "Sag T1 FLAIR", "T1FLAIR ax", "T1-FLAIR", "FLAIR T1", "t1_tirm_tra_dark-fluid", "AxT1FLAIR",
    "t1_flair_sag", "T1W_FLAIR", "T1W_IR_TSE", "OSag T1FLAIR +C", "t1_dark-fluid", "T1 FLAIR post", "FLAIR_T1_tra",
    "SagT1Flair", "s T1 flair",
)  # fmt: skip
DIR_NAMES = ("DIR", "3D_DIR", "t2_spc_dir_sag", "DIR SPACE", "double inversion recovery", "Double IR", "FLAIR DIR",
             "DIR_FLAIR", "Sag 3D DIR", "t2_space_DIR_sag_iso", "Doppelinversion DIR", "doubleIR")  # fmt: skip
STIR_NAMES = ("AX STIR", "t2_tirm_cor", "STIR", "COR STIR FLAIR", "T2 STIR", "TIRM fs", "stir_cor", "STIR longTE")
DERIVED = (
    ("FLAIR MPR", ["DERIVED", "SECONDARY", "MPR"]), ("FLAIR_MPR_Tra", ["DERIVED", "PRIMARY", "MPR", "CSA MPR"]),
    ("FLAIR MPR", ["ORIGINAL", "PRIMARY", "M", "ND"]), ("FLAIR", ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]),
    ("FLAIR MIP", ["DERIVED", "SECONDARY", "MIP"]), ("FLAIR", ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]),
    ("FLAIR", ["DERIVED", "PRIMARY"]), ("FLAIR", ["DERIVED", "SECONDARY"]), ("FLAIR", ["ORIGINAL", "SECONDARY"]),
    ("FLAIR SUB", ["DERIVED", "PRIMARY", "SUB"]), ("SUB FLAIR post-pre", ["DERIVED", "SECONDARY", "SUBTRACTION"]),
    ("FLAIR subtraction", ["ORIGINAL", "PRIMARY", "M"]), ("FLAIR", ["DERIVED", "SECONDARY", "SCREEN SAVE"]),
    ("FLAIR", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), ("FLAIR localizer", ["ORIGINAL", "PRIMARY", "M"]),
    ("FLAIR", ["ORIGINAL", "PRIMARY", "P", "ND"]), ("FLAIR phase", ["ORIGINAL", "PRIMARY", "M"]),
    ("FLAIR ADC", ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]), ("FLAIR DWI b1000", ["ORIGINAL", "PRIMARY", "M"]),
    ("SyMRI FLAIR synthetic", ["DERIVED", "PRIMARY", "M"]), ("Synth T2 FLAIR MAGiC", ["ORIGINAL", "PRIMARY", "OTHER"]),
    ("FLAIR*", ["ORIGINAL", "PRIMARY", "M"]), ("FLAIR SWI fusion", ["DERIVED", "SECONDARY", "OTHER"]),
    ("FLAIR lesion map", ["DERIVED", "SECONDARY", "OTHER"]), ("FLAIR scout", ["ORIGINAL", "PRIMARY", "OTHER"]),
    ("FLAIR reformat cor", ["ORIGINAL", "PRIMARY", "OTHER"]), ("FLAIR", ["DERIVED", "PRIMARY", "MIN_IP"]),
    ("FLAIR", ["ORIGINAL", "PRIMARY", "R", "IR"]), ("FLAIR", ["DERIVED", "PRIMARY", "M", "RESAMPLED"]),
)  # fmt: skip
OTHERS = (
    (SE, None, 100, 5000, ("AX T2", "t2_tse_tra", "T2W_TSE", "Ax T2 FSE", "T2 PROPELLER", "T2 Flair-matched", "")),
    (SE, None, 12, 550, ("AX T1", "t1_se_tra", "T1W_SE", "T1 post Gd", "T1 MTC", "")),
    (GR, 900, 2.98, 2300, ("t1_mprage_sag", "MPRAGE", "Sag BRAVO", "T1W_3D_TFE", "3D T1 FSPGR", "")),
    (EP, None, 90, 5000, ("DWI", "ep2d_diff_b1000", "DWI_b1000", "AX DWI", "DTI_32dir", "ADC", "trace")),
    (EP, 2200, 90, 9000, ("DWI FLAIR", "FLAIR-DWI", "ep2d_diff_flair", "Diff flair b1000")),
    (GR, None, 20, 28, ("SWI", "SWAN", "swi_tra", "SWI_mIP", "T2*", "t2_fl2d_hemo", "SWIp", "GRE T2")),
    (GR, None, 3.5, 22, ("TOF MRA", "3D TOF", "fl3d_tof", "MRA head", "s3DI_MC", "MRV", "PCA_3D")),
    (EP, None, 30, 1800, ("PWI", "DSC perfusion", "ep2d_perf", "ASL", "pcasl_tra", "fMRI", "ep2d_bold")),
    (SE, None, 20, 3000, ("PD", "PDW_TSE", "AX PD", "dual echo")),
    ({"ScanningSequence": "RM"}, None, 30, 1500, ("svs_se_30", "MRS", "CSI", "2D CSI press")),
    (IR, 400, 12, 3000, ("PSIR", "T1 IR", "Real IR", "inversion recovery")),
    (IR, 150, 50, 4500, ("", "IR", "AXIAL", "T2 IR", "TIRM")),
    (IR, 3000, 320, 7500, ("", "AXIAL", "t2_spc_sag_iso", "3D IR T2")),
    (IR, 860, 9, 2000, ("FLAIR", "AX FLAIR", "dark-fluid", "Sag FLAIR")),
    (IR, 750, 24, 2500, ("FLAIR sag", "TIRM dark fluid", "")),
)  # fmt: skip
OTHER_PARTS = ("CSPINE", "SPINE", "LSPINE", "ABDOMEN", "PELVIS", "KNEE", "NECK", "CHEST", "BREAST", "PROSTATE", "HEART")


def others() -> Iterator[Labelled]:
    """Series that must never be taken."""
    for i, name in enumerate(T1_FLAIR_NAMES):
        yield make(name, False, (GE, SIEMENS)[i % 2], IR, timing((860, 750)[i % 2], (9, 24)[i % 2], 2200))
        yield make(name, False, (GE, SIEMENS)[i % 2], IR, timing(1050, 24, 3100))
        yield make(name, False, (GE, SIEMENS)[i % 2], IR)
    for name in DIR_NAMES:
        yield make(name, False, SIEMENS, IR, timing(2550, 320, 7500), stack=WHOLE_3D)
        yield make(name, False, PHILIPS, PHILIPS_IR, timing(2550, 284, 5500), stack=WHOLE_3D)
    for name in STIR_NAMES:
        yield make(name, False, SIEMENS, IR, timing(220, 60, 5000))
        yield make(name, False, GE, IR, timing(150, 45, 4000))
    for name, types in DERIVED:
        yield make(name, False, GE, IR, FLAIR_TIMING, ImageType=types)
    for sequence, ti, te, tr, names in OTHERS:
        for name in names:
            for vendor in (SIEMENS, GE):
                yield make(name, False, vendor, sequence, timing(ti, te, tr), ProtocolName=name)
    for part in OTHER_PARTS:
        yield make("T2 FLAIR", False, GE, IR, FLAIR_TIMING, BodyPartExamined=part)
    for name in ("FLAIR C-SPINE", "SAG FLAIR LUMBAR", "FLAIR orbits", "FLAIR neck", "FLAIR IAC", "FLAIR phantom QA"):
        yield make(name, False, GE, IR, FLAIR_TIMING)
    yield from _other_geometries()
    yield from _other_objects()
    yield from _enhanced_others()


def _other_geometries() -> Iterator[Labelled]:
    for stack in (Stack(3), Stack(9), Stack(20, 1.0), Stack(30, 5, 90.0), Stack(40, 15.0), Stack(25, 5, 500.0)):
        yield make("AX FLAIR", False, GE, IR, FLAIR_TIMING, stack=stack)


def _other_objects() -> Iterator[Labelled]:
    for modality, sop in (
        ("CT", "1.2.840.10008.5.1.4.1.1.2"), ("PT", "1.2.840.10008.5.1.4.1.1.128"), ("OT", "1.2.840.10008.5.1.4.1.1.7"),
        ("MR", "1.2.840.10008.5.1.4.1.1.7"),
        ("SR", "1.2.840.10008.5.1.4.1.1.88.22"), ("SEG", "1.2.840.10008.5.1.4.1.1.66.4"),
        ("MR", "1.2.840.10008.5.1.4.1.1.4.2"),
        ("", "1.2.840.10008.5.1.4.1.1.4"), ("PR", "1.2.840.10008.5.1.4.1.1.11.1"),
    ):  # fmt: skip
        yield make("FLAIR", False, GE, IR, FLAIR_TIMING, Modality=modality, SOPClassUID=sop)


def _enhanced_others() -> Iterator[Labelled]:
    plain = ["ORIGINAL", "PRIMARY"]
    for name, ti, te, tr, contrast, flavor in (
        ("3D T1", (900.0,), 3.0, 7.0, "T1", "T1"), ("T2W", (), 100.0, 4000.0, "T2", "T2"),
        ("DTI", (), 80.0, 9000.0, "DIFFUSION", "DIFFUSION"), ("STIR", (200.0,), 60.0, 4000.0, "STIR", "STIR"),
        ("FLAIR", (2550.0, 450.0), 320.0, 7500.0, "FLUID_ATTENUATED", "M"),
        ("FLAIR", (860.0,), 9.0, 2000.0, "T1", "T1"),
        ("unnamed", (2550.0, 450.0), 320.0, 7500.0, "UNKNOWN", "M"), ("SWI", (), 20.0, 28.0, "T2_STAR", "M"),
        ("FLAIR", (), 110.0, 9000.0, "T2", "T2"), ("TOF", (), 3.5, 22.0, "TOF", "TOF"),
    ):  # fmt: skip
        yield make_enhanced(name, False, ti=ti, te=te, tr=tr, contrast=contrast, frame_type=[*plain, flavor, "NONE"])
    yield make_enhanced("FLAIR MPR", False, ti=(1800.0,), te=340.0, tr=5000.0, contrast="FLUID_ATTENUATED",
                        frame_type=["DERIVED", "PRIMARY", "MPR", "NONE"])  # fmt: skip
