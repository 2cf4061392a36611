"""Studies of several series in an Orthanc, and a daemon with quick steps that pulls them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import sqlalchemy as sa
from e2e_support import sections
from pydicom.uid import generate_uid

from daemon.database.engine import database_url, make_engine
from daemon.database.tables import INSTANCES
from daemon.pull.store import PullStore
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import LOOPBACK, Orthanc
from dicom_io.series_writer import write_series

SLICES = 4
T1: dict[str, Any] = {
    "SeriesDescription": "t1_mprage_sag", "ProtocolName": "t1_mprage_sag", "SequenceName": "*tfl3d1",
    "RepetitionTime": "2300", "EchoTime": "3", "InversionTime": "900", "SeriesNumber": "3",
}  # fmt: skip
LOGIN = {"username": "test", "password": Orthanc.PASSWORD}


@dataclass(frozen=True)
class StudyInPacs:
    """One study as it was made."""

    uid: str
    accession: str
    flair: str
    files: tuple[Path, ...]


def make_phantom_study(folder: Path, number: int, volume: nibabel.Nifti1Image) -> StudyInPacs:
    """A FLAIR series of a head that the model can report."""
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    whose = {"StudyDate": "20260115", "PatientID": f"P{number:05d}", "AccessionNumber": f"A{number:05d}"}
    files = write_series(volume, folder / "flair", overrides={**whose, **uids})
    return StudyInPacs(str(uids["StudyInstanceUID"]), whose["AccessionNumber"], str(uids["SeriesInstanceUID"]),
                       tuple(files))  # fmt: skip


def make_study(folder: Path, number: int, *, others: Sequence[dict[str, Any]] = (T1,), **changes: Any) -> StudyInPacs:
    """A small FLAIR series, and others beside it, in one study of one patient."""
    generator = np.random.default_rng(number)
    image = nibabel.Nifti1Image(generator.integers(0, 900, (8, 8, SLICES)).astype(np.int16), np.diag([20, 20, 30, 1]))
    study_uid, flair = generate_uid(), generate_uid()
    whose = {
        "StudyInstanceUID": study_uid, "StudyDate": "20260115", "PatientID": f"P{number:05d}",
        "AccessionNumber": f"A{number:05d}", **changes,
    }  # fmt: skip
    files = write_series(image, folder / "flair", overrides={**whose, "SeriesInstanceUID": flair})
    for place, other in enumerate(others):
        own = {**whose, **other, "SeriesInstanceUID": generate_uid()}
        files += write_series(image, folder / f"other{place}", overrides=own)
    return StudyInPacs(str(study_uid), str(whose["AccessionNumber"]), str(flair), tuple(files))


class PullSite:
    """An Orthanc and a daemon that know each other; the daemon is not started yet."""

    def __init__(self, folder: Path, *, by: str = "move", **source: Any) -> None:
        self.configuration = sections(0)
        port = self.configuration["listener"]["port"]
        self.orthanc = Orthanc(
            folder / "orthanc", modalities={"us": ("BRAINGEMMA", LOOPBACK, port)}, dicom_web=by == "web",
            extra={"SyncStorageArea": False},
        )  # fmt: skip
        address: dict[str, Any] = {"ae_title": "ORTHANC", "host": LOOPBACK, "port": self.orthanc.port, "retrieve": by}
        if by == "web":
            address = {"url": self.orthanc.web_url, **LOGIN}
        self.configuration["destinations"] = []
        self.configuration["sources"] = [{"name": "archive", **address, **source}]
        self.configuration["assembly"] = {"quiet_seconds": 0.5}
        self.configuration["explain"] = {"enabled": False}
        self.service = TrialService(folder / "daemon", self.configuration)

    def keep(self, studies: Sequence[StudyInPacs]) -> None:
        """Put studies into the Orthanc."""
        for study in studies:
            for file in study.files:
                self.orthanc.post("/instances", file.read_bytes())

    def command(self, *arguments: str) -> list[str]:
        """A `braingemma pull` on the daemon's configuration."""
        options = ["--config", str(self.service.configuration)]
        if not arguments or arguments[0].startswith("-"):
            return [sys.executable, "-m", "daemon.cli", "pull", *options, *arguments]
        return [sys.executable, "-m", "daemon.cli", "pull", *arguments, *options]

    def pull(self, *arguments: str) -> tuple[int, Any, str]:
        """(exit code, JSON, messages) of a pull that is waited for."""
        done = subprocess.run(
            self.command("--from", "archive", "--json", *arguments), capture_output=True, text=True, check=False,
            timeout=280,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    @property
    def engine(self) -> sa.Engine:
        """The daemon's database, read from outside."""
        return make_engine(database_url("", self.service.settings.data))

    @property
    def pulls(self) -> PullStore:
        """Its pulls."""
        return PullStore(self.engine)

    def received(self) -> dict[str, int]:
        """Distinct instances that the daemon got, by series."""
        query = sa.select(INSTANCES.c.series_uid, sa.func.count()).group_by(INSTANCES.c.series_uid)
        with self.engine.connect() as connection:
            return {str(uid): int(number) for uid, number in connection.execute(query)}

    def stop(self) -> None:
        """End both."""
        self.service.stop()
        self.orthanc.stop()


def series_of(study: StudyInPacs) -> set[str]:
    """Every series of a study."""
    return {str(pydicom.dcmread(file, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID) for file in study.files}
