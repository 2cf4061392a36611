"""Real FLAIR volumes, as NIfTI and as DICOM series through the daemon: a report, pictures and results for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e_support import SHARED_DATA

from daemon.config.sections import Settings
from daemon.database.tables import JobState
from daemon.pipeline.process import process
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series

VOLUMES = sorted((SHARED_DATA / "nifti").rglob("*.nii.gz"))

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.shared_data,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not VOLUMES, reason="the shared FLAIR volumes are not beside the checkout"),
]


@pytest.mark.parametrize("path", VOLUMES, ids=lambda p: p.name.split(".")[0])
def test_a_real_volume_is_reported(path: Path, tmp_path: Path) -> None:
    settings = Settings.model_validate({"explain": {"samples": 16}})
    folder = process(path, tmp_path / "out", settings)
    report = json.loads(folder.report_json.read_text())
    assert report["report"]
    assert report["input"]["orientation"] == "RAS"
    assert report["input"]["file"] == path.name
    for name in ("overlay_slices.png", "lime_2x3_grid.png", "lime_top_supervoxels_grid.png", "saliency.nii.gz"):
        assert (folder.explain / name).stat().st_size > 0


def test_real_volumes_as_series_come_back_as_results(service: TrialService, pacs: EmbeddedPacs, tmp_path: Path) -> None:
    service.start()
    count = 0
    for path in VOLUMES:
        for plane in ("axial", "sagittal"):
            identity = {"PatientID": path.name.split(".")[0], "SeriesDescription": f"FLAIR {plane}"}
            service.send(write_series(path, tmp_path / f"{count}", plane=plane, overrides=identity))
            count += 1
    jobs = service.wait_for_jobs(count, seconds=1000)
    assert {(job.state, job.reason) for job in jobs} == {(JobState.DONE, "")}
    reports = [d for d in pacs.instances() if d.Modality == "SR"]
    assert len(reports) == count
    assert len({d.StudyInstanceUID for d in reports}) == count
