"""What every kind of result is made from, and what the module of a kind offers."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, cast

from pydicom import Dataset

from dicom_io.content.context import ResultContext
from dicom_io.content.kind import ResultKind
from dicom_io.content.regions import SourceVolumes, key_slices
from dicom_io.content.sources import InstanceReference, Sources
from dicom_io.volume.geometry import SeriesGeometry


@dataclass(frozen=True, eq=False)
class Case:
    """One series with all that its results say.

    Attributes:
        context: What to say, and of which study.
        volumes: Volumes on the source grid.
        predecessors: Report documents that the new one replaces.
        made: Objects of this case that were made before, by the name of their kind; of a kind with an instance for
            each slice nothing is kept.
    """

    context: ResultContext
    volumes: SourceVolumes
    predecessors: Sequence[InstanceReference] = ()
    made: dict[str, Dataset] = field(default_factory=dict)

    @cached_property
    def key_slices(self) -> tuple[int, ...]:
        """The slices that illustrate the findings best, see `dicom_io.content.regions.key_slices`."""
        return key_slices(self.volumes)

    @property
    def in_space(self) -> bool:
        """Whether the source has a Frame of Reference, which objects on its grid need."""
        return self.context.geometry.frame_of_reference_uid is not None


class Maker(Protocol):
    """What the module of a kind offers."""

    def make(self, case: Case) -> Iterable[Dataset]:
        """The instances in the order of their numbers; none where the case has not what they need."""

    def faults(self, dataset: Dataset, sources: Sources, geometry: SeriesGeometry) -> Iterator[str]:
        """What is wrong with one instance, without its pixels; what holds for all kinds is looked at elsewhere."""


def maker_of(kind: ResultKind) -> Maker:
    """The module of a kind."""
    return cast(Maker, pkgutil.resolve_name(kind.made_by))
