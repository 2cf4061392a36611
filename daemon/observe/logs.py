"""Log lines for people or as JSON, each with the id of the job that it speaks of."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

NOISY = (
    "pynetdicom", "pydicom", "dicom2nifti", "httpx", "urllib3", "highdicom", "matplotlib", "uvicorn", "dbos",
    "fsspec", "botocore",
)  # fmt: skip
"""Libraries that are heard only from warnings on; some of them name patients in lesser lines."""


def tag(uid: str) -> str:
    """A UID as a log may hold it: the same for the same UID, and nobody can tell the UID from it."""
    return "#" + hashlib.sha256(uid.encode()).hexdigest()[:12]


_job: ContextVar[str] = ContextVar("job", default="")


@contextmanager
def about_job(job_id: str) -> Iterator[None]:
    """Lines logged inside carry this job's id."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


class JobFilter(logging.Filter):
    """Puts the job's id on each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always keeps the record."""
        record.job = _job.get()
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, job (where there is one), message, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if getattr(record, "job", ""):
            line["job"] = record.job  # type: ignore[attr-defined]
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(form: Literal["text", "json"] = "text") -> None:
    """Log to standard error; libraries only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(JobFilter())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for library in NOISY:
        logging.getLogger(library).setLevel(logging.WARNING)
    # An association that does not come about is an error to this library; ours say which, and what follows from it.
    for module in ("acse", "transport"):
        logging.getLogger(f"pynetdicom.{module}").setLevel(logging.CRITICAL)
