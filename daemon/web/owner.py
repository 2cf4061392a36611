"""Which local account a TCP connection belongs to, as the kernel knows it (proc(5), /proc/net/tcp)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def owner_of(end: tuple[str, int], other: tuple[Any, ...]) -> int | None:
    """User id of the program at one end of a connection on this machine; None where the kernel knows none.

    Args:
        end: Address and port of that end.
        other: Those of the other end.
    """
    wanted = _plain(end), _plain((str(other[0]), int(other[1])))
    for table in TABLES:
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if (_read(fields[1]), _read(fields[2])) == wanted:
                return int(fields[7])
    return None


def _plain(end: tuple[str, int]) -> tuple[str, int]:
    address = ipaddress.ip_address(end[0].partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address), end[1]


def _read(field: str) -> tuple[str, int]:
    """`0100007F:1F90` as address and port: words of four bytes in the order of the machine, here little endian."""
    words, _, port = field.partition(":")
    raw = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
    return _plain((str(ipaddress.ip_address(raw)), int(port, 16)))
