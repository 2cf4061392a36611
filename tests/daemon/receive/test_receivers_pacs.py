"""What a PACS may send and who may not: storage classes, transfer syntaxes, PDU sizes, congestion, the audit log."""

from __future__ import annotations

import copy
import random
import zlib

import pytest
from ingest_sender import RawSender, associate_request, message, read_status, store_request
from ingest_support import InProcess, associate, encode, instances_in, make_instance, make_series
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind
from test_receivers import rejection

from daemon.config.sections import Listener
from daemon.receive.contexts import TRANSFER_SYNTAXES, supported_contexts
from daemon.receive.store import Status
from daemon.spool.backpressure import set_behind

CT = "1.2.840.10008.5.1.4.1.1.2"
LEGACY_MR = "1.2.840.10008.5.1.4.1.1.4.4"
JPEG_2000, HTJ2K = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201"
PRIVATE = "1.3.12.2.1107.5.9.1"
"""Siemens CSA Non-Image Storage, which comes with their MR studies."""


@pytest.fixture(scope="module")
def blocking(tmp_path_factory):
    """The one that serves, for tests of many cases."""
    receiver = InProcess(tmp_path_factory.mktemp("blocking"))
    yield receiver
    receiver.stop()


# --- which storage classes


@pytest.mark.parametrize(
    ("rules", "taken", "refused"),
    [
        ({}, [MRImageStorage, CT, BasicTextSRStorage], [PRIVATE]),
        ({"storage_classes": ["all", PRIVATE]}, [MRImageStorage, PRIVATE], []),
        ({"storage_classes": ["MRImageStorage", PRIVATE]}, [MRImageStorage, PRIVATE], [CT]),
        ({"refused_storage_classes": ["CTImageStorage"]}, [MRImageStorage, BasicTextSRStorage], [CT]),
    ],
)
def test_storage_classes_by_configuration(start, caplog, rules, taken, refused):
    receiver = start(**rules)
    with caplog.at_level("WARNING"), associate(receiver.address, *taken, *refused) as association:
        assert {context.abstract_syntax for context in association.rejected_contexts} == set(refused)
        assert all(context.result == 3 for context in association.rejected_contexts), "PS3.8 Table 9-18"
        for sop_class in taken:
            dataset = make_instance(generate_uid(), generate_uid(), 1, sop_class=sop_class)
            assert association.send_c_store(dataset).Status == Status.SUCCESS
    assert all(uid in caplog.text for uid in refused), "for the audit"


def test_every_standard_storage_class_is_taken_by_default():
    taken = set(supported_contexts(Listener()))
    assert {context.abstract_syntax for context in AllStoragePresentationContexts} <= taken
    assert PatientRootQueryRetrieveInformationModelFind not in taken


# --- every transfer syntax, as received


@pytest.mark.parametrize(
    ("sop_class", "syntax"),
    [
        *((MRImageStorage, syntax) for syntax in TRANSFER_SYNTAXES),
        *((EnhancedMRImageStorage, syntax) for syntax in (JPEG_2000, RLELossless, HTJ2K)),
        *((LEGACY_MR, syntax) for syntax in (JPEG_2000, DeflatedExplicitVRLittleEndian)),
    ],
)
def test_each_transfer_syntax_is_stored_as_received(blocking, syntax, sop_class):
    """Nothing is decoded, so what the frames hold does not matter; that they come through unchanged does."""
    uid = generate_uid()
    data = in_syntax(make_instance(generate_uid(), generate_uid(), 1, sop_class=sop_class, sop_uid=uid), syntax)
    request = associate_request({1: sop_class}, syntax=syntax)
    with RawSender(blocking.address) as sender:
        sender.socket.sendall(request)
        assert sender.read_pdu()[0] == 2
        sender.socket.sendall(b"".join(message(1, store_request(uid, 1, sop_class=sop_class), data)))
        assert read_status(sender.read_pdu()[1][6:]) == Status.SUCCESS
        assert sender.release() == 6
    [(record, stored)] = [found for found in instances_in(blocking.spool) if found[0].meta["sop_instance_uid"] == uid]
    assert stored == data
    assert record.meta["transfer_syntax_uid"] == syntax


