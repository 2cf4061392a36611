"""Destinations that are down, refuse, abort, answer failures, or accept and forget: the end is delivered, or a dead
letter with the true reason; nothing arrives under other UIDs, and nothing is called sent that was not."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
from delivery_support import KINDS, FaultyPacs, add_job, certificates, deliver, make_store, outcomes, small_object

from daemon.config.sections import Destination
from daemon.database.tables import DeliveryState, JobState
from daemon.deliver import commitment, confirmation, delivery
from daemon.deliver.delivery import plan_deliveries
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.trial.pacs import LOOPBACK, free_port

# pynetdicom drops the socket of a refused connection without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SENT, DEAD = "sent", "dead_letter"


@dataclass
class Clock:
    """Simulated time, s."""

    time: float = 1_000_000.0
    waits: list[float] = field(default_factory=list)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    ours = Clock()
    for module in (commitment, confirmation):
        monkeypatch.setattr(module, "now", lambda: ours.time)
    return ours


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return make_store(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, store: JobStore) -> JobFolder:
    return add_job(store, tmp_path, "j1")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultyPacs]]:
    running: list[FaultyPacs] = []

    def build(**how: Any) -> FaultyPacs:
        if how.get("commitment") == "same":  # it does answer there, on a busy machine not within a second
            monkeypatch.setattr("daemon.deliver.dimse.SAME_ASSOCIATION_SECONDS", 60.0)
        running.append(FaultyPacs(**how))
        return running[-1]

    yield build
    for pacs in running:
        pacs.stop()


def until_settled(
    store: JobStore, folder: JobFolder, there: Destination, clock: Clock, each: Callable[[], object] = lambda: None
) -> None:
    """Deliver, wait by the clock, deliver again, as the workflows do; `each` is called before each turn."""
    plan_deliveries(store, folder.root.name, folder, [there])
    for _ in range(200):
        each()
        wait = deliver(store, folder, there)
        if wait is None:
            return
        assert wait > 0
        clock.waits.append(wait)
        clock.time += wait
    raise AssertionError(f"never settled: {store.deliveries(folder.root.name)}")


def uids(store: JobStore, job_id: str = "j1") -> set[str]:
    return {d.sop_instance_uid for d in store.deliveries(job_id)}


# --- the faults of the list


def test_down_for_30_minutes(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    port, up = free_port(), clock.time + 1800
    started: list[FaultyPacs] = []

    def come_up() -> None:
        if clock.time >= up and not started:
            started.append(start(port=port))

    there = Destination(name="pacs", ae_title="PACS", host=LOOPBACK, port=port)
    until_settled(store, folder, there, clock, come_up)
    assert outcomes(store) == {k: (SENT, "0000", "not possible") for k in ("sr", "seg")}
    assert sorted(started[0].received) == sorted(uids(store))
    assert 9 <= max(d.attempts for d in store.deliveries("j1")) <= 14
    assert clock.time < up + 1.25 * 900


def test_down_for_ever(store: JobStore, folder: JobFolder, clock: Clock) -> None:
    there = Destination(name="pacs", ae_title="PACS", host=LOOPBACK, port=free_port())
    until_settled(store, folder, there, clock)
    assert {d.state for d in store.deliveries("j1")} == {DeliveryState.DEAD}
    assert all("cannot be reached" in d.reason and d.attempts == 20 for d in store.deliveries("j1"))
    store.update("j1", state=JobState.FAILED)
    assert store.revive_deliveries("j1", ["pacs"], runs=2)
    assert deliver(store, folder, there) is not None, "a retry has all its attempts again"


def test_refuses_the_association(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    pacs = start()
    there = Destination(name="pacs", ae_title="OTHER", host=LOOPBACK, port=pacs.port, max_attempts=3)
    pacs._server.ae.require_called_aet = True
    until_settled(store, folder, there, clock)
    assert {d.state for d in store.deliveries("j1")} == {DeliveryState.DEAD}
    assert all("Called AE title not recognised" in d.reason for d in store.deliveries("j1"))
    assert pacs.received == []


def test_refuses_the_seg_but_takes_the_report(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    pacs = start(classes=(KINDS["sr"],), find=True)
    until_settled(store, folder, pacs.destination(max_attempts=3), clock)
    assert outcomes(store) == {"sr": (SENT, "0000", "C-FIND"), "seg": (DEAD, "", "")}
    assert len(pacs.received) == 1, "the stored report is not sent again with the refused SEG"
    [dead] = [d for d in store.deliveries("j1") if d.kind == "seg"]
    assert "presentation context" in dead.reason.lower()


@pytest.mark.parametrize("other", [None, "sr"], ids=["gone", "another object"])
@pytest.mark.parametrize("asked", [{"find": True}, {"commitment": "new"}], ids=["query", "commitment"])
def test_a_file_damaged_after_it_was_accepted_keeps_no_other_from_being_confirmed(
    start: Any,
    store: JobStore,
    folder: JobFolder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    other: str | None,
) -> None:
    pacs = start(**asked)
    there = pacs.destination(max_attempts=3)
    plan_deliveries(store, "j1", folder, [there])
    with monkeypatch.context() as ends_there:
        ends_there.setattr(delivery, "confirm", lambda *_given: 1.0)  # the service is killed before it can ask
        assert deliver(store, folder, there) == 1.0
    damage(folder, other)
    confirm_all(pacs, store, folder, there, clock, monkeypatch)
    assert outcomes(store)["sr"] == (SENT, "0000", "C-FIND" if "find" in asked else "storage commitment")
    assert outcomes(store)["seg"][0] == DEAD
    [lost] = [d for d in store.deliveries("j1") if d.kind == "seg"]
    assert "seg.dcm" in lost.reason


def damage(folder: JobFolder, other: str | None) -> None:
    if other is None:
        (folder.dicom / "seg.dcm").unlink()
    else:
        shutil.copyfile(folder.dicom / f"{other}.dcm", folder.dicom / "seg.dcm")


def confirm_all(
    pacs: FaultyPacs,
    store: JobStore,
    folder: JobFolder,
    there: Destination,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Turns until all is settled; answers to storage commitment are taken as they come."""
    answered: list[Any] = []
    monkeypatch.setattr(pacs, "_report_on_new_association", lambda report, *_more: answered.append(report))
    for _ in range(20):
        wait = deliver(store, folder, there)
        for thread in pacs._threads:
            thread.join(10)
        while answered:
            commitment.record_answer(store.engine, commitment.read_report(answered.pop()))
        if wait is None:
            return
        clock.time += wait
    raise AssertionError(f"never settled: {store.deliveries('j1')}")


