"""The main job with parts that we did not write: dcmtk sends, Orthanc keeps, its REST interface is asked."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support import sections

from daemon.database.tables import JobState
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import LOOPBACK, Orthanc

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.orthanc,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Debian's orthanc is not installed"),
    pytest.mark.skipif(shutil.which("storescu") is None, reason="Debian's dcmtk is not installed"),
]


class Site:
    """Orthanc and the daemon, which know each other."""

    def __init__(self, folder: Path, **orthanc: Any) -> None:
        configuration = sections(0, "ORTHANC")
        port = configuration["listener"]["port"]
        known = {"braingemma": ("BRAINGEMMA", LOOPBACK, port), "storescu": ("STORESCU", LOOPBACK, 11199)}
        self.orthanc = Orthanc(folder / "orthanc", modalities=known, extra=orthanc)
        configuration["destinations"][0]["port"] = self.orthanc.port
        self.service = TrialService(folder / "daemon", configuration)
        self.service.start()

    def modalities(self) -> list[str]:
        """Modality of every series that Orthanc holds."""
        series = (self.orthanc.get(f"/series/{uid}") for uid in self.orthanc.get("/series"))
        return sorted(s["MainDicomTags"]["Modality"] for s in series)

    def stop(self) -> None:
        self.service.stop()
        self.orthanc.stop()


def storescu(study: list[Path], aet: str, port: int) -> None:
    subprocess.run(
        ["storescu", "-aec", aet, LOOPBACK, str(port), *map(str, study)], check=True, capture_output=True, timeout=120
    )


STABLE_AGE = 10
"""Seconds after which Orthanc takes a study for complete: longer than a pause in sending one on a busy machine."""

FORWARD_EVERYTHING = """
function OnStableStudy(study, tags, metadata)
  RestApiPost("/modalities/braingemma/store", study, true)
end
"""


@pytest.fixture
def forwarding_site(tmp_path: Path) -> Iterator[Site]:
    """An Orthanc that sends every study to the daemon whenever it has been quiet for a while."""
    script = tmp_path / "forward.lua"
    script.write_text(FORWARD_EVERYTHING)
    trial = Site(tmp_path, LuaScripts=[str(script)], StableAge=STABLE_AGE)
    yield trial
    trial.stop()


@pytest.mark.slow
def test_a_pacs_that_forwards_everything_makes_no_loop(forwarding_site: Site, study: list[Path]) -> None:
    """Orthanc forwards the study, gets our results, and so forwards the study again with our results in it."""
    orthanc, service = forwarding_site.orthanc, forwarding_site.service
    storescu(study, "ORTHANC", orthanc.port)
    [job] = service.wait_for_jobs(1, seconds=240)
    assert job.state is JobState.DONE, job.reason
    held = sorted(orthanc.get("/instances"))
    assert len(held) > 2 * len(study)
    forwards = forwards_until_quiet(orthanc, quiet_seconds=2.5 * STABLE_AGE, limit_seconds=240)
    assert forwards >= 2, "Orthanc did not forward the results"
    assert sorted(orthanc.get("/instances")) == held
    assert [j.job_id for j in service.store.recent()] == [job.job_id]


@pytest.fixture
def site_by_the_rule_of_deploy(tmp_path: Path) -> Iterator[Site]:
    """An Orthanc with the rule that `deploy/` gives to sites."""
    rule = Path(__file__).parents[2] / "deploy" / "forward.lua"
    trial = Site(tmp_path, LuaScripts=[str(rule)], StableAge=STABLE_AGE)
    yield trial
    trial.stop()


def test_orthanc_sends_each_study_once_and_holds_one_report_and_one_overlay_series_in_it(
    site_by_the_rule_of_deploy: Site, study: list[Path]
) -> None:
    """The study is stable once more when our results have come; they start no second transfer."""
    orthanc, service = site_by_the_rule_of_deploy.orthanc, site_by_the_rule_of_deploy.service
    storescu(study, "ORTHANC", orthanc.port)
    [job] = service.wait_for_jobs(1, seconds=400)
    assert job.state is JobState.DONE, job.reason
    assert_report_and_overlay(orthanc, study)
    deadline = time.monotonic() + 120
    while stable_studies(orthanc) < 2:
        assert time.monotonic() < deadline, "the study did not become stable again"
        time.sleep(0.5)
    assert forwards_until_quiet(orthanc, quiet_seconds=4, limit_seconds=120) == 1
    assert [j.job_id for j in service.store.recent()] == [job.job_id]


def assert_report_and_overlay(orthanc: Orthanc, study: list[Path]) -> None:
    """One series of each in the study; Orthanc reads the report and draws the overlay."""
    [study_id] = orthanc.get("/studies")
    held = [orthanc.get(f"/series/{uid}") for uid in orthanc.get(f"/studies/{study_id}")["Series"]]
    by_modality = {s["MainDicomTags"]["Modality"]: s for s in held if s["MainDicomTags"]["Modality"] in ("SR", "MR")}
    assert len(by_modality["SR"]["Instances"]) == 1
    assert len(by_modality["MR"]["Instances"]) == len(study)
    overlays = [s for s in held if s["MainDicomTags"]["Modality"] == "OT" and len(s["Instances"]) == len(study)]
    assert len(overlays) == 1
    tags = orthanc.get(f"/instances/{by_modality['SR']['Instances'][0]}/simplified-tags")
    assert tags["VerificationFlag"] == "UNVERIFIED"
    preview = orthanc.get_bytes(f"/instances/{overlays[0]['Instances'][0]}/preview")
    assert preview.startswith(b"\x89PNG")


def stable_studies(orthanc: Orthanc) -> int:
    """How often Orthanc has found a study stable."""
    changes = orthanc.get("/changes?limit=10000")["Changes"]
    return sum(change["ChangeType"] == "StableStudy" for change in changes)


def forwards_until_quiet(orthanc: Orthanc, *, quiet_seconds: float, limit_seconds: float) -> int:
    """Successful transfers that Orthanc made, once it has made no further one for some time."""
    begun = changed = time.monotonic()
    count = 0
    while time.monotonic() - changed < quiet_seconds:
        assert time.monotonic() - begun < limit_seconds, f"still forwarding after {count} transfers"
        jobs = [orthanc.get(f"/jobs/{job}") for job in orthanc.get("/jobs")]
        done = sum(job["Type"] == "DicomModalityStore" and job["State"] == "Success" for job in jobs)
        if done != count:
            count, changed = done, time.monotonic()
        time.sleep(0.5)
    return count
