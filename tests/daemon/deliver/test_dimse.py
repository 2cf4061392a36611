from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from daemon.deliver import dimse, outgoing
from daemon.errors import DaemonError, Retryable
from daemon.trial.pacs import LOOPBACK, EmbeddedPacs, free_port


@pytest.fixture
def pacs(tmp_path: Path):
    server = EmbeddedPacs(tmp_path / "pacs")
    yield server
    server.stop()


def peer_of(pacs: EmbeddedPacs, ae_title: str = "TESTPACS") -> dimse.Peer:
    return dimse.Peer(ae_title, LOOPBACK, pacs.port)


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm"])
def test_files_arrive_as_they_are(pacs: EmbeddedPacs, name: str) -> None:
    path = Path(get_testdata_file(name))
    [outcome] = dimse.store([outgoing.Outgoing.read(path)], peer_of(pacs), "TEST")
    assert outcome.stored
    assert outcome.status == 0x0000
    [stored] = list(pacs.folder.glob("*/*.dcm"))
    sent, got = pydicom.dcmread(path), pydicom.dcmread(stored)
    assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert got.PixelData == sent.PixelData


def test_echo_reaches_the_right_title_only(pacs: EmbeddedPacs) -> None:
    dimse.echo(peer_of(pacs), "TEST")
    with pytest.raises(Retryable, match="Called AE title not recognised"):
        dimse.echo(peer_of(pacs, "OTHER"), "TEST")


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_there_is_said_so() -> None:
    with pytest.raises(Retryable, match="cannot be reached"):
        dimse.echo(dimse.Peer("X", LOOPBACK, free_port()), "TEST")


def test_not_dicom_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    with pytest.raises(DaemonError, match=r"note\.txt: expected a DICOM file"):
        outgoing.Outgoing.read(path)


def test_peers_are_read_from_text() -> None:
    assert dimse.parse_peer("ORTHANC@127.0.0.1:4242") == dimse.Peer("ORTHANC", "127.0.0.1", 4242)
    assert dimse.parse_peer("A@[::1]:104").host == "::1"
    for wrong in ("ORTHANC", "A@host", "A@host:0", "@host:104", "SEVENTEENLETTERSX@host:104"):
        with pytest.raises(DaemonError, match="peer:"):
            dimse.parse_peer(wrong)
