"""Deliveries against real Storage SCPs that take, refuse, abort, or are not there."""

from pathlib import Path

import pytest
from delivery_support import a_result
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Destination
from daemon.database.engine import create_tables, database_url, make_engine
from daemon.database.tables import DeliveryState
from daemon.deliver.delivery import backoff, deliver_to, plan_deliveries
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.trial.pacs import LOOPBACK, free_port
from dicom_io.pack.manifest import Pack, save_manifest

UIDS: dict[str, str] = {}


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    engine = make_engine(database_url("", DataFolder(tmp_path)))
    create_tables(engine)
    return JobStore(engine)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """A job whose pack is an MR (stands for the SR) and a CT (for the SEG, of another SOP class)."""
    import pydicom

    folder = JobFolder(tmp_path / "job")
    folder.dicom.mkdir(parents=True)
    objects = []
    for kind, source in (("sr", "MR_small.dcm"), ("seg", "CT_small.dcm")):
        dataset = pydicom.dcmread(get_testdata_file(source))
        dataset.save_as(folder.dicom / f"{kind}.dcm")
        UIDS[kind] = str(dataset.SOPInstanceUID)
        objects.append(a_result(folder, kind, dataset))
    save_manifest(folder.dicom, Pack(tuple(objects), identity="x", study_uid="1.2.3", synthetic_only=False))
    return folder


def serve(handler, *, contexts=AllStoragePresentationContexts, syntax=None):
    ae = AE("PACS")
    for context in contexts:
        ae.add_supported_context(str(context.abstract_syntax), syntax)
    server = ae.start_server((LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handler)])
    return server, int(server.socket.getsockname()[1])


def destination(port: int, attempts: int = 5) -> Destination:
    return Destination(name="pacs", ae_title="PACS", host=LOOPBACK, port=port, max_attempts=attempts)


def states(store: JobStore) -> dict[str, tuple[str, str]]:
    return {d.kind: (str(d.state), d.status) for d in store.deliveries("j1")}


def plan(store: JobStore, folder: JobFolder, there: Destination) -> None:
    assert plan_deliveries(store, "j1", folder, [there]) == ["pacs"]


def test_success_is_sent_once(store: JobStore, folder: JobFolder) -> None:
    got: list[str] = []
    server, port = serve(lambda event: got.append(str(event.request.AffectedSOPInstanceUID)) or 0x0000)
    there = destination(port)
    plan(store, folder, there)
    try:
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    finally:
        server.shutdown()
    assert sorted(got) == sorted(UIDS.values())
    assert states(store) == {"sr": ("sent", "0000"), "seg": ("sent", "0000")}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_goes_only_if_it_is_what_was_encoded_and_as_it_lies_where_that_is_taken(
    store: JobStore, folder: JobFolder, syntax: str
) -> None:
    got: dict[str, bytes] = {}

    def keep(event: evt.Event) -> int:
        got[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset(include_meta=False)
        return 0x0000

    server, port = serve(keep, syntax=syntax)
    there = destination(port)
    plan(store, folder, there)
    changed = folder.dicom / "seg.dcm"
    original = changed.read_bytes()
    changed.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is not None
        assert states(store) == {"sr": ("sent", "0000"), "seg": ("waiting", "")}
        [reason] = [d.reason for d in store.deliveries("j1") if d.kind == "seg"]
        assert "expected the bytes that were encoded" in reason
        changed.write_bytes(original)
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    finally:
        server.shutdown()
    assert set(got) == set(UIDS.values())
    for kind, uid in UIDS.items():
        as_it_lies = (folder.dicom / f"{kind}.dcm").read_bytes().endswith(got[uid])
        assert as_it_lies is (syntax == ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    "content", [b"", b"no DICOM at all", None, "sr.dcm"], ids=["empty", "other bytes", "gone", "another object"]
)
def test_a_file_that_cannot_be_read_keeps_no_other_from_its_destination(
    store: JobStore, folder: JobFolder, content: bytes | str | None
) -> None:
    server, port = serve(lambda _event: 0x0000)
    there = destination(port, attempts=2)
    plan(store, folder, there)
    damaged = folder.dicom / "seg.dcm"
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes((folder.dicom / content).read_bytes() if isinstance(content, str) else content)
    try:
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is not None
        assert states(store) == {"sr": ("sent", "0000"), "seg": ("waiting", "")}
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    finally:
        server.shutdown()
    assert states(store) == {"sr": ("sent", "0000"), "seg": ("dead_letter", "")}
    [reason] = [d.reason for d in store.deliveries("j1") if d.kind == "seg"]
    assert "seg.dcm" in reason


def test_a_warning_counts_as_sent_and_is_recorded(store: JobStore, folder: JobFolder) -> None:
    server, port = serve(lambda _event: 0xB000)
    there = destination(port)
    plan(store, folder, there)
    try:
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    finally:
        server.shutdown()
    assert states(store) == {"sr": ("sent", "B000"), "seg": ("sent", "B000")}
    assert all("B000" in d.reason for d in store.deliveries("j1"))


def test_out_of_resources_waits_and_then_goes_through(store: JobStore, folder: JobFolder) -> None:
    answers = iter([0xA700, 0xA700, 0x0000, 0x0000])
    server, port = serve(lambda _event: next(answers))
    there = destination(port)
    plan(store, folder, there)
    try:
        wait = deliver_to(store, "j1", folder, there, "US", allow_demo=False)
        assert wait is not None
        assert wait > 0
        assert states(store) == {"sr": ("waiting", "A700"), "seg": ("waiting", "A700")}
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    finally:
        server.shutdown()
    assert states(store) == {"sr": ("sent", "0000"), "seg": ("sent", "0000")}


def test_a_refused_context_does_not_hold_back_the_other_object(store: JobStore, folder: JobFolder) -> None:
    mr_only = [c for c in AllStoragePresentationContexts if c.abstract_syntax.name == "MR Image Storage"]
    server, port = serve(lambda _event: 0x0000, contexts=mr_only)
    there = destination(port, attempts=1)
    plan(store, folder, there)
    try:
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    finally:
        server.shutdown()
    assert states(store) == {"sr": ("sent", "0000"), "seg": ("dead_letter", "")}
    [dead] = [d for d in store.deliveries("j1") if d.state is DeliveryState.DEAD]
    assert "presentation context" in dead.reason.lower()


def test_an_abort_half_way_is_not_called_sent(store: JobStore, folder: JobFolder) -> None:
    def abort(event):
        event.assoc.abort()
        return 0x0000

    server, port = serve(abort)
    there = destination(port)
    plan(store, folder, there)
    try:
        assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is not None
    finally:
        server.shutdown()
    assert states(store) == {"sr": ("waiting", ""), "seg": ("waiting", "")}


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_pacs_that_is_down_ends_in_the_dead_letter_with_the_reason(store: JobStore, folder: JobFolder) -> None:
    there = destination(free_port(), attempts=2)
    plan(store, folder, there)
    assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is not None
    assert deliver_to(store, "j1", folder, there, "US", allow_demo=False) is None
    assert {d.state for d in store.deliveries("j1")} == {DeliveryState.DEAD}
    assert all("cannot be reached" in d.reason and d.attempts == 2 for d in store.deliveries("j1"))


def test_backoff_doubles_up_to_its_bound() -> None:
    waits = [backoff(attempt, 0.5) for attempt in range(1, 20)]
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == 900
    assert backoff(1, 0.0) < backoff(1, 0.99)
