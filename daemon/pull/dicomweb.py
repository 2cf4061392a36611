"""A source by DICOMweb: QIDO-RS and WADO-RS (PS3.18 10.6 and 10.4)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from daemon.config.sections import Destination, Source
from daemon.deliver.dicomweb import UNREADABLE, DicomwebClient, first_line
from daemon.errors import DaemonError, Retryable
from daemon.pull.source import SERIES_FIELDS, STUDY_FIELDS, TELLING_FIELDS, Fetched, Inbox, SourceAway, SourceBusy
from daemon.receive.store import Sender

SECONDS = 300.0
"""How long the server may be silent: some retrieve from tapes."""
AWAY = frozenset({401, 403, 407, 429, 502, 503, 504})
"""HTTP statuses that speak of the server, or of who we are, and not of a study."""
SERVER_ERROR = 500
"""HTTP statuses from here on: the server failed (RFC 9110 15.6)."""
NOT_ACCEPTABLE = 406
DICOM = "application/dicom"
COMPRESSED = tuple(
    (DICOM, syntax)
    for syntax in (
        "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
        "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.5",
    )
)  # fmt: skip
"""Asked for where the server cannot give Explicit VR Little Endian."""


@dataclass(frozen=True)
class WebSource:
    """One DICOMweb server.

    Attributes:
        source: Its entry in the configuration, with `url`.
        inbox: Takes what comes.
        seconds: How long the server may be silent.
    """

    source: Source
    inbox: Inbox | None = None
    seconds: float = SECONDS
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def _client(self) -> DicomwebClient:
        source = self.source
        there = Destination(
            name=source.name, stow_url=source.url, username=source.username, password=source.password,
            token=source.token, tls=source.tls,
        )  # fmt: skip
        return DicomwebClient(there, timeout=self.seconds)

    def echo(self) -> None:
        """QIDO-RS for one study.

        Raises:
            SourceAway: no answer, or an error.
        """
        try:
            self._client.echo()
        except Retryable as error:
            raise SourceAway(str(error)) from error

    def studies(self, keys: Mapping[str, str]) -> list[Dataset]:
        """By QIDO-RS.

        Raises:
            Retryable: the server refuses the query.
        """
        fields = list(dict.fromkeys((*STUDY_FIELDS, *keys)))
        with self._asking("QIDO-RS"):
            answer = self._client.client(self.seconds).search_for_studies(
                search_filters=dict(keys), fields=fields, get_remaining=True
            )
            return [Dataset.from_json(item) for item in answer]

    def series(self, study_uid: str) -> list[Dataset]:
        """By QIDO-RS.

        Raises:
            Retryable: the server refuses the query.
        """
        with self._asking("QIDO-RS"):
            answer = self._client.client(self.seconds).search_for_series(
                study_uid, fields=[*SERIES_FIELDS, *TELLING_FIELDS], get_remaining=True
            )
            return [Dataset.from_json(item) for item in answer]

    def fetch(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:
        """By WADO-RS, one instance in memory at a time.

        Raises:
            Retryable: not all of it came.
        """
        if self.inbox is None:
            raise RuntimeError("a client without an inbox can fetch nothing")
        sender = self.inbox.association(self.source, next(self._numbers))
        try:
            return Fetched(sum(self._fetch_series(study_uid, uid, sender) for uid in series_uids), "WADO-RS")
        finally:
            self.inbox.end(sender)

    def documents(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """By WADO-RS.

        Raises:
            Retryable: not all of them came.
        """
        with self._asking("WADO-RS"):
            return list(self._client.client(self.seconds).iter_series(study_uid, series_uid))

    def _fetch_series(self, study_uid: str, series_uid: str, sender: Sender) -> int:
        assert self.inbox is not None
        number = 0
        with self._asking("WADO-RS"):
            for dataset in self._instances(study_uid, series_uid):
                syntax = UID(dataset.file_meta.TransferSyntaxUID)
                syntax = ExplicitVRLittleEndian if syntax.is_deflated else syntax  # it was inflated when it was read
                data = encoded(dataset, syntax)
                uids = str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)
                status, why = self.inbox.put(*uids, str(syntax), data, sender)
                if status:
                    raise Retryable(f"an instance could not be kept: 0x{status:04X} {why}")
                number += 1
        return number

    def _instances(self, study_uid: str, series_uid: str) -> Iterator[Dataset]:
        client = self._client.client(self.seconds)
        try:
            yield from client.iter_series(study_uid, series_uid)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != NOT_ACCEPTABLE:
                raise
            yield from client.iter_series(study_uid, series_uid, media_types=COMPRESSED)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """What goes wrong on the way, as the pull's errors."""
        where = f"{self.source.url}: {what}"
        try:
            yield
        except DaemonError:
            raise
        except requests.HTTPError as error:
            status = None if error.response is None else error.response.status_code
            busy = SourceBusy if status is not None and status >= SERVER_ERROR else Retryable
            kind = SourceAway if status is None or status in AWAY else busy
            raise kind(f"{where}: HTTP {status}: {first_line(error)}") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise SourceAway(f"{where}: {first_line(error)}") from error
        except requests.RequestException as error:  # such as a body that ends too early
            raise SourceBusy(f"{where}: {first_line(error)}") from error
        except (*UNREADABLE, OSError, EOFError) as error:
            raise Retryable(f"{where}: an answer that cannot be read (PS3.18 F, PS3.10): {error!r:.200}") from error


def encoded(dataset: Dataset, syntax: UID) -> bytes:
    """A data set in its transfer syntax, as C-STORE carries it."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())
