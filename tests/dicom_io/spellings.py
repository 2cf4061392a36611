"""More names that sites give their series, by vendor: written down before the rules were tried on them, then kept."""

from __future__ import annotations

from collections.abc import Iterator

from labelled_series import (
    CANON,
    GE,
    HITACHI,
    HYPERFINE,
    IR,
    PHILIPS,
    PHILIPS_IR,
    SIEMENS,
    TOSHIBA,
    UIH,
    Labelled,
    make,
    timing,
)

SIEMENS_NAMES = (
    "t2_tirm_tra_dark-fluid", "t2_tirm_tra_dark-fluid_5mm", "t2_tir_tra_dark-fluid", "t2_qtse_dark-fluid_tra",
    "t2_flair_cor_hippocampus", "ax_t2_flair_fs", "t2_tirm_tra_dark-fluid_DRB", "t2_tirm_tra_dark-fluid_p2_DRB",
    "t2_space_dark-fluid_sag_p2_iso_CS", "t2_spc_dark-fluid_sag", "t2_spc_da-fl_sag_iso", "AX T2 DARK FLUID",
    "TRA DARK-FLUID BLADE", "T2_FLAIR_BLADE_TRA", "Flair_blade", "t2_haste_dark-fluid", "T2 Flair SPACE Sag CAIPI",
    "t2_tirm_tra_dark-fluid_COR_angle", "3D T2 FLAIR (SPACE)", "SAG_3D_T2_FLAIR_1MM", "T2_FLAIR_AX_SMS",
    "t2_tse_flair_tra_320_SMS4", "Ax FLAIR post contrast", "axial flair with contrast", "AX FLAIR +GAD",
    "T2W FLAIR DARK FLUID TRA 3MM", "PRE FLAIR", "POST 3D FLAIR", "FLAIR_AXIAL_ISO", "t2 flair tra nativ",
    "FLAIR axial KM", "t2_flair_space_sag_nativ", "cor flair tirm", "FLAIR TIRM TRA", "tirm_dark-fluid_cor",
    "TIRM Dark Fluid FS TRA", "Flair tse", "TSE FLAIR", "t2_flair_fs_tra_RESTORE", "t2_flair_tra_deep_resolve",
    "DR_t2_flair_tra", "Deep Resolve FLAIR", "t2_flair_tra_DR-boost", "T2 FLAIR ax 4mm gap 0",
    "FLAIR_TSE_AX_3MM_NO_GAP", "ax t2 tirm", "T2 TIRM TRA", "MS_FLAIR_3D", "Epi FLAIR 3D", "EPILEPSY 3D FLAIR",
    "Tumor FLAIR", "3DFLAIR_NS", "FLAIR_2mm_TRA", "dark_fluid_space", "darkfluid space sag",
    "t2_spc_darkfluid_sag_p2",
)  # fmt: skip
GE_NAMES = (
    "Ax T2 FLAIR FS", "Ax T2 FLAIR FATSAT", "AX T2 FLAIR FS POST", "Ax T2 Flair FSE", "SAG CUBE T2 FLAIR",
    "Sag T2 FLAIR Cube", "Sag T2 CUBE FLAIR 1.2MM", "SAG CUBE FLAIR HYPERSENSE", "3D T2 FLAIR CUBE HS",
    "SAG 3D FLAIR", "T2 FLAIR PROPELLER", "Ax FLAIR PROP", "AX FLAIR PROPELLER FS", "COR FLAIR", "O-AX FLAIR",
    "OBL AX FLAIR", "Ax FLAIR T2 fs", "FLAIR AXIAL OBLIQUE", "FLAIR AX T2 GD", "+C AX T2 FLAIR", "AX T2 FLAIR+C",
    "POST AX FLAIR", "AX FLAIR WITH GAD", "Ax FLAIR (motion)", "AX FLAIR REPEAT", "HyperCube FLAIR",
    "T2 FLAIR AX DL", "AIR DL Ax FLAIR", "Ax T2 FLAIR (AIR Recon DL)", "AX T2 FLAIR ARDL", "FLAIR HIPPO COR",
    "Ax T2FLAIR", "AXT2FLAIR", "T2FLAIR", "SagCubeFLAIR", "Ax T2 FLAIR 3mm", "3D CUBE FLAIR SAG", "FLAIR CUBE",
    "AX PROPELLER T2 FLAIR", "eFLAIR", "Ax T2 Flair frFSE", "AX FLAIR 3 NEX", "ASSET FLAIR",
    "Sag FLAIR corpus callosum", "T2 FLAIR tra", "T2 AX FLAIR BRAIN", "BRAIN AX FLAIR", "AX FLAIR BRAIN W",
    "AX FLAIR HEAD", "AX FLAIR WHOLE BRAIN", "Axial T2-weighted FLAIR", "T2-FLAIR Axial", "flair axial",
    "FLAIR AX S/I", "Ax FLAIR (No Angle)", "NEURO FLAIR AX", "FLAIR.AX", "AX-T2-FLAIR-FS", "AX_T2_FLAIR",
    "Ax-FLAIR_T2",
)  # fmt: skip
PHILIPS_NAMES = (
    "3D_Brain_VIEW_FLAIR", "3D Brain_VIEW_FLAIR_SHC", "Brain_VIEW_FLAIR", "BrainView_FLAIR_32chSHC", "FLAIR_longTR",
    "FLAIR_longTR SENSE", "T2W_FLAIR_TSE", "T2W_FLAIR_SPAIR", "FLAIR_SPIR", "FLAIR_SPAIR_AX", "3D_FLAIR_SENSE",
    "3D VIEW FLAIR", "3D_VISTA_FLAIR", "VISTA_FLAIR_3D", "sag_3D_FLAIR_CS", "Flair_TRA SENSE", "WIP FLAIR SENSE",
    "WIP 3D FLAIR SAG CLEAR", "FLAIR_longTR_CLEAR", "TRA FLAIR", "T2W FLAIR TRA MVXD", "FLAIR_MultiVane",
    "MultiVane XD FLAIR", "s3DFLAIR", "T2_FLAIR_TRA_FS", "FLAIR_AX_CS_SENSE", "Compressed SENSE FLAIR",
    "FLAIR SmartSpeed AI", "3D FLAIR SmartSpeed", "T2 FLAIR longTR fatsat", "Ax FLAIR SPIR post", "AX FLAIR_ IR",
    "TSE_FLAIR", "T2_TSE_FLAIR", "cs3D_FLAIR_SAG", "csFLAIR", "CS FLAIR 3D", "FLAIR 3D TSE", "3D_FLAIR_iso1mm",
    "3D-FLAIR-VISTA-sag", "FLAIR_TRA_4mm", "FLAIR ax SENSE",
)  # fmt: skip
CANON_NAMES = (
    "Ax FLAIR", "AX_FLAIR_FS", "FLAIR_AX 5mm", "FLAIR_FSE2D", "FLAIR 3D MPV", "3D FLAIR MPV", "FSE3D FLAIR",
    "FLAIR Ax JET", "JET FLAIR", "FLAIR+FS", "T2 FLAIR DLR", "AiCE FLAIR", "FLAIR SPEEDER", "FSE2d_FLAIR_8000",
    "2D FLAIR_TRA", "FLAIR(8000)", "sg FLAIR 3D",
)  # fmt: skip
TOSHIBA_NAMES = (
    "FLAIR", "FLAIR AX", "AX FLAIR JET", "FSE FLAIR", "FLAIR 6mm", "FLAIR_10000_105", "T2FLAIR AX", "3D FLAIR (MPV)",
    "Axi FLAIR",
)  # fmt: skip
HITACHI_NAMES = (
    "FLAIR", "FLAIR_AX", "AX T2 FLAIR", "T2-FLAIR RADAR", "isoFSE FLAIR", "isoFLAIR", "3D isoFSE FLAIR",
    "FatSat FLAIR", "FLAIR(RADAR)", "FIR FLAIR", "primeFSE FLAIR",
)  # fmt: skip
UIH_NAMES = (
    "t2_fse_flair_tra", "t2_flair_fse_tra_fs", "t2_mx3d_flair_sag", "fse_mx_3d_flair_sag", "t2_arms_flair",
    "t2_flair_arms_tra", "t2_fse_tra_flair", "t2_mx3d_sag_flair_iso", "t2_flair_tra_ACS", "t2_fse_dark fluid",
    "uAI flair",
)  # fmt: skip
HYPERFINE_NAMES = (
    "FLAIR", "FLAIR (Axial)", "FLAIR (Sagittal)", "FLAIR (Coronal)", "Axial FLAIR", "FLAIR_AXI", "T2 FLAIR AXI",
    "FLAIR Fast", "FLAIR_cor",
)  # fmt: skip
WORLD_NAMES = (
    "FLAIR TRANSVERSE", "FLAIR tra+KM", "FLAIR cor nach KM", "T2 FLAIR axial nativ", "FLAIR dunkel",
    "Dark Fluid axial", "T2 liquorsupprimiert", "Liquorunterdrückung", "AXIAL FLAIR C+", "FLAIR AX APRES GADO",
    "FLAIR GADO", "AXIALE FLAIR", "T2 FLAIR COUPE AXIALE", "SAG FLAIR 3D GADO", "FLAIR axial con contraste",
    "AX FLAIR CON CTE", "FLAIR AXIAL SIN CONTRASTE", "FLAIR CORONAL", "FLAIR assiale dopo mdc", "FLAIR TRA POST MDC",
    "FLAIR SAG 3D DOPO MDC", "FLAIR 3D CONTRASTO", "FLAIR T2 DOT", "FLAIR TRANSV", "FLAIR AKS", "FLAIR POP",
    "FLAIR osiowy", "FLAIR po kontraście", "FLAIR po k.l.", "FLAIR tra na GD", "FLAIR efter kontrast",
    "FLAIR ax efter Gd", "FLAIR transversaal", "FLAIR met contrast", "FLAIR 3D sag na contrast", "Т2 FLAIR ax",
    "FLAIR аксиальная", "FLAIR корональная", "флэир", "Флаир акс", "Т2 ФЛАИР", "T2 FLAIR с контрастом",
    "T2 ВИ FLAIR", "T2 FLAIR 轴位", "轴位 FLAIR", "轴位T2 FLAIR", "T2FLAIR轴位", "T2-FLAIR 矢状位",
    "AX T2 FLAIR 平扫", "FLAIR 增强", "增强 FLAIR", "T2 压水像", "压水序列", "黑水", "T2 黑水", "FLAIR 軸位",
    "FLAIR 軸", "FLAIR体軸断", "FLAIR 横断像", "頭部FLAIR", "フレアー", "FLAIR 造影後", "造影後FLAIR", "FLAIR 축상",
    "FLAIR 조영증강", "FLAIR محوري", "فلير", "FLAIR eksenel", "AKSİYEL FLAIR", "AKSIYEL FLAIR", "T2 FLAIR AKSİYEL",
    "FLAIR koronal", "FLAIR εγκάρσιο", "FLAIR ημ", "פלייר", "FLAIR אקסיאלי", "ฟแลร์ FLAIR",
    "FLAIR Ax não contrastado", "FLAIR AXIAL PÓS", "AX FLAIR POS GD", "FLAIR axiální", "FLAIR tra po KL",
    "FLAIR axiális", "FLAIR ax KA után", "fluid attenuated inversion recovery axial", "Fluid Attenuated IR",
    "FluidAttenuated", "T2 fluid suppressed", "CSF suppressed T2", "CSF-nulled T2", "T2 CSF null", "T2 fluid nulled",
    "FLIAR ax", "AX FLAIER", "AX FLARE", "Ax Fliar", "FLAI R AX", "FLAIR_AX_ISO_RESEARCH", "sub-01_acq-tra_FLAIR",
    "anat_FLAIR", "ses01_T2FLAIR", "T2w_FLAIR_acq", "ADNI FLAIR", "Sagittal 3D FLAIR (ADNI)",
    "Axial T2 FLAIR (ADNI3)", "Sagittal_3D_FLAIR", "Axial FLAIR Repeat", "FLAIR_REPEAT", "UKB FLAIR",
    "T2_FLAIR_SPACE_ABCD",
)  # fmt: skip
OTHER_NAMES = (
    "T1 FLAIR", "Ax T1 FLAIR", "AX T1FLAIR", "Sag T1 FLAIR", "Sag T1FLAIR", "T1W FLAIR", "T1W_FLAIR",
    "T1-weighted FLAIR", "FLAIR T1W", "FLAIR-T1", "t1_tirm_tra_dark-fluid", "t1_tirm_sag", "T1 TIRM",
    "T1 dark fluid", "T1 FLAIR +C", "AX T1 FLAIR FS POST", "OAX T1 FLAIR", "PROP T1 FLAIR", "T1 PROPELLER FLAIR",
    "AX FLAIR T1 C+", "FLAIR T1 AX GD", "T1 flair tra", "т1 FLAIR", "Т1 FLAIR", "T1压水", "FLAIR T1 轴位",
    "T1加权 FLAIR", "DIR", "3D DIR", "DIR 3D", "SPACE DIR", "t2_spc_dir_sag_p2", "3D_DIR_Brain", "DIR_FLAIR",
    "FLAIR/DIR", "CUBE DIR", "Double Inversion", "double inversion recovery FLAIR", "Double IR FLAIR",
    "dual inversion FLAIR", "doppelte Inversion", "double-IR", "STIR", "Ax STIR", "Cor STIR brain", "STIR FLAIR",
    "T2 STIR", "STIR_longTE", "STIR_TRA", "t2_stir_cor", "IDEAL STIR", "FLAIR-STIR", "FLAIR STIR COR", "TIRM fatsat",
    "PSIR", "PSIR FLAIR", "MP2RAGE", "MPRAGE", "FLAWS", "FGATIR", "FLAIR MPR TRA", "FLAIR MPR", "MPR FLAIR COR",
    "FLAIR_MPR_cor", "3D FLAIR MPR AX", "FLAIR reformat", "AX FLAIR REFORMAT", "Reformatted FLAIR",
    "FLAIR recon axial", "FLAIR RECON AX", "RECON FLAIR COR", "FLAIR AX MPR 3mm", "FLAIR MIP", "mIP FLAIR",
    "FLAIR MINIP", "FLAIR SUB", "FLAIR SUBTRACTION", "SUB FLAIR POST-PRE", "Subtraction FLAIR", "FLAIR post - pre",
    "FLAIR diff", "FLAIR difference", "DWI FLAIR", "FLAIR DWI", "FLAIR ADC", "FLAIR b0", "FLAIR-EPI DWI",
    "DTI FLAIR", "SWI FLAIR", "FLAIR-SWI", "FLAIR*", "FLAIR star", "FLAIR mask", "FLAIR segmentation",
    "FLAIR lesion mask", "FLAIR seg", "FLAIR localizer", "Loc FLAIR", "localiser FLAIR", "FLAIR scout",
    "3-plane FLAIR", "FLAIR T2 fusion", "FLAIR fused", "FLAIR overlay", "FLAIR colormap", "FLAIR color map",
    "FLAIR screenshot", "FLAIR screen save", "FLAIR snapshot", "FLAIR report", "SyMRI FLAIR", "Synthetic FLAIR",
    "Syn FLAIR", "SynFLAIR", "MAGiC FLAIR", "MAGIC T2 FLAIR", "QRAPMASTER FLAIR", "FLAIR from MDME",
    "syMRI T2 FLAIR", "FLAIR phase", "FLAIR phase map", "FLAIR real", "FLAIR imaginary", "FLAIR registered",
    "reg FLAIR", "coreg FLAIR", "FLAIR to T1", "FLAIR normalized", "FLAIR bias corrected", "FLAIR skull stripped",
    "FLAIR brain extracted", "FLAIR resampled", "FLAIR VR", "FLAIR volume rendering", "FLAIR 3D VRT",
    "FLAIR perfusion", "ASL FLAIR", "FLAIR ASL", "FLAIR cervical spine", "FLAIR c-spine", "SPINE FLAIR",
    "T2 FLAIR L-SPINE", "FLAIR orbits", "FLAIR pituitary", "FLAIR IAC", "FLAIR cardiac", "CEST FLAIR",
    "T2 mapping FLAIR", "FLAIR averaged", "FLAIR mean", "FLAIR AVG combined", "Lesion Quant FLAIR",
    "NeuroQuant FLAIR", "icobrain FLAIR", "FLAIR icobrain ms", "FLAIR AI result", "FLAIR quantib", "FLAIR QyScore",
    "FLAIR CAD", "FLAIR probability", "FLAIR heatmap", "FLAIR LIME overlay",
)  # fmt: skip

