"""A report where results are to name nobody, beyond its UIDs: names of files, and what its warnings quote."""

from __future__ import annotations

from pathlib import Path

from record_support import a_report

from daemon.config.sections import Settings
from daemon.jobs.folder import JobFolder
from daemon.pipeline.steps.nameless import nameless


def test_neither_names_of_files_nor_quoted_headers_are_in_a_report(tmp_path: Path) -> None:
    """Also of files below a link; a NIfTI file is named by itself."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "MARKER.dcm").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "MARKER_LINK").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "MARKER.nii.gz").touch()
    settings = Settings.model_validate({"results": {"deidentify": True, "deidentify_key": str(tmp_path / "key")}})
    warnings = (
        "3 of 9 instances were judged apart: 6 with 'MARKER t1' 'tir'; the input's first: MARKER.dcm in MARKER_LINK",
        "MARKER.nii.gz: the header's qform says RAS",
    )
    report = a_report(warnings=list(warnings))
    report = report.model_copy(update={"input": report.input.model_copy(update={"file": "MARKER.nii.gz"})})
    of_folder = nameless(settings, JobFolder(tmp_path, tmp_path / "in"), report)
    assert of_folder.warnings[0] == (
        "3 of 9 instances were judged apart: 6 with '…' '…'; the input's first: [file] in [file]"
    )
    of_file = nameless(settings, JobFolder(tmp_path, tmp_path / "MARKER.nii.gz"), report)
    assert of_file.warnings[1] == "[file]: the header's qform says RAS"
    assert (of_file.input.file, of_folder.input.file) == (None, None)
