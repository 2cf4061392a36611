"""Storage commitment whose answer comes on an association that the PACS opens to our listener."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery_support import FaultyPacs, add_job, deliver, make_store, outcomes
from ingest_support import InProcess, wait_until
from pydicom import Dataset
from pynetdicom import AE, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from daemon.config.data_folder import DataFolder
from daemon.deliver import commitment
from daemon.deliver.delivery import plan_deliveries
from daemon.spool.commitment_reports import MAX_BYTES, take_event

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[InProcess]:
    running = InProcess(tmp_path, ae_title="US")
    yield running
    running.stop(0.5)


def kept(tmp_path: Path) -> list[Path]:
    folder = DataFolder(tmp_path).commitment_reports
    return sorted(folder.glob("report-*.json"))  # not what is being written


@pytest.mark.parametrize("forgets", [False, True])
def test_the_report_comes_on_a_new_association(receiver: InProcess, tmp_path: Path, forgets: bool) -> None:
    store = make_store(tmp_path)
    folder = add_job(store, tmp_path, "j1")
    pacs = FaultyPacs(commitment="new", forgets=forgets)
    pacs.listener = receiver.address
    there = pacs.destination()
    plan_deliveries(store, "j1", folder, [there])
    try:
        assert deliver(store, folder, there) is not None
        assert {v[0] for v in outcomes(store).values()} == {"unconfirmed"}
        wait_until(lambda: kept(tmp_path))
        assert commitment.take_reports(store.engine, DataFolder(tmp_path).commitment_reports) == 1
        wait = deliver(store, folder, there)
    finally:
        pacs.stop()
    assert kept(tmp_path) == []
    if forgets:
        assert wait is not None
        assert all("0x0112 no such object instance" in d.reason for d in store.deliveries("j1"))
        assert {v[0] for v in outcomes(store).values()} == {"waiting"}
    else:
        assert wait is None
        assert outcomes(store) == {k: ("sent", "0000", "storage commitment") for k in ("sr", "seg")}


@pytest.mark.parametrize("role", [True, False])
def test_a_pacs_may_leave_out_the_role(receiver: InProcess, tmp_path: Path, role: bool) -> None:
    """PS3.7 D.3.3.4 asks for role selection; some PACSs report without it."""
    report = Dataset()
    report.TransactionUID = "1.2.3"
    status = send_report(receiver, report, role=role)
    assert status == 0x0000
    assert [f.name for f in kept(tmp_path)] == ["report-1.2.3.json"]


def test_what_names_no_transaction_is_refused(receiver: InProcess, tmp_path: Path) -> None:
    report = Dataset()
    report.TransactionUID = ""
    assert send_report(receiver, report, role=True) == 0x0110
    assert kept(tmp_path) == []


def send_report(receiver: InProcess, report: Dataset, *, role: bool) -> int:
    ae = AE("PACS")
    ae.add_requested_context(StorageCommitmentPushModel)
    roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if role else []
    association = ae.associate(*receiver.address, ae_title="US", ext_neg=roles)
    assert association.is_established
    if not role:  # pynetdicom itself would not send as an SCU
        for context in association.accepted_contexts:
            context._as_scp = True
    status, _ = association.send_n_event_report(
        report, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    association.release()
    return int(status.Status)


@pytest.mark.parametrize(
    "encoded",
    [b"", b"\x08", b"\x08\x00\x95\x11UI\x08\x00../../x\0", b"x" * (MAX_BYTES + 1)],
)
def test_bytes_that_are_no_report_leave_nothing(encoded: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected|decoding|end of file"):
        take_event(tmp_path / "reports", encoded, EXPLICIT)
    assert not (tmp_path / "reports").exists()


def test_a_disk_that_fails_is_no_success(receiver: InProcess, tmp_path: Path) -> None:
    DataFolder(tmp_path).commitment_reports.write_text("a file in the way")
    report = Dataset()
    report.TransactionUID = "1.2.3"
    assert send_report(receiver, report, role=True) == 0x0110
    shutil.rmtree(tmp_path / "spool", ignore_errors=True)


def test_a_report_nested_without_end_is_refused_and_the_next_is_taken(receiver: InProcess, tmp_path: Path) -> None:
    """Three thousand sequences within each other; a library that reads by recursion ends there."""
    nested = b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000
    with pytest.raises(ValueError, match="RecursionError"):
        take_event(DataFolder(tmp_path).commitment_reports, nested, "1.2.840.10008.1.2")
    report = Dataset()
    report.TransactionUID = "1.2.3"
    assert send_report(receiver, report, role=True) == 0x0000


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"transaction_uid": "1.2"}', '{"committed": 3}'])
def test_a_damaged_report_does_not_keep_the_next_one_from_being_taken(tmp_path: Path, content: str) -> None:
    folder = DataFolder(tmp_path).commitment_reports
    folder.mkdir()
    (folder / "report-1.1.json").write_text(content)
    take_event(folder, b"\x08\x00\x95\x11UI\x04\x001.2\0", EXPLICIT)
    store = make_store(tmp_path)
    commitment.take_reports(store.engine, folder)
    assert [path.name for path in folder.iterdir()] == ["report-1.1.damaged"]
    store.engine.dispose()
