"""The two clients of a source against Debian's Orthanc, and what they say where it is away or refuses."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_support import JSON, Server
from ingest_support import InProcess, instances_in
from pull_support import LOGIN, SLICES, T1, StudyInPacs, make_study
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from daemon.config.sections import Source
from daemon.errors import Retryable
from daemon.pull.client import SourceClient
from daemon.pull.dicomweb import WebSource
from daemon.pull.dimse import DimseSource
from daemon.pull.source import Inbox, SourceAway, SourceBusy
from daemon.spool.writer import SpoolWriter
from daemon.trial.pacs import DICOM_WEB, LOOPBACK, Orthanc
from dicom_io import header

pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Debian's orthanc is not installed"),
    pytest.mark.skipif(not DICOM_WEB.exists(), reason="Debian's orthanc-dicomweb is not installed"),
]


class Site:
    """An Orthanc that holds a study, and our listener beside it."""

    def __init__(self, folder: Path) -> None:
        self.receiver = InProcess(folder, ae_title="BRAINGEMMA")
        port = self.receiver.address[1]
        self.orthanc = Orthanc(
            folder / "orthanc", modalities={"us": ("BRAINGEMMA", LOOPBACK, port), "gone": ("GONE", LOOPBACK, 1)},
            dicom_web=True, extra={"SyncStorageArea": False},
        )  # fmt: skip
        self.study = make_study(folder / "in", 1, others=[T1])
        for file in self.study.files:
            self.orthanc.post("/instances", file.read_bytes())
        self.spool = folder / "fetched"
        self.inbox = Inbox(SpoolWriter(self.spool))

    def source(self, **values: Any) -> Source:
        there = {"name": "a", "ae_title": "ORTHANC", "host": LOOPBACK, "port": self.orthanc.port}
        return Source.model_validate(there | values)

    def client(self, by: str, us: str = "BRAINGEMMA") -> SourceClient:
        if by == "web":
            return WebSource(Source(name="a", url=self.orthanc.web_url, **LOGIN), self.inbox)
        return DimseSource(self.source(retrieve=by), us, self.inbox)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.orthanc.stop()
    made.receiver.stop()


def flair_of(series: list[Dataset]) -> Dataset:
    return next(entry for entry in series if header.text(entry, "SeriesDescription") == "t2_flair_tra")


@pytest.mark.parametrize("by", ["move", "web"])
def test_studies_and_series_are_found_with_what_tells_a_flair(site: Site, by: str) -> None:
    client, study = site.client(by), site.study
    client.echo()
    [found] = client.studies({"AccessionNumber": study.accession})
    assert (found.StudyInstanceUID, found.PatientID, found.StudyDate) == (study.uid, "P00001", "20260115")
    assert client.studies({"StudyDate": "20250101-20251231"}) == []
    assert client.studies({"StudyInstanceUID": "1.2.3.4"}) == []
    series = client.series(study.uid)
    assert len(series) == 2
    flair = flair_of(series)
    assert (flair.SeriesInstanceUID, flair.Modality) == (study.flair, "MR")
    assert header.whole_number(flair, "NumberOfSeriesRelatedInstances") == SLICES


@pytest.mark.parametrize(("by", "way"), [("get", "C-GET"), ("web", "WADO-RS"), ("move", "C-MOVE")])
def test_one_series_comes_whole_and_byte_for_byte(site: Site, by: str, way: str) -> None:
    study: StudyInPacs = site.study
    fetched = site.client(by).fetch(study.uid, [study.flair])
    assert (fetched.instances, fetched.way) == (SLICES, way)
    spool = site.receiver.spool if by == "move" else site.spool
    came = [(record, data) for record, data in instances_in(spool) if record.meta["series_uid"] == study.flair]
    assert len({record.meta["sop_instance_uid"] for record, _ in came}) == SLICES
    assert {record.meta["calling_aet"] for record, _ in came} <= {"ORTHANC", "a"}
    sent = {_body(file) for file in study.files}
    assert {data for _, data in came} <= sent


def _body(file: Path) -> bytes:
    """The data set of a Part 10 file: what follows the group 0002, whose length its first element gives."""
    data = file.read_bytes()
    return data[144 + int.from_bytes(data[140:144], "little") :]


def test_a_pacs_that_does_not_know_us_or_where_we_are_says_so(site: Site) -> None:
    with pytest.raises(Retryable, match="C-MOVE"):
        site.client("move", us="GONE").fetch(site.study.uid, [site.study.flair])
    with pytest.raises(SourceAway, match="refused the association"):
        DimseSource(site.source(ae_title="WRONG"), "BRAINGEMMA").echo()
    with pytest.raises(SourceAway, match="401"):
        WebSource(Source(name="a", url=site.orthanc.web_url, username="x")).studies({"PatientID": "1"})
    with pytest.raises(Retryable, match="HTTP 404"):
        site.client("web").fetch("1.2.3", ["1.2.3.4"])


def test_auto_takes_c_get_where_the_pacs_does_not_know_where_to_send(tmp_path: Path) -> None:
    """A PACS of pynetdicom's: C-MOVE answers 0xA801, C-GET works."""
    [file, *_] = make_study(tmp_path / "in", 3, others=()).files
    held = pydicom.dcmread(file)

    def give(_event: evt.Event) -> Iterator[Any]:
        yield 1
        yield 0xFF00, held

    ae = AE("STOCK")
    ae.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    for model in (StudyRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelMove):
        ae.add_supported_context(model)
    handlers = [(evt.EVT_C_MOVE, lambda _event: iter([(None, None)])), (evt.EVT_C_GET, give)]
    server = ae.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
    try:
        there = {"name": "a", "ae_title": "STOCK", "host": LOOPBACK, "port": server.socket.getsockname()[1]}
        asked = str(held.StudyInstanceUID), [str(held.SeriesInstanceUID)]
        with pytest.raises(Retryable, match="does not know us as 'US'"):
            DimseSource(Source.model_validate(there | {"retrieve": "move"}), "US").fetch(*asked)
        inbox = Inbox(SpoolWriter(tmp_path / "spool"))
        fetched = DimseSource(Source.model_validate(there), "US", inbox).fetch(*asked)
        assert (fetched.instances, fetched.way) == (1, "C-GET")
        assert [record.meta["sop_instance_uid"] for record, _ in instances_in(tmp_path / "spool")] == [
            held.SOPInstanceUID
        ]
    finally:
        server.shutdown()


