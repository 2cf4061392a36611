"""A page over a data folder with jobs that were written by hand, served for real on loopback."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import nibabel
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from record_support import a_report, a_selection

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.database.tables import JobState
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.worklist import note_study
from daemon.jobs.report import write_report
from daemon.jobs.store import JobStore, SeriesVerdict
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.web.access import Access
from daemon.web.app import create_app
from daemon.web.context import Page
from daemon.web.server import WebServer
from daemon.web.slices import StackCache

BANNER = "Demo weights, trained on synthetic images only: not a statement about any patient."
NAME = "Doe^Jane"
SHOWN_NAME = "Doe, Jane"
"""As pages show it."""
LEFT_MM = -40.0
"""RAS x of the bright mark and of its saliency: the patient's left."""


@dataclass
class Site:
    """The page, its data, and a way to ask it."""

    settings: Settings
    store: JobStore
    audit: AuditLog
    server: WebServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def jobs(self) -> Path:
        return self.settings.storage.folder / "jobs"

    def ask(
        self, path: str, *, method: str = "GET", form: Mapping[str, str] | None = None, **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; nothing is followed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = None
        if form is not None:
            body, named["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        result = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return result

    def form_token(self, path: str, **headers: str) -> str:
        """The token in a page's forms."""
        text = self.ask(path, **headers)[2].decode()
        return text.split('name="form_token" value="')[1].split('"')[0]


def start_site(folder: Path, web: Mapping[str, Any] | None = None, **sections: Any) -> Site:
    """Serve a data folder."""
    settings = Settings.model_validate(
        {
            "storage": {"folder": folder, "min_free_gb": 0},
            "web": {"port": 0, **(web or {})},
            "destinations": [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}],
            **sections,
        }
    )
    engine = open_database(settings)
    store = JobStore(engine)
    audit = AuditLog(folder / "audit")
    page = Page(
        settings, engine, store, audit, Health(settings, engine), Access(settings.web), StackCache(),
        LocalFiles(folder / "jobs"), BANNER,
    )  # fmt: skip
    return Site(settings, store, audit, WebServer(create_app(page), settings.web))


def add_job(site: Site, job_id: str, state: JobState = JobState.DONE, *, reported: bool = True) -> JobFolder:
    """A job with its folder; `reported`: with report, volume, saliency and an input instance."""
    folder = JobFolder(site.jobs / job_id)
    folder.input.mkdir(parents=True)
    site.store.add(job_id, study_uid=f"1.2.{len(job_id)}", supersedes=None)
    site.store.update(job_id, state=state, step="deliver" if state is JobState.DONE else "report")
    if reported:
        _write_instance(folder.input / "000001.dcm")
        _write_volume(folder)
        _write_report(folder)
    note_study(site.store, job_id, folder)
    return folder


def a_verdict(series_uid: str, verdict: str, *reasons: str, **more: Any) -> SeriesVerdict:
    return SeriesVerdict("", series_uid, verdict, reasons, **more)


def _write_instance(path: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.StudyDescription = NAME, "P001", "Brain MRI"
    dataset.AccessionNumber, dataset.StudyDate = "ACC-77/3", "20260102"
    dataset.save_as(path, enforce_file_format=True)


def _write_volume(folder: JobFolder) -> None:
    """A head of 4 mm voxels whose bright ball lies in the patient's left half; so does its saliency."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-90, -108, -84)
    points = np.moveaxis(np.indices((46, 55, 43)), 0, -1) * 4.0 + affine[:3, 3]
    inside = ((points / [68.0, 86.0, 64.0]) ** 2).sum(-1) < 1
    ball = ((points - [LEFT_MM, 10, 10]) ** 2).sum(-1) < 16**2
    volume = np.where(ball, 2000, np.where(inside, 600, 0)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder.volume)
    folder.explain.mkdir()
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), affine), folder.explain / "saliency.nii.gz")


def _write_report(folder: JobFolder) -> None:
    write_report(folder, a_report(warnings=["Slices are 4 mm thick."], banner=BANNER))
    a_selection("1.2.3").write(folder.selection)


def audit_lines(site: Site) -> list[dict[str, Any]]:
    """What the audit log holds."""
    return [json.loads(line) for path in site.audit.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
