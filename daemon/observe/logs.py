"""Log lines for people or as JSON, each with the id of the job that it speaks of, none with a person's identity."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Literal

LogFormat = Literal["text", "json"]

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


class Identities:
    """Values that name people, to be kept out of every line: whole, and each part of a person name (PS3.5 6.2.1)."""

    LEAST = 3
    """Characters; what is shorter would take ordinary words with it."""
    MOST = 64
    """Owners that are remembered: a process that runs for months works on the latest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hidden: dict[str, re.Pattern[str]] = {}

    def hide(self, owner: str, values: Iterable[str]) -> None:
        """From now on, for one owner such as a job's folder."""
        parts = {part for value in values for part in (value, *re.split(r"[\\^= ]", value))}
        kept = sorted({part.strip() for part in parts if len(part.strip()) >= self.LEAST}, key=len, reverse=True)
        if kept:
            # Neither letters nor digits beside it: "AB12" is not to be found within a digest.
            pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, kept)) + r")(?!\w)")
            with self._lock:
                self._hidden[owner] = pattern
                for oldest in list(self._hidden)[: -self.MOST]:
                    del self._hidden[oldest]

    def removed(self, text: str) -> str:
        """The text with every hidden value replaced."""
        with self._lock:
            patterns = tuple(self._hidden.values())
        for pattern in patterns:
            text = pattern.sub(REMOVED, text)
        return text


REMOVED = "[identity removed]"
IDENTITIES = Identities()
"""Of this process."""

_QUOTED = re.compile(r"(['\"]).*?\1", re.DOTALL)
_DICOM_LIBRARIES = ("pydicom", "highdicom", "pynetdicom", "dicom2nifti", "warnings")
"""Loggers whose lines quote values of data sets."""


class WithoutIdentities(logging.Filter):
    """Keeps identities out: what is known to be one, and whatever a DICOM library quotes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always keeps the record; its text may be shorter afterwards."""
        text = record.getMessage()
        if record.name.partition(".")[0] in _DICOM_LIBRARIES:
            text = _QUOTED.sub("'…'", text)
        record.msg, record.args = IDENTITIES.removed(text), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = IDENTITIES.removed(logging.Formatter().formatException(record.exc_info))
        return True


class NetworkFaultsInOneLine(logging.Filter):
    """Takes the traceback from what pynetdicom logs when a peer goes away: it names no fault of ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always keeps the record."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError) and record.name.startswith("pynetdicom"):
            text = record.getMessage()
            said = f"{type(error).__name__}: {error}"
            record.msg, record.args = (said if text == str(error) else f"{text} ({said})"), ()
            record.exc_info = record.exc_text = None
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
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Printed(io.TextIOBase):
    """What libraries print, as lines of the log."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        """Whole lines are logged, the rest waits for its end."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                logging.getLogger("printed").info("%s", line.rstrip())
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True


def set_up_logging(form: LogFormat = "text") -> None:
    """Log to standard error: every line of this process, those of libraries, warnings and prints, in one form.

    Libraries are heard only from warnings on; identities are kept out.
    """
    handler = logging.StreamHandler(sys.__stderr__)
    handler.addFilter(JobFilter())
    handler.addFilter(NetworkFaultsInOneLine())
    handler.addFilter(WithoutIdentities())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for library in NOISY:
        logging.getLogger(library).setLevel(logging.WARNING)
    # An association that does not come about is an error to this library; ours say which, and what follows from it.
    for module in ("acse", "transport"):
        logging.getLogger(f"pynetdicom.{module}").setLevel(logging.CRITICAL)
    # DBOS writes lines of its own form where its logger has no handler yet.
    logging.getLogger("dbos").handlers[:] = [logging.NullHandler()]
    logging.getLogger("dbos").propagate = True
    warnings.showwarning = _log_warning
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stdout, sys.stderr = Printed(), Printed()


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    where = f"{Path(filename).name}:{lineno}"
    logging.getLogger("warnings").warning("%s: %s (%s)", category.__name__, " ".join(str(message).split()), where)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, SystemExit):
        return
    logging.getLogger("uncaught").critical("%s", kind.__name__, exc_info=(kind, error, trace))
