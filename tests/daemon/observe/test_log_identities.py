"""Every line of a process in one form, and none with a person's identity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from series_factory import make_files

from daemon.observe.logs import IDENTITIES, REMOVED
from dicom_io.series.identities import identities

PROGRAM = """
import logging, sys, threading, warnings
from daemon.observe.logs import IDENTITIES, set_up_logging
set_up_logging("json")
import dbos._logger
dbos._logger.init_logger()
IDENTITIES.hide("job", ["MARKERDOE^JANE", "MRN-4711"])
log = logging.getLogger("daemon.test")
log.info("of %s (%s), name %s", "MARKERDOE^JANE", "MRN-4711", "JANE")
log.info("digest aMRN-4711b stays")
logging.getLogger("pydicom").warning("Invalid value for VR PN: 'SOMEBODY ELSE'")
warnings.warn("Person name 'ANOTHER^ONE' has one component", UserWarning)
logging.getLogger("dbos").error("step failed for MARKERDOE")
print("printed of MRN-4711")
print("on standard error", file=sys.stderr)
try:
    raise ValueError("MARKERDOE")
except ValueError:
    log.exception("failed")
try:
    raise ConnectionResetError(104, "Connection reset by peer")
except OSError as error:
    logging.getLogger("pynetdicom.dul").exception(error)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("at the end MRN-4711")
"""


def test_one_form_for_all_lines_and_nobody_in_them() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    for name in ("MARKERDOE", "JANE", "SOMEBODY", "ANOTHER"):
        assert name not in ended.stderr
    assert ended.stderr.count("MRN-4711") == 1  # within another word: not to be found there
    assert lines[0]["message"] == f"of {REMOVED} ({REMOVED}), name {REMOVED}"
    ours = {"daemon.test", "pydicom", "warnings", "dbos", "printed", "uncaught", "pynetdicom.dul"}
    assert {line["logger"] for line in lines} == ours
    [reset] = [line for line in lines if line["logger"] == "pynetdicom.dul"]
    assert reset["message"] == "ConnectionResetError: [Errno 104] Connection reset by peer"
    assert "traceback" not in reset
    assert any("ZeroDivisionError" in line.get("traceback", "") for line in lines)


def test_identities_of_files_are_every_person_and_number(tmp_path: Path) -> None:
    named = {
        "PatientName": "DOE^JANE", "PatientID": "MRN1", "AccessionNumber": "ACC1", "ReferringPhysicianName": "REF^ONE",
        "OperatorsName": "OPER^ATOR", "PatientBirthDate": "19700102",
    }  # fmt: skip
    files = _written(tmp_path, named)
    found = identities([*files, tmp_path / "nowhere"])
    assert set(named.values()) <= found


def _written(folder: Path, named: dict[str, str]) -> list[Path]:
    files = make_files(folder / "series")[:2]
    for file in files:
        dataset = pydicom.dcmread(file)
        for keyword, value in named.items():
            setattr(dataset, keyword, value)
        dataset.save_as(file)
    return files


@pytest.mark.parametrize("value", ["", "A", "AB"])
def test_short_values_take_no_words_with_them(value: str) -> None:
    IDENTITIES.hide("short", [value])
    assert IDENTITIES.removed("A word, AB or ABC") == "A word, AB or ABC"