def test_what_passes_is_told_from_a_query_that_is_refused() -> None:
    """0xA700 and HTTP 500: the same may succeed the next time."""
    statuses = [0xA700, 0xA900, 0xC001]
    ae = AE("STOCK")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    handlers = [(evt.EVT_C_FIND, lambda _event: iter([(statuses.pop(0), None)]))]
    server = ae.start_server((LOOPBACK, 0), block=False, evt_handlers=handlers)
    web = Server()
    web.qido = (500, JSON, b"")
    try:
        there = {"name": "a", "ae_title": "STOCK", "host": LOOPBACK, "port": server.socket.getsockname()[1]}
        client = DimseSource(Source.model_validate(there), "US")
        with pytest.raises(SourceBusy, match="0xA700"):
            client.studies({"PatientID": "1"})
        for _ in range(2):
            with pytest.raises(Retryable) as refused:
                client.studies({"PatientID": "1"})
            assert not isinstance(refused.value, SourceAway)
        with pytest.raises(SourceBusy, match="HTTP 500"):
            WebSource(Source(name="a", url=web.url)).studies({"PatientID": "1"})
    finally:
        server.shutdown()
        web.stop()


@pytest.mark.parametrize(("final", "sent"), [({"NumberOfCompletedSuboperations": 0}, 0), ({}, None)])
def test_a_final_answer_may_leave_its_numbers_out(final: dict[str, int], sent: int | None) -> None:
    answer = Dataset()
    answer.Status = 0x0000
    for keyword, value in final.items():
        setattr(answer, keyword, value)
    source = DimseSource(Source(name="a", ae_title="X", host=LOOPBACK, port=104), "US")
    assert source._follow("C-MOVE", iter([(answer, None)])) == sent


# pynetdicom drops the socket of a refused connection without closing it.
def test_a_port_where_nobody_listens_is_a_source_that_is_away() -> None:
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        port = held.getsockname()[1]
        with pytest.raises(SourceAway, match="cannot be reached"):
            DimseSource(Source(name="a", ae_title="X", host=LOOPBACK, port=port), "US").echo()
        with pytest.raises(SourceAway):
            WebSource(Source(name="a", url=f"http://{LOOPBACK}:{port}/dicom-web")).series("1.2")
