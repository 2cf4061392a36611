"""`braingemma bench page`: how long the page takes with a database as it is after months.

The real page over HTTP on loopback, over a data folder that is filled for the purpose: jobs in all states, each with
its patient, its words and two judged series, ten objects for each in the delivery table, and one job with a volume of
the BraTS grid. Whoever asks may see names. The search is asked as one types.
"""

from __future__ import annotations

import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import nibabel
import numpy as np
import sqlalchemy as sa

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.database.tables import (
    DELIVERIES,
    JOB_STUDIES,
    JOB_WORDS,
    JOBS,
    VERDICTS,
    DeliveryState,
    JobState,
)
from daemon.errors import DaemonError
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.worklist import words_of
from daemon.jobs.records import Report, ReportFinding, ReportInput, ReportModel
from daemon.jobs.report import INTENDED_USE, write_report
from daemon.jobs.store import JobStore, now
from daemon.observe.audit import AuditLog
from daemon.observe.health import Health
from daemon.web.access import Access, Identity
from daemon.web.app import create_app
from daemon.web.context import Page
from daemon.web.server import WebServer
from daemon.web.slices import StackCache
from dicom_io.objects.kinds import SC
from training.progress import Say

OBJECTS_PER_JOB = 10
SHOWN = "shown"
"""The job that has files."""
SHAPE = (240, 240, 155)
"""Voxels of its volume."""
PATHS = {
    "jobs": "/",
    "jobs, failed": "/?state=failed",
    "jobs, last page": "/?page={last}",
    "refused series": "/refused",
    "a job": f"/jobs/{SHOWN}",
    "a slice": f"/jobs/{SHOWN}/slices/axial/80.png",
    "a slice of the map": f"/jobs/{SHOWN}/saliency/axial/80.png",
    "metrics": "/metrics",
}
SOUGHT = {
    "search, a letter": "d",
    "search, a name": "doe^ja",
    "search, a number": "P0000",
    "search, a UID": "1.3.77",
    "search, nothing found": "nobody",
}
"""What is typed: most of the jobs, many, one, none."""
FAMILY = ("Doe", "Roe", "Müller", "Rossi", "Garcia", "Nguyen", "Yamada", "Smith", "Dubois", "Kowalski")
GIVEN = ("Jane", "John", "Anna", "Marco", "Linh")
TOKEN = "a token for the benchmark"


