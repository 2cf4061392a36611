"""What a pull may ask of a PACS, and which way each entry of `[[sources]]` is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pydicom import Dataset

from daemon.config.sections import Settings, Source
from daemon.pull.dicomweb import WebSource
from daemon.pull.dimse import DimseSource
from daemon.pull.source import Fetched, Inbox


class SourceClient(Protocol):
    """A source as a pull sees it; every method may raise SourceAway."""

    def echo(self) -> None:
        """Ask for a sign of life, and whether it can be asked for studies."""

    def studies(self, keys: Mapping[str, str]) -> list[Dataset]:
        """Studies that match keywords with values, as far as the source knows the keywords.

        Raises:
            Retryable: it refuses the query.
        """

    def series(self, study_uid: str) -> list[Dataset]:
        """The series of a study.

        Raises:
            Retryable: it refuses the query.
        """

    def fetch(self, study_uid: str, series_uids: Sequence[str]) -> Fetched:
        """Bring series of a study into the spool; the same ones may come again.

        Raises:
            Retryable: not all of them came.
        """

    def documents(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """The documents of a series, in memory.

        Raises:
            Retryable: not all of them came.
        """


def client_of(
    settings: Settings, source: Source, inbox: Inbox | None = None, *, seconds: float | None = None
) -> SourceClient:
    """The client of a source: by DICOMweb where it has a URL, else by DIMSE under our AE title.

    Args:
        settings: The whole configuration.
        source: Its entry.
        inbox: Takes what does not come by C-STORE to the listener; None: nothing is going to be fetched.
        seconds: How long it may be silent where it is only asked; None: as long as each way takes at most.
    """
    if source.url is not None:
        web = WebSource(source, inbox)
        return web if seconds is None else replace(web, seconds=seconds)
    dimse = DimseSource(source, settings.listener.ae_title, inbox)
    return dimse if seconds is None else replace(dimse, find_seconds=seconds)
