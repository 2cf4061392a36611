"""Associations as odd but real senders ask for them: taken where dcmtk takes them."""

from __future__ import annotations

import struct

import pytest
from ingest_sender import EXPLICIT, MR, VERIFICATION, RawSender, element, item, message, pdu, read_status, store_request
from ingest_support import InProcess, encode, instances_in, make_series
from pynetdicom.pdu import A_ASSOCIATE_AC

from daemon.receive.negotiation import MalformedRequest, accept, read_request
from daemon.receive.store import Status

COMMITMENT = "1.2.840.10008.1.20.1"


def request(
    *, called=b"BRAINGEMMA", calling=b"ODD", pad=b" ", number=1, max_pdu=16384, user=b"", abstract=MR, further=b""
) -> bytes:
    """An A-ASSOCIATE-RQ with one context."""
    syntaxes = item(0x30, abstract.encode()) + item(0x40, EXPLICIT.encode())
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, bytes((number, 0, 0, 0)) + syntaxes) + further
    lengths = b"" if max_pdu is None else item(0x51, struct.pack(">L", max_pdu))
    items += item(0x50, lengths + item(0x52, b"1.2.3") + user)
    return pdu(1, struct.pack(">H2x16s16s32x", 1, called.ljust(16, pad), calling.ljust(16, pad)) + items)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    receiver = InProcess(tmp_path_factory.mktemp("odd"), idle_seconds=5)
    yield receiver
    receiver.stop(0.5)


ODD = {
    "plain": {},
    "titles padded with NUL": {"pad": b"\0"},
    "blank calling title": {"calling": b""},
    "calling title of NULs": {"calling": b"", "pad": b"\0"},
    "unknown sub-item": {"user": item(0x5F, b"abc")},
    "unknown item": {"further": item(0x7E, b"abc")},
    "even context id": {"number": 2},
    "no maximum length": {"max_pdu": None},
    "any maximum length": {"max_pdu": 0},
    "maximum length 7": {"max_pdu": 7},
    "maximum length 12": {"max_pdu": 12},
    "maximum length 64": {"max_pdu": 64},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_odd_associations_are_taken_and_answered_within_their_maximum_length(receiver, odd):
    dataset = make_series(1)[0]
    with RawSender(receiver.address) as sender:
        sender.socket.sendall(request(**odd))
        assert sender.read_pdu()[0] == 2
        uid = str(dataset.SOPInstanceUID)
        sender.socket.sendall(b"".join(message(odd.get("number", 1), store_request(uid, 1), encode(dataset))))
        answer, last = b"", False
        while not last:
            kind, body = sender.read_pdu()
            assert kind == 4
            most = odd.get("max_pdu") or 1 << 17
            assert len(body) <= max(most, 8), "two bytes are the least that a fragment can have"
            (length, _, control), answer = struct.unpack(">LBB", body[:6]), answer + body[6:]
            assert length == len(body) - 4, "one fragment a PDU"
            last = bool(control & 2)
        assert read_status(answer) == Status.SUCCESS
        assert sender.release() == 6
    assert uid in {record.meta["sop_instance_uid"] for record, _ in instances_in(receiver.spool)}


@pytest.mark.parametrize("titles", [{"called": b"A\n2026 FAKE INF"}, {"calling": b"A\n2026\x1b[2J FAK"}])
def test_control_characters_in_titles_never_reach_a_log(receiver, caplog, titles):
    dataset = make_series(1)[0]
    with caplog.at_level("DEBUG"), RawSender(receiver.address) as sender:
        sender.socket.sendall(request(**titles))
        if sender.read_pdu()[0] == 2:
            sender.store(str(dataset.SOPInstanceUID), encode(dataset)[:50])
    lines = [record.getMessage() for record in caplog.records]
    assert any("FAK" in line for line in lines)
    assert not [line for line in lines if not line.isprintable()]


@pytest.mark.parametrize("cut", range(6, 200, 7))
def test_a_request_that_is_cut_off_is_malformed(cut):
    whole = request(user=item(0x54, struct.pack(">H", len(MR)) + MR.encode() + b"\0\1"))
    with pytest.raises(MalformedRequest):
        read_request(whole[:cut])


def test_the_answer_is_read_by_another_implementation():
    """Results by context, the titles as they came, the role of who reports on storage commitment."""
    contexts = b"".join(
        item(0x20, bytes((number, 0, 0, 0)) + item(0x30, abstract) + b"".join(item(0x40, s) for s in syntaxes))
        for number, abstract, syntaxes in (
            (3, b"1.2.3.4", [EXPLICIT.encode()]),
            (5, MR.encode(), [b"1.2.3.5"]),
            (7, MR.encode(), [b"1.2.840.10008.1.2", EXPLICIT.encode() + b"\0"]),
            (9, COMMITMENT.encode(), [EXPLICIT.encode()]),
        )
    )
    role = item(0x54, struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + b"\0\1")
    asked = read_request(request(further=contexts, user=role))
    supported = {MR: (EXPLICIT, "1.2.840.10008.1.2"), COMMITMENT: (EXPLICIT,), VERIFICATION: (EXPLICIT,)}
    answer, accepted = accept(asked, supported, 16384)
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answer)
    primitive = decoded.to_primitive()
    results = {
        c.context_id: (c.result, c.transfer_syntax) for c in primitive.presentation_context_definition_results_list
    }
    assert {number: result for number, (result, _) in results.items()} == {1: 0, 3: 3, 5: 4, 7: 0, 9: 0}
    assert results[7][1] == [EXPLICIT], "our preference, not the order in which it asks"
    assert accepted.keys() == {1, 7, 9}
    assert primitive.maximum_length_received == 16384
    assert (primitive.called_ae_title, primitive.calling_ae_title) == ("BRAINGEMMA", "ODD")
    [answered] = [i for i in primitive.user_information if hasattr(i, "scp_role")]
    assert (answered.sop_class_uid, answered.scu_role, answered.scp_role) == (COMMITMENT, False, True)


def test_whoever_wants_to_be_asked_for_commitment_is_refused():
    role = item(0x54, struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + b"\1\0")
    _, accepted = accept(read_request(request(abstract=COMMITMENT, user=role)), {COMMITMENT: (EXPLICIT,)}, 0)
    assert accepted == {}


def test_elements_of_unknown_vr_and_uids_of_letters_are_taken(receiver):
    """In the data set; the UIDs are those of the command set, too."""
    dataset = make_series(1)[0]
    dataset.StudyDescription = "FLAIR"
    raw = encode(dataset)
    place = raw.index(b"\x08\x00\x30\x10LO")
    raw = raw[: place + 4] + b"??" + raw[place + 6 :]
    uid = str(dataset.SOPInstanceUID)
    letters = "IMG" + uid[3:]
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2
        assert sender.store(uid, raw) == Status.SUCCESS
        assert sender.store(letters, raw.replace(uid.encode(), letters.encode())) == Status.SUCCESS
        for bad in ("../../" + uid[6:], "a/" + uid[2:], ".x" + uid[2:]):
            assert sender.store(bad, raw.replace(uid.encode(), bad.encode())) == Status.CANNOT_UNDERSTAND


def test_a_command_set_without_group_length_is_taken(receiver):
    command = store_request("1.2.3", 1)[12:] + element(0x1031, 1)
    with RawSender(receiver.address) as sender:
        assert sender.associate() == 2
        sender.socket.sendall(b"".join(message(1, command, b"\0" * 8)))
        assert read_status(sender.read_pdu()[1][6:]) == Status.CANNOT_UNDERSTAND
