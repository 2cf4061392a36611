import threading
import time
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from daemon.deliver import dimse
from daemon.deliver.dimse import DimseClient, Peer, parse_peer
from daemon.deliver.outgoing import Outgoing
from daemon.errors import DaemonError, Retryable
from daemon.trial.pacs import LOOPBACK, EmbeddedPacs, free_port


@pytest.fixture
def pacs(tmp_path: Path):
    server = EmbeddedPacs(tmp_path / "pacs")
    yield server
    server.stop()


def client_of(pacs: EmbeddedPacs, ae_title: str = "TESTPACS") -> DimseClient:
    return DimseClient(Peer(ae_title, LOOPBACK, pacs.port), "TEST")


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm"])
def test_files_arrive_as_they_are(pacs: EmbeddedPacs, name: str) -> None:
    path = Path(get_testdata_file(name))
    [outcome] = client_of(pacs).store([Outgoing.read(path)])
    assert outcome.stored
    assert outcome.status == 0x0000
    [stored] = list(pacs.folder.glob("*/*.dcm"))
    sent, got = pydicom.dcmread(path), pydicom.dcmread(stored)
    assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert got.PixelData == sent.PixelData


def test_the_thread_of_an_association_rests_while_a_request_is_under_way() -> None:
    """pynetdicom's own pause does not hold it for certain: of 1,955 answers on a busy machine it took 29 for itself."""
    looking, ended = threading.Event(), threading.Event()

    def look_for_messages() -> None:
        while not ended.is_set():
            checkpoint.wait()
            looking.set()
            time.sleep(0.01)  # it is not given the processor, and then takes what has come meanwhile
            looking.clear()

    thread = threading.Thread(target=look_for_messages)
    checkpoint = dimse.Checkpoint(thread)
    thread.start()
    for _ in range(20):
        assert looking.wait(10)
        checkpoint.clear()
        assert not looking.is_set()
        checkpoint.set()
    ended.set()
    thread.join(10)
    checkpoint.clear()  # it has ended: nothing to wait for


def test_associations_pause_by_our_own_checkpoint(pacs: EmbeddedPacs) -> None:
    client = client_of(pacs)
    ae = client.application_entity(10)
    ae.add_requested_context("1.2.840.10008.1.1")
    association = dimse.associate(ae, client.peer)
    assert isinstance(vars(association)["_reactor_checkpoint"], dimse.Checkpoint), "the name is pynetdicom's own"
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_echo_reaches_the_right_title_only(pacs: EmbeddedPacs) -> None:
    client_of(pacs).echo()
    with pytest.raises(Retryable, match="Called AE title not recognised"):
        client_of(pacs, "OTHER").echo()


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_there_is_said_so() -> None:
    with pytest.raises(Retryable, match="cannot be reached"):
        DimseClient(Peer("X", LOOPBACK, free_port()), "TEST").echo()


def test_not_dicom_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    with pytest.raises(DaemonError, match=r"note\.txt: expected a DICOM file"):
        Outgoing.read(path)


def test_peers_are_read_from_text() -> None:
    assert parse_peer("ORTHANC@127.0.0.1:4242") == Peer("ORTHANC", "127.0.0.1", 4242)
    assert parse_peer("A@[::1]:104").host == "::1"
    for wrong in ("ORTHANC", "A@host", "A@host:0", "@host:104", "SEVENTEENLETTERSX@host:104"):
        with pytest.raises(DaemonError, match="peer:"):
            parse_peer(wrong)
