"""The web server of the page, in a thread of its own; its connections are bounded.

Every connection costs a file handle. The oldest that asks for nothing makes room for the next; one that has
not asked within `ASK_SECONDS`, or takes nothing of its answer for `STALL_SECONDS`, is closed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from daemon.config.sections import Web
from daemon.errors import ConfigurationError, Permanent

START_SECONDS = 15.0
MOST_CONNECTIONS = 256
ASK_SECONDS = 10.0
STALL_SECONDS = 60.0
TICK_SECONDS = 10.0
"""A loop that did not go round for so long answers nobody."""


class BoundedConnection(H11Protocol):
    """One connection of many."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, and give it time to ask."""
        super().connection_made(transport)
        others = [c for c in self.connections if c is not self]
        if len(others) >= MOST_CONNECTIONS:
            idle = [c for c in others if isinstance(c, BoundedConnection) and c.is_idle()]
            (min(idle, key=lambda c: c.since) if idle else self).transport.abort()
        self.since = self.loop.time()
        self._give(ASK_SECONDS)

    def is_idle(self) -> bool:
        """Whether nothing is asked, or what was asked is answered."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def handle_events(self) -> None:
        """Something came: the time to ask is over once a request is there, whole or not."""
        super().handle_events()
        if self.cycle is not None:
            self._give(None)

    def pause_writing(self) -> None:
        """The other side takes no more for now."""
        super().pause_writing()
        self._give(STALL_SECONDS)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._give(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._give(None)
        super().connection_lost(exc)

    def _give(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def bind(web: Web) -> socket.socket:
    """The socket of the page.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    try:
        family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
        return socket.create_server((web.host, web.port), family=family, reuse_port=False)
    except OSError as error:
        raise ConfigurationError(f"web: cannot listen on {web.host}:{web.port}: {error}") from error


class _Server(uvicorn.Server):
    """Notes when its loop went round."""

    ticked = 0.0

    async def on_tick(self, counter: int) -> bool:
        """About ten times a second."""
        self.ticked = time.monotonic()
        return await super().on_tick(counter)


class WebServer:
    """Serves an application until it is stopped."""

    def __init__(self, app: Starlette, web: Web, listening: socket.socket | None = None) -> None:
        """Start.

        Args:
            app: What it serves.
            web: Where.
            listening: The socket that is bound there; None: it is bound now.

        Raises:
            ConfigurationError: the address cannot be bound.
            Permanent: the server does not start.
        """
        self._socket = listening or bind(web)
        self.port = int(self._socket.getsockname()[1])
        # The reverse proxy's headers are read by `web.access` alone, which knows whom to trust.
        config = uvicorn.Config(
            app, http=BoundedConnection, log_config=None, access_log=False, server_header=False, proxy_headers=False,
            lifespan="off", timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise Permanent("the web server did not start; its reason is in the log")
            time.sleep(0.01)

    @property
    def connections(self) -> set[Any]:
        """Those that are open."""
        return self._server.server_state.connections

    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def answers(self) -> bool:
        """Whether its loop went round within the last seconds."""
        return time.monotonic() - self._server.ticked < TICK_SECONDS

    def stop(self) -> None:
        """Take no more requests; returns within two seconds."""
        self._server.should_exit = True
        self._thread.join(2)
        self._socket.close()