def test_a_promise_of_storage_counts_whatever_became_of_the_file(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = start(commitment="new")
    later: list[Callable[[], object]] = []
    monkeypatch.setattr(pacs, "_run", later.append)
    there = pacs.destination(max_attempts=3)
    plan_deliveries(store, "j1", folder, [there])
    assert deliver(store, folder, there) is not None
    damage(folder, None)
    monkeypatch.setattr(pacs, "_run", lambda work: work())
    answers: list[Any] = []
    monkeypatch.setattr(pacs, "_report_on_new_association", lambda report, *_more: answers.append(report))
    [answer] = later
    answer()
    [report] = answers
    commitment.record_answer(store.engine, commitment.read_report(report))
    assert deliver(store, folder, there) is None
    assert outcomes(store) == {k: (SENT, "0000", "storage commitment") for k in ("sr", "seg")}


def test_a_damaged_file_does_not_take_what_came_later_with_it(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    """A verified report that the archive refuses once, while the SEG has had all its attempts."""
    busy = iter([0xA700])
    pacs = start(
        answer=lambda event: next(busy, 0) if event.dataset.SOPClassUID == KINDS["rejection"] else 0, find=True
    )
    there = pacs.destination(max_attempts=3)
    plan_deliveries(store, "j1", folder, [there])
    damage(folder, "sr")
    for _ in range(2):
        deliver(store, folder, there)
    verified = small_object("rejection")
    verified.save_as(folder.dicom / "later.dcm", enforce_file_format=True)
    store.put_deliveries("j1", "pacs", [(str(verified.SOPInstanceUID), "pm", "later.dcm")])
    until_settled(store, folder, there, clock)
    states = {d.file: str(d.state) for d in store.deliveries("j1")}
    assert states == {"sr.dcm": SENT, "seg.dcm": DEAD, "later.dcm": SENT}


@pytest.mark.parametrize("kinds", [("sc", "seg"), ("sr", "seg")], ids=["without SR", "SR"])
def test_a_withdrawal_ends_with_the_report_that_it_waits_for(
    start: Any, store: JobStore, tmp_path: Path, clock: Clock, kinds: tuple[str, ...]
) -> None:
    """Whatever else is accepted: the earlier images stay where what replaces them is refused."""
    refused = KINDS["sr" if "sr" in kinds else "seg"]
    pacs = start(answer=lambda event: 0xA900 if event.dataset.SOPClassUID == refused else 0, find=True)
    folder = add_job(store, tmp_path, "j2", kinds=(*kinds, "rejection"))
    there = pacs.destination(max_attempts=3)
    plan_deliveries(store, "j2", folder, [there])
    rejection = pydicom.dcmread(folder.dicom / "rejection.dcm")
    store.put_deliveries("j2", "pacs", [(str(rejection.SOPInstanceUID), "rejection", "rejection.dcm")])
    for _ in range(2):
        deliver(store, folder, there)
    verified = small_object("sr")
    verified.SOPClassUID = KINDS["sc"]  # which is not refused
    verified.save_as(folder.dicom / "later.dcm", enforce_file_format=True)
    if "sr" in kinds:
        store.put_deliveries("j2", "pacs", [(str(verified.SOPInstanceUID), "sr", "later.dcm")])
    until_settled(store, folder, there, clock)
    states = {d.file: str(d.state) for d in store.deliveries("j2")}
    assert states["rejection.dcm"] == DEAD
    assert states[f"{'sr' if 'sr' in kinds else 'seg'}.dcm"] == DEAD
    assert {states.get("later.dcm", SENT), states[f"{'seg' if 'sr' in kinds else 'sc'}.dcm"]} == {SENT}


def test_what_has_attempts_left_outlives_the_report(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    answers = iter([0, 0xA700, 0])  # of the SEG: accepted and lost, busy, accepted
    pacs = start(answer=lambda _event: next(answers), forgets=True, find=True)
    there = pacs.destination(max_attempts=3)
    plan_deliveries(store, "j1", folder, [there])
    (folder.dicom / "sr.dcm").unlink()

    def keeps_the_second() -> None:
        pacs.forgets = len(pacs.received) < 2

    until_settled(store, folder, there, clock, keeps_the_second)
    assert {kind: state for kind, (state, *_) in outcomes(store).items()} == {"sr": DEAD, "seg": SENT}


def test_aborts_midway_once(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    calls: list[str] = []

    def abort_the_second(event: Any) -> int:
        calls.append("c")
        if len(calls) == 2:
            event.assoc.abort()
        return 0x0000

    pacs = start(answer=abort_the_second, find=True)
    until_settled(store, folder, pacs.destination(), clock)
    assert outcomes(store) == {k: (SENT, "0000", "C-FIND") for k in ("sr", "seg")}
    assert set(pacs.received) == uids(store)
    assert len(pacs.received) == 3
    assert {d.kind: d.attempts for d in store.deliveries("j1")} == {"sr": 1, "seg": 2}


def test_out_of_resources_for_ever(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    pacs = start(answer=lambda _event: 0xA700, find=True)
    until_settled(store, folder, pacs.destination(max_attempts=4), clock)
    assert outcomes(store) == {k: (DEAD, "A700", "") for k in ("sr", "seg")}
    assert all("0xA700" in d.reason for d in store.deliveries("j1"))
    assert set(pacs.received) == uids(store)


def test_a_warning_is_recorded_and_confirmed(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    pacs = start(answer=lambda _event: 0xB000, find=True)
    until_settled(store, folder, pacs.destination(), clock)
    assert outcomes(store) == {k: (SENT, "B000", "C-FIND") for k in ("sr", "seg")}
    assert all("0xB000" in d.reason for d in store.deliveries("j1"))


@pytest.mark.parametrize("held", [True, False])
def test_a_duplicate_is_sent_where_it_is_held(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock, held: bool
) -> None:
    """The answer to an earlier attempt was lost: the PACS has the object, and refuses it as a duplicate."""

    def answer(event: Any) -> int:
        if held:
            pacs.held[str(event.request.AffectedSOPInstanceUID)] = event.dataset
        return 0x0111

    pacs = start(answer=answer, find=True)
    until_settled(store, folder, pacs.destination(max_attempts=3), clock)
    if held:
        assert outcomes(store) == {k: (SENT, "0111", "C-FIND") for k in ("sr", "seg")}
        assert len(pacs.received) == 2
    else:
        assert {d.state for d in store.deliveries("j1")} == {DeliveryState.DEAD}


@pytest.mark.parametrize("how", [{"find": True}, {"commitment": "same"}])
def test_accepts_and_forgets(start: Any, store: JobStore, folder: JobFolder, clock: Clock, how: Any) -> None:
    pacs = start(forgets=True, **how)
    until_settled(store, folder, pacs.destination(max_attempts=3), clock)
    assert {d.state for d in store.deliveries("j1")} == {DeliveryState.DEAD}
    word = "C-FIND does not find it" if "find" in how else "0x0112 no such object instance"
    assert all(word in d.reason and "accepted" in d.reason for d in store.deliveries("j1"))
    assert set(pacs.received) == uids(store)
    assert len(pacs.received) == 6


def test_forgets_once(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    pacs = start(forgets=True, find=True)

    def mend() -> None:
        pacs.forgets = len(pacs.received) < 2

    until_settled(store, folder, pacs.destination(), clock, lambda: None if len(pacs.received) < 2 else mend())
    assert outcomes(store) == {k: (SENT, "0000", "C-FIND") for k in ("sr", "seg")}
    assert set(pacs.held) == uids(store)


# --- storage commitment


def test_commitment_on_the_same_association(start: Any, store: JobStore, folder: JobFolder, clock: Clock) -> None:
    pacs = start(commitment="same")
    until_settled(store, folder, pacs.destination(), clock)
    assert outcomes(store) == {k: (SENT, "0000", "storage commitment") for k in ("sr", "seg")}
    assert pacs.associations == 2


def test_nothing_is_sent_before_the_commitment_comes(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    pacs = start(commitment="late", find=True)
    there = pacs.destination()
    plan_deliveries(store, "j1", folder, [there])
    wait = deliver(store, folder, there)
    assert wait is not None
    assert outcomes(store) == {k: ("unconfirmed", "0000", "") for k in ("sr", "seg")}
    assert deliver(store, folder, there) is not None
    assert len(pacs.received) == 2, "what is accepted is not sent again while the commitment is awaited"


def test_a_commitment_that_never_comes_is_followed_by_a_query(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    pacs = start(commitment="late", find=True)
    began = clock.time
    until_settled(store, folder, pacs.destination(commitment_seconds=120), clock)
    assert outcomes(store) == {k: (SENT, "0000", "C-FIND") for k in ("sr", "seg")}
    assert 120 < clock.time - began < 240


def test_a_refused_commitment_is_followed_by_a_query(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    pacs = start(commitment="refused", find=True)
    until_settled(store, folder, pacs.destination(), clock)
    assert outcomes(store) == {k: (SENT, "0000", "C-FIND") for k in ("sr", "seg")}


def test_a_report_on_a_transaction_that_is_not_ours_changes_nothing(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    pacs = start(commitment="late", find=True)
    there = pacs.destination()
    plan_deliveries(store, "j1", folder, [there])
    deliver(store, folder, there)
    said = commitment.Report(transaction_uid="1.2.3.4", committed=tuple(uids(store)), failed={})
    commitment.record_answer(store.engine, said)
    assert deliver(store, folder, there) is not None
    assert outcomes(store)["sr"][0] == "unconfirmed"


def test_without_confirmation_the_status_is_believed(
    start: Any, store: JobStore, folder: JobFolder, clock: Clock
) -> None:
    pacs = start(commitment="late")
    plan_deliveries(store, "j1", folder, [pacs.destination()])
    assert deliver(store, folder, pacs.destination()) is not None
    assert deliver(store, folder, pacs.destination(confirm="none")) is None, "switched off while it was awaited"
    assert outcomes(store) == {k: (SENT, "0000", "") for k in ("sr", "seg")}
    other = add_job(store, folder.root.parent, "j2")
    until_settled(store, other, pacs.destination(confirm="none"), clock)
    assert outcomes(store, "j2") == {k: (SENT, "0000", "") for k in ("sr", "seg")}
    assert pacs.associations == 3


# --- each destination alone


def test_routing_by_calling_ae(tmp_path: Path, store: JobStore) -> None:
    def to(name: str, *rules: str) -> Destination:
        return Destination(name=name, ae_title="X", host=LOOPBACK, port=104, from_aets=rules)

    everywhere = [to("all"), to("mr", "MR*"), to("pet", "PET1", "PET2")]
    for job_id, senders, wanted in (
        ("j2", ("MR_3T",), ["all", "mr"]),
        ("j3", ("PET2",), ["all", "pet"]),
        ("j4", ("CT", "PET1 "), ["all", "pet"]),
    ):
        folder = add_job(store, tmp_path, job_id, senders=senders)
        assert plan_deliveries(store, job_id, folder, everywhere) == wanted
        assert {d.destination for d in store.deliveries(job_id)} == set(wanted)


@pytest.mark.parametrize("trusted", [True, False])
def test_tls(start: Any, store: JobStore, folder: JobFolder, clock: Clock, tmp_path: Path, trusted: bool) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    certificates(keys)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    context.load_verify_locations(keys / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    pacs = start(ssl_context=context, find=True)
    tls = {"cert": keys / "client.pem", "key": keys / "client.key", "ca": keys / "ca.pem"}
    if not trusted:
        del tls["ca"]  # the system's authorities do not know ours
    until_settled(store, folder, pacs.destination(tls=tls, max_attempts=2), clock)
    if trusted:
        assert outcomes(store) == {k: (SENT, "0000", "C-FIND") for k in ("sr", "seg")}
    else:
        assert {d.state for d in store.deliveries("j1")} == {DeliveryState.DEAD}
        assert all("no TLS connection" in d.reason for d in store.deliveries("j1"))


# --- results that replace others


def replaced(store: JobStore, tmp_path: Path, there: Destination) -> tuple[JobFolder, JobFolder]:
    old = add_job(store, tmp_path, "old", kinds=("sr", "sc", "seg"))
    new = add_job(store, tmp_path, "new", kinds=("sr", "sc", "seg", "rejection"), supersedes="old")
    plan_deliveries(store, "old", old, [there])
    return old, new


def test_the_new_report_goes_first_and_then_the_old_images_are_rejected(
    start: Any, store: JobStore, tmp_path: Path, clock: Clock
) -> None:
    pacs = start(find=True)
    there = pacs.destination(reject_replaced=True)
    old, new = replaced(store, tmp_path, there)
    until_settled(store, old, there, clock)
    until_settled(store, new, there, clock)
    kinds = {uid: kind for kind, uid in ((d.kind, d.sop_instance_uid) for d in store.deliveries("new"))}
    assert [kinds[uid] for uid in pacs.received[3:]] == ["sr", "sc", "seg", "rejection"]
    assert outcomes(store, "new")["rejection"] == (SENT, "0000", "C-FIND")


def test_images_that_wait_are_not_sent_once_they_are_replaced(
    start: Any, store: JobStore, tmp_path: Path, clock: Clock
) -> None:
    pacs = start(find=True)
    there = pacs.destination(reject_replaced=True)
    old, new = replaced(store, tmp_path, there)
    until_settled(store, new, there, clock)
    until_settled(store, old, there, clock)
    assert {k: v[0] for k, v in outcomes(store, "old").items()} == {"sr": SENT, "sc": "replaced", "seg": "replaced"}
    assert len(pacs.received) == 5


def test_old_images_stay_where_the_new_report_is_refused(
    start: Any, store: JobStore, tmp_path: Path, clock: Clock
) -> None:
    pacs = start(find=True)
    there = pacs.destination(reject_replaced=True, max_attempts=2)
    old, new = replaced(store, tmp_path, there)
    until_settled(store, old, there, clock)
    pacs.answer = lambda event: 0xA900 if event.request.AffectedSOPClassUID == KINDS["sr"] else 0x0000
    until_settled(store, new, there, clock)
    ends = {d.kind: (str(d.state), d.reason) for d in store.deliveries("new")}
    assert ends["rejection"] == (DEAD, "held back until the new report is there")
    assert "0xA900" in ends["sr"][1]
    assert KINDS["rejection"] not in {d.SOPClassUID for d in pacs.held.values()}


def test_a_destination_that_does_not_know_iocm_gets_no_key_object(
    start: Any, store: JobStore, tmp_path: Path, clock: Clock
) -> None:
    pacs = start()
    old, new = replaced(store, tmp_path, pacs.destination())
    until_settled(store, old, pacs.destination(), clock)
    until_settled(store, new, pacs.destination(), clock)
    assert "rejection" not in outcomes(store, "new")
