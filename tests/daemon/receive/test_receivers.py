"""What both receivers do: the blocking one, and pynetdicom's own as its fall-back."""

from __future__ import annotations

import socket
import stat
import time
from io import BytesIO
from pathlib import Path

import pytest
from ingest_sender import rejection
from ingest_support import (
    InProcess,
    associate,
    data_set_bytes,
    encode,
    instances_in,
    make_instance,
    make_series,
    save,
    storescu,
    wait_until,
)
from pydicom import dcmread
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    EnhancedMRImageStorage,
    ImplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification

from daemon.receive import slots
from daemon.receive.store import Status
from daemon.spool.locks import is_alive
from daemon.spool.segment import RecordKind, read_records

SHARED = Path(__file__).parents[4] / "shared" / "data" / "dicom"


@pytest.fixture(scope="module")
def shared_receivers(tmp_path_factory):
    """One for all tests that only send to it."""
    receiver = InProcess(tmp_path_factory.mktemp("receiver"))
    yield receiver, receiver.spool
    receiver.stop()


def test_echo(shared_receivers):
    receivers, _ = shared_receivers
    with associate(receivers.address) as association:
        assert association.send_c_echo().Status == Status.SUCCESS


def test_what_pynetdicom_sends_is_stored_byte_for_byte(shared_receivers):
    receivers, spool = shared_receivers
    series = make_series(20)
    with associate(receivers.address) as association:
        for dataset in series:
            assert association.send_c_store(dataset).Status == Status.SUCCESS
    sent = {str(dataset.SOPInstanceUID): encode(dataset) for dataset in series}
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(spool)}
    assert {uid: stored[uid] for uid in sent} == sent


@pytest.mark.parametrize("pdu", ["4096", "16384", "131072"])
def test_what_storescu_sends_is_stored_byte_for_byte(shared_receivers, tmp_path, pdu):
    receivers, spool = shared_receivers
    series = make_series(10, rows=64)
    files = [save(dataset, tmp_path / f"{number}.dcm") for number, dataset in enumerate(series)]
    result = storescu(receivers.address, files, "--max-send-pdu", pdu)
    assert result.returncode == 0, result.stderr
    sent = {str(d.SOPInstanceUID): data_set_bytes(f) for d, f in zip(series, files, strict=True)}
    stored = {r.meta["sop_instance_uid"]: data for r, data in instances_in(spool)}
    assert {uid: stored[uid] for uid in sent} == sent


def test_where_an_instance_came_from_is_recorded(shared_receivers):
    receivers, spool = shared_receivers
    dataset = make_series(1)[0]
    before = time.time()
    with associate(receivers.address, calling="MR_SCANNER") as association:
        association.send_c_store(dataset)
    [meta] = [r.meta for r, _ in instances_in(spool) if r.meta["sop_instance_uid"] == dataset.SOPInstanceUID]
    assert (meta["calling_aet"], meta["peer"]) == ("MR_SCANNER", "127.0.0.1")
    assert meta["study_uid"] == dataset.StudyInstanceUID
    assert meta["series_uid"] == dataset.SeriesInstanceUID
    assert before <= meta["received"] <= time.time()


@pytest.mark.parametrize("how", ["release", "abort"])
def test_the_end_of_an_association_is_recorded(shared_receivers, how):
    receivers, spool = shared_receivers
    dataset = make_series(1)[0]
    with associate(receivers.address) as association:
        association.send_c_store(dataset)
        if how == "abort":
            association.abort()
    [meta] = [r.meta for r, _ in instances_in(spool) if r.meta["sop_instance_uid"] == dataset.SOPInstanceUID]

    def ended() -> bool:
        records = [r for path in spool.glob("*.seg") for r in read_records(path, final=False)]
        ends = [r.meta["association"] for r in records if r.kind is RecordKind.ASSOCIATION_END]
        return ends.count(meta["association"]) == 1

    wait_until(ended)


