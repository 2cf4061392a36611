"""The command as a user types it: exit codes, one line for bad input, data on standard output."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest

from daemon.cli.__main__ import main
from daemon.cli.jobs import delivery_rows
from daemon.database.tables import DeliveryState
from daemon.jobs.store import Delivery
from dicom_io.series_writer import write_series


class Ended(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def braingemma(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The command in this process, which has loaded what it needs; as a process it is tested by `python -m` below."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["braingemma", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


def one_line(result: Ended) -> str:
    """The last line of standard error; there must be no traceback."""
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def volume(value: float = 1.0, shape: tuple[int, ...] = (30, 36, 28)) -> nib.Nifti1Image:
    rng = np.random.default_rng(0)
    return nib.Nifti1Image((rng.random(shape) * value).astype(np.float32), np.diag([5.0, 5.0, 5.0, 1.0]))


def bad_inputs(folder: Path) -> dict[str, Path]:
    """Each with a name that says what is wrong with it."""
    made = {name: folder / name for name in ("nan.nii.gz", "constant.nii.gz", "4d.nii.gz", "thin.nii.gz")}
    nan = np.asarray(volume().dataobj).copy()
    nan[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(nan, np.eye(4)), made["nan.nii.gz"])
    nib.save(nib.Nifti1Image(np.ones((30, 30, 30), np.float32), np.eye(4)), made["constant.nii.gz"])
    nib.save(volume(shape=(30, 36, 28, 2)), made["4d.nii.gz"])
    nib.save(volume(shape=(30, 36, 5)), made["thin.nii.gz"])
    made["truncated.nii.gz"] = folder / "truncated.nii.gz"
    whole = gzip.compress(volume().to_bytes())
    made["truncated.nii.gz"].write_bytes(whole[: len(whole) // 2])
    made["text.nii.gz"] = folder / "text.nii.gz"
    made["text.nii.gz"].write_text("not an image")
    made["picture.png"] = folder / "picture.png"
    made["picture.png"].write_bytes(b"\x89PNG")
    made["empty folder"] = folder / "empty"
    made["empty folder"].mkdir()
    made["nowhere"] = folder / "nowhere"
    return made


def test_bad_input_to_process_gives_one_line_that_names_it(tmp_path: Path) -> None:
    from daemon.config.sections import Settings
    from daemon.errors import Rejected
    from daemon.pipeline.process import process

    for name, path in bad_inputs(tmp_path).items():
        with pytest.raises(Rejected) as caught:
            process(path, tmp_path / "out", Settings())
        text = str(caught.value)
        assert "\n" not in text, name
        assert path.name.split(".")[0] in text, f"{name}: {text}"


def test_a_rejected_file_ends_the_command_with_one_line_and_1(tmp_path: Path, braingemma: Callable[..., Ended]) -> None:
    result = braingemma("process", bad_inputs(tmp_path)["nan.nii.gz"], "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "nan.nii.gz" in one_line(result)
    assert result.stdout == ""


def test_wrong_usage_and_wrong_configuration_end_with_2(tmp_path: Path, braingemma: Callable[..., Ended]) -> None:
    assert braingemma("process").returncode == 2
    assert braingemma("nonsense").returncode == 2
    process = [sys.executable, "-m", "daemon.cli", "nonsense"]
    assert subprocess.run(process, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode == 2
    missing = braingemma("jobs", "list", "--config", tmp_path / "none.toml")
    assert missing.returncode == 2
    assert "none.toml" in one_line(missing)


def test_select_names_the_values_that_each_rule_saw(tmp_path: Path, braingemma: Callable[..., Ended]) -> None:
    rng = np.random.default_rng(0)
    head = nib.Nifti1Image(rng.integers(0, 900, (48, 56, 32)).astype(np.int16), np.diag([4.0, 4.0, 5.0, 1.0]))
    write_series(head, tmp_path / "study" / "flair")
    write_series(
        head, tmp_path / "study" / "t2",
        overrides={"SeriesDescription": "t2_tse_tra", "ProtocolName": "t2_tse_tra", "InversionTime": None,
                   "ScanningSequence": "SE", "SequenceName": "*tse2d1_16", "RepetitionTime": "4000"},
    )  # fmt: skip
    (tmp_path / "study" / "readme.txt").write_text("no DICOM")
    result = braingemma("select", tmp_path / "study", "--json")
    assert result.returncode == 0, result.stderr
    found = {row["verdict"]: row for row in json.loads(result.stdout)["series"]}
    assert set(found) == {"accepted", "refused"}
    assert any("2500" in reason for reason in found["accepted"]["reasons"])
    assert any("t2_tse_tra" in reason for reason in found["refused"]["reasons"])


def test_neither_select_nor_process_chooses_between_patients(tmp_path: Path, braingemma: Callable[..., Ended]) -> None:
    rng = np.random.default_rng(0)
    head = nib.Nifti1Image(rng.integers(0, 900, (48, 56, 32)).astype(np.int16), np.diag([4.0, 4.0, 5.0, 1.0]))
    for number, patient in ((1, "ONE"), (2, "TWO")):
        uids = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1"}
        write_series(head, tmp_path / "in" / patient, overrides={"PatientID": patient, **uids})
    both = braingemma("select", tmp_path / "in", "--json")
    assert both.returncode == 1
    assert {row["verdict"] for row in json.loads(both.stdout)["series"]} == {"accepted"}
    result = braingemma("process", tmp_path / "in", "--out", tmp_path / "out", "--no-explain")
    assert result.returncode == 1
    for said in (one_line(both), one_line(result)):
        assert all(part in said for part in ("--study UID", "1.2.1 (ONE", "1.2.2 (TWO"))
    one = braingemma("select", tmp_path / "in", "--study", "1.2.2", "--json")
    assert one.returncode == 0
    assert [row["series_uid"] for row in json.loads(one.stdout)["series"]] == ["1.2.2.1"]


def test_select_of_nothing_is_an_error(tmp_path: Path, braingemma: Callable[..., Ended]) -> None:
    result = braingemma("select", tmp_path)
    assert result.returncode == 1
    assert "found none" in one_line(result)


@pytest.mark.parametrize("command", [[], ["jobs"], ["weights"], ["train"], ["bench"], ["process"], ["serve"], ["demo"]])
def test_every_command_has_help(command: list[str], braingemma: Callable[..., Ended]) -> None:
    result = braingemma(*command, "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout


def test_send_says_what_was_not_sent(tmp_path: Path, braingemma: Callable[..., Ended]) -> None:
    (tmp_path / "note.txt").write_text("no DICOM")
    result = braingemma("send", tmp_path, "--to", "PACS@127.0.0.1:1")
    assert result.returncode == 1
    wrong = braingemma("send", tmp_path, "--to", "PACS")
    assert wrong.returncode == 1
    assert "AET@HOST:PORT" in one_line(wrong)


def test_files_that_fared_alike_are_one_row() -> None:
    def delivery(file: str, **changes: Any) -> Delivery:
        kind = file.partition("/")[0].partition(".")[0]
        sent = Delivery("j", "pacs", file, kind, file, DeliveryState.SENT, "0000", 1, "", 0.0)
        return replace(sent, **changes)

    found = delivery_rows([
        delivery("sr.dcm"), delivery("sc/0001.dcm"), delivery("sc/0002.dcm", reason="refused", attempts=3),
        delivery("sc/0003.dcm"), delivery("sc/0004.dcm"), delivery("sc/0001.dcm", destination="web"),
    ])  # fmt: skip
    assert [(row[0], row[2], row[6], row[7]) for row in found] == [
        ("pacs", "sr.dcm", "1", ""),
        ("pacs", "sc/0001.dcm ... sc/0004.dcm (3 files)", "1", ""),
        ("pacs", "sc/0002.dcm", "3", "refused"),
        ("web", "sc/0001.dcm", "1", ""),
    ]
