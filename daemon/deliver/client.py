"""What a delivery may ask of a destination, and which way each entry of the configuration is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from daemon.config.sections import Destination
from daemon.deliver.dicomweb import DicomwebClient
from daemon.deliver.dimse import DimseClient, Peer
from daemon.deliver.outgoing import OnOutcome, OnReport, Outgoing, StoreOutcome


class DestinationClient(Protocol):
    """A destination as deliveries see it; every method may raise Retryable where it cannot be reached."""

    @property
    def query(self) -> str:
        """How `held` asks, in the standard's words."""

    @property
    def sign_of_life(self) -> str:
        """How `echo` asks, in the standard's words."""

    def echo(self) -> None:
        """Ask for a sign of life."""

    def refuses(self, sop_class_uids: Sequence[str]) -> list[str]:
        """Which of these storage SOP classes it would not take; nothing where that cannot be asked beforehand."""

    def store(self, files: Sequence[Outgoing], *, on_outcome: OnOutcome) -> list[StoreOutcome]:
        """Send all files; each has an outcome of its own.

        Raises:
            Permanent: a file cannot be read, or the configuration of the destination cannot be used.
        """

    def held(self, study_uid: str, series_uid: str) -> set[str]:
        """SOP Instance UIDs of a series that the destination knows.

        Raises:
            NotOffered: it cannot be asked.
        """

    def request_commitment(self, transaction_uid: str, files: Sequence[Outgoing], on_report: OnReport) -> None:
        """Ask it to take responsibility for what it accepted (PS3.4 Annex J).

        Raises:
            NotOffered: it has no storage commitment, or refuses it for these.
        """


def client_for(destination: Destination, calling_aet: str, *, loopback_only: bool = False) -> DestinationClient:
    """The client of a destination: by DICOMweb where it has a URL, else by DIMSE under our AE title.

    Args:
        destination: Its entry in the configuration.
        calling_aet: Our AE title.
        loopback_only: What it is sent must not leave this machine: every connection looks at the address.
    """
    if destination.stow_url is not None:
        return DicomwebClient(destination, loopback_only=loopback_only)
    address = str(destination.ae_title), str(destination.host), int(destination.port or 0)
    peer = Peer(*address, destination.tls, loopback_only)
    return DimseClient(peer, calling_aet, associations=destination.associations)