@pytest.mark.parametrize(
    "sop_class",
    [
        MRImageStorage,
        EnhancedMRImageStorage,
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
        SecondaryCaptureImageStorage,
        BasicTextSRStorage,
        SegmentationStorage,
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
        "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
        "1.2.840.10008.5.1.4.1.1.2",  # CT
    ],
)
def test_everything_a_pacs_forwards_is_taken(shared_receivers, sop_class):
    receivers, _ = shared_receivers
    dataset = make_instance(generate_uid(), generate_uid(), 1, sop_class=sop_class)
    with associate(receivers.address, sop_class) as association:
        assert association.send_c_store(dataset).Status == Status.SUCCESS


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared test data beside the checkout")
def test_every_transfer_syntax_is_stored_as_sent(shared_receivers, tmp_path):
    receivers, spool = shared_receivers
    by_syntax = {}
    for path in sorted(SHARED.rglob("*.dcm")):
        dataset = dcmread(path, stop_before_pixels=True)
        if path.stat().st_size < 4_000_000:
            by_syntax.setdefault(str(dataset.file_meta.TransferSyntaxUID), path)
    assert len(by_syntax) >= 6
    for syntax, path in by_syntax.items():
        dataset = dcmread(path)
        entity = AE(ae_title="SENDER")
        entity.add_requested_context(dataset.SOPClassUID, [syntax])
        association = entity.associate(*receivers.address, ae_title="BRAINGEMMA")
        assert association.is_established
        # By path pynetdicom sends the data set of the file as it is.
        assert association.send_c_store(path).Status == Status.SUCCESS, (UID(syntax).name, path)
        association.release()
        found = [
            data
            for r, data in instances_in(spool)
            if r.meta["sop_instance_uid"] == dataset.SOPInstanceUID and r.meta["transfer_syntax_uid"] == syntax
        ]
        assert found[-1] == data_set_bytes(path), (UID(syntax).name, path)


