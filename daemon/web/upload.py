"""Upload of a study in the browser, where `[web] upload` allows it: DICOM files, or ZIP archives of them.

What comes goes where the listener puts what it receives: each instance is checked by the same rules and acknowledged
once it is durable in the spool. A body is read in pieces and never held as a whole: each file lies in an unnamed file
of the data folder until it was taken. Names in archives are used for nothing but messages, and nothing is unpacked to
a name; an archive whose names leave its folder, or that inflates beyond `[web] upload_mb`, is refused all the same.
"""

from __future__ import annotations

import asyncio
import io
import stat
import tempfile
import threading
import uuid
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO

import multipart
from pydicom.filereader import read_dataset
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from daemon.assemble.receivers import replicas_of
from daemon.config.sections import Settings
from daemon.errors import DaemonError
from daemon.receive.contexts import supported_contexts
from daemon.receive.store import Sender, Status, StoreRequest, store
from daemon.spool.backpressure import is_behind
from daemon.spool.writer import SpoolWriter
from daemon.web import access
from daemon.web.context import identity_of, page_of, render
from dicom_io import header

CALLING_AET = "WEB-UPLOAD"
"""What stands in place of a sender's AE title, for `destinations.from_aets` and the job's page."""
MOST_FILES = 20_000
MOST_INSTANCE_MB = 512
PIECE_SECONDS = 60.0
"""A body of which nothing comes for so long is given up."""
SHOWN_REASONS = 20
DIRECTORY = "1.2.840.10008.1.3.10"
"""Media Storage Directory: a DICOMDIR is no image, and no fault either."""
_ONE_AT_A_TIME = threading.BoundedSemaphore(1)


class NotSwitchedOn(DaemonError):
    """There is no upload here."""

    http_status = 404


class NotTaken(DaemonError):
    """The upload as a whole is refused; what was taken before stays."""


class TooLarge(NotTaken):
    """More than is taken at once."""

    http_status = 413


class Busy(NotTaken):
    """Not now."""

    http_status = 503


@dataclass
class Intake:
    """Takes the files of one upload.

    Attributes:
        settings: The whole configuration.
        sender: What stands as their sender.
        taken: Instances that are in the spool.
        refused: Name and reason of each file that was not taken, the first `SHOWN_REASONS` of them.
    """

    settings: Settings
    sender: Sender
    taken: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    refusals: int = 0
    _files: int = 0
    _inflated: int = 0

    def __post_init__(self) -> None:
        least = int(self.settings.storage.min_free_gb * (1 << 30))
        self._writer = SpoolWriter(self.settings.data.spool, least, replica=replicas_of(self.settings))
        self._classes = supported_contexts(self.settings.listener)

    def close(self) -> None:
        """Nothing more comes: its studies wait for quiet only."""
        self._writer.end_association(self.sender.association)
        self._writer.close()

    def take(self, name: str, file: IO[bytes]) -> None:
        """One uploaded file, from its beginning: an archive or an instance.

        Raises:
            NotTaken: the upload as a whole is refused.
        """
        head = file.read(132)
        file.seek(0)
        if head[128:132] != b"DICM" and zipfile.is_zipfile(file):
            self._take_archive(name, file)
            return
        self._take_instance(name, file.read(MOST_INSTANCE_MB * 1_000_000 + 1))

    def _take_archive(self, name: str, file: IO[bytes]) -> None:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                self._check_archive(name, members)
                for member in members:
                    with archive.open(member) as content:
                        self._take_instance(f"{name}: {member.filename}", self._bounded(content))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise NotTaken(f"{name}: the archive cannot be read: {error}") from error

    def _check_archive(self, name: str, members: list[zipfile.ZipInfo]) -> None:
        """Refuse what no archive of images is, before anything of it is taken."""
        for member in members:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise NotTaken(f"{name}: expected names within the archive, got {member.filename!r}")
            if member.flag_bits & 1:
                raise NotTaken(f"{name}: the archive is encrypted")
        if self._files + len(members) > MOST_FILES:
            raise TooLarge(f"{name}: expected at most {MOST_FILES} files")
        if self._inflated + sum(member.file_size for member in members) > self._most_bytes:
            raise TooLarge(self._too_large(name))

    def _bounded(self, content: IO[bytes]) -> bytes:
        """A member's bytes; what an archive says of its size is not believed."""
        data = content.read(MOST_INSTANCE_MB * 1_000_000 + 1)
        self._inflated += len(data)
        if self._inflated > self._most_bytes:
            raise TooLarge(self._too_large("the archive"))
        return data

    @property
    def _most_bytes(self) -> int:
        return self.settings.web.upload_mb * 1_000_000

    def _too_large(self, name: str) -> str:
        return f"{name}: it comes to more than {self.settings.web.upload_mb} MB ([web] upload_mb)"

    def _take_instance(self, name: str, data: bytes) -> None:
        self._files += 1
        if self._files > MOST_FILES:
            raise TooLarge(f"expected at most {MOST_FILES} files")
        if len(data) > MOST_INSTANCE_MB * 1_000_000:
            self._refuse(name, f"expected at most {MOST_INSTANCE_MB} MB")
            return
        try:
            meta, start = _file_meta(data)
        except ValueError as error:
            self._refuse(name, str(error))
            return
        sop_class, syntax = meta["MediaStorageSOPClassUID"], meta["TransferSyntaxUID"]
        if sop_class == DIRECTORY:
            return
        if sop_class not in self._classes or syntax not in self._classes[sop_class]:
            self._refuse(name, f"SOP class {sop_class} in transfer syntax {syntax} is not taken")
            return
        request = StoreRequest(sop_class, meta["MediaStorageSOPInstanceUID"], sop_class, syntax)
        outcome = store(self._writer, request, [memoryview(data)[start:]], self.sender)
        if outcome.status is Status.OUT_OF_RESOURCES:
            raise Busy("out of storage space: what was taken so far is kept")
        if outcome.status is not Status.SUCCESS:
            self._refuse(name, outcome.comment)
            return
        self.taken += 1

    def _refuse(self, name: str, reason: str) -> None:
        self.refusals += 1
        if len(self.refused) < SHOWN_REASONS:
            self.refused.append((name, reason))


