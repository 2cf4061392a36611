"""When a source is asked, how much at once, what becomes of studies that do not come: with the tests' own PACS."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import Dataset

from daemon.cli import pull as cli
from daemon.config.sections import Settings
from daemon.database.engine import open_database, upsert
from daemon.database.tables import INSTANCES, RESULTS, STUDY_OWNERS, InstanceState, JobState, PulledState, PullState
from daemon.errors import DaemonError, Retryable
from daemon.jobs.store import JobStore, now
from daemon.pull import puller
from daemon.pull.asks import Ask, query, single
from daemon.pull.fetches import LATE_SECONDS, Fetches
from daemon.pull.puller import Puller, _SourceWorker, in_window
from daemon.pull.source import Fetched, SourceAway, SourceBusy
from daemon.pull.store import PulledStudy
from daemon.spool.backpressure import set_behind


class Pacs:
    """Studies "1.1", "1.2", …, each of one FLAIR series; what goes wrong is set by the test."""

    def __init__(self, studies: int) -> None:
        self.uids = [f"1.{n}" for n in range(1, studies + 1)]
        self.away = False
        self.busy = 0
        self.refuses: dict[str, str] = {}
        self.fetched: list[str] = []
        self.entry: dict[str, Any] = {"Modality": "MR", "SeriesDescription": "t2_flair_tra"}

    def _ask(self) -> None:
        if self.away:
            raise SourceAway("PACS@127.0.0.1:104 cannot be reached")
        if self.busy:
            self.busy -= 1
            raise SourceBusy("PACS@127.0.0.1:104: status 0xA700")

    def studies(self, keys: Mapping[str, str]) -> list[Dataset]:
        self._ask()
        asked = [uid for uid in self.uids if keys.get("StudyInstanceUID", uid) == uid]
        return [_dataset(**{**keys, "StudyInstanceUID": uid}) for uid in asked]

    def series(self, study_uid: str) -> list[Dataset]:
        self._ask()
        return [_dataset(SeriesInstanceUID=f"{study_uid}.1", NumberOfSeriesRelatedInstances=5, **self.entry)]

    def fetch(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:  # noqa: ARG002
        self._ask()
        if study_uid in self.refuses:
            raise Retryable(self.refuses[study_uid])
        self.fetched.append(study_uid)
        return Fetched(5 - (study_uid == "1.99"), "C-MOVE")


def _dataset(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


class Site:
    def __init__(self, folder: Path, pacs: Pacs, clock: Callable[[], datetime.time], **source: Any) -> None:
        entry = {"name": "a", "ae_title": "PACS", "host": "127.0.0.1", "port": 104, **source}
        self.settings = Settings.model_validate({"storage": {"folder": folder, "min_free_gb": 0}, "sources": [entry]})
        self.engine = open_database(self.settings)
        self.puller = Puller(self.settings, self.engine, clock)
        self.puller.client = lambda _source: pacs
        self.store = self.puller.store
        self.fetches = Fetches(self.engine, self.engine)
        self.jobs = JobStore(self.engine)
        self.pull_id = self.store.add("a", [query("StudyDate=20260101")], all_series=False)
        self.worker = _SourceWorker(self.puller, "a", threading.Event())

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.worker._step(self.worker._pulls())

    def studies(self) -> dict[str, PulledStudy]:
        return {study.study_uid: study for study in self.store.studies(self.pull_id)}

    def states(self) -> list[str]:
        return [str(study.state) for study in self.studies().values()]

    def waits(self) -> str:
        return self.store.get(self.pull_id).waits

    def held(self) -> set[str]:
        return self.fetches.under_way()

    def settle(self) -> None:
        """What was fetched is indexed from now on, and handed over."""
        self.puller.is_indexed = lambda _study: True

    def index(self, study: str, numbers: range, state: InstanceState, at: float, series: str = "") -> None:
        """Instances of a series that came then; rows that are there take the state and time."""
        rows = [
            {
                "study_uid": study, "series_uid": series or f"{study}.1", "sop_uid": f"{study}.1.{n}", "sha256": "0",
                "sop_class_uid": "1", "transfer_syntax_uid": "1", "state": state.value, "segment": "s",
                "data_offset": 0, "data_length": 0, "association": "a", "calling_aet": "PACS", "peer": "p",
                "received": at, "last_received": at,
            }
            for n in numbers
        ]  # fmt: skip
        with self.engine.begin() as connection:
            for row in rows:
                connection.execute(upsert(self.engine, INSTANCES, row, update=("state", "last_received")))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Site]:
    def _make(pacs: Pacs, clock: Callable[[], datetime.time] = lambda: datetime.time(12), **source: Any) -> Site:
        return Site(tmp_path, pacs, clock, **source)

    return _make


@pytest.mark.parametrize(
    ("window", "at", "inside"),
    [
        ("19:00-06:00", "19:00", True), ("19:00-06:00", "23:59:59", True), ("19:00-06:00", "00:00", True),
        ("19:00-06:00", "05:59", True), ("19:00-06:00", "06:00", False), ("19:00-06:00", "12:00", False),
        ("08:00-17:30", "08:00", True), ("08:00-17:30", "17:30", False), ("08:00-17:30", "07:59:59", False),
    ],
)  # fmt: skip
def test_a_window_may_go_over_midnight(window: str, at: str, inside: bool) -> None:
    assert in_window(window, datetime.time.fromisoformat(at)) is inside


def test_outside_its_window_the_source_is_not_asked_and_says_so(make: Callable[..., Site]) -> None:
    pacs, time = Pacs(2), [datetime.time(12)]
    site = make(pacs, lambda: time[0], window="19:00-06:00")
    site.step(3)
    assert site.waits() == "waits for its time of day, 19:00-06:00"
    assert site.studies() == {}
    time[0] = datetime.time(3)
    site.step(3)
    assert pacs.fetched == ["1.1", "1.2"]
    assert site.waits() == ""


def test_no_more_are_in_flight_than_allowed_and_they_leave_by_their_report(make: Callable[..., Site]) -> None:
    pacs = Pacs(4)
    site = make(pacs, in_flight=2)
    site.step(6)
    assert pacs.fetched == ["1.1", "1.2"]
    assert site.states() == ["fetched", "fetched", "waiting", "waiting"]
    site.settle()
    site.jobs.add("j1", study_uid="1.1", supersedes=None)
    site.step(2)
    assert pacs.fetched == ["1.1", "1.2"], "its job is queued"
    site.jobs.update("j1", state=JobState.DONE, result="lesion left frontal")
    site.step(2)
    assert pacs.fetched == ["1.1", "1.2", "1.3"]
    first = site.studies()["1.1"]
    assert (first.state, first.job_id, first.reason) == (PulledState.REPORTED, "j1", "lesion left frontal")


def test_the_rate_holds_over_a_restart(make: Callable[..., Site]) -> None:
    pacs = Pacs(3)
    site = make(pacs, studies_per_hour=60)
    site.step(4)
    assert pacs.fetched == ["1.1"]
    site.worker = _SourceWorker(site.puller, "a", threading.Event())
    site.step(2)
    assert pacs.fetched == ["1.1"]
    site.store.update(site.studies()["1.1"], started=now() - 61)
    site.step(2)
    assert pacs.fetched == ["1.1", "1.2"]


def test_a_source_that_is_away_costs_no_attempt_and_no_study(make: Callable[..., Site]) -> None:
    pacs = Pacs(1)
    site = make(pacs, attempts=1)
    site.step()
    pacs.away = True
    site.step(5)
    assert site.waits() == "waits for the PACS: PACS@127.0.0.1:104 cannot be reached"
    assert [(s.state, s.attempts) for s in site.studies().values()] == [(PulledState.FETCHING, 0)]
    pacs.away = False
    site.step()
    assert site.states() == ["fetched"]
    assert site.held() == set()


def test_a_study_that_does_not_come_fails_by_itself_and_the_next_goes_on(make: Callable[..., Site]) -> None:
    pacs = Pacs(2)
    pacs.refuses["1.1"] = "C-MOVE: status 0xA702"
    pacs.uids.append("1.99")
    site = make(pacs, attempts=2)
    for _ in range(8):
        site.worker._not_before.clear()
        site.step()
    studies = site.studies()
    assert studies["1.1"].state is PulledState.FAILED
    assert studies["1.1"].reason == "given up after 2 attempts: C-MOVE: status 0xA702"
    assert studies["1.2"].state is PulledState.FETCHED
    assert studies["1.99"].state is PulledState.FAILED
    assert "the PACS named 5 instances, and 4 came" in studies["1.99"].reason


def test_what_was_cut_off_is_held_back_from_the_assembler_and_fetched_again(make: Callable[..., Site]) -> None:
    pacs = Pacs(2)
    site = make(pacs)
    site.step()
    site.store.update(site.studies()["1.2"], PulledState.FETCHING, attempts=1, started=now())
    again = Puller(site.settings, site.engine)
    assert site.held() == {"1.2"}
    again.client = lambda _source: pacs
    site.puller, site.worker = again, _SourceWorker(again, "a", threading.Event())
    site.step()
    assert pacs.fetched == ["1.2"], "before others"
    assert site.held() == set()


@pytest.mark.parametrize("end", [PulledState.FAILED, PulledState.CANCELLED])
def test_half_a_study_is_held_and_then_not_handed_over(make: Callable[..., Site], end: PulledState) -> None:
    """Unless it became whole, or something of it was sent afterwards for its own sake."""
    pacs = Pacs(1)
    pacs.refuses["1.1"] = "C-MOVE: status 0xA702"
    site = make(pacs, attempts=1 if end is PulledState.FAILED else 5)
    site.step()
    assert site.fetches.left_half("1.1") == "", "not begun yet"
    pacs.away = True
    site.step(2)
    site.index("1.1", range(3), InstanceState.PENDING, now())
    assert site.held() == {"1.1"}
    pacs.away = False
    site.step()
    if end is PulledState.CANCELLED:
        assert site.held() == {"1.1"}
        site.store.set_state(site.pull_id, PullState.CANCELLED)
        site.step()
    [study] = site.studies().values()
    assert study.state is end
    assert site.held() == set()
    assert f"pull {site.pull_id}, {end}, did not fetch all of it" in site.fetches.left_half("1.1")
    site.index("1.1", range(1), InstanceState.PENDING, study.updated + LATE_SECONDS / 2)
    assert site.fetches.left_half("1.1"), "on its way when the pull ended"
    site.index("1.1", range(1), InstanceState.PENDING, study.updated + 2 * LATE_SECONDS)
    assert site.fetches.left_half("1.1") == "", "sent by somebody"
    site.index("1.1", range(1), InstanceState.PENDING, study.updated)
    assert site.fetches.left_half("1.1")
    site.index("1.1", range(5), InstanceState.PENDING, study.updated)
    assert site.fetches.left_half("1.1") == "", "whole"
    again = site.store.add("a", [single("study", "1.1")], all_series=False)
    pacs.refuses.clear()
    site.index("1.1", range(3, 5), InstanceState.CONFLICT, study.updated)
    site.step(2)
    assert site.store.studies(again)[0].state is PulledState.FETCHED
    assert site.fetches.left_half("1.1") == "", "fetched by another pull"


def test_a_study_that_is_sent_whole_meanwhile_does_not_wait_for_the_pacs(make: Callable[..., Site]) -> None:
    pacs = Pacs(1)
    site = make(pacs)
    pacs.refuses["1.1"] = "C-MOVE: status 0xA702"
    site.step(2)
    assert site.held() == {"1.1"}
    site.index("1.1", range(5), InstanceState.PENDING, now())
    assert site.held() == set()


def test_a_daemon_that_has_no_room_costs_no_attempt(make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    pacs = Pacs(1)
    site = make(pacs, attempts=2)
    site.step()
    spool = site.settings.data.spool
    set_behind(spool, behind=True)
    site.step(3)
    assert pacs.fetched == []
    assert "waits for the pipeline" in site.waits()
    set_behind(spool, behind=False)
    pacs.refuses["1.1"] = "C-MOVE: status 0xA702"
    fetch = pacs.fetch

    def behind_meanwhile(*which: Any) -> Fetched:
        set_behind(spool, behind=True)
        return fetch(*which)

    monkeypatch.setattr(pacs, "fetch", behind_meanwhile)
    for _ in range(5):
        site.step()
        set_behind(spool, behind=False)
    assert [(s.state, s.attempts) for s in site.studies().values()] == [(PulledState.FETCHING, 0)]
    monkeypatch.setattr(puller, "free_bytes", lambda _folder: -1)
    site.step()
    assert "waits for room on the disk" in site.waits()
    monkeypatch.undo()
    pacs.refuses.clear()
    for number in range(196):
        site.jobs.add(f"j{number}", study_uid="1.9", supersedes=None)
    site.step()
    assert "waits for the pipeline" in site.waits(), "room for what is in flight is left"
    site.jobs.update("j0", state=JobState.DONE)
    site.step()
    assert site.states() == ["fetched"]


def test_paused_nothing_is_fetched_and_what_is_here_is_settled(make: Callable[..., Site]) -> None:
    pacs = Pacs(3)
    site = make(pacs)
    site.step(2)
    site.store.set_state(site.pull_id, PullState.PAUSED)
    site.settle()
    site.jobs.add("j1", study_uid="1.1", supersedes=None)
    site.jobs.update("j1", state=JobState.SET_ASIDE, reason="no brain FLAIR")
    site.step(3)
    assert pacs.fetched == ["1.1"]
    assert site.studies()["1.1"].state is PulledState.REFUSED
    assert site.studies()["1.1"].reason == "no brain FLAIR"
    site.store.set_state(site.pull_id, PullState.CANCELLED)
    assert site.states() == ["refused", "cancelled", "cancelled"]
    assert site.worker._pulls() == []


@pytest.mark.parametrize("asked", [PullState.CANCELLED, PullState.PAUSED])
def test_what_is_stopped_between_its_choice_and_its_begin_is_not_fetched(
    make: Callable[..., Site], asked: PullState, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = Pacs(2)
    site = make(pacs)
    site.step()
    choose = site.worker._next

    def stopped_meanwhile(*which: Any) -> PulledStudy | None:
        chosen = choose(*which)
        site.store.set_state(site.pull_id, asked)
        return chosen

    monkeypatch.setattr(site.worker, "_next", stopped_meanwhile)
    site.step()
    assert pacs.fetched == []
    kept = PulledState.CANCELLED if asked is PullState.CANCELLED else PulledState.WAITING
    assert {study.state for study in site.studies().values()} == {kept}


def test_a_study_is_fetched_by_one_pull_and_known_to_the_next(make: Callable[..., Site]) -> None:
    pacs = Pacs(1)
    site = make(pacs)
    site.step(2)
    other = site.store.add("a", [query("StudyDate=20260101-20260102")], all_series=False)
    assert other != site.pull_id
    assert site.store.add("a", [query("StudyDate=20260101-20260102")], all_series=False) == other, "joined"
    site.step(4)
    assert pacs.fetched == ["1.1"]
    site.settle()
    site.jobs.add("j1", study_uid="1.1", supersedes=None)
    site.jobs.update("j1", state=JobState.DONE, result="nothing stated as present")
    site.step(4)
    [study] = site.store.studies(other)
    assert (study.state, study.attempts) == (PulledState.REPORTED, 0)
    assert study.reason == "reported before: nothing stated as present"
    assert [pull.state for pull in site.store.pulls()] == [PullState.DONE, PullState.DONE]


def test_what_a_search_fails_at_is_searched_again_and_is_not_said_to_be_missing(make: Callable[..., Site]) -> None:
    pacs = Pacs(1)
    site = make(pacs, attempts=3)
    pacs.busy = 2
    site.step(2)
    assert site.waits() == "waits for the PACS: PACS@127.0.0.1:104: status 0xA700"
    assert not site.store.get(site.pull_id).searched
    site.step()
    assert site.states() == ["waiting"]
    site.store.set_state(site.pull_id, PullState.CANCELLED)
    pacs.busy = 3
    other = site.store.add("a", [single("study", "1.1"), single("study", "1.7")], all_series=False)
    site.step(4)
    found = [(study.asked, str(study.state)) for study in site.store.studies(other)]
    assert found == [("StudyInstanceUID=1.1", "failed"), ("StudyInstanceUID=1.7", "not_found")]


def test_what_one_series_query_fails_at_is_an_attempt_at_that_study(make: Callable[..., Site]) -> None:
    pacs = Pacs(1)
    site = make(pacs, attempts=2)
    site.step()
    pacs.busy = 1
    site.step()
    assert [(s.state, s.attempts) for s in site.studies().values()] == [(PulledState.FETCHING, 1)]


def test_a_report_is_remembered_when_its_job_is_removed(make: Callable[..., Site]) -> None:
    pacs = Pacs(2)
    site = make(pacs)
    row = {
        "job_id": "j1", "study_uid": "1.1", "patient": "", "name": "", "birth": "", "study_date": "", "study_time": "",
        "model_name": "", "model_version": "", "weights_sha256": "", "created": 1_780_000_000.0,
    }  # fmt: skip
    with site.engine.begin() as connection:
        connection.execute(sa.insert(RESULTS), [row, row | {"job_id": "j2", "study_uid": "1.2"}])
    site.jobs.add("j2", study_uid="1.2", supersedes=None)
    site.jobs.update("j2", state=JobState.FAILED)
    site.step(3)
    assert pacs.fetched == ["1.2"], "its job failed after the report, and is still there"
    study = site.studies()["1.1"]
    assert (study.state, study.job_id) == (PulledState.REPORTED, "j1")
    assert study.reason == "reported before, on 2026-05-28; its job is no longer kept"


def test_an_older_job_of_other_images_does_not_settle_what_was_fetched(make: Callable[..., Site]) -> None:
    pacs = Pacs(1)
    site = make(pacs)
    site.jobs.add("old", study_uid="1.1", supersedes=None)
    site.jobs.update("old", state=JobState.SET_ASIDE, reason="no brain FLAIR")
    site.index("1.1", range(50, 60), InstanceState.HANDED_OVER, now(), series="1.1.9")
    site.index("1.1", range(5), InstanceState.SET_ASIDE, now())
    site.step(4)
    assert site.states() == ["fetched"], "none of the new ones is indexed yet"
    site.index("1.1", range(5), InstanceState.PENDING, now())
    site.store.update(site.studies()["1.1"], reason="")
    site.step(2)
    assert site.states() == ["fetched"]
    site.index("1.1", range(5), InstanceState.HANDED_OVER, now())
    site.jobs.add("new", study_uid="1.1", supersedes=None)
    site.jobs.update("new", state=JobState.DONE, result="lesion")
    site.step()
    assert (site.states(), site.studies()["1.1"].job_id) == (["reported"], "new")


def test_what_the_pacs_sent_elsewhere_is_not_waited_for_for_ever(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But after a restart the index is read anew first, and where another receiver has the study it makes the job."""
    site = make(Pacs(1))
    site.step(2)
    later = now() + 1000
    monkeypatch.setattr(puller, "now", lambda: later)
    site.step()
    assert site.states() == ["fetched"]
    site.worker._since -= 1000
    owner = {"study_uid": "1.1", "receiver": "other"}
    with site.engine.begin() as connection:
        connection.execute(sa.insert(STUDY_OWNERS), [owner])
    site.step()
    assert site.states() == ["fetched"]
    with site.engine.begin() as connection:
        connection.execute(sa.delete(STUDY_OWNERS))
    site.step()
    assert site.states() == ["failed"]
    assert "sent 5 instances, which did not come" in site.studies()["1.1"].reason


