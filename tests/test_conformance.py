"""`docs/conformance.md` against what the listener and the clients really offer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_support import InProcess
from pydicom.uid import UID
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from daemon.config.sections import Destination, Listener, Results
from daemon.config.storage_classes import resolve_storage_classes
from daemon.deliver import dimse
from daemon.deliver.dimse import DimseClient, Peer
from daemon.deliver.outgoing import Outgoing
from daemon.errors import DaemonError
from daemon.receive import transport
from daemon.receive.contexts import TRANSFER_SYNTAXES
from daemon.receive.store import Status
from dicom_io.content.codes import PRIVATE_SCHEME
from dicom_io.content.equipment import MANUFACTURER, MODEL_NAME
from dicom_io.content.sources import CHARACTER_SET
from dicom_io.objects.kinds import KINDS

TEXT = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text(encoding="utf-8")
UIDS = re.compile(r"\b1\.2\.[\d.]*\d")


def rows(header: str) -> list[list[str]]:
    """The rows of the table whose first column is called so."""
    lines = TEXT.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"| {header} |"))
    found = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def facts(header: str) -> dict[str, str]:
    """A table of two columns."""
    return {row[0]: row[1] for row in rows(header)}


def text_of(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def test_results_are_those_of_the_table() -> None:
    defaults = Results()
    for row, kind in zip(rows("kind"), KINDS, strict=True):
        by_default = "yes" if getattr(defaults, kind.name, False) else "no"
        assert row == [kind.name, str(kind.sop_class_uid), kind.modality, str(kind.series_number), by_default]
    written = facts("attribute")
    assert (written["Manufacturer"], written["Manufacturer's Model Name"]) == (MANUFACTURER, MODEL_NAME)
    assert f"Written: {CHARACTER_SET}." in TEXT
    assert f"{PRIVATE_SCHEME}." in TEXT


def test_timeouts_are_those_of_the_table() -> None:
    destination = Destination(name="x", ae_title="X", host="localhost", port=104)
    expected = {
        "A-ASSOCIATE-RQ on a new connection (ARTIM)": transport.ARTIM_SECONDS,
        "TLS handshake": transport.HANDSHAKE_SECONDS,
        "silence within an association, listener": Listener().idle_seconds,
        "answers to our requests": DimseClient(Peer("A", "localhost", 1), "X").timeout,
        "answer to C-ECHO": dimse.ECHO_SECONDS,
        "TCP connection, calls": dimse.CONNECT_SECONDS,
        "storage commitment, then C-FIND": destination.commitment_seconds,
    }
    assert {name: float(seconds) for name, seconds in facts("timeout").items()} == expected
    assert [int(row[0], 16) for row in rows("status of C-STORE")] == sorted(Status)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[InProcess]:
    receiver = InProcess(tmp_path)
    yield receiver
    receiver.stop()


def offered(listener: InProcess, contexts: list[tuple[str, list[str]]], **more: object):  # type: ignore[no-untyped-def]
    """The association that the listener made of it."""
    ae = AE("SENDER")
    for abstract, syntaxes in contexts:
        ae.add_requested_context(abstract, syntaxes)
    association = ae.associate(*listener.address, ae_title="BRAINGEMMA", **more)
    assert association.is_established
    association.release()
    return association


def test_the_listener_takes_what_it_says_and_no_more(listener: InProcess) -> None:
    [uncompressed] = re.findall(r"Uncompressed, in the order in which one is chosen: ([\d., \n]+)", TEXT)
    order = UIDS.findall(uncompressed)
    assert list(TRANSFER_SYNTAXES[:4]) == order
    standard = resolve_storage_classes(("all",))
    for some in (standard[:120], standard[120:]):
        association = offered(listener, [(str(Verification), order), *((uid, [order[1], order[0]]) for uid in some)])
        assert {str(c.abstract_syntax) for c in association.accepted_contexts} == {str(Verification), *some}
        assert {str(c.transfer_syntax[0]) for c in association.accepted_contexts} == {order[0]}
    mr = next(uid for uid in standard if UID(uid).keyword == "MRImageStorage")
    association = offered(listener, [(mr, [syntax]) for syntax in TRANSFER_SYNTAXES])
    assert len(association.accepted_contexts) == len(TRANSFER_SYNTAXES)
    refused = ["1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.31"]
    association = offered(listener, [(str(Verification), order), *((uid, order) for uid in refused)])
    assert {str(c.abstract_syntax) for c in association.rejected_contexts} == set(refused)


def test_what_the_listener_says_of_itself(listener: InProcess) -> None:
    said = facts("negotiation")
    commitment = str(StorageCommitmentPushModel)
    row = next(row for row in rows("abstract syntax") if commitment in row[0])
    role = build_role(StorageCommitmentPushModel, scp_role=True)
    association = offered(listener, [(commitment, UIDS.findall(row[1]))], ext_neg=[role])
    [context] = association.accepted_contexts
    assert (context.as_scp, context.as_scu) == (True, False)
    acceptor = association.acceptor
    assert str(acceptor.implementation_class_uid) == said["implementation class UID, listener"]
    assert text_of(acceptor.implementation_version_name) == said["implementation version name, listener"]
    assert acceptor.maximum_length == int(said["longest PDU received, listener"])
    assert acceptor.asynchronous_operations == (1, 1)
    assert not acceptor.sop_class_extended
    assert acceptor.user_identity is None
    assert Listener().max_associations == int(said["associations at once, each process"])
    assert str(association.requestor.primitive.application_context_name) == said["application context"]


@pytest.fixture
def pacs() -> Iterator[tuple[Peer, list[evt.Event]]]:
    """A peer that takes nothing, and keeps who called it and what was proposed."""
    calls: list[evt.Event] = []
    entity = AE("PACS")
    entity.add_supported_context("1.2.3.4.5")
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_REQUESTED, calls.append)])
    yield Peer("PACS", "127.0.0.1", server.socket.getsockname()[1]), calls
    server.shutdown()


def test_calls_propose_what_the_table_says(tmp_path: Path, pacs: tuple[Peer, list[evt.Event]]) -> None:
    peer, calls = pacs
    said: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for call, abstract, syntaxes in rows("call"):
        said.setdefault(call, []).append((abstract, tuple(UIDS.findall(syntaxes))))
    client = DimseClient(peer, "BRAINGEMMA")
    result = Outgoing(tmp_path / "x", str(KINDS[0].sop_class_uid), "1.2", "1.2.840.10008.1.2.1")
    works = {
        "C-ECHO": client.echo,
        "C-STORE": lambda: client.store([result]),
        "C-FIND": lambda: client.held("1.2", "1.3"),
        "N-ACTION": lambda: client.request_commitment("1.2", [result], lambda _: None),
    }
    assert set(works) == set(said)
    about = facts("negotiation")
    for name, work in works.items():
        with pytest.raises(DaemonError):
            work()
        requestor = calls.pop().assoc.requestor
        proposed = [
            (str(context.abstract_syntax), tuple(str(syntax) for syntax in context.transfer_syntax))
            for context in requestor.primitive.presentation_context_definition_list
        ]
        expected = [(result.sop_class_uid if "results" in uid else uid, syntaxes) for uid, syntaxes in said[name]]
        assert proposed == expected, name
        assert str(requestor.implementation_class_uid) == about["implementation class UID, calls"]
        assert text_of(requestor.implementation_version_name) == about["implementation version name, calls"]
        assert requestor.maximum_length == int(about["longest PDU received, calls"])
        assert not requestor.role_selection
        assert not requestor.sop_class_extended


def test_a_destination_that_takes_less_is_asked_beforehand() -> None:
    entity = AE("PACS")
    for kind in KINDS[:2]:
        entity.add_supported_context(kind.sop_class_uid)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        client = DimseClient(Peer("PACS", "127.0.0.1", server.socket.getsockname()[1]), "BRAINGEMMA")
        classes = [str(kind.sop_class_uid) for kind in KINDS]
        assert client.refuses(classes) == classes[2:]
        assert client.refuses(classes[:2]) == []
        assert client.refuses(classes[3:]) == classes[3:]
    finally:
        server.shutdown()
