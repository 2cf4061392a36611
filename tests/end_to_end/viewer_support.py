"""OHIF in front of Orthanc's DICOMweb on one origin, and the browser that looks at it."""

from __future__ import annotations

import base64
import http.client
import mimetypes
import os
import shutil
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from daemon.jobs.shared_files import unpack
from daemon.trial.pacs import LOOPBACK, Orthanc

OHIF = "@ohif/app@3.13.2"
"""The release that the test is written for: npm serves the built viewer."""

CACHE = Path(os.environ.get("BRAINGEMMA_TEST_CACHE", "~/.cache/braingemma-tests")).expanduser()

CONFIGURATION = """window.config = {
  routerBasename: null, extensions: [], modes: [], showStudyList: true, maxNumberOfWebWorkers: 1,
  showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false, strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'never' }, defaultDataSourceName: 'orthanc',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
    configuration: {
      friendlyName: 'Orthanc', name: 'orthanc', wadoUriRoot: '/wado', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web',
      qidoSupportsIncludeField: false, imageRendering: 'wadors', thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      omitQuotationForMultipartRequest: true, bulkDataURI: { enabled: true },
    },
  }],
};"""
"""As OHIF's own documentation configures it for an Orthanc behind the same origin."""


def ohif() -> Path:
    """The folder of the built viewer, fetched by npm once.

    Raises:
        FileNotFoundError: there is no npm, and no copy from before.
        subprocess.CalledProcessError: the registry does not give it.
    """
    folder = CACHE / OHIF.replace("/", "_")
    if not (folder / "package" / "dist" / "index.html").exists():
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError("npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", OHIF, "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        archive = folder / done.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as packed:
            unpack(packed, folder)
        archive.unlink()
    return folder / "package" / "dist"


class OneOrigin:
    """OHIF's files, and `/dicom-web` handed on to Orthanc with its password, on one port of loopback."""

    def __init__(self, files: Path, orthanc: Orthanc) -> None:
        self.refused: list[str] = []
        """Requests that Orthanc answered with 400 or more."""
        outer, login = self, base64.b64encode(f"test:{Orthanc.PASSWORD}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith(("/dicom-web/", "/wado")):
                    self._hand_on()
                elif path == "/app-config.js":
                    self._answer(200, "text/javascript", CONFIGURATION.encode())
                else:
                    file = files / path.lstrip("/")
                    file = file if file.is_file() else files / "index.html"  # the viewer's own routes
                    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                    self._answer(200, kind, file.read_bytes())

            def _hand_on(self) -> None:
                connection = http.client.HTTPConnection(LOOPBACK, orthanc.http_port, timeout=60)
                headers = {"Authorization": f"Basic {login}", "Host": self.headers["Host"]}
                if "Accept" in self.headers:
                    headers["Accept"] = self.headers["Accept"]
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                if answer.status >= 400:
                    outer.refused.append(f"{answer.status} {self.path} {headers.get('Accept')}")
                self._answer(answer.status, answer.headers.get("Content-Type", ""), body)

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
