"""What belongs together where UIDs do not say it: taken apart or joined, named, and the side followed through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid
from series_factory import MARK_RAS, as_enhanced, brain, edit_files, make_files, mark_in, only_series

from dicom_io.select.selection import judge, rank
from dicom_io.series.group import Series, contrasts, scan_folder
from dicom_io.volume.nifti import convert_series

T1 = {
    "SeriesDescription": "t1_se_tra", "ProtocolName": "t1_se_tra", "ScanningSequence": "SE", "SequenceName": "*se2d1",
    "InversionTime": None, "EchoTime": "12", "RepetitionTime": "550", "SeriesNumber": "6",
}  # fmt: skip


def marked_left(series: Series, out: Path) -> tuple[str, ...]:
    """Convert, check that the volume is the made-up one with its mark on the left, and return the warnings."""
    conversion = convert_series(series, out)
    image = nib.load(conversion.volume_path)
    assert np.array_equal(np.asarray(image.dataobj), np.asarray(brain().dataobj))
    assert np.allclose(mark_in(np.asarray(image.dataobj), image.affine), MARK_RAS, atol=4.5)
    return conversion.warnings


def joined_by_uid(files: list[Path], uids: list[Path]) -> None:
    """Give the files the study, series and frame of reference of others."""
    first = pydicom.dcmread(uids[0])

    def edit(dataset: Dataset, _: int) -> None:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, keyword, first[keyword].value)

    edit_files(files, edit)


def shifted(millimetres: float) -> nib.Nifti1Image:
    """The mirror image of the made-up brain, with the mark on the right, moved along the slices."""
    affine = brain().affine.copy()
    affine[2, 3] += millimetres
    return nib.Nifti1Image(np.ascontiguousarray(np.asarray(brain().dataobj)[::-1]), affine)


def test_a_series_uid_for_each_slice_is_one_series(tmp_path: Path) -> None:
    make_files(tmp_path, edit=lambda d, i: setattr(d, "SeriesInstanceUID", f"1.2.826.7.{i + 1}"))
    series = only_series(tmp_path)
    assert judge(series).accepted
    [note] = marked_left(series, tmp_path / "v.nii.gz")
    assert note.startswith("21 series of one picture each have the same study, description and geometry")


def test_what_came_of_any_slice_is_said_of_the_series_that_it_belongs_to(tmp_path: Path) -> None:
    files = make_files(tmp_path, edit=lambda d, i: setattr(d, "SeriesInstanceUID", f"1.2.826.7.{i + 1}"))
    again = pydicom.dcmread(files[9])
    again.PixelData = bytes(len(again.PixelData))
    again.save_as(tmp_path / "again.dcm")
    elsewhere = pydicom.dcmread(files[12])
    elsewhere.StudyInstanceUID, elsewhere.SOPInstanceUID = "1.2.826.8", "1.2.826.8.1"
    elsewhere.PixelData = again.PixelData
    elsewhere.save_as(tmp_path / "elsewhere.dcm")
    [series] = [one for one in scan_folder(tmp_path).series if len(one.files) > 1]
    assert series.series_uids == tuple(f"1.2.826.7.{n + 1}" for n in range(21))
    assert [note.partition(" ")[0] for note in series.notes] == ["21", "1", "instances"]
    assert "instances of study 1.2.826.8 have the same series UID" in series.notes[2]


def test_pictures_that_differ_in_more_than_their_place_are_not_joined(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.SeriesInstanceUID = f"1.2.826.7.{index + 1}"
        dataset.SeriesDescription = f"picture {index}"

    make_files(tmp_path, edit=edit)
    assert len(scan_folder(tmp_path).series) == 21


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_two_contrasts_under_one_uid_are_judged_apart(tmp_path: Path, offset: float) -> None:
    flair = make_files(tmp_path / "a")
    other = make_files(tmp_path / "b", shifted(offset), overrides=T1)
    joined_by_uid(other, flair)
    (best, accepted), (worse, refused) = rank([only_series(tmp_path)])
    assert not judge(only_series(tmp_path)).accepted
    assert (accepted.accepted, refused.accepted) == (True, False)
    assert best.series_uid == worse.series_uid
    assert {best.part, worse.part} == {1, 2}
    [note] = marked_left(best, tmp_path / "v.nii.gz")
    assert note == (
        "21 of 42 instances of this series UID have another contrast and were judged apart: "
        "21 with TI absent, TE 12, TR 550 ms"
    )


def test_two_acquisitions_that_only_names_tell_apart(tmp_path: Path) -> None:
    """Headers without timing: slices of 6 mm every 3 mm are two stacks where they are called differently."""
    bare = {"InversionTime": None, "EchoTime": None, "RepetitionTime": None, "ScanningSequence": None}
    flair = make_files(tmp_path / "a", overrides=bare)
    other = make_files(tmp_path / "b", shifted(3.0), overrides={**T1, **bare})
    joined_by_uid(other, flair)
    series = contrasts(only_series(tmp_path))
    assert [len(s.files) for s in series] == [21, 21]
    marked_left(next(s for s in series if "flair" in s.description), tmp_path / "v.nii.gz")


def test_names_that_change_along_one_stack_do_not_split_it(tmp_path: Path) -> None:
    make_files(tmp_path, edit=lambda d, i: setattr(d, "SequenceName", f"*tir2d1_{i % 2}"))
    assert len(contrasts(only_series(tmp_path))) == 1
    assert not marked_left(only_series(tmp_path), tmp_path / "v.nii.gz")


def test_times_left_out_of_some_slices_do_not_split_a_series(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        for keyword in ("InversionTime", "EchoTime", "ScanningSequence")[: index % 4]:
            delattr(dataset, keyword)

    make_files(tmp_path, edit=edit)
    series = only_series(tmp_path)
    assert len(contrasts(series)) == 1
    assert judge(series).accepted
    assert not marked_left(series, tmp_path / "v.nii.gz")


def test_two_contrasts_in_the_frames_of_one_instance_are_refused(tmp_path: Path) -> None:
    path = as_enhanced(make_files(tmp_path / "s"), tmp_path / "e" / "e.dcm", scramble=False)

    def edit(dataset: Dataset, _: int) -> None:
        echo = dataset.SharedFunctionalGroupsSequence[0].MREchoSequence
        del dataset.SharedFunctionalGroupsSequence[0].MREchoSequence
        for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item = Dataset()
            item.EffectiveEchoTime = echo[0].EffectiveEchoTime if index % 2 else 20.0
            frame.MREchoSequence = [item]

    edit_files([path], edit)
    [refusal] = [r for r in judge(only_series(path.parent)).refusals if r.rule == "geometry"]
    assert "two contrasts in one stack" in refusal.detail


def scout(dataset: Dataset) -> None:
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def marked_scout(dataset: Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def capture(dataset: Dataset) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage


def placeless(dataset: Dataset) -> None:
    del dataset.ImagePositionPatient


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (scout, "lie across the stack"), (marked_scout, "are scout pictures"), (capture, "are of another kind"),
        (placeless, "do not say where they lie"),
    ],
)  # fmt: skip
def test_an_odd_instance_is_named_and_left_out(tmp_path: Path, spoil: Callable[[Dataset], None], what: str) -> None:
    files = make_files(tmp_path)
    odd = pydicom.dcmread(files[7])
    odd.SOPInstanceUID = odd.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    odd.InstanceNumber = "77"
    odd.PixelData = odd.PixelData[::-1]
    spoil(odd)
    odd.save_as(tmp_path / "odd.dcm")
    series = only_series(tmp_path)
    assert judge(series).accepted
    assert marked_left(series, tmp_path / "v.nii.gz") == (f"1 of 22 instances {what} and take no part: image 77",)


def test_three_planes_of_a_localizer_stay_refused(tmp_path: Path) -> None:
    directions = ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])
    make_files(tmp_path, edit=lambda d, i: setattr(d, "ImageOrientationPatient", directions[i % 3]))
    assert "mixed orientations" in str([str(r) for r in judge(only_series(tmp_path)).refusals])


@pytest.mark.parametrize("sizes", [[1] * 21, [8, 8, 5]])
def test_enhanced_instances_of_one_or_several_frames_are_one_series(tmp_path: Path, sizes: list[int]) -> None:
    """One frame a file, and concatenations (PS3.3 C.7.6.16.2.2.4)."""
    files, start = make_files(tmp_path / "s"), 0
    for number, size in enumerate(sizes, start=1):
        path = as_enhanced(files[start : start + size], tmp_path / "e" / f"{number}.dcm")
        start += size

        def edit(dataset: Dataset, _: int, number: int = number) -> None:
            dataset.InstanceNumber = number
            if len(sizes) == 3:
                dataset.ConcatenationUID, dataset.InConcatenationNumber = "1.2.3", number
                dataset.InConcatenationTotalNumber = 3

        edit_files([path], edit)
    series = only_series(tmp_path / "e")
    assert judge(series).accepted
    assert not marked_left(series, tmp_path / "v.nii.gz")
    if len(sizes) == 3:
        (tmp_path / "e" / "3.dcm").unlink()
        warnings = convert_series(only_series(tmp_path / "e"), tmp_path / "v.nii.gz").warnings
        assert warnings == ("a concatenation of 3 instances came with 2",)


@pytest.mark.parametrize("same", [True, False])
def test_a_second_instance_under_one_uid(tmp_path: Path, same: bool) -> None:
    files = make_files(tmp_path)
    again = pydicom.dcmread(files[10])
    if not same:
        again.PixelData = again.PixelData[::-1]
    again.save_as(tmp_path / "again.dcm")
    scan = scan_folder(tmp_path)
    assert ("but other pixels" in scan.problems[0].reason) != same
    warnings = marked_left(scan.series[0], tmp_path / "v.nii.gz")
    assert [w for w in warnings if "other pixels" in w] == list(warnings)
    assert len(warnings) == (0 if same else 1)


def test_a_series_uid_in_two_studies_is_two_series(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    edit_files(files[:9], lambda d, _: setattr(d, "StudyInstanceUID", "1.2.3"))
    series = scan_folder(tmp_path).series
    assert sorted(len(s.files) for s in series) == [9, 12]
    assert all("have the same series UID and take no part" in s.notes[0] for s in series)


def test_uids_that_are_none_and_a_space_without_a_name_are_said_once(tmp_path: Path) -> None:
    def edit(dataset: Dataset, index: int) -> None:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "STUDY01", "FLAIR.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"IMG{index}"
        del dataset.FrameOfReferenceUID

    make_files(tmp_path, edit=edit)
    illegal, nameless = marked_left(only_series(tmp_path), tmp_path / "v.nii.gz")
    assert illegal == "UIDs that are not legal (PS3.5 9.1) are kept as received, such as 'STUDY01'"
    assert nameless.startswith("the series has no FrameOfReferenceUID")


def test_a_frame_of_reference_that_some_slices_leave_out_holds_for_all(tmp_path: Path) -> None:
    make_files(tmp_path, edit=lambda d, i: delattr(d, "FrameOfReferenceUID") if i % 3 else None)
    assert not marked_left(only_series(tmp_path), tmp_path / "v.nii.gz")
