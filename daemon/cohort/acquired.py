"""When images of a BIDS data set were acquired, by its tables (BIDS 1.10, "Scans file" and "Sessions file")."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from daemon.errors import Rejected
from dicom_io.files import files_below

Table = list[dict[str, str]]


class SubjectTimes:
    """Times of one subject's images; its tables are read once.

    Attributes:
        folder: The subject's.
        problems: (table, why it was not read), once it was looked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[tuple[Path, str]] = []

    def of(self, image: Path, session: str) -> str:
        """`acq_time` of an image, else of its session; in a form of which the order is that of time, empty if unknown.

        Args:
            image: Below the folder.
            session: Such as `ses-02`; empty where there are none.
        """
        scan = self._scans.get(image)
        return scan or self._sessions.get(session, "")

    @cached_property
    def _scans(self) -> dict[Path, str]:
        return {file.parent / name: time for file, name, time in self._times("scans", "filename")}

    @cached_property
    def _sessions(self) -> dict[str, str]:
        return {name: time for _, name, time in self._times("sessions", "session_id")}

    @cached_property
    def _files(self) -> list[Path]:
        return files_below(self.folder)[0]

    def _times(self, kind: str, key: str) -> Iterator[tuple[Path, str, str]]:
        """(table, value of its key, time) of each row that has both."""
        for file in (file for file in self._files if file.name.endswith(f"_{kind}.tsv")):
            try:
                for number, row in enumerate(_rows(file), start=2):
                    if (name := row.get(key)) and (time := row.get("acq_time")):
                        yield file, name, _in_order(time, number)
            except (OSError, UnicodeDecodeError, csv.Error, Rejected) as error:
                self.problems.append((file, str(error)))


def _rows(file: Path) -> Table:
    with file.open(newline="", encoding="utf-8-sig") as table:
        return list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))


def _in_order(time: str, line: int) -> str:
    """ISO 8601; one with a time zone in UTC, with its offset at the end."""
    if time == "n/a":
        return ""
    try:
        moment = datetime.datetime.fromisoformat(time)
        return (moment if moment.tzinfo is None else moment.astimezone(datetime.UTC)).isoformat()
    except (ValueError, OverflowError):
        raise Rejected(f"line {line}: expected acq_time as YYYY-MM-DDThh:mm:ss, got {time!r}") from None
