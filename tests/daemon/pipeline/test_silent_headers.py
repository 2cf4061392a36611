"""Series whose headers do not say what they are: taken for FLAIR by their picture, or refused with what was seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
import pytest
from record_support import an_arrival

from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Conversion, Selection
from daemon.pipeline.steps.context import Context
from daemon.pipeline.steps.convert import convert
from daemon.pipeline.steps.encode import result_sources
from daemon.pipeline.steps.picture import look_at
from daemon.pipeline.steps.select import BY_PICTURE, select
from dicom_io.select.selection import Look, judge
from dicom_io.series.group import Series, scan_folder
from dicom_io.series_writer import write_series
from training.phantoms import phantom as phantoms
from training.phantoms.contrast import Contrast

SILENT: dict[str, Any] = dict.fromkeys(
    ("SeriesDescription", "ProtocolName", "ScanningSequence", "SequenceVariant", "SequenceName", "ScanOptions",
     "RepetitionTime", "EchoTime", "InversionTime", "EchoTrainLength", "FlipAngle"),
)  # fmt: skip
OTHERS = {
    "T1": Contrast(white=0.7, gray=0.5, fluid=0.18, edema=0.42, core=0.45, necrosis=0.25, spots=0.5),
    "T1 after contrast medium": Contrast(
        white=0.6, gray=0.55, fluid=0.28, edema=0.48, core=1.1, necrosis=0.3, spots=1.2
    ),
    "T2": Contrast(white=0.3, gray=0.42, fluid=0.9, edema=0.6, core=0.55, necrosis=0.8, spots=0.5),
    "proton density": Contrast(white=0.55, gray=0.66, fluid=0.6, edema=0.7, core=0.68, necrosis=0.62, spots=0.65),
}
SEEDS = {True: 5_500_004, False: 5_500_003}


def no_model(_settings: Settings) -> NoReturn:
    raise AssertionError("no model is needed to select or convert")


def series_of(image: nib.Nifti1Image, folder: Path, **header: object) -> Series:
    write_series(image, folder, overrides={**SILENT, **header})
    [series] = scan_folder(folder).series
    return series


def drawn(stripped: bool) -> nib.Nifti1Image:
    return phantoms.make_phantom(SEEDS[stripped], stripped=stripped, spacing=(1.8, 1.8, 5.0)).volume


@pytest.mark.parametrize("stripped", [True, False])
def test_a_flair_without_a_name_and_without_timing_is_taken_and_said(stripped: bool, tmp_path: Path) -> None:
    series = series_of(drawn(stripped), tmp_path / "in")
    refused = judge(series)
    assert [r.rule for r in refused.refusals] == ["physics"]
    folder = JobFolder(tmp_path / "job", tmp_path / "in")
    folder.root.mkdir()
    context = Context(Settings(), no_model)
    select(context, folder)
    assert Selection.read(folder.selection).by_picture == (series.series_uid,)
    [said] = [line for line in Selection.read(folder.selection).series[0].reasons if "physics" in line]
    assert "its picture: dark fluid, white matter not bright" in said
    convert(context, folder)
    assert BY_PICTURE in Conversion.read(folder.conversion).warnings
    noted = Conversion.read(folder.conversion)
    an_arrival().write(folder.arrival)  # a job's own input stays, and what was noted of it holds
    for conversion in (noted, Conversion(warnings=noted.warnings)):  # the latter by a version that did not note files
        conversion.write(folder.conversion)
        assert result_sources(Settings(), folder)[0] == list(series.files)
    folder.arrival.unlink()
    assert result_sources(Settings(), folder)[0] == list(series.files)


@pytest.mark.parametrize("contrast", OTHERS)
@pytest.mark.parametrize("stripped", [True, False])
def test_another_contrast_is_refused_by_what_is_seen(
    contrast: str, stripped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phantoms, "draw_contrast", lambda _rng: OTHERS[contrast])
    write_series(drawn(stripped), tmp_path / "in", overrides=SILENT)
    folder = JobFolder(tmp_path / "job", tmp_path / "in")
    folder.root.mkdir()
    with pytest.raises(Rejected, match=r"its picture: (fluid is not dark|white matter is|no brain)"):
        select(Context(Settings(), no_model), folder)
    assert json.loads(folder.selection.read_text())["series"][0]["verdict"] == "refused"


def test_noise_is_no_flair(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2000, (100, 120, 30)).astype(np.int16)
    seen = look_at(series_of(nib.Nifti1Image(noise, np.diag([2.0, 2, 5, 1])), tmp_path / "in"))
    assert not seen.flair


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ({}, True),
        ({"RepetitionTime": "9000", "EchoTime": "120"}, True),
        ({"SeriesDescription": "T2 FLAIR"}, True),
        ({"SeriesDescription": "Ax T1"}, False),
        ({"RepetitionTime": "500", "EchoTime": "10"}, False),
        ({"ScanningSequence": ["SE"]}, False),
        ({"BodyPartExamined": "KNEE"}, False),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, False),
        ({"SeriesDescription": "T2 FLAIR", "RepetitionTime": "9000", "EchoTime": "120", "InversionTime": "2500",
          "ScanningSequence": ["SE", "IR"]}, False),
    ],
)  # fmt: skip
def test_only_a_series_against_which_nothing_speaks_is_looked_at(
    header: dict[str, object], asked: bool, tmp_path: Path
) -> None:
    looks: list[str] = []

    def look(series: Series) -> Look:
        looks.append(series.series_uid)
        return Look(False, "not now")

    image = nib.Nifti1Image(np.ones((60, 60, 20), np.int16), np.diag([4.0, 4, 6, 1]))
    series = series_of(image, tmp_path / "in", **header)
    verdict = judge(series, look=look)
    assert bool(looks) is asked
    assert verdict.accepted is judge(series).accepted