def in_syntax(dataset: Dataset, syntax: str) -> bytes:
    """The data set as the transfer syntax wants it; compressed frames are random bytes."""
    uid = UID(syntax)
    compressed = uid.is_encapsulated
    if compressed:
        dataset.PixelData = encapsulate([random.Random(syntax).randbytes(1001)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = uid.is_little_endian, uid.is_implicit_VR
    write_dataset(buffer, dataset)
    raw = buffer.getvalue()
    if not uid.is_deflated or compressed:
        return raw
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(raw) + deflater.flush()


def test_a_transfer_syntax_that_is_none_is_refused(start):
    receiver = start()
    with RawSender(receiver.address) as sender:
        sender.socket.sendall(associate_request({1: MRImageStorage}, syntax="1.2.3.4.5"))
        kind, body = sender.read_pdu()
        assert kind == 2
        place = body.index(b"\x21\0")
        assert body[place + 6] == 4, "transfer syntaxes not supported (PS3.8 Table 9-18)"


# --- PDU sizes and numbers


@pytest.mark.parametrize("ours", [4096, 16384, 0], ids=["4 KB", "16 KB", "unlimited"])
def test_our_limit_of_the_pdu_is_told_and_used(start, ours):
    receiver = start(max_pdu=ours)
    dataset = make_instance(generate_uid(), generate_uid(), 1, rows=1600)
    with associate(receiver.address) as association:
        assert association.acceptor.maximum_length == ours
        assert association.send_c_store(dataset).Status == Status.SUCCESS
    [(_, stored)] = instances_in(receiver.spool)
    assert stored == encode(dataset)


def test_one_pdu_of_five_megabytes(start):
    receiver = start(max_pdu=0)
    dataset = make_instance(generate_uid(), generate_uid(), 1, rows=1600)
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2
        parts = message(1, store_request(str(dataset.SOPInstanceUID), 1), encode(dataset), max_pdu=1 << 23)
        assert [len(part) > 5_000_000 for part in parts] == [False, True]
        sender.socket.sendall(b"".join(parts))
        assert read_status(sender.read_pdu()[1][6:]) == Status.SUCCESS
    [(_, stored)] = instances_in(receiver.spool)
    assert stored == encode(dataset)


# --- the pipeline is behind


def test_while_the_pipeline_is_behind_associations_are_refused_for_now(start, caplog):
    receiver = start()
    with associate(receiver.address) as before, caplog.at_level("WARNING"):
        set_behind(receiver.spool, behind=True)
        assert rejection(receiver.address) == (2, 3, 1), "transient, presentation related, temporary congestion"
        assert before.send_c_store(make_series(1)[0]).Status == Status.SUCCESS, "no study is cut in half"
        set_behind(receiver.spool, behind=False)
        assert rejection(receiver.address) is None
    assert "the pipeline is behind" in caplog.text


def test_refusals_are_logged_for_the_audit(start, caplog):
    receiver = start(allowed_peers=[{"ae_title": "ORTHANC", "host": "127.0.0.1"}])
    with caplog.at_level("INFO"):
        rejection(receiver.address, calling="STRANGER")
        rejection(receiver.address, calling="ORTHANC", called="OTHER")
        rejection(receiver.address, calling="ORTHANC")
    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refused) == 2
    assert "'STRANGER'" in refused[0]
    assert "127.0.0.1" in refused[0]
    assert "'OTHER'" in refused[1]
    assert any(record.getMessage().startswith("association from 'ORTHANC'") for record in caplog.records)


def test_at_debug_level_the_log_names_no_patient(tmp_path, caplog):
    """Every logger of the process at its most talkative, pynetdicom's included."""
    dataset = make_series(1)[0]
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Secret^Name", "SECRETID", "19010203"
    bad = copy.deepcopy(dataset)
    del bad.SeriesInstanceUID
    with caplog.at_level("DEBUG"):
        receiver = InProcess(tmp_path)
        with RawSender(receiver.address) as sender:
            sender.associate()
            assert sender.store(str(dataset.SOPInstanceUID), encode(dataset)) == Status.SUCCESS
            assert sender.store(str(bad.SOPInstanceUID), encode(bad)) == Status.CANNOT_UNDERSTAND
            sender.release()
        receiver.stop()
    assert caplog.records
    for word in ("Secret", "SECRETID", "19010203"):
        assert word not in caplog.text
