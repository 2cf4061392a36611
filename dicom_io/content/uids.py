"""UIDs that follow from the content: the same content always gets the same UIDs, other content never does.

A UID is derived as PS3.5 B.2 allows: root `2.25.` and a 128-bit integer, here the first bits of a SHA-256 digest
with the version and variant bits of a name-based UUID (RFC 9562, version 8: vendor-specific name hash).
"""

from __future__ import annotations

import hashlib
import uuid

_SEPARATOR = "\x1f"


def digest_uid(*parts: str | int) -> str:
    """Derive a UID from everything that tells two objects apart.

    Args:
        parts: Identity of the content, kind of object, index, ...; their order matters.

    Returns:
        A UID of at most 44 characters below `2.25.` (PS3.5 B.2).

    Raises:
        ValueError: no part was given, or a part holds the unit separator that keeps parts apart.
    """
    if not parts:
        raise ValueError("digest_uid: expected at least one part, got none")
    texts = [str(part) for part in parts]
    for text in texts:
        if _SEPARATOR in text:
            raise ValueError(f"digest_uid: a part must not hold the unit separator U+001F, got {text!r}")
    digest = hashlib.sha256(_SEPARATOR.join(texts).encode("utf-8")).digest()
    value = bytearray(digest[:16])
    value[6] = (value[6] & 0x0F) | 0x80
    value[8] = (value[8] & 0x3F) | 0x80
    return f"2.25.{uuid.UUID(bytes=bytes(value)).int}"


def device_uid(weights_sha256: str) -> str:
    """UID of the device observer: the same weights are the same device, other weights another (IHE AIR)."""
    return digest_uid("device", weights_sha256)
