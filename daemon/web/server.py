"""The page as a part of the service: a web server in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette

from daemon.config.sections import Web
from daemon.errors import ConfigurationError, Permanent

START_SECONDS = 15.0


class WebServer:
    """Serves an application until it is stopped."""

    def __init__(self, app: Starlette, web: Web) -> None:
        """Bind and start.

        Raises:
            ConfigurationError: the address cannot be bound.
            Permanent: the server does not start.
        """
        try:
            family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
            self._socket = socket.create_server((web.host, web.port), family=family, reuse_port=False)
        except OSError as error:
            raise ConfigurationError(f"web: cannot listen on {web.host}:{web.port}: {error}") from error
        self.port = int(self._socket.getsockname()[1])
        # The reverse proxy's headers are read by `web.access` alone, which knows whom to trust.
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="off",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise Permanent("the web server did not start; its reason is in the log")
            time.sleep(0.01)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more requests; returns within two seconds."""
        self._server.should_exit = True
        self._thread.join(2)
        self._socket.close()
