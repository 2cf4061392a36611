"""Tells systemd how the service is: ready, alive, stopping (sd_notify(3)); says nothing where systemd did not ask."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Send a state such as `READY=1`, `WATCHDOG=1` or `STOPPING=1`.

    Returns:
        Whether somebody was told; False where `NOTIFY_SOCKET` is not set, or nobody listens there.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError as error:  # what is alive must not end because it could not say so
        log.warning("systemd is not told %s: %s", state, error)
        return False
    return True