def test_a_context_that_offers_several_syntaxes_gets_explicit_vr(shared_receivers):
    receivers, _ = shared_receivers
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MRImageStorage, [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1"])
    association = entity.associate(*receivers.address, ae_title="BRAINGEMMA")
    [context] = association.accepted_contexts
    assert context.transfer_syntax == ["1.2.840.10008.1.2.1"]
    association.release()


def test_many_presentation_contexts(shared_receivers):
    receivers, _ = shared_receivers
    entity = AE(ae_title="SENDER")
    for context in AllStoragePresentationContexts[:128]:
        entity.add_requested_context(context.abstract_syntax)
    association = entity.associate(*receivers.address, ae_title="BRAINGEMMA")
    assert len(association.accepted_contexts) == 128
    association.release()


def test_what_is_no_storage_is_refused_in_the_negotiation(shared_receivers):
    receivers, _ = shared_receivers
    with associate(receivers.address, Verification, PatientRootQueryRetrieveInformationModelFind) as association:
        [rejected] = association.rejected_contexts
        assert rejected.result == 0x03, "abstract syntax not supported (PS3.8 Table 9-18)"


def test_a_data_set_of_another_class_is_refused(shared_receivers):
    receivers, _ = shared_receivers
    dataset = make_series(1)[0]
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    assert send_as(receivers, dataset, command_class=MRImageStorage).Status == (
        Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
    )


def send_as(receivers, dataset, *, command_class: str, data: bytes | None = None, command_uid: str | None = None):
    """C-STORE with a command set that need not fit the data set."""
    with associate(receivers.address, MRImageStorage) as association:
        request = C_STORE()
        request.MessageID, request.Priority = 7, 2
        request.AffectedSOPClassUID = command_class
        request.AffectedSOPInstanceUID = command_uid or dataset.SOPInstanceUID
        request.DataSet = BytesIO(encode(dataset) if data is None else data)
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert answer is not None, "no answer"
        assert answer.MessageIDBeingRespondedTo == 7
        return answer


def test_a_data_set_of_another_instance_is_refused(shared_receivers):
    receivers, _ = shared_receivers
    dataset = make_series(1)[0]
    answer = send_as(receivers, dataset, command_class=MRImageStorage, command_uid=generate_uid())
    assert answer.Status == Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
    assert "Instance" in answer.ErrorComment


def test_a_class_that_is_not_the_contexts_is_refused(shared_receivers):
    receivers, _ = shared_receivers
    answer = send_as(receivers, make_series(1)[0], command_class=SecondaryCaptureImageStorage)
    assert answer.Status == Status.SOP_CLASS_NOT_SUPPORTED


@pytest.mark.parametrize("data", [b"not DICOM at all, really not.", b"\x08\x00\x16\x00UI\xff\x7f1.2", b"\0" * 64])
def test_a_data_set_that_cannot_be_understood_is_refused_and_the_next_good_one_taken(shared_receivers, data):
    receivers, _ = shared_receivers
    dataset = make_series(1)[0]
    answer = send_as(receivers, dataset, command_class=MRImageStorage, data=data)
    assert answer.Status == Status.CANNOT_UNDERSTAND
    assert answer.ErrorComment
    with associate(receivers.address) as association:
        assert association.send_c_store(dataset).Status == Status.SUCCESS


# --- who may send


def test_a_wrong_called_title_is_rejected(shared_receivers):
    receivers, _ = shared_receivers
    assert rejection(receivers.address, called="OTHER") == (1, 1, 7)


def test_a_calling_title_that_is_not_allowed_is_rejected(start):
    receivers = start(allowed_peers=[{"ae_title": "ORTHANC", "host": "127.0.0.1"}, {"ae_title": "ANYWHERE"}])
    assert rejection(receivers.address, calling="ORTHANC") is None
    assert rejection(receivers.address, calling="ANYWHERE") is None
    assert rejection(receivers.address, calling="STRANGER") == (1, 1, 3)


def test_an_address_that_is_not_allowed_is_rejected(start):
    receivers = start(allowed_peers=[{"ae_title": "ORTHANC", "host": "192.0.2.1"}])
    assert rejection(receivers.address, calling="ORTHANC") == (1, 1, 3)


def test_a_host_name_may_be_allowed(start):
    receivers = start(allowed_peers=[{"ae_title": "ORTHANC", "host": "localhost"}])
    assert rejection(receivers.address, calling="ORTHANC") is None


def test_too_many_associations_are_rejected_for_now(start, monkeypatch):
    monkeypatch.setattr(slots, "ADMIT_SECONDS", 0.5)
    monkeypatch.setattr(slots, "IDLE_SECONDS", 60)
    receivers = start(max_associations=2)
    with associate(receivers.address) as first, associate(receivers.address) as second:
        assert first.is_established
        assert second.is_established
        assert rejection(receivers.address) == (2, 3, 2), "transient, presentation related, local limit exceeded"
    wait_until(lambda: rejection(receivers.address) is None)


def test_a_silent_association_is_aborted(start):
    receivers = start(idle_seconds=1)
    with associate(receivers.address) as association:
        assert association.is_established
        wait_until(lambda: association.is_aborted, seconds=10)
        assert association.is_aborted


def test_a_connection_that_says_nothing_does_not_hold_up_others(shared_receivers):
    receivers, _ = shared_receivers
    silent = [socket.create_connection(receivers.address) for _ in range(5)]
    with associate(receivers.address) as association:
        assert association.send_c_echo().Status == Status.SUCCESS
    for connection in silent:
        connection.close()


def test_below_the_watermark_out_of_resources(start):
    receiver = start(min_free_bytes=1 << 60)
    with associate(receiver.address) as association:
        assert association.send_c_store(make_series(1)[0]).Status == Status.OUT_OF_RESOURCES
        assert association.send_c_echo().Status == Status.SUCCESS


def test_the_spool_is_for_the_user_alone(shared_receivers):
    receivers, spool = shared_receivers
    with associate(receivers.address) as association:
        association.send_c_store(make_series(1)[0])
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.iterdir()} == {0o600}
    assert all(is_alive(spool, lock.stem) for lock in spool.glob("*.lock"))
