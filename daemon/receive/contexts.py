"""Presentation contexts and TLS that the listener offers."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from pynetdicom import ALL_TRANSFER_SYNTAXES
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import Verification, register_uid, uid_to_service_class

from daemon.config.sections import Listener
from daemon.config.storage_classes import resolve_storage_classes
from daemon.spool.commitment_reports import STORAGE_COMMITMENT

_UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
TRANSFER_SYNTAXES = (*_UNCOMPRESSED, *(uid for uid in ALL_TRANSFER_SYNTAXES if uid not in _UNCOMPRESSED))
"""In the order in which one is picked from a context that offers several; explicit VR keeps private VRs."""


def supported_contexts(listener: Listener) -> list[PresentationContext]:
    """Verification, reports of storage commitment, and the storage classes that are taken, in every transfer syntax.

    By default these are all of the standard, as a PACS forwards whole studies. Another one is refused in the
    negotiation as an abstract syntax that is not supported (PS3.8 Table 9-18, 3).
    """
    refused = set(resolve_storage_classes(listener.refused_storage_classes))
    taken = [uid for uid in resolve_storage_classes(listener.storage_classes) if uid not in refused]
    syntaxes = list(TRANSFER_SYNTAXES)
    commitment = build_context(STORAGE_COMMITMENT, list(_UNCOMPRESSED[:2]))
    commitment.scu_role, commitment.scp_role = False, True  # whoever reports to us is the SCP
    storage = [build_context(uid, syntaxes) for uid in taken]
    return [build_context(Verification, list(_UNCOMPRESSED)), commitment, *storage]


def _register_storage_classes(contexts: Sequence[PresentationContext]) -> None:
    """Private and retired classes are stored as the others are; pynetdicom must be told."""
    for context in contexts:
        uid = str(context.abstract_syntax)
        if uid != STORAGE_COMMITMENT and uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, f"Storage_{uid.replace('.', '_')}", StorageServiceClass)


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