@pytest.mark.parametrize("first", [True, False])
def test_a_study_that_one_ask_takes_is_fetched_whatever_another_refuses(make: Callable[..., Site], first: bool) -> None:
    pacs = Pacs(1)
    site = make(pacs)
    described = Ask({"StudyDescription": "*brain*"})
    answers = pacs.studies
    pacs.studies = lambda keys: [s for s in answers({k: v for k, v in keys.items() if k == "StudyInstanceUID"})]
    asked = [single("study", "1.1"), described][:: 1 if first else -1]
    pull = site.store.add("a", asked, all_series=False)
    site.store.set_state(site.pull_id, PullState.CANCELLED)
    site.step(2)
    [study] = site.store.studies(pull)
    assert (study.state, study.asked, study.position) == (PulledState.FETCHED, "StudyInstanceUID=1.1", 0)


def test_a_pull_that_is_cancelled_while_it_searches_has_no_studies_that_wait(make: Callable[..., Site]) -> None:
    pacs = Pacs(2)
    site = make(pacs)
    answers = pacs.studies

    def cancelled_meanwhile(keys: Mapping[str, str]) -> list[Dataset]:
        site.store.set_state(site.pull_id, PullState.CANCELLED)
        return answers(keys)

    pacs.studies = cancelled_meanwhile
    site.step(2)
    assert site.states() == []
    assert site.store.get(site.pull_id).state is PullState.CANCELLED
    with pytest.raises(DaemonError, match="was cancelled"):
        cli._end(site.store, site.pull_id, None, as_json_=False)