def bench_page(*, jobs: int = 10_000, rounds: int = 25, database_url: str = "", say: Say) -> dict[str, Any]:
    """Measure it.

    Args:
        database_url: An empty PostgreSQL database; empty: SQLite.
        jobs: In the database.
        rounds: Requests of each page.
        say: Told in one line what is being done.

    Returns:
        `median_ms`, `p95_ms` and `first_ms` by page, `worst_median_ms`, `jobs`, `cores`.

    Raises:
        DaemonError: a page was not answered.
    """
    with tempfile.TemporaryDirectory(prefix="braingemma-bench-") as folder:
        settings = Settings.model_validate(
            {
                "storage": {"folder": folder, "min_free_gb": 0},
                "web": {"port": 0, "token": TOKEN},
                "engine": {"database_url": database_url},
            }
        )
        engine = open_database(settings)
        say(f"filling the database with {jobs} jobs")
        fill(engine, jobs)
        files = LocalFiles(settings.data.jobs)
        _write_job(files.fetch(SHOWN))
        page = Page(
            settings, engine, JobStore(engine), AuditLog(settings.data.audit), Health(settings, engine),
            Access(settings.web), StackCache(), files, None,
        )  # fmt: skip
        server = WebServer(create_app(page), settings.web)
        try:
            say("asking for the pages")
            paths = {name: path.format(last=max(1, jobs // 50)) for name, path in PATHS.items()}
            spent = {name: [_ask(server.port, path) for _ in range(rounds)] for name, path in paths.items()}
            form_token = page.access.form_token(Identity("token"))
            for name, sought in SOUGHT.items():
                form = {"form_token": form_token, "q": sought}
                spent[name] = [_ask(server.port, "/search", form) for _ in range(rounds)]
        finally:
            server.stop()
            engine.dispose()
    medians = {name: round(statistics.median(times), 1) for name, times in spent.items()}
    return {
        "median_ms": medians,
        "p95_ms": {name: round(float(np.percentile(times, 95)), 1) for name, times in spent.items()},
        "first_ms": {name: round(times[0], 1) for name, times in spent.items()},
        "worst_median_ms": max(medians.values()),
        "jobs": jobs,
        "database": engine.dialect.name,
        "rounds": rounds,
        "cores": os.cpu_count(),
    }


def fill(engine: sa.Engine, jobs: int) -> None:
    """Write what months of work leave: jobs, one in ten not done; deliveries, one in 500 waiting; verdicts."""
    states, began = list(JobState), now() - 60.0 * jobs
    with engine.begin() as connection:
        connection.execute(
            JOBS.insert(),
            [
                {"job_id": _name(n), "study_uid": f"1.2.{n}", "supersedes": None,
                 "state": str(states[n % len(states)] if n % 10 == 9 else JobState.DONE), "step": "deliver",
                 "reason": "", "created": began + 60.0 * n, "updated": began + 60.0 * n, "runs": 1, "progress": "",
                 "timings": "{}", "result": "lesion left frontal, temporal"}
                for n in range(jobs)
            ],
        )  # fmt: skip
        connection.execute(
            DELIVERIES.insert(),
            [
                {"job_id": f"n{n // OBJECTS_PER_JOB:06d}", "destination": "pacs", "sop_instance_uid": f"2.25.{n}",
                 "kind": SC.name, "file": "x", "attempts": 1, "reason": "", "updated": began, "status": "0000",
                 "state": str(DeliveryState.WAITING if n % 500 == 0 else DeliveryState.SENT)}
                for n in range(jobs * OBJECTS_PER_JOB)
            ],
        )  # fmt: skip
        connection.execute(
            VERDICTS.insert(),
            [
                {"job_id": f"n{n // 2:06d}", "series_uid": f"1.3.{n}", "verdict": ("accepted", "refused")[n % 2],
                 "reasons": '["ok: is MR", "REFUSED: name: T1"]'}
                for n in range(2 * jobs)
            ],
        )  # fmt: skip
        connection.execute(
            JOB_STUDIES.insert(),
            [
                {"job_id": _name(n), "patient_name": _patient(n), "patient_id": f"P{n:07d}",
                 "accession_number": f"A{n:08d}", "study_date": "20260102", "study_description": "MR brain",
                 "series_description": "t2 flair ax"}
                for n in range(jobs)
            ],
        )  # fmt: skip
        words = [
            {"word": word, "job_id": _name(n), "identity": identity}
            for n in range(jobs)
            for word, identity in words_of(
                (_patient(n), f"P{n:07d}", f"A{n:08d}"), (_name(n), f"1.2.{n}", f"1.3.{2 * n}", f"1.3.{2 * n + 1}")
            ).items()
        ]
        connection.execute(JOB_WORDS.insert(), words)


def _name(number: int) -> str:
    return f"n{number:06d}" if number else SHOWN


def _patient(number: int) -> str:
    return f"{FAMILY[number % len(FAMILY)]}{number // 100}^{GIVEN[number // 7 % len(GIVEN)]}"


def _write_job(folder: JobFolder) -> None:
    """A job with a report, a volume and a map of noise; what is in them does not change how long they take."""
    folder.explain.mkdir(parents=True)
    rng, affine = np.random.default_rng(0), np.diag([1.0, 1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(rng.integers(0, 2000, SHAPE, dtype=np.int16), affine), folder.volume)
    weights = np.repeat(rng.normal(size=(SHAPE[0], SHAPE[1], 1)), SHAPE[2], axis=2).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(weights, affine), folder.explain / "saliency.nii.gz")
    lesion = ReportFinding(finding="lesion", presence="present", laterality="left", sites=("frontal",), confidence=0.9)
    report = Report(
        report="The lesion area is in the left frontal lobe.",
        findings=(lesion,),
        input=ReportInput(series_uid="1.2.3", shape=SHAPE, spacing_mm=(1, 1, 1), orientation="RAS", sha256=""),
        model=ReportModel(
            name="bench", version="", weights_sha256="", format="", prompt="", generation={}, device="", quantization=""
        ),
        intended_use=INTENDED_USE,
    )
    write_report(folder, report)


def _ask(port: int, path: str, form: Mapping[str, str] | None = None) -> float:
    """Milliseconds until a page is here as a whole, with a connection of its own; `form`: by POST."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        body = None if form is None else urlencode(form)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("GET" if form is None else "POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise DaemonError(f"expected the page {path}, got HTTP {answer.status}")
    return (time.perf_counter() - started) * 1000