BY_VENDOR = (
    (SIEMENS, IR, (2500, 89, 9000), SIEMENS_NAMES),
    (GE, IR, (2250, 120, 9500), GE_NAMES),
    (PHILIPS, PHILIPS_IR, (2800, 125, 11000), PHILIPS_NAMES),
    (CANON, IR, (2300, 105, 8000), CANON_NAMES),
    (TOSHIBA, IR, (2300, 105, 8000), TOSHIBA_NAMES),
    (HITACHI, IR, (2000, 100, 8000), HITACHI_NAMES),
    (UIH, IR, (2400, 100, 8000), UIH_NAMES),
    (HYPERFINE, IR, (1400, 194, 4000), HYPERFINE_NAMES),
    (SIEMENS, IR, (2400, 110, 8500), WORLD_NAMES),
)
"""(vendor, sequence, (TI, TE, TR) ms, names)."""


def more_flairs() -> Iterator[Labelled]:
    """Series that must be found."""
    for vendor, sequence, (ti, te, tr), names in BY_VENDOR:
        for name in names:
            unicode = {"SpecificCharacterSet": "ISO_IR 192"}
            yield make(name, True, vendor, sequence, timing(ti, te, tr), ProtocolName=name, **unicode)


def more_others() -> Iterator[Labelled]:
    """Series that must never be taken, though their timing is that of FLAIR: the name alone protects."""
    for name in OTHER_NAMES:
        unicode = {"SpecificCharacterSet": "ISO_IR 192"}
        yield make(name, False, SIEMENS, IR, timing(2500, 89, 9000), ProtocolName=name, **unicode)
        yield make(name, False, GE, IR, timing(2250, 120, 9500), ProtocolName="BRAIN", **unicode)
