"""Destinations by DICOMweb: STOW-RS to another server, and QIDO-RS to ask what it holds (PS3.18 10.5 and 10.6)."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from pydicom import Dataset
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from daemon.config.sections import Destination
from daemon.deliver.addresses import addresses_of
from daemon.deliver.outgoing import NotOffered, OnOutcome, OnReport, Outgoing, StoreOutcome, no_one
from daemon.errors import Permanent, Retryable
from dicom_io.reading import read_dataset

logging.getLogger("retrying").setLevel(logging.CRITICAL + 1)  # the client's retries log tracebacks of what it raises

BATCH_BYTES = 32_000_000
"""Files of about this size in all go out in one request; a larger file has one of its own."""

JSON = "application/dicom+json"
"""The form of answers that we ask for."""

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, RecursionError)
"""What pydicom and plain look-ups raise on JSON that has another form than PS3.18 F."""

ECHO_SECONDS = 10.0
"""How long a sign of life may take."""


@dataclass(frozen=True)
class DicomwebClient:
    """One DICOMweb server as we talk to it: STOW-RS and QIDO-RS.

    Attributes:
        destination: Its entry in the configuration, with `stow_url`.
        timeout: Seconds to wait for each answer.
        loopback_only: What it is sent must not leave this machine.
    """

    destination: Destination
    timeout: float = 60
    loopback_only: bool = False

    query: ClassVar[str] = "QIDO-RS"
    """How `held` asks."""
    sign_of_life: ClassVar[str] = "QIDO-RS"
    """How `echo` asks."""

    def echo(self) -> None:
        """Ask for one study, as a sign of life; must be answered within 10 s.

        Raises:
            Retryable: no answer, or an error.
        """
        try:
            self.client(min(self.timeout, ECHO_SECONDS)).search_for_studies(limit=1)
        except (requests.RequestException, *UNREADABLE) as error:
            raise self._no_answer(error) from error

    def refuses(self, sop_class_uids: Sequence[str]) -> list[str]:
        """Nothing: STOW-RS negotiates no SOP classes (PS3.18 10.5), the server says so of each instance."""
        del sop_class_uids
        return []

    def store(self, files: Sequence[Outgoing], *, on_outcome: OnOutcome = no_one) -> list[StoreOutcome]:
        """STOW-RS of all files; each has an outcome of its own, as `ReferencedSOPSequence` and `FailedSOPSequence` say.

        Raises:
            Retryable: the server cannot be reached, or answers a request as a whole with an error.
            Permanent: a file cannot be read.
        """
        answers: list[requests.Response] = []
        client = self.client(self.timeout, lambda response, *_args, **_options: answers.append(response))
        outcomes: list[StoreOutcome] = []

        def note(outcome: StoreOutcome) -> None:
            outcomes.append(outcome)
            on_outcome(outcome)

        for batch in _batches(files):
            changed = {outgoing: outgoing.changed() for outgoing in batch}
            for outgoing in (o for o in batch if changed[o]):
                note(StoreOutcome(outgoing, None, f"not sent: {changed[outgoing]}"))
            sound = [outgoing for outgoing in batch if not changed[outgoing]]
            if not sound:
                continue
            answers.clear()
            try:
                client.store_instances([_read(outgoing) for outgoing in sound])
            except (requests.RequestException, *UNREADABLE) as error:  # the latter: a body that the client cannot read
                if not answers:
                    raise Retryable(f"{self.destination.stow_url}: {first_line(error)}") from error
            for outcome in _outcomes(sound, answers[-1]):
                note(outcome)
        return outcomes

    def held(self, study_uid: str, series_uid: str) -> set[str]:
        """SOP Instance UIDs of a series that the server knows, by QIDO-RS.

        Raises:
            NotOffered: the server has no QIDO-RS.
            Retryable: it cannot be reached, or answers with an error.
        """
        try:
            found = self.client(self.timeout).search_for_instances(study_uid, series_uid, get_remaining=True)
            return {str(value) for item in found for value in item.get("00080018", {}).get("Value", ())}
        except requests.HTTPError as error:
            status = None if error.response is None else error.response.status_code
            if status == requests.codes.not_found:
                return set()  # how some servers say that they know no such series
            if status in (requests.codes.method_not_allowed, requests.codes.not_implemented):
                raise NotOffered(f"{self.destination.stow_url}: no QIDO-RS: HTTP {status}") from error
            raise self._no_answer(error) from error
        except requests.RequestException as error:
            raise self._no_answer(error) from error
        except UNREADABLE as error:
            raise Retryable(
                f"{self.destination.stow_url}: QIDO-RS: no DICOM JSON (PS3.18 F): {error!r:.200}"
            ) from error

    def request_commitment(self, transaction_uid: str, files: Sequence[Outgoing], on_report: OnReport) -> None:
        """DICOMweb has no storage commitment that servers offer.

        Raises:
            NotOffered: always.
        """
        del transaction_uid, files, on_report
        raise NotOffered(f"{self.destination.stow_url}: DICOMweb servers offer no storage commitment")

    def _no_answer(self, error: Exception) -> Retryable:
        return Retryable(f"{self.destination.stow_url}: QIDO-RS: {first_line(error)}")

    def client(self, timeout: float, on_answer: Callable[..., Any] | None = None) -> DICOMwebClient:
        """A client that tries each request once: who calls has a back-off of its own."""
        session = create_session()
        session.trust_env = False  # neither a proxy nor a .netrc of the machine may see results
        session.max_redirects = 0  # results, and who we are, go to the place in the configuration only
        adapter = _Adapter(self.loopback_only)
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter)
        session.headers["Accept"] = JSON
        token = self.destination.token.get_secret_value()
        if token:
            session.headers["Authorization"] = f"Bearer {token}"
        elif self.destination.username:
            session.auth = (self.destination.username, self.destination.password.get_secret_value())
        tls = self.destination.tls
        if tls is not None:
            session.verify = str(tls.ca) if tls.ca is not None else True
            if tls.cert is not None and tls.key is not None:
                session.cert = (str(tls.cert), str(tls.key))
        try:
            client = DICOMwebClient(
                str(self.destination.stow_url).rstrip("/"), session, callback=on_answer, timeout=timeout
            )
        except ValueError as error:
            raise Permanent(f"destination {self.destination.name!r}: stow_url: {error}") from error
        client.set_http_retry_params(retry=False)
        return client


class _Adapter(HTTPAdapter):
    """Connects where names lead at that moment, and nowhere else than allowed."""

    def __init__(self, loopback_only: bool) -> None:
        super().__init__()
        plain, tls = (HTTPConnectionPool, HTTPSConnectionPool)
        if loopback_only:
            plain, tls = _LoopbackPool, _LoopbackTlsPool
        self.poolmanager.pool_classes_by_scheme = {"http": plain, "https": tls}


class _Loopback(HTTPConnection):
    """Resolves the name itself, and connects to the very address that it has looked at."""

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        *others, last = addresses_of(name, self.port, loopback_only=True)
        try:
            for address in others:
                self._dns_host = address
                with contextlib.suppress(NewConnectionError):
                    return super()._new_conn()
            self._dns_host = last
            return super()._new_conn()
        finally:
            self._dns_host = name


class _LoopbackTls(_Loopback, HTTPSConnection):
    """The same under TLS; the certificate is that of the name."""


class _LoopbackPool(HTTPConnectionPool):
    ConnectionCls = _Loopback


class _LoopbackTlsPool(HTTPSConnectionPool):
    ConnectionCls = _LoopbackTls


def _read(outgoing: Outgoing) -> Dataset:
    try:
        return read_dataset(outgoing.path)
    except OSError as error:
        raise Permanent(f"{outgoing.path} cannot be read: {error}") from error


def _batches(files: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    size = 0
    for outgoing in files:
        more = outgoing.path.stat().st_size
        if batch and size + more > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(outgoing)
        size += more
    if batch:
        yield batch


def _outcomes(batch: Sequence[Outgoing], answer: requests.Response) -> Iterator[StoreOutcome]:
    """What the server says of each file.

    PS3.18 Table 10.5.3-1: 200, all stored; 202, some stored or with warnings; 409, none stored. The body names each.

    Raises:
        Retryable: another status, which speaks of the request and not of its files.
    """
    if answer.status_code not in (requests.codes.ok, requests.codes.accepted, requests.codes.conflict):
        raise Retryable(f"{answer.url}: STOW-RS: HTTP {answer.status_code} {answer.reason}")
    try:
        stored, failed = _reasons(_body(answer))
    except UNREADABLE as error:
        raise Retryable(
            f"{answer.url}: STOW-RS: HTTP {answer.status_code}, whose body is no DICOM JSON (PS3.18 F): {error!r:.200}"
        ) from error
    for outgoing in batch:
        uid = outgoing.sop_instance_uid
        if uid in failed:
            outcome = StoreOutcome(outgoing, failed[uid], f"STOW-RS failure reason 0x{failed[uid]:04X}")
            yield replace(outcome, status=None) if outcome.stored else outcome  # whatever its number, it says failed
        elif stored.get(uid):
            yield StoreOutcome(outgoing, stored[uid], f"STOW-RS warning reason 0x{stored[uid]:04X}")
        elif uid in stored or (answer.status_code == requests.codes.ok and not failed and not stored):
            yield StoreOutcome(outgoing, 0x0000)
        else:
            reason = f"STOW-RS: HTTP {answer.status_code}, whose body does not name the instance"
            yield StoreOutcome(outgoing, None, reason)


def _reasons(said: Dataset) -> tuple[dict[str, int], dict[str, int]]:
    """By SOP Instance UID: the warning reasons of what was stored (0: none), and the failure reasons."""
    stored = said.get("ReferencedSOPSequence") or ()
    failed = said.get("FailedSOPSequence") or ()
    return (
        {str(item.ReferencedSOPInstanceUID): int(item.get("WarningReason") or 0) for item in stored},
        {str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or 0x0110) for item in failed},
    )


def _body(answer: requests.Response) -> Dataset:
    """The response as a data set; empty where there is none, or in another form than was asked for."""
    try:
        body = answer.json() if answer.content and "json" in answer.headers.get("Content-Type", "") else {}
    except json.JSONDecodeError as error:
        raise Retryable(f"{answer.url}: STOW-RS: HTTP {answer.status_code}, whose body is not JSON") from error
    return Dataset.from_json(body[0] if isinstance(body, list) and body else body or {})


def first_line(error: Exception) -> str:
    """What an error says, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
