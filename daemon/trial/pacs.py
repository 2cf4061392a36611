"""A PACS to try the daemon against: an embedded one of our own, or Debian's Orthanc, both on loopback.

Neither is made for patients' data: they exist for `braingemma demo` and for the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import pydicom
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification

from daemon.errors import DaemonError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A TCP port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class TrialPacs(Protocol):
    """What `braingemma demo` needs of a PACS."""

    ae_title: str
    port: int

    def stop(self) -> None:
        """End it."""

    def instances(self) -> list[pydicom.Dataset]:
        """Headers of everything that it holds."""


class EmbeddedPacs:
    """A Storage SCP that keeps what it gets as Part 10 files, one folder for each series."""

    def __init__(self, folder: Path, *, ae_title: str = "TESTPACS", port: int = 0) -> None:
        self.folder = folder
        self.ae_title = ae_title
        folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=ae_title)
        ae.require_called_aet = True
        ae.maximum_pdu_size = 0
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, self._keep)]
        self._server = ae.start_server((LOOPBACK, port), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])

    def _keep(self, event: Event) -> int:
        file = event.encoded_dataset()  # with its meta information, as it came
        found = pydicom.dcmread(BytesIO(file), stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        series = self.folder / str(found.get("SeriesInstanceUID", "no-series"))
        series.mkdir(exist_ok=True)
        part = series / f"{event.request.AffectedSOPInstanceUID}.part"
        part.write_bytes(file)
        part.rename(part.with_suffix(".dcm"))
        return 0x0000

    def stop(self) -> None:
        """Close the port; the files stay."""
        self._server.shutdown()

    def instances(self) -> list[pydicom.Dataset]:
        """Headers of everything received."""
        return [pydicom.dcmread(f, stop_before_pixels=True) for f in sorted(self.folder.glob("*/*.dcm"))]


DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
"""Debian's orthanc-dicomweb."""


class Orthanc:
    """Debian's Orthanc as a child process, with a database of its own and its checks of AE titles on.

    Orthanc 1.10 listens on all interfaces whatever RemoteAccessAllowed says, so it accepts only the AE titles and
    addresses named here (`DicomAlwaysAllowStore` false, `DicomCheckModalityHost` true) and REST only by password.
    """

    PASSWORD = "loopback-only"
    START_SECONDS = 30

    def __init__(
        self,
        folder: Path,
        *,
        modalities: Mapping[str, tuple[str, str, int]],
        ae_title: str = "ORTHANC",
        port: int = 0,
        extra: Mapping[str, Any] | None = None,
        dicom_web: bool = False,
    ) -> None:
        """Start it and wait until it answers.

        Args:
            folder: Where its storage, configuration and log go.
            modalities: Name to (AE title, host, port) of those who may send to it and whom it may send to.
            ae_title: Its own AE title.
            port: Its DICOM port; 0 chooses a free one.
            extra: More keys of Orthanc's configuration.
            dicom_web: Load Debian's DICOMweb plug-in; its root is `/dicom-web/` on `http_port`.

        Raises:
            DaemonError: Orthanc is not installed, or does not answer in time.
        """
        self.folder = folder
        self.ae_title = ae_title
        self.port = port or free_port()
        self.http_port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        plugins = (
            {"Plugins": [str(DICOM_WEB)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}} if dicom_web else {}
        )
        settings = self._configuration(modalities) | plugins | dict(extra or {})
        self._settings_file.write_text(json.dumps(settings, indent=1))
        self.log = folder / "orthanc.log"
        self.start()

    @property
    def _settings_file(self) -> Path:
        return self.folder / "orthanc.json"

    def start(self) -> None:
        """Start it, for the first time or again with what it holds, and wait until it answers.

        Raises:
            DaemonError: Orthanc is not installed, or does not answer in time.
        """
        binary = shutil.which("Orthanc")
        if binary is None:
            raise DaemonError("Orthanc is not installed: expected the command `Orthanc` (Debian package orthanc)")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, str(self._settings_file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TCP_NODELAY": "1"},
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def _configuration(self, modalities: Mapping[str, tuple[str, str, int]]) -> dict[str, Any]:
        return {
            "Name": "braingemma-test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomCheckModalityHost": True,
            "DicomModalities": {name: list(address) for name, address in modalities.items()},
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {"test": self.PASSWORD},
            "StableAge": 3,
            "SyncStorageArea": True,
            "Plugins": [],
        }

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self.get("/system")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return
        self.stop()
        tail = self.log.read_text(errors="replace")[-2000:]
        raise DaemonError(f"Orthanc did not answer within {self.START_SECONDS} s; its log ends:\n{tail}")

    @property
    def web_url(self) -> str:
        """Root of its DICOMweb."""
        return f"http://{LOOPBACK}:{self.http_port}/dicom-web"

    def get(self, path: str) -> Any:
        """JSON of a GET on its REST interface."""
        return self._request(path, None)

    def post(self, path: str, body: Any) -> Any:
        """JSON of a POST on its REST interface."""
        return self._request(path, json.dumps(body).encode() if not isinstance(body, bytes) else body)

    def get_bytes(self, path: str) -> bytes:
        """Raw body of a GET on its REST interface."""
        with self._open(path, None) as answer:
            return bytes(answer.read())

    def _request(self, path: str, body: bytes | None) -> Any:
        with self._open(path, body) as answer:
            return json.load(answer)

    def _open(self, path: str, body: bytes | None) -> Any:
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        url = f"http://{LOOPBACK}:{self.http_port}"
        passwords.add_password(None, url, "test", self.PASSWORD, is_authenticated=True)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(passwords)
        )
        return opener.open(urllib.request.Request(url + path, data=body), timeout=30)

    def instances(self) -> list[pydicom.Dataset]:
        """Headers of everything that it holds, by its REST interface."""
        headers = []
        for instance in self.get("/instances"):
            with self._open(f"/instances/{instance}/file", None) as answer:
                headers.append(pydicom.dcmread(pydicom.filebase.DicomBytesIO(answer.read()), stop_before_pixels=True))
        return headers

    def kill(self) -> None:
        """End it as a crash would; `start` lets it come back."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the process; what it stored stays in its folder."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
