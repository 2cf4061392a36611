"""A PACS on loopback that can be told to misbehave, and jobs whose results go to it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)
from record_support import a_selection, an_arrival

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Destination
from daemon.database.engine import create_tables, database_url, make_engine
from daemon.deliver import delivery
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import JobStore
from daemon.trial.pacs import LOOPBACK
from dicom_io.pack.manifest import Pack, PackObject, save_manifest

KINDS = {
    "sr": "1.2.840.10008.5.1.4.1.1.88.22",
    "sc": "1.2.840.10008.5.1.4.1.1.7",
    "seg": "1.2.840.10008.5.1.4.1.1.66.4",
    "rejection": "1.2.840.10008.5.1.4.1.1.88.59",
}


def make_store(folder: Path) -> JobStore:
    engine = make_engine(database_url("", DataFolder(folder)))
    create_tables(engine)
    return JobStore(engine)


def add_job(
    store: JobStore,
    root: Path,
    job_id: str,
    *,
    kinds: tuple[str, ...] = ("sr", "seg"),
    supersedes: str | None = None,
    senders: tuple[str, ...] = ("SCANNER",),
    synthetic_only: bool = False,
) -> JobFolder:
    """A job with one small object of each kind as its results."""
    folder = JobFolder(root / job_id)
    folder.dicom.mkdir(parents=True)
    store.add(job_id, study_uid="1.2.3", supersedes=supersedes)
    objects = []
    for kind in kinds:
        dataset = small_object(kind)
        dataset.save_as(folder.dicom / f"{kind}.dcm", enforce_file_format=True)
        if kind != "rejection":
            objects.append(a_result(folder, kind, dataset))
    save_manifest(folder.dicom, Pack(tuple(objects), identity=job_id, study_uid="1.2.3", synthetic_only=synthetic_only))
    an_arrival(job_id, calling_aets=senders, supersedes=supersedes).write(folder.arrival)
    a_selection("1.2.3.9").write(folder.selection)
    return folder


def a_result(folder: JobFolder, kind: str, dataset: Dataset) -> PackObject:
    """The entry of `<kind>.dcm` in a pack."""
    uids = (str(dataset[k].value) for k in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"))
    return PackObject(folder.dicom / f"{kind}.dcm", kind, *uids)


def small_object(kind: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = KINDS[kind], generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", f"1.2.3.{list(KINDS).index(kind) + 1}"
    dataset.PatientID, dataset.PatientName = "1", "A^B"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return dataset


def deliver(store: JobStore, folder: JobFolder, there: Destination, *, allow_demo: bool = False) -> float | None:
    """One turn, as the workflow takes it."""
    return delivery.deliver_to(store, folder.root.name, folder, there, "US", allow_demo=allow_demo)


def outcomes(store: JobStore, job_id: str = "j1") -> dict[str, tuple[str, str, str]]:
    """State, status and way of confirmation by kind of object."""
    return {d.kind: (str(d.state), d.status, d.confirmed) for d in store.deliveries(job_id)}


class FaultyPacs:
    """A Storage SCP with C-FIND and storage commitment, each of which may be missing or wrong.

    Attributes:
        received: SOP Instance UIDs as they came, with repeats.
        held: What it keeps.
        answer: Status of a C-STORE; may abort the association, or forget what it accepts.
    """

    def __init__(
        self,
        *,
        answer: Callable[[Any], int] = lambda _event: 0x0000,
        forgets: bool = False,
        find: bool = False,
        commitment: str = "none",
        classes: tuple[str, ...] | None = None,
        ssl_context: Any = None,
        port: int = 0,
    ) -> None:
        """Start it.

        Args:
            answer: Status of a C-STORE.
            forgets: It accepts and keeps nothing.
            find: It has C-FIND.
            commitment: `none`, `same` association, `new` association, `late` (never), or `refused` (0x0110).
            classes: SOP classes that it takes; None: all.
            ssl_context: TLS.
            port: Its port; 0: any.
        """
        self.received: list[str] = []
        self.held: dict[str, Dataset] = {}
        self.answer, self.forgets, self.commitment = answer, forgets, commitment
        self.associations = 0
        self.listener: tuple[str, int] | None = None
        self._threads: list[threading.Thread] = []
        ae = AE("PACS")
        for context in AllStoragePresentationContexts:
            if classes is None or context.abstract_syntax in classes:
                ae.add_supported_context(str(context.abstract_syntax))
        if find:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if commitment != "none":
            ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
            (evt.EVT_ACCEPTED, self._count),
        ]
        self._server = ae.start_server((LOOPBACK, port), block=False, evt_handlers=handlers, ssl_context=ssl_context)
        self.port = int(self._server.socket.getsockname()[1])

    def destination(self, **more: Any) -> Destination:
        address = {"name": "pacs", "ae_title": "PACS", "host": LOOPBACK, "port": self.port}
        return Destination.model_validate(address | more)

    def _count(self, _event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        self.received.append(str(event.request.AffectedSOPInstanceUID))
        status = self.answer(event)
        if (status == 0 or status >> 12 == 0xB) and not self.forgets:
            self.held[self.received[-1]] = event.dataset
        return status

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        for uid, dataset in list(self.held.items()):
            if dataset.SeriesInstanceUID == event.identifier.SeriesInstanceUID:
                match = Dataset()
                match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", uid
                yield 0xFF00, match

    def _commit(self, event: Any) -> tuple[int, Dataset | None]:
        if self.commitment == "refused":
            return 0x0110, None
        information = self._information(event.action_information)
        if self.commitment == "same":
            self._run(lambda: event.assoc.send_n_event_report(*information))
        elif self.commitment == "new":
            self._run(lambda: self._report_on_new_association(*information))
        return 0x0000, None

    def _run(self, work: Callable[[], object]) -> None:
        thread = threading.Timer(0.05, work)
        thread.start()
        self._threads.append(thread)

    def _information(self, asked: Dataset) -> tuple[Dataset, int, Any, Any]:
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence, failed = [], []
        for item in asked.ReferencedSOPSequence:
            if str(item.ReferencedSOPInstanceUID) in self.held:
                report.ReferencedSOPSequence.append(item)
            else:
                item.FailureReason = 0x0112
                failed.append(item)
        if failed:
            report.FailedSOPSequence = failed
        kind = 2 if failed else 1
        return report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance

    def _report_on_new_association(self, *information: Any) -> None:
        assert self.listener is not None
        ae = AE("PACS")
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = ae.associate(*self.listener, ae_title="US", ext_neg=[role])
        assert association.is_established
        status, _ = association.send_n_event_report(*information)
        association.release()
        assert status.Status == 0x0000, status

    def stop(self) -> None:
        for thread in self._threads:
            thread.join(10)
        self._server.shutdown()


def certificates(folder: Path) -> Path:
    """A test authority `ca.pem`, and certificates `server` and `client` by it, for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test ca")
    (folder / "san.cnf").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "san.cnf", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder
