"""A DICOMweb server on loopback that answers what a test says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from daemon.trial.pacs import LOOPBACK

JSON = "application/dicom+json"


class Server:
    """Answers what the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.stow: tuple[int, str, bytes] = (200, JSON, b"")
        self.qido: tuple[int, str, bytes] = (200, JSON, b"[]")
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.location = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, body: bytes) -> None:
                headers = {k.lower(): v for k, v in self.headers.items()}
                outer.requests.append((self.command, self.path, headers, body))
                paged = "offset=" in self.path and "offset=0" not in self.path
                status, kind, content = outer.stow if self.command == "POST" else outer.qido
                content = b"[]" if paged else content
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.port = int(self._http.server_address[1])
        self.url = f"http://{LOOPBACK}:{self.port}/dicom-web"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def says(self, status: int, *, stored: dict[str, int] | None = None, failed: dict[str, int] | None = None) -> None:
        """Answer a STOW-RS by naming instances, each with its warning (0: none) or failure reason."""
        body: dict[str, Any] = {}
        if stored is not None:
            body["00081199"] = {"vr": "SQ", "Value": [item(u, "00081196", w) for u, w in stored.items()]}
        if failed is not None:
            body["00081198"] = {"vr": "SQ", "Value": [item(u, "00081197", r) for u, r in failed.items()]}
        self.stow = (status, JSON, json.dumps(body).encode())

    def holds(self, *uids: str) -> None:
        found = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids]
        self.qido = (200, JSON, json.dumps(found).encode())

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def item(uid: str, tag: str, reason: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason:
        fields[tag] = {"vr": "US", "Value": [reason]}
    return fields
