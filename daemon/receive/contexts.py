"""Presentation contexts and TLS that the listener offers."""

from __future__ import annotations

import ssl

from pynetdicom import ALL_TRANSFER_SYNTAXES
from pynetdicom.sop_class import Verification

from daemon.config.sections import Listener
from daemon.config.storage_classes import resolve_storage_classes
from daemon.spool.commitment_reports import STORAGE_COMMITMENT

_UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
TRANSFER_SYNTAXES = (*_UNCOMPRESSED, *(uid for uid in ALL_TRANSFER_SYNTAXES if uid not in _UNCOMPRESSED))
"""In the order in which one is picked from a context that offers several; explicit VR keeps private VRs."""


def supported_contexts(listener: Listener) -> dict[str, tuple[str, ...]]:
    """Transfer syntaxes by abstract syntax: Verification, reports of storage commitment, and what is stored.

    By default the storage classes are all of the standard, as a PACS forwards whole studies. Another one is refused in
    the negotiation as an abstract syntax that is not supported (PS3.8 Table 9-18, 3).
    """
    refused = set(resolve_storage_classes(listener.refused_storage_classes))
    taken = [uid for uid in resolve_storage_classes(listener.storage_classes) if uid not in refused]
    others = {str(Verification): _UNCOMPRESSED, STORAGE_COMMITMENT: _UNCOMPRESSED[:2]}
    return {str(uid): TRANSFER_SYNTAXES for uid in taken} | others


def server_tls_context(listener: Listener) -> ssl.SSLContext | None:
    """The TLS end of the listener; with `ca` clients must show a certificate (PS3.15 B.12, mutual authentication).

    Raises:
        OSError: a certificate file cannot be read, or key and certificate do not belong together.
    """
    if listener.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(listener.tls.cert, listener.tls.key)
    if listener.tls.ca is not None:
        context.load_verify_locations(listener.tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
