"""Where a destination is when a connection is made: names are resolved here, and compared as addresses."""

from __future__ import annotations

import ipaddress
import socket

from daemon.errors import Permanent, Retryable


def addresses_of(host: str, port: int, *, loopback_only: bool = False) -> list[str]:
    """The addresses of a host in the order in which they are to be tried.

    Args:
        host: A name or an address.
        port: TCP.
        loopback_only: What is to be sent must not leave this machine.

    Raises:
        Retryable: the name cannot be resolved just now, or is none.
        Permanent: `loopback_only`, and one of them is not a loopback address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: an empty label, or one that is too long
        raise Retryable(f"{host}: the name cannot be resolved: {error}: check the name and the network") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    away = [address for address in addresses if not is_loopback_address(address)]
    if loopback_only and away:
        raise Permanent(
            "results of weights that were trained on synthetic images only stay on this machine: expected a loopback "
            f"address, {host} is at {', '.join(away)} (for tests: [model] allow_demo = true)"
        )
    return addresses


def is_loopback_address(address: str) -> bool:
    """Whether an address is this machine's own, also where IPv4 is mapped into IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)
