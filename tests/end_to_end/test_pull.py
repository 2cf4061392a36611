"""`braingemma pull` with a real Orthanc: by C-MOVE, C-GET and DICOMweb, and with either killed in the middle."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom
import pytest
from e2e_support import MARKERS, assert_nobody_is_named
from pull_support import SLICES, PullSite, StudyInPacs, make_study, series_of
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet
from steps_support import QUICK_STEPS, replace_steps

from daemon.database.tables import FINAL_STATES, JobState, PulledState, PullState
from daemon.trial.pacs import DICOM_WEB, LOOPBACK

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.orthanc,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Debian's orthanc is not installed"),
    pytest.mark.skipif(not DICOM_WEB.exists(), reason="Debian's orthanc-dicomweb is not installed"),
]


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_steps(tmp_path / "steps", QUICK_STEPS, monkeypatch)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PullSite]]:
    sites: list[PullSite] = []

    def _start(**source: object) -> PullSite:
        sites.append(PullSite(tmp_path / f"site{len(sites)}", **source))
        return sites[-1]

    yield _start
    for site in sites:
        site.stop()


@pytest.mark.parametrize(("by", "way"), [("move", "C-MOVE"), ("get", "C-GET"), ("web", "WADO-RS")])
def test_only_what_could_be_a_flair_is_fetched_and_each_study_is_reported_once(
    start: Callable[..., PullSite], tmp_path: Path, by: str, way: str
) -> None:
    site = start(by=by)
    studies = [
        make_study(
            tmp_path / f"in{n}", n, **MARKERS | {"PatientID": f"MARKERMRN{n}", "AccessionNumber": f"MARKERACC{n}"}
        )
        for n in range(3)
    ]
    older = make_study(tmp_path / "older", 8, StudyDate="20251231")
    no_flair = make_study(tmp_path / "none", 9, SeriesDescription="dwi_b1000", ProtocolName="dwi_b1000")
    site.keep([*studies, older, no_flair])
    site.service.start()
    table = tmp_path / "pull.csv"
    code, said, messages = site.pull("--query", "StudyDate=20260101-20260131", "--report", str(table))
    assert code == 0, messages
    by_uid = {study["study_uid"]: study for study in said["studies"]}
    assert by_uid.keys() == {study.uid for study in (*studies, no_flair)}
    assert {by_uid[study.uid]["state"] for study in studies} == {"reported"}
    assert {by_uid[study.uid]["way"] for study in studies} == {way}
    assert by_uid[no_flair.uid]["state"] == "refused"
    assert "dwi_b1000: name: 'dwi_b1000' means diffusion" in by_uid[no_flair.uid]["reason"]
    assert site.received() == {study.flair: SLICES for study in studies}
    assert sorted(job.study_uid for job in site.service.store.recent()) == sorted(study.uid for study in studies)
    with table.open(newline="") as file:
        rows = {row["study_uid"]: row for row in csv.DictReader(file)}
    assert {rows[study.uid]["series_taken"] for study in studies} == {"t2_flair_tra"}
    assert all("t1_mprage_sag (" in rows[study.uid]["series_left"] for study in studies)
    assert "Traceback" not in site.service.log.read_text()

    code, said, messages = site.pull(
        "--study", studies[0].uid, "--accession", studies[1].accession, "--patient", "MARKERMRN9"
    )
    assert code == 1
    assert "the PACS has no study of PatientID=MARKERMRN9" in messages
    states = [(study["state"], study["attempts"]) for study in said["studies"]]
    assert states.count(("reported", 0)) == 2, "known, and not fetched again"
    assert states.count(("not_found", 0)) == 1
    assert len(site.service.store.recent()) == len(studies)
    named = assert_nobody_is_named(site.service, "job_studies", "job_words", "pulls", "pulled_studies")
    assert "MARKERMRN9" in named["pulls"]


def test_all_series_are_fetched_where_that_is_asked_for(start: Callable[..., PullSite], tmp_path: Path) -> None:
    site = start()
    study = make_study(tmp_path / "in", 1)
    site.keep([study])
    site.service.start()
    listed = tmp_path / "list.csv"
    listed.write_text(f"case,AccessionNumber\n1,{study.accession}\n")
    code, said, messages = site.pull("--list", str(listed), "--all-series")
    assert code == 0, messages
    assert [entry["state"] for entry in said["studies"]] == ["reported"]
    assert site.received() == dict.fromkeys(series_of(study), SLICES)


def until(site: PullSite, pull_id: str, condition: Callable[[dict[PulledState, int]], bool]) -> None:
    """Wait for what the pull's studies come to; the test's timeout ends it."""
    while not condition(site.pulls.progress([site.pulls.get(pull_id)])[0].counts):
        time.sleep(0.05)


@pytest.mark.slow
def test_daemon_and_pacs_killed_in_the_middle_miss_and_double_nothing(
    start: Callable[..., PullSite], tmp_path: Path
) -> None:
    """And a pause holds over a restart."""
    site = start(in_flight=2)
    studies: list[StudyInPacs] = [make_study(tmp_path / f"in{n}", n, others=()) for n in range(24)]
    site.keep(studies)
    site.service.start()
    said = tmp_path / "said"
    with said.open("w") as out:
        following = subprocess.Popen(site.command("--from", "archive", "--query", "StudyDate=20260115"), stdout=out)
    while not site.pulls.pulls():
        time.sleep(0.05)
    [pull] = site.pulls.pulls()
    until(site, pull.pull_id, lambda counts: counts.get(PulledState.REPORTED, 0) >= 3)
    site.orthanc.kill()
    until(site, pull.pull_id, lambda _: "waits for the PACS" in site.pulls.get(pull.pull_id).waits)
    site.service.kill()
    subprocess.run(site.command("pause", pull.pull_id), check=True, capture_output=True, timeout=60)
    site.orthanc.start()
    site.service.start()
    before = site.pulls.progress([pull])[0].counts
    assert before.get(PulledState.WAITING, 0) > 5
    assert site.pulls.get(pull.pull_id).state is PullState.PAUSED
    subprocess.run(site.command("resume", pull.pull_id), check=True, capture_output=True, timeout=60)
    until(site, pull.pull_id, lambda counts: counts.get(PulledState.REPORTED, 0) >= 10)
    site.service.kill()
    site.service.start()
    assert following.wait(280) == 0
    assert "24 of 24 reported" in said.read_text()
    jobs = site.service.store.recent()
    assert sorted(job.study_uid for job in jobs) == sorted(study.uid for study in studies)
    assert {job.state for job in jobs} == {JobState.DONE}
    assert site.received() == {study.flair: SLICES for study in studies}
    assert "Traceback" not in site.service.log.read_text()


class HalfPacs:
    """A PACS of pynetdicom's that gives half of each study by C-GET and then fails, until it is mended."""

    def __init__(self, studies: Sequence[StudyInPacs]) -> None:
        self.held = {study.uid: [pydicom.dcmread(file) for file in study.files] for study in studies}
        self.mended = False
        ae = AE("ORTHANC")
        ae.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
        for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet):
            ae.add_supported_context(model)
        handlers = [(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get)]
        self.server = ae.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
        self.port = self.server.socket.getsockname()[1]

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        held = self.held[event.identifier.StudyInstanceUID]
        found = Dataset()
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription"):
            setattr(found, keyword, held[0].get(keyword))
        found.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
        found.NumberOfSeriesRelatedInstances = len(held)
        yield 0xFF00, found

    def _get(self, event: evt.Event) -> Iterator[object]:
        held = self.held[event.identifier.StudyInstanceUID]
        yield len(held)
        for dataset in held if self.mended else held[: len(held) // 2]:
            yield 0xFF00, dataset
        if not self.mended:
            yield 0xA702, None


@pytest.mark.slow
def test_half_a_study_is_never_reported_and_the_whole_is(start: Callable[..., PullSite], tmp_path: Path) -> None:
    """Where it is pulled again, and where a person sends it instead."""
    studies = [make_study(tmp_path / f"in{n}", n, others=()) for n in range(2)]
    asked = [word for study in studies for word in ("--study", study.uid)]
    pacs = HalfPacs(studies)
    site = start(by="get", attempts=1, port=pacs.port)
    site.service.start()

    def states() -> dict[str, list[JobState]]:
        jobs = site.service.store.recent()
        return {study.uid: sorted(job.state for job in jobs if job.study_uid == study.uid) for study in studies}

    def check(wanted: list[JobState]) -> None:
        """Wait for so many jobs of each study, and their ends."""
        while any(len(found) < len(wanted) or set(found) - FINAL_STATES for found in states().values()):
            time.sleep(0.05)
        assert set(map(tuple, states().values())) == {tuple(wanted)}

    try:
        code, said, messages = site.pull(*asked)
        assert code == 1
        assert "given up after 1 attempts" in messages
        assert [entry["state"] for entry in said["studies"]] == ["failed", "failed"]
        check([JobState.SET_ASIDE])
        assert all("did not fetch all of it" in job.reason for job in site.service.store.recent())
        pacs.mended = True
        code, said, messages = site.pull(*asked[:2])
        assert code == 0, messages
        assert [entry["state"] for entry in said["studies"]] == ["reported"]
        site.service.send(studies[1].files)
        check([JobState.DONE, JobState.SET_ASIDE])
        assert "Traceback" not in site.service.log.read_text()
    finally:
        pacs.server.shutdown()
