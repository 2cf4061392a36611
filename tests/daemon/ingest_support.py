"""Instances, senders and daemons for the ingest tests."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from daemon.assemble.arrival import Arrival
from daemon.assemble.assembler import Assembler
from daemon.config.sections import Assembly, Listener, Settings, Storage
from daemon.database.engine import create_tables, make_engine
from daemon.files import read_data
from daemon.receive.association import BlockingReceiver
from daemon.spool.segment import InstanceMeta, Record, RecordKind, read_records
from daemon.spool.writer import SpoolWriter


def make_instance(
    study: str, series: str, number: int, *, rows: int = 32, sop_uid: str | None = None, sop_class: str = MRImageStorage
) -> Dataset:
    """A small MR instance with a file meta, explicit VR little endian."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = sop_uid or generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientName = "Test^Case"
    dataset.PatientID = "T1"
    dataset.Modality = "MR"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.InstanceNumber = number
    dataset.Rows = dataset.Columns = rows
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    pixels = np.random.default_rng(number).integers(0, 4096, (rows, rows), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    return dataset


def make_series(count: int, *, study: str | None = None, rows: int = 32) -> list[Dataset]:
    """Instances of one new series."""
    study = study or generate_uid()
    series = generate_uid()
    return [make_instance(study, series, number, rows=rows) for number in range(1, count + 1)]


def encode(dataset: Dataset) -> bytes:
    """The data set without file meta, explicit VR little endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def save(dataset: Dataset, path: Path) -> Path:
    """Write it as a DICOM file."""
    dataset.save_as(path, enforce_file_format=True)
    return path


def data_set_bytes(path: Path) -> bytes:
    """The encoded data set of a DICOM file, behind its file meta."""
    raw = path.read_bytes()
    meta = dcmread(BytesIO(raw), stop_before_pixels=True, specific_tags=[]).file_meta
    return raw[132 + 12 + meta.FileMetaInformationGroupLength :]


def meta_of(dataset: Dataset, *, association: str = "a1", received: float = 1000.0) -> InstanceMeta:
    """What a receiver would write beside it."""
    return InstanceMeta(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        association=association,
        calling_aet="SENDER",
        peer="127.0.0.1",
        received=received,
    )


def instances_in(spool: Path) -> list[tuple[Record, bytes]]:
    """Every sound instance of every segment, with its data set."""
    found = []
    for segment in sorted(spool.glob("*.seg")):
        for record in read_records(segment, final=True):
            if isinstance(record, Record) and record.kind is RecordKind.INSTANCE:
                found.append((record, read_data(segment, record.data_offset, record.data_length)))
    return found


class Bench:
    """One data folder with a spool, a database and an assembler, driven by the test's own clock."""

    def __init__(self, folder: Path, **assembly: float) -> None:
        self.folder = folder
        self.settings = Settings(
            assembly=Assembly(**{"quiet_seconds": 10, **assembly}), storage=Storage(folder=folder, min_free_gb=0)
        )
        self.engine = make_engine(f"sqlite:///{folder / 'test.sqlite'}")
        create_tables(self.engine)
        self.arrivals: list[Arrival] = []
        self.writer = SpoolWriter(folder / "spool")
        self.new_assembler()

    def new_assembler(self, *, at: float = 0.0, clock: Callable[[], float] = time.time) -> Assembler:
        """As after a restart of the daemon."""
        self.assembler = Assembler(self.settings, self.engine, self.arrivals.append, clock=clock)
        self.assembler.recover(at)
        return self.assembler

    def receive(
        self,
        datasets: Sequence[Dataset],
        *,
        at: float = 1000.0,
        association: str = "a1",
        end: bool = True,
        look: bool = True,
    ) -> None:
        """As the listener does; `look`: the assembler looks at the spool at that time."""
        for dataset in datasets:
            self.writer.append(meta_of(dataset, association=association, received=at), [encode(dataset)])
        if end:
            self.writer.end_association(association)
        if look:
            self.assembler.look(at)

    def rows(self, table: sa.Table) -> list[sa.Row[tuple[object, ...]]]:
        """All rows of a table."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(table)).all())

    def close(self) -> None:
        """End the writer and the database."""
        self.writer.close()
        self.engine.dispose()


class InProcess:
    """A receiver in a thread of the test's process."""

    def __init__(
        self,
        folder: Path,
        *,
        min_free_bytes: int = 0,
        **listener: object,
    ) -> None:
        self.spool = folder / "spool"
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = self._listening.getsockname()
        self._writer = SpoolWriter(self.spool, min_free_bytes=min_free_bytes)
        settings = listener_settings(folder, **listener).listener
        self.receiver = BlockingReceiver(settings, self._listening.dup(), self._writer)
        self._thread = threading.Thread(target=self.receiver.serve, daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """As at SIGTERM."""
        self.receiver.stop_accepting()
        self.receiver.finish(seconds)
        self._thread.join(5)
        self._listening.close()
        self._writer.close()


def listener_settings(folder: Path, **listener: object) -> Settings:
    """A listener on a free port of the loopback address."""
    return Settings(
        listener=Listener(**{"host": "127.0.0.1", "port": 0, "reserve_mb": 0, **listener}),  # type: ignore[arg-type]
        storage=Storage(folder=folder, min_free_gb=0),
    )


@contextlib.contextmanager
def associate(
    address: tuple[str, int], *contexts: str, calling: str = "SENDER", called: str = "BRAINGEMMA"
) -> Iterator:
    """An established association of pynetdicom as the sender."""
    entity = AE(ae_title=calling)
    for context in contexts or (MRImageStorage, Verification):
        entity.add_requested_context(context, [ExplicitVRLittleEndian])
    entity.dimse_timeout = 5
    association = entity.associate(*address, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def storescu(address: tuple[str, int], files: Sequence[Path], *options: str) -> subprocess.CompletedProcess[str]:
    """Send by dcmtk; skips where Debian's dcmtk is not installed."""
    if shutil.which("storescu") is None:
        pytest.skip("needs dcmtk's storescu")
    command = ["storescu", "-v", "-aet", "SENDER", "-aec", "BRAINGEMMA", *options, address[0], str(address[1])]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=120, check=False)


def wait_until(condition, *, seconds: float = 60.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.02)
