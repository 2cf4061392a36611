"""Real data: manifests, the card's data sets on disk, splits by patient, and everything wrong named at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from braingemma.findings.text import findings_from_text
from training.data.public_data import brats_records, control_records, healthy_report, official_splits
from training.data.records import Record, check_records, read_checked, read_manifest, write_manifest
from training.data.splits import CARD_SHARES, chosen, split_patients, stratum, with_splits
from training.errors import DataError

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "textbrats_train.jsonl"


def save_volume(path: Path, shape: tuple[int, ...] = (6, 7, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).random(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def side_report(side: str) -> str:
    return f"The lesion area is in the {side} frontal lobe. Edema is not observed."


def records_of(sides: dict[str, int]) -> list[Record]:
    names = [f"{side}-{n}" for side, count in sides.items() for n in range(count)]
    return [Record(name, Path(f"{name}.nii"), side_report(name.split("-")[0]), name) for name in names]


# ---- manifests


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_manifests_are_read_from_either_format(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "image": "a.nii.gz",
            "report": 'Says "left, then right".',
            "patient": "p1",
            "mask": "m.nii.gz",
            "split": "test",
        },
        {"image": "b.nii", "report": "Normal.", "patient": "", "mask": "", "split": ""},
    ]
    path = tmp_path / f"cases{suffix}"
    if suffix == ".csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = read_manifest(path)
    assert first == Record("a", tmp_path / "a.nii.gz", 'Says "left, then right".', "p1", tmp_path / "m.nii.gz", "test")
    assert (second.name, second.mask, second.split) == ("b", None, None)
    assert second.patient != first.patient


def test_every_bad_line_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"image": "a.nii"}\nnot json\n{"image": "b.nii", "report": "x", "split": "dev"}\n')
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert "3 problems" in text
    assert ":1: report missing" in text
    assert ":2: expected one JSON object" in text
    assert ":3: split must be one of train, val, test, got 'dev'" in text


def test_lines_files_and_splits_are_named_in_one_message(tmp_path: Path) -> None:
    save_volume(tmp_path / "good.nii.gz")
    shifted = nib.Nifti1Image(np.ones((6, 7, 8), np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    nib.save(shifted, tmp_path / "shifted.nii.gz")
    rows = [
        {"image": "good.nii.gz", "report": "x", "mask": "shifted.nii.gz", "split": "train"},
        {"image": "gone.nii.gz", "report": "x"},
        {"image": "good.nii.gz"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as caught:
        read_checked(tmp_path / "m.jsonl")
    text = str(caught.value)
    for part in (
        "4 problems", "m.jsonl:3: report missing", "1 of 2 cases state no split (gone)", "gone.nii.gz: missing",
        "shifted.nii.gz: its header places it elsewhere than good.nii.gz",
    ):  # fmt: skip
        assert part in text, text


def test_every_bad_file_is_named_at_once(tmp_path: Path) -> None:
    good = save_volume(tmp_path / "good.nii.gz")
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(good.read_bytes()[:200])
    four = save_volume(tmp_path / "four.nii", (4, 4, 4, 2))
    small = save_volume(tmp_path / "small.nii", (3, 3, 3))
    records = [
        Record("1", good, "x", "p1", None, "train"),
        Record("2", tmp_path / "gone.nii", "x", "p2", None, "train"),
        Record("3", cut, "x", "p3", None, "val"),
        Record("4", four, "x", "p4", None, "val"),
        Record("5", good, "x", "p1", small, "test"),
    ]
    with pytest.raises(DataError) as caught:
        check_records(records)
    text = str(caught.value)
    parts = (
        "6 problems",
        "patient p1: in the splits test and train",
        "gone.nii: missing",
        "cut.nii.gz: not a",
        "four.nii: expected one 3D volume",
        "small.nii: shape (3, 3, 3)",
        "good.nii.gz: listed 2 times",
    )
    for part in parts:
        assert part in text, text
    check_records(records[:1])


# ---- splits


def test_splits_keep_the_cards_shares_in_every_stratum() -> None:
    records = with_splits(records_of({"left": 177, "right": 164, "bilateral": 20}))
    by_side = Counter((stratum(r.report), r.split) for r in records)
    for side, count in (("left", 177), ("right", 164), ("bilateral", 20)):
        for split, share in CARD_SHARES.items():
            assert abs(by_side[side, split] - share * count) <= 1.01
    assert Counter(r.split for r in records) == {"train": 253, "val": 36, "test": 72}


def test_splits_do_not_depend_on_order_or_process() -> None:
    strata = {f"p{n}": "left" if n % 2 else "right" for n in range(40)}
    here = split_patients(strata, CARD_SHARES, seed=3)
    code = (
        "from training.data.splits import *; import json;"
        "print(json.dumps(split_patients({f'p{n}': 'left' if n % 2 else 'right' for n in reversed(range(40))},"
        " CARD_SHARES, seed=3)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == here
    assert split_patients(strata, CARD_SHARES, seed=4) != here


def test_several_scans_of_a_patient_stay_together() -> None:
    records = [
        Record(f"{p}-{n}", Path(f"{p}-{n}.nii"), side_report("left"), f"p{p}") for p in range(30) for n in (0, 1)
    ]
    splits: dict[str, set[str | None]] = {}
    for record in with_splits(records):
        splits.setdefault(record.patient, set()).add(record.split)
    assert all(len(found) == 1 for found in splits.values())


def test_stated_splits_are_kept_and_validation_comes_out_of_training() -> None:
    records = records_of({"left": 40, "right": 40})
    stated = [
        Record(r.name, r.image, r.report, r.patient, None, "test" if n < 20 else "train") for n, r in enumerate(records)
    ]
    done = with_splits(stated)
    assert [r.name for r in done if r.split == "test"] == [r.name for r in records[:20]]
    assert 7 <= sum(r.split == "val" for r in done) <= 8
    with pytest.raises(DataError, match="20 of 80 cases state no split"):
        with_splits(
            [
                Record(r.name, r.image, r.report, r.patient, None, None if n < 20 else "train")
                for n, r in enumerate(records)
            ]
        )
    with pytest.raises(DataError, match="no case is in the split 'val'"):
        chosen(stated, "val")


# ---- the card's data


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Four patients in BraTS 2020's layout with TextBraTS beside; one segmentation is named as in patient 355."""
    for number, side in ((1, "left"), (2, "right"), (3, "left"), (4, "right")):
        case = f"BraTS20_Training_{number:03d}"
        save_volume(tmp_path / "mri" / case / f"{case}_flair.nii.gz")
        save_volume(tmp_path / "mri" / case / f"{case}_t1ce.nii.gz")
        save_volume(tmp_path / "mri" / case / ("W39_1998_Segm.nii.gz" if number == 4 else f"{case}_seg.nii.gz"))
        text = tmp_path / "text" / case / f"{case}_flair_text.txt"
        text.parent.mkdir(parents=True)
        text.write_text(side_report(side) + "\n")
    for name, cases in (("Train", (1, 2, 3)), ("Test", (4,))):
        listed = [{"image": [f"BraTS20_Training_{n:03d}/BraTS20_Training_{n:03d}_flair.nii.gz"]} for n in cases]
        (tmp_path / "text" / f"{name}.json").write_text(json.dumps({"training": listed}))
    return tmp_path


def test_brats_with_textbrats_and_its_official_split(brats: Path) -> None:
    records = brats_records(brats / "mri", brats / "text", brats / "text")
    assert [r.split for r in records] == ["train", "train", "train", "test"]
    assert all(r.mask and r.image.name == f"{r.patient}_flair.nii.gz" for r in records)
    assert [findings_from_text(r.report)[0].laterality for r in records] == ["left", "right", "left", "right"]
    assert {r.split for r in brats_records(brats / "mri", brats / "text")} == {None}


def test_missing_brats_files_are_named_at_once(brats: Path) -> None:
    for number in (1, 3):
        (brats / "mri" / f"BraTS20_Training_{number:03d}" / f"BraTS20_Training_{number:03d}_flair.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 problems(.|\n)*001(.|\n)*003"):
        brats_records(brats / "mri", brats / "text")
    (brats / "text" / "Test.json").write_text((brats / "text" / "Train.json").read_text())
    with pytest.raises(DataError, match=r"in Train.json and Test.json"):
        official_splits(brats / "text")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="no shared test data beside the checkout")
def test_the_official_training_reports_are_read(tmp_path: Path) -> None:
    ids = [json.loads(line)["id"] for line in SHARED.read_text().splitlines()]
    for case in ids:
        folder = tmp_path / case
        folder.mkdir()
        (folder / f"{case}_flair.nii.gz").touch()
    records = brats_records(tmp_path, SHARED)
    assert len(records) == 276
    assert {"left", "right", "bilateral"} <= {stratum(r.report) for r in records}


def test_controls_come_one_for_each_participant(tmp_path: Path) -> None:
    for name in ("sub-010002/ses-01/anat/sub-010002_ses-01_FLAIR.nii.gz",
                 "sub-010002/ses-02/anat/sub-010002_ses-02_FLAIR.nii.gz",
                 "sub-010001/ses-01/anat/sub-010001_ses-01_acq-lowres_FLAIR.nii.gz",
                 "sub-010001/ses-01/anat/sub-010001_ses-01_T1w.nii.gz",
                 "derivatives/sub-010003/anat/sub-010003_FLAIR.nii.gz"):  # fmt: skip
        save_volume(tmp_path / name)
    records = control_records(tmp_path)
    assert [(r.patient, r.image.name) for r in records] == [
        ("sub-010001", "sub-010001_ses-01_acq-lowres_FLAIR.nii.gz"),
        ("sub-010002", "sub-010002_ses-01_FLAIR.nii.gz"),
    ]
    with pytest.raises(DataError, match="BIDS"):
        control_records(tmp_path / "sub-010001")


def test_healthy_reports_vary_and_stay() -> None:
    reports = [healthy_report(f"sub-{n:06d}") for n in range(60)]
    assert len(set(reports)) > 20
    assert all(f.presence == "absent" for report in reports for f in findings_from_text(report))
    code = "from training.data.public_data import healthy_report; print(healthy_report('sub-000007'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == reports[7]


def test_a_written_manifest_is_read_back(brats: Path) -> None:
    records = with_splits(brats_records(brats / "mri", brats / "text", brats / "text"))
    write_manifest(records, brats / "out" / "manifest.jsonl")
    again = read_manifest(brats / "out" / "manifest.jsonl")
    assert [(r.name, r.patient, r.split, r.report) for r in again] == [
        (r.name, r.patient, r.split, r.report) for r in records
    ]
    check_records(again)
