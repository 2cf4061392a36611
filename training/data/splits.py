"""Who is trained on, who decides when to stop, who is judged: by patient, stratified, the same on every machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from braingemma.findings.text import findings_from_text
from training.data.records import SPLITS, Record, leaks, partly_split, raise_all
from training.errors import DataError

CARD_SHARES: Final = {"train": 0.7, "val": 0.1, "test": 0.2}
"""The card's shares of train, val and test."""


def stable_number(text: str) -> int:
    """A number that depends on the text alone: not on the process, as `hash` of a string does."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stratum(report: str) -> str:
    """What patients are stratified by: the side of the lesion, or that there is none."""
    lesion = findings_from_text(report)[0]
    return "healthy" if lesion.presence == "absent" else lesion.laterality or "no side"


def split_patients(strata: Mapping[str, str], shares: Mapping[str, float], seed: int = 0) -> dict[str, str]:
    """Patient to split, in each stratum by these shares.

    Patients of a stratum are ordered by a stable hash and laid on one line, stratum after stratum, that is cut in
    turn: rounding never adds up to more than one patient over all strata.
    """
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for patient, name in strata.items():
        by_stratum[name].append(patient)
    owed = dict.fromkeys(shares, 0.0)
    result: dict[str, str] = {}
    for name in sorted(by_stratum):
        for patient in sorted(by_stratum[name], key=lambda p: stable_number(f"{seed}:{p}")):
            for split, share in shares.items():
                owed[split] += share
            chosen = max(owed, key=lambda split: owed[split])
            owed[chosen] -= 1
            result[patient] = chosen
    return result


def with_splits(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """The records, each with a split.

    Splits that are stated are kept: the official ones of TextBraTS, for example. Where none is, the card's 70/10/20
    are drawn. Where there is no "val", an eighth of the patients of "train" becomes it, so that the end of training is
    never decided on "test".

    Raises:
        DataError: a patient in two splits, or splits stated for some records alone.
    """
    raise_all(leaks(records))
    raise_all(partly_split(records))
    if all(record.split is None for record in records):
        return _assigned(records, split_patients(_strata(records), CARD_SHARES, seed))
    present = {record.split for record in records}
    if "train" in present and "val" not in present:
        training = [record for record in records if record.split == "train"]
        return _assigned(records, split_patients(_strata(training), {"train": 7 / 8, "val": 1 / 8}, seed))
    return list(records)


def _strata(records: Sequence[Record]) -> dict[str, str]:
    """Patient to stratum, by the patient's first record."""
    return {record.patient: stratum(record.report) for record in reversed(records)}


def _assigned(records: Sequence[Record], splits: Mapping[str, str]) -> list[Record]:
    return [replace(record, split=splits.get(record.patient, record.split)) for record in records]


def chosen(records: Sequence[Record], split: str) -> list[Record]:
    """The records of one split.

    Raises:
        DataError: there are none.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    found = [record for record in records if record.split == split]
    if not found:
        raise DataError(f"no case is in the split {split!r}")
    return found
