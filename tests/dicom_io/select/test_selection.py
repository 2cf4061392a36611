import dataclasses
import functools
import warnings
from pathlib import Path

import pytest
from labelled_series import (
    CORONAL,
    FLAIR_TIMING,
    GE,
    IR,
    PHILIPS,
    SIEMENS,
    WHOLE_2D,
    WHOLE_3D,
    Labelled,
    flairs,
    make,
    others,
    timing,
)  # fmt: skip
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from series_factory import as_enhanced, make_files, only_series
from spellings import more_flairs, more_others

from dicom_io.errors import SeriesError
from dicom_io.select.naming import fold, read_name
from dicom_io.select.physics import nulling_inversion_ms
from dicom_io.select.selection import RULES, Reason, SelectionRules, judge, rank
from dicom_io.series.group import scan_folder


@functools.cache
def labelled(flair: bool) -> tuple[Labelled, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some made-up headers break their VR, as real ones do
        return (*flairs(), *more_flairs()) if flair else (*others(), *more_others())


def verdicts(series: tuple[Labelled, ...]) -> list[tuple[Labelled, bool, tuple[Reason, ...]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [(item, (v := judge(item.series)).accepted, v.reasons) for item in series]


def test_the_labelled_set_is_large_enough() -> None:
    assert len(labelled(True)) >= 500
    assert len(labelled(False)) >= 500
    assert len({(i.name, i.series.header.get("Manufacturer")) for i in labelled(True)}) >= 120


def test_nothing_else_is_ever_taken_for_a_flair() -> None:
    taken = [item.name for item, accepted, _ in verdicts(labelled(False)) if accepted]
    assert taken == []


def test_flairs_are_found() -> None:
    missed = {item.name: [str(r) for r in why if not r.passed] for item, ok, why in verdicts(labelled(True)) if not ok}
    assert len(missed) <= 0.02 * len(labelled(True)), missed


FLAIR_SPELLINGS = (
    "Ax T2 FLAIR ASSET", "FLAIR Prescan Norm", "MS lesion FLAIR", "FLAIR 2 avg", "Screening brain FLAIR", "F.L.A.I.R.",
    "AX FLAIR PHASE RL", "FLAIR no phase wrap", "T2 dark-fld tra", "FLUID ATT IR", "T2 con supresión de líquido",
    "T2 с подавлением сигнала воды", "FLAIR brain and orbits", "sub-03_ses-1_FLAIR", "Flair_32ch head coil", "ax flare",
    "AX FALIR", "T2FLAIR_post_T2", "FLAIR hippocampus cor", "3DFLAIRsag", "AxT2FLAIRpost", "t2flair+c",
    "Swift FLAIR",
)  # fmt: skip


@pytest.mark.parametrize("name", FLAIR_SPELLINGS)
def test_spellings_that_only_look_like_something_else(name) -> None:
    verdict = judge(make(name, True, SIEMENS, IR, FLAIR_TIMING, ProtocolName=name).series)
    assert verdict.accepted, [str(r) for r in verdict.refusals]


@pytest.mark.parametrize(
    "name",
    ["AXT1FLAIR", "T1_FLAIR_SAG", "flairT1", "3DT1 flair", "SPC_DIR", "FLAIR_DIR_3D", "FLAIRmip", "flair-sub",
     "STIRflair", "Loc FLAIR", "FLAIR + DWI fused", "ADC (FLAIR DWI)", "FLAIR screenshot", "rFLAIR MPR COR",
     "FLAIR MinIP", "SyMRI FLAIR", "FLAIR lesion seg", "FLAIR post minus pre"],
)  # fmt: skip
def test_names_that_hide_something_else(name) -> None:
    verdict = judge(make(name, False, SIEMENS, IR, FLAIR_TIMING, ProtocolName=name).series)
    assert not verdict.accepted


def test_every_rule_says_what_it_saw() -> None:
    verdict = judge(make("t2_flair_tra", True, SIEMENS, IR, timing(2500, 89, 9000), BodyPartExamined="HEAD").series)
    said = {r.rule: r.detail for r in verdict.reasons}
    assert len(said) == len(RULES)
    assert said["modality"] == "MR, MR Image Storage"
    assert said["image type"] == "ORIGINAL\\PRIMARY\\M\\ND\\NORM"
    assert said["name"] == "'t2_flair_tra' means FLAIR ('flair')"
    assert said["physics"] == "TI 2500, TE 89, TR 9000 ms, inversion recovery"
    assert said["body part"] == "HEAD"
    assert said["geometry"] == "25 slices every 5.50 mm, field of view 230 x 230 mm"


@pytest.mark.parametrize(
    ("item", "rule", "detail"),
    [
        (make("AX FLAIR", False, GE, IR, timing(860, 9, 2000)), "physics", "TE 9 ms is outside 50 to 800"),
        (make("AX T1 FLAIR", False, GE, IR, timing(860, 9, 2000)), "name", 'T1 weighting ("t1")'),
        (make("FLAIR", False, GE, IR, FLAIR_TIMING, DiffusionBValue=1000.0), "physics", "b = 1000"),
        (make("FLAIR", False, GE, IR), "physics", "nothing to judge by"),
        (make("", False, GE, IR, timing(3000, 320, 7500)), "physics", "TI is 1.33 of the 2260 ms that null fluid"),
        (make("FLAIR", False, GE, IR, FLAIR_TIMING, BodyPartExamined="KNEE"), "body part", "KNEE: not the head"),
        (make("FLAIR", False, GE, IR, FLAIR_TIMING, stack=dataclasses.replace(WHOLE_2D, slices=8)), "geometry",
         "expected at least 10 slices"),
    ],
)  # fmt: skip
def test_refusals_say_why(item, rule, detail) -> None:
    reasons = {r.rule: r.detail for r in judge(item.series).refusals}
    assert detail in reasons[rule]


def test_the_exam_protocol_of_ge_does_not_name_the_series() -> None:
    assert judge(make("AX FLAIR", True, GE, IR, FLAIR_TIMING, ProtocolName="MRA BRAIN T1 STIR").series).accepted
    contradiction = make("FLAIR", False, SIEMENS, IR, FLAIR_TIMING, ProtocolName="t2_spc_dir")
    assert not judge(contradiction.series).accepted


@pytest.mark.parametrize(("tr", "low", "high"), [(4800, 1650, 1850), (9000, 2300, 2500), (4000, 1400, 1650)])
def test_fluid_is_nulled_where_protocols_put_it(tr, low, high) -> None:
    assert low <= nulling_inversion_ms(tr) <= high


def test_site_rules_include_and_exclude() -> None:
    odd = make("Protokoll 7", True, SIEMENS, IR, timing(None, None, None), StationName="MR1")
    assert not judge(odd.series).accepted
    included = SelectionRules(include=({"SeriesDescription": "^protokoll 7$", "StationName": "MR1"},))
    assert judge(odd.series, included).accepted
    assert not judge(make("Protokoll 7", True, SIEMENS, IR, StationName="MR2").series, included).accepted
    plain = make("AX FLAIR", True, GE, IR, FLAIR_TIMING, StationName="RESEARCH").series
    [refusal] = judge(plain, SelectionRules(exclude=({"StationName": "research"},))).refusals
    assert str(refusal) == "REFUSED site rules: excluded by StationName = 'research'"


@pytest.mark.parametrize(
    ("entry", "message"),
    [({}, "at least one DICOM keyword"), ({"SeriesName": "x"}, "'SeriesName' is no DICOM keyword"),
     ({"SeriesDescription": "("}, "SeriesDescription = '\\('")],
)  # fmt: skip
def test_a_broken_site_rule_is_said_at_once(entry, message) -> None:
    with pytest.raises(SeriesError, match=message):
        SelectionRules(include=(entry,))


def test_candidates_are_ranked() -> None:
    thick = make("AX FLAIR", True, GE, IR, FLAIR_TIMING).series
    contrast = make("AX FLAIR +C", True, GE, IR, FLAIR_TIMING, ContrastBolusAgent="Gd").series
    fine = make("3D FLAIR", True, PHILIPS, IR, timing(1650, 340, 4800), stack=WHOLE_3D).series
    unnamed = make("COR", True, GE, IR, FLAIR_TIMING, stack=CORONAL).series
    other = make("AX T1", False, GE, IR).series
    ranked = rank([other, unnamed, contrast, thick, fine])
    assert [s.description for s, _ in ranked] == ["3D FLAIR", "AX FLAIR", "AX FLAIR +C", "COR", "AX T1"]
    assert [v.score > 0 for _, v in ranked] == [True] * 4 + [False]
    places = [v.reasons[-1] for _, v in ranked]
    assert [r.detail.partition(",")[0] for r in places[:4]] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert places[0].detail.endswith(
        "named FLAIR, timing complete, voxels of 2.5 mm3, 160 mm of stack, no contrast agent"
    )
    assert "not named" in places[3].detail
    assert places[2].detail.endswith(", contrast agent")
    assert places[4].rule != "rank"


def test_written_series_are_taken_classic_and_enhanced(tmp_path) -> None:
    files = make_files(tmp_path / "classic")
    as_enhanced(files, tmp_path / "enhanced" / "e.dcm")
    for folder in ("classic", "enhanced"):
        verdict = judge(only_series(tmp_path / folder))
        assert verdict.accepted, [str(r) for r in verdict.refusals]


def test_odd_headers_are_refused_not_raised() -> None:
    odd = make("FLAIR", False, GE, IR, FLAIR_TIMING).series
    for keyword in ("ImageType", "PixelSpacing", "SOPClassUID", "ScanningSequence", "ImageOrientationPatient", "Rows"):
        for header in odd.headers:
            header[keyword] = RawDataElement(Tag(keyword), None, 3, b"\x00\xff\x01", 0, True, True)
        assert len(judge(odd).reasons) == len(RULES)


@pytest.mark.shared_data
def test_public_files_are_judged_by_their_timing(shared_dicom: Path) -> None:
    """Descriptions are stripped there; the ones whose timing is FLAIR fail for their few slices alone."""
    alone = {"siemens/anatomical/001", "generic/anatomical/001", "philips/anatomical/001", "hyperfine/anatomical/001"}
    for name in alone:
        [series] = scan_folder(shared_dicom / "dicom2nifti_MIT" / name).series
        assert [r.rule for r in judge(series).refusals] == ["geometry"]
    for folder in (shared_dicom / "dcm_qa_xa30_BSD2", shared_dicom / "dicom2nifti_MIT" / "philips_enhanced"):
        for series in scan_folder(folder).series:
            assert "physics" in {r.rule for r in judge(series).refusals}


def test_folding_reads_scripts_alike() -> None:
    assert fold("ＦＬＡＩＲ_Tra") == fold("flair tra") == fold("Flair-TRA")
    assert fold("Flüssigkeit") == "flussigkeit"
    assert read_name(["フレア"]).flair == "フレア"
    assert read_name(["ФЛЭЙР акс"]).flair


def test_timing_that_nulls_fluid_speaks_where_neither_name_nor_sequence_does() -> None:
    assert judge(make("", True, GE, timing(2500, 89, 9000)).series).accepted
    assert not judge(make("", False, GE, timing(450, 89, 9000)).series).accepted
    assert not judge(make("", False, GE, {"ScanningSequence": "SE"}, timing(2500, 89, 9000)).series).accepted
