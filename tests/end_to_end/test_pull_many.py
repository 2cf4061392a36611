"""A whole archive pulled while the daemon is killed five times and the PACS twice: none missing, none doubled.

`BRAINGEMMA_TEST_STUDIES` sets how many studies; 1,000 take about half an hour on two cores. One in twenty is a head
that the bundled weights report; of the others the steps need no time.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from pull_support import SLICES, PullSite, make_phantom_study, make_study
from steps_support import QUICK_STEPS, replace_steps

from daemon.database.tables import JobState, PulledState
from daemon.jobs.report import Report
from daemon.jobs.store import Job
from daemon.pipeline.steps import runner
from training.phantoms.phantom import make_phantom

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.orthanc,
    pytest.mark.slow,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Debian's orthanc is not installed"),
]

REAL_ONE_IN = 20
MIXED_STEPS = (
    (
        QUICK_STEPS.replace("class Steps:", "class QuickSteps:")
        + """
import importlib.util

spec = importlib.util.spec_from_file_location("real_runner", REAL_RUNNER)
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)


class Steps:
    def __init__(self, settings, progress):
        self.quick, self.real = QuickSteps(settings, progress), real.Steps(settings, progress)

    def run(self, step, folder):
        is_head = len(list(folder.input.iterdir())) > SLICES
        (self.real if is_head else self.quick).run(step, folder)
"""
    )
    .replace("REAL_RUNNER", repr(str(Path(runner.__file__))))
    .replace("SLICES", str(SLICES))
)
STUDIES = int(os.environ.get("BRAINGEMMA_TEST_STUDIES", "1000"))
DAEMON_KILLED_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
PACS_KILLED_AT = (0.2, 0.6)
"""Share of the studies that are reported then."""


def test_every_study_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_steps(tmp_path / "steps", MIXED_STEPS, monkeypatch)
    site = PullSite(tmp_path / "site", in_flight=8)
    made, truths = {}, {}
    table = tmp_path / "pull.csv"
    try:
        for number in range(STUDIES):
            if number % REAL_ONE_IN:
                study = make_study(tmp_path / "in", number, others=())
            else:
                phantom = make_phantom(7_600_000 + number, spacing=(2.0, 2.0, 5.0), with_lesion=True)
                study = make_phantom_study(tmp_path / "in", number, phantom.volume)
                truths[study.uid] = next(f.laterality for f in phantom.findings if f.finding == "lesion")
            site.keep([study])
            shutil.rmtree(tmp_path / "in")
            made[study.uid] = study
        site.service.start()
        command = site.command("--from", "archive", "--query", "StudyDate=20260115", "--report", str(table))
        with (tmp_path / "said").open("w") as out:
            following = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        kills = sorted([(at, "daemon") for at in DAEMON_KILLED_AT] + [(at, "pacs") for at in PACS_KILLED_AT])
        for share, what in kills:
            _wait_for(site, int(share * STUDIES), following)
            if what == "daemon":
                site.service.kill()
                site.service.start()
            else:
                site.orthanc.kill()
                site.orthanc.start()
        assert following.wait(3 * 3600) == 0, (tmp_path / "said").read_text()[-2000:]
        jobs = site.service.store.recent(limit=2 * STUDIES)
        assert Counter(job.study_uid for job in jobs) == Counter(made.keys())
        assert {job.state for job in jobs} == {JobState.DONE}
        assert site.received() == {study.flair: len(study.files) for study in made.values()}
        check_sides(site, {job.study_uid: job for job in jobs}, truths)
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert Counter(row["study_uid"] for row in rows) == Counter(made.keys())
        assert {row["state"] for row in rows} == {"reported"}
        assert "Traceback" not in site.service.log.read_text()
    finally:
        site.stop()


def check_sides(site: PullSite, jobs: dict[str, Job], truths: dict[str, str]) -> None:
    """None of the heads is reported on the side where the lesion is not."""
    said = Counter()
    for uid, truth in truths.items():
        report = Report.read(site.service.folder_of(jobs[uid]).report_json)
        assert report.model.name == "demo"
        [lesion] = [f for f in report.findings if f.finding == "lesion"]
        said[truth, lesion.presence, lesion.laterality] += 1
    print(said)  # noqa: T201 - `pytest -s` shows it
    wrong = {("left", "right"), ("right", "left")}
    assert not [key for key in said if (key[0], key[2]) in wrong], said
    assert sum(n for (truth, _, told), n in said.items() if truth == told) >= 0.9 * len(truths), said


def _wait_for(site: PullSite, reported: int, following: subprocess.Popen[bytes]) -> None:
    """Until so many are reported; the test's timeout ends it."""
    engine_of = site.pulls
    while True:
        found = engine_of.progress(engine_of.pulls())
        if found and found[0].counts.get(PulledState.REPORTED, 0) >= reported:
            return
        assert following.poll() is None, "the command ended before its work"
        time.sleep(0.2)