def test_what_is_put_off_in_a_paused_pull_takes_no_place_of_another(make: Callable[..., Site]) -> None:
    pacs = Pacs(2)
    pacs.refuses["1.1"] = "C-MOVE: status 0xA702"
    site = make(pacs, in_flight=1)
    site.step(2)
    assert site.states() == ["fetching", "waiting"]
    other = site.store.add("a", [single("study", "1.2")], all_series=False)
    site.step(2)
    assert pacs.fetched == []
    site.store.set_state(site.pull_id, PullState.PAUSED)
    site.step(2)
    assert pacs.fetched == ["1.2"]
    assert [study.state for study in site.store.studies(other)] == [PulledState.FETCHED]


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ({}, True),
        ({"SeriesDescription": "Ax T2"}, True),
        ({"SeriesDescription": "Ax T2", "InversionTime": "2500", "RepetitionTime": "9000", "EchoTime": "120"}, True),
        ({"SeriesDescription": "Ax IR", "InversionTime": "150", "RepetitionTime": "4000", "EchoTime": "60"}, False),
        ({"SeriesDescription": "t1_mprage"}, False),
        ({"SeriesDescription": "FLAIR spine", "BodyPartExamined": "CSPINE"}, False),
        ({"SeriesDescription": "", "Modality": "CT"}, False),
        ({"SeriesDescription": "t2_flair_tra", "Manufacturer": "BrainGemma3D for PACS"}, False),
    ],
)
def test_series_are_taken_by_what_the_pacs_tells(make: Callable[..., Site], told: dict[str, str], taken: bool) -> None:
    pacs = Pacs(1)
    pacs.entry |= told
    site = make(pacs)
    site.step(2)
    assert bool(pacs.fetched) is taken
    [study] = site.studies().values()
    assert study.state is (PulledState.FETCHED if taken else PulledState.REFUSED)
    assert taken or "could be a FLAIR" in study.reason
