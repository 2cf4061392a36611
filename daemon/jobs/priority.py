"""How soon a job is worked on: its class by `[[rules]]`, and its turn, which no class can put off for ever.

A turn is a time: when the job was made, and what its class allows it to wait for the classes before. The queue takes
the earliest turn first, so an urgent study goes before every routine one that does not wait for two hours longer, and
before every off-peak one that does not wait for a day longer. Once a job's allowance is over nothing that comes later
goes before it: it waits for its allowance and for what had an earlier turn, whatever else arrives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from pydicom import Dataset

from daemon.config.sections import PriorityClass, Rule
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival
from daemon.jobs.study import UNREADABLE
from dicom_io import header
from dicom_io.reading import read_elements

ALLOWANCE: dict[PriorityClass, int] = {"urgent": 0, "routine": 2 * 3600, "off-peak": 24 * 3600}
"""Seconds for which a job of each class lets those before it go first."""
SENT: PriorityClass = "routine"
"""Class of what came by C-STORE, where no rule says otherwise."""
PULLED: PriorityClass = "off-peak"
"""Class of what a pull fetched, likewise."""
_EPOCH = 1_577_836_800
"""2020-01-01 UTC: counted from then, turns fit the engine's numbers (31 bits) until 2088."""


def turn(created: float, priority: str) -> int:
    """The engine's number for a job: the smallest goes first.

    Args:
        created: When the job was made, POSIX time, s.
        priority: Its class.
    """
    return max(1, int(created) - _EPOCH + ALLOWANCE.get(_known(priority), ALLOWANCE[SENT]))


def _known(priority: str) -> PriorityClass:
    return next((name for name in ALLOWANCE if name == priority), SENT)


def priority_of(rules: Sequence[Rule], arrival: Arrival, folder: JobFolder, *, pulled: bool) -> PriorityClass:
    """The class of a study that arrived: of the first rule that matches.

    Args:
        rules: `[[rules]]`.
        arrival: Who sent it; that counts where it was not fetched by us.
        folder: The job's, with its instances.
        pulled: Whether a pull fetched it.
    """
    senders = () if pulled else arrival.calling_aets
    heads = list(_one_of_each_series(arrival, folder, {k for rule in rules for k in rule.match}))
    for rule in rules:
        by_sender = not rule.calling_aet or any(fnmatchcase(aet.strip(), rule.calling_aet) for aet in senders)
        if by_sender and (not rule.match or any(_matches(rule, head) for head in heads)):
            return rule.priority
    return PULLED if pulled else SENT


def _matches(rule: Rule, head: Dataset) -> bool:
    return all(re.search(pattern, header.text(head, key), re.IGNORECASE) for key, pattern in rule.match.items())


def _one_of_each_series(arrival: Arrival, folder: JobFolder, keywords: Iterable[str]) -> Iterator[Dataset]:
    """Headers that rules look at; what cannot be read matches none."""
    tags = ["SpecificCharacterSet", *keywords]
    firsts = {instance.series_uid: instance.file for instance in reversed(arrival.instances)} if len(tags) > 1 else {}
    for file in firsts.values():
        try:
            with header.quiet("pydicom"):
                yield read_elements(folder.input / file, tags)
        except UNREADABLE:
            continue
