from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ingest_support import (
    associate,
    data_set_bytes,
    encode,
    instances_in,
    listener_settings,
    make_instance,
    make_series,
    save,
    storescu,
    wait_until,
)
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
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification

from daemon.errors import ConfigurationError
from daemon.listener import start_receivers
from daemon.receiver_store import Status
from daemon.spool import RecordKind, is_alive, read_records

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "dicom"


@pytest.fixture
def start(tmp_path):
    started = []

    def _start(**listener):
        receivers = start_receivers(listener_settings(tmp_path, **listener), tmp_path)
        started.append(receivers)
        return receivers

    yield _start
    for receivers in started:
        receivers.stop()


@pytest.fixture(scope="module")
def shared_receivers(tmp_path_factory):
    """One listener for all tests that only send to it."""
    folder = tmp_path_factory.mktemp("listener")
    receivers = start_receivers(listener_settings(folder, processes=2), folder)
    yield receivers, folder / "spool"
    receivers.stop()


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
        records = [r for path in spool.glob("*.seg") for r in read_records(path, verify=False, final=False)]
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
    from pydicom import dcmread

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
            (r.meta["transfer_syntax_uid"], data)
            for r, data in instances_in(spool)
            if r.meta["sop_instance_uid"] == dataset.SOPInstanceUID and r.meta["transfer_syntax_uid"] == syntax
        ]
        assert found


def test_a_context_that_offers_several_syntaxes_gets_explicit_vr(shared_receivers):
    receivers, _ = shared_receivers
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(MRImageStorage, [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1"])
    association = entity.associate(*receivers.address, ae_title="BRAINGEMMA")
    [context] = association.accepted_contexts
    assert context.transfer_syntax == ["1.2.840.10008.1.2.1"]
    association.release()


def test_many_presentation_contexts(shared_receivers):
    from pynetdicom.presentation import AllStoragePresentationContexts

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
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

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


def rejection(address, *, calling: str = "SENDER", called: str = "BRAINGEMMA") -> tuple[int, int, int] | None:
    with associate(address, calling=calling, called=called) as association:
        if association.is_established:
            return None
        assert association.is_rejected
        primitive = association.acceptor.primitive
        return primitive.result, primitive.result_source, primitive.diagnostic


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


def test_too_many_associations_are_rejected_for_now(start):
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


# --- processes


def test_an_address_in_use_is_a_configuration_error(tmp_path, start):
    receivers = start()
    with pytest.raises(ConfigurationError, match="cannot listen"):
        start_receivers(listener_settings(tmp_path, port=receivers.address[1]), tmp_path)


def test_stop_ends_everything_in_time_and_frees_the_port(tmp_path, start):
    receivers = start(processes=2)
    with associate(receivers.address) as association:
        association.send_c_store(make_series(1)[0])
        before = time.monotonic()
        receivers.stop()
        assert time.monotonic() - before < 8
    assert not receivers.alive()
    again = start(port=receivers.address[1])
    assert again.alive()


def test_a_store_in_progress_at_sigterm_is_answered(tmp_path, start):
    receivers = start()
    series = make_series(300)
    statuses, results = [], []

    def send() -> None:
        with associate(receivers.address) as association:
            for dataset in series:
                if not association.is_established:
                    break
                answer = association.send_c_store(dataset)
                results.append(dataset)
                statuses.append(answer.Status if "Status" in answer else None)

    sender = threading.Thread(target=send)
    sender.start()
    wait_until(lambda: len(statuses) > 10)
    receivers.stop()
    sender.join(20)
    stored = {r.meta["sop_instance_uid"] for r, _ in instances_in(tmp_path / "spool")}
    answered = {str(d.SOPInstanceUID) for d, s in zip(results, statuses, strict=True) if s == Status.SUCCESS}
    assert len(answered) > 10
    assert answered <= stored


def test_a_receiver_that_dies_is_replaced(start):
    receivers = start(processes=2)
    victim = receivers._children[0]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: not receivers.alive())
    assert receivers.restart_dead() == 1
    assert receivers.alive()
    with associate(receivers.address) as association:
        assert association.send_c_echo().Status == Status.SUCCESS


PARENT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from ingest_support import listener_settings
from daemon.listener import start_receivers
folder = Path({folder!r})
receivers = start_receivers(listener_settings(folder, processes=2), folder)
print(receivers.address[1], *[child.pid for child in receivers._children], flush=True)
time.sleep(600)
"""


def test_receivers_leave_when_their_parent_is_killed(tmp_path):
    code = PARENT.format(root=str(ROOT), tests=str(Path(__file__).parent), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    port, *children = map(int, parent.stdout.readline().split())
    assert len(children) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: all(not Path(f"/proc/{pid}").exists() or is_zombie(pid) for pid in children))
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_receivers_do_not_import_torch(start):
    receivers = start()
    maps = Path(f"/proc/{receivers._children[0].pid}/maps").read_text()
    assert "numpy" in maps or "pydantic" in maps
    assert "libtorch" not in maps


def test_below_the_watermark_out_of_resources(tmp_path):
    from daemon.config import Settings, Storage

    settings = listener_settings(tmp_path)
    settings = Settings(listener=settings.listener, storage=Storage(folder=tmp_path, min_free_gb=10**7))
    receivers = start_receivers(settings, tmp_path)
    try:
        with associate(receivers.address) as association:
            assert association.send_c_store(make_series(1)[0]).Status == Status.OUT_OF_RESOURCES
            assert association.send_c_echo().Status == Status.SUCCESS
    finally:
        receivers.stop()


def test_no_patient_data_in_the_log(tmp_path):
    """The log of a receiver process, at its most talkative, names no patient."""
    code = PARENT.format(root=str(ROOT), tests=str(Path(__file__).parent), folder=str(tmp_path))
    log = tmp_path / "log.txt"
    with log.open("w") as stderr:
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True)
    port = int(parent.stdout.readline().split()[0])
    with associate(("127.0.0.1", port)) as association:
        association.send_c_store(make_series(1)[0])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    text = log.read_text()
    assert "association from 'SENDER'" in text
    assert "Test^Case" not in text
    assert "T1" not in text


def test_the_spool_is_for_the_user_alone(shared_receivers):
    receivers, spool = shared_receivers
    with associate(receivers.address) as association:
        association.send_c_store(make_series(1)[0])
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.iterdir()} == {0o600}
    assert all(is_alive(spool, lock.stem) for lock in spool.glob("*.lock"))