def _file_meta(data: bytes) -> tuple[dict[str, str], int]:
    """UIDs of the File Meta Information (PS3.10 7.1), and where the data set begins.

    Raises:
        ValueError: it is no DICOM file.
    """
    if data[128:132] != b"DICM":
        raise ValueError("expected a DICOM file (PS3.10), this is none")
    stream = io.BytesIO(data)
    stream.seek(132)
    try:
        with header.quiet("pydicom"):
            meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
        uids = {
            keyword: header.uid(meta, keyword)
            for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        }
    except (EOFError, OSError, *header.MALFORMED) as error:
        raise ValueError(f"its File Meta Information cannot be read: {type(error).__name__}") from error
    missing = [keyword for keyword, uid in uids.items() if not uid]
    if missing:
        raise ValueError(f"its File Meta Information lacks {', '.join(missing)}")
    return uids, stream.tell()


@dataclass
class Body:
    """Reads a multipart body piece by piece and gives each file to the intake.

    Attributes:
        check: Called with the form's token before the first file; raises where the form is not ours.
    """

    request: Request
    intake: Intake
    _name: str = ""
    _field: str = ""
    _file: IO[bytes] | None = None
    _token: bytes = b""
    _meant: bool = False

    def feed(self, parser: multipart.PushMultipartParser, piece: bytes) -> None:
        """One piece.

        Raises:
            NotTaken: the upload as a whole is refused.
            Refused: the form is not ours.
        """
        for event in parser.parse(piece):
            if isinstance(event, multipart.MultipartSegment):
                self._begin(event)
            elif event:
                self._add(event)
            else:
                self._end()

    def _begin(self, segment: multipart.MultipartSegment) -> None:
        self._field, self._name = segment.name or "", segment.filename or ""
        if self._name:
            self.check()
            self._file = tempfile.TemporaryFile(dir=self.intake.settings.data.root)  # noqa: SIM115 - closed by _end or close

    def _add(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
        elif self._field == "form_token" and len(self._token) < 200:
            self._token += data

    def _end(self) -> None:
        if self._file is not None:
            with self._file as file:
                file.seek(0)
                self._file = None
                self.intake.take(self._name, file)

    def check(self) -> None:
        """The form must be ours.

        Raises:
            Refused: it is not.
        """
        if not self._meant:
            token = self._token.decode("utf-8", "replace")
            page_of(self.request).access.check_meant(self.request, identity_of(self.request), token)
            self._meant = True

    def close(self) -> None:
        """Let go of a file that did not come whole."""
        if self._file is not None:
            self._file.close()


async def upload_form(request: Request) -> Response:
    """Asks for files."""
    _switched_on(request)
    return render(request, "upload.html", intake=None, most_mb=page_of(request).settings.web.upload_mb)


async def upload(request: Request) -> Response:
    """Take the files of a form."""
    _switched_on(request)
    access.check_same_site(request)
    page = page_of(request)
    parser = _parser(request)
    if is_behind(page.settings.data.spool):
        raise Busy("the pipeline is behind ([assembly] max_waiting_jobs): try again later")
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        raise Busy("another upload is under way: try again when it has ended")
    try:
        peer = request.client.host if request.client is not None else ""
        sender = Sender(f"upload-{uuid.uuid4().hex}", CALLING_AET, peer)
        intake = await run_in_threadpool(Intake, page.settings, sender)
        body = Body(request, intake)
        try:
            await _read(request, parser, body)
        finally:
            body.close()
            await run_in_threadpool(intake.close)
            page.audit.note("uploaded", by=identity_of(request).named, instances=intake.taken, refused=intake.refusals)
    finally:
        _ONE_AT_A_TIME.release()
    return render(request, "upload.html", intake=intake, most_mb=page.settings.web.upload_mb)


def _switched_on(request: Request) -> None:
    if not page_of(request).settings.web.upload:
        raise NotSwitchedOn("uploads are switched off here ([web] upload)")


def _parser(request: Request) -> multipart.PushMultipartParser:
    kind, options = multipart.parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise NotTaken("expected a form with files (multipart/form-data)")
    most = page_of(request).settings.web.upload_mb
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most * 1_000_000:
        raise TooLarge(f"expected at most {most} MB ([web] upload_mb), got {int(length) / 1e6:.0f} MB")
    return multipart.PushMultipartParser(options["boundary"], max_segment_count=MOST_FILES + 10)


async def _read(request: Request, parser: multipart.PushMultipartParser, body: Body) -> None:
    """The whole body, in pieces.

    Raises:
        NotTaken: it is refused, does not come, or is no such form.
    """
    most, read = page_of(request).settings.web.upload_mb, 0
    stream = aiter(request.stream())
    try:
        while True:
            try:
                async with asyncio.timeout(PIECE_SECONDS):
                    piece = await anext(stream)
            except StopAsyncIteration:
                break
            read += len(piece)
            if read > most * 1_000_000:
                raise TooLarge(f"expected at most {most} MB ([web] upload_mb)")
            if piece:
                await run_in_threadpool(body.feed, parser, piece)
        parser.close()
        body.check()
    except TimeoutError as error:
        raise NotTaken(f"nothing came for {PIECE_SECONDS:g} s: what was taken so far is kept") from error
    except multipart.MultipartError as error:
        raise NotTaken(f"the form cannot be read: {error}") from error
