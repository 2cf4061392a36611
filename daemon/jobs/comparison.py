"""Comparison with an earlier result of ours of the same patient: how the lesion's measured volume changed.

Only what was measured by the same weights is compared, and only where nothing speaks against its being the same
patient. A change is stated where it is larger than the measurement's own uncertainty.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from pydicom import Dataset

from braingemma.reading.change import stated_change, uncertainty_ml
from daemon.jobs.records import Comparison, EarlierResult, Report
from dicom_io import header
from dicom_io.content.report import LESION_VOLUME

PLACEHOLDERS = frozenset({
    "anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "deid", "identity", "removed",
    "redacted", "withheld", "hidden", "unknown", "unspecified", "undefined", "unnamed", "noname", "none", "null", "nil",
    "na", "no", "name", "id", "patient", "subject", "person", "test", "dummy", "default",
})  # fmt: skip
"""Words that stand for everybody, where a header should say who it is."""
FIRST_BIRTH_DATE = "19010102"
"""Earlier ones, and `NO_BIRTH_DATES`, are what software writes where it knows none."""
NO_BIRTH_DATES = frozenset({"19700101"})
_WEAK = "-"
"""Before a digest: it may contradict that two are one, and proves nothing."""


@dataclass(frozen=True)
class Patient:
    """Who a study is of, as far as that must agree; empty where the header does not say."""

    patient_id: str
    issuer: str = ""
    name: str = ""
    birth_date: str = ""
    identity_removed: bool = False
    """As the header says (Patient Identity Removed, PS3.3 C.7.1.1): id and name may be those of all."""

    @classmethod
    def of(cls, head: Dataset) -> Patient:
        """As a header says; names without letter case, accents and the marks between their parts."""
        said = [header.text(head, k) for k in ("PatientID", "IssuerOfPatientID", "PatientBirthDate")]
        removed = header.text(head, "PatientIdentityRemoved").upper() == "YES"
        return cls(said[0], said[1], _folded(header.text(head, "PatientName")), said[2], removed)

    @property
    def key(self) -> str:
        """A digest by which results of the same id are found; empty where there is none, or one that stands for all."""
        return _digest(self.patient_id, self.issuer) if self.patient_id and not _is_placeholder(self.patient_id) else ""

    @property
    def name_key(self) -> str:
        """A digest of the name; empty where there is none."""
        weak = _is_placeholder(self.name) or (self.identity_removed and not self.issuer)
        return (_WEAK if weak else "") + _digest(self.name) if self.name else ""

    @property
    def birth_key(self) -> str:
        """A digest of the date of birth; empty where there is none."""
        date = re.sub(r"\D", "", self.birth_date)  # without the marks of ACR-NEMA
        weak = len(date) != 8 or date < FIRST_BIRTH_DATE or date in NO_BIRTH_DATES
        return (_WEAK if weak else "") + _digest(self.birth_date) if self.birth_date else ""


def is_same(one: Patient, other: Patient) -> bool:
    """Whether two studies are surely of one patient: id and issuer, and name or date of birth, and no contradiction.

    Placeholders prove nothing, nor does a name where the identity was removed and no issuer says what the id is.
    """
    return same_keys(one.key, other.key, ((one.name_key, other.name_key), (one.birth_key, other.birth_key)))


def same_keys(one: str, other: str, pairs: Iterable[tuple[str, str]]) -> bool:
    """`is_same` by digests: of the ids, and of what both may say besides."""
    told = [(a, b) for a, b in pairs if a and b]
    agree = all(a.removeprefix(_WEAK) == b.removeprefix(_WEAK) for a, b in told)
    proven = any(not a.startswith(_WEAK) and not b.startswith(_WEAK) for a, b in told)
    return bool(one) and one == other and agree and proven


def _is_placeholder(text: str) -> bool:
    words = _folded(text).split()
    return "".join(words) in PLACEHOLDERS or all(word in PLACEHOLDERS or _is_filling(word) for word in words)


def _is_filling(word: str) -> bool:
    """Such as 000, XXX, 9999."""
    return len(set(word)) == 1 and (word[0] in "0x" or len(word) > 3)


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.split("=")[0]).casefold()
    parts = "".join(c if c.isalnum() else " " for c in plain if not unicodedata.combining(c)).split()
    return " ".join(parts)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def measured_volume(report: Report) -> float | None:
    """The lesion volume that a report states, ml; None where it states none."""
    return next((m.value for m in report.measurements if m.name == LESION_VOLUME), None)


def compare(earlier: EarlierResult, report: Report, study_date: str, *, dated: bool = True) -> Comparison | None:
    """How the lesion changed since an earlier result; None where that is of other weights, or not earlier.

    Args:
        earlier: The earlier result.
        report: The report of now.
        study_date: Of its study, YYYYMMDD; empty where it is not known.
        dated: Whether the earlier date may be named: it is the true one, also where results are de-identified.
    """
    if earlier.weights_sha256 != report.model.weights_sha256:
        return None
    days = _days(earlier.study_date, study_date)
    if days is not None and days < 0:
        return None
    before, now = earlier.volume_ml, measured_volume(report)
    change = None if before is None or now is None else round(now - before, 1)
    margin = None if before is None or now is None else round(uncertainty_ml(before, now), 1)
    stated = None if before is None or now is None else stated_change(before, now)
    return Comparison(
        job_id=earlier.job_id,
        label=earlier.label,
        study_date=earlier.study_date if dated else "",
        days_before=days,
        model=f"{earlier.model_name} {earlier.model_version}".strip(),
        weights_sha256=earlier.weights_sha256,
        earlier_volume_ml=before,
        volume_ml=now,
        change_ml=change,
        uncertainty_ml=margin,
        stated=stated,
    )


def _days(earlier: str, later: str) -> int | None:
    """Days between two DICOM dates; None where one is none."""
    try:
        one, other = (datetime.datetime.strptime(text, "%Y%m%d").date() for text in (earlier, later))  # noqa: DTZ007
    except ValueError:
        return None
    return (other - one).days


def comparison_lines(found: Comparison) -> list[str]:
    """A comparison in sentences."""
    return [f"Compared with {_when(found)}, reported by the same weights ({found.model}).", _change(found)]


def _when(found: Comparison) -> str:
    since = "" if found.days_before is None else f"{found.days_before} days earlier"
    date = found.study_date
    if len(date) == 8:
        return f"the study of {date[:4]}-{date[4:6]}-{date[6:]}" + (f" ({since})" if since else "")
    if found.label:
        return f"the earlier examination {found.label}"
    return f"the study {since}" if since else "an earlier study"


def _change(found: Comparison) -> str:
    before, now = found.earlier_volume_ml, found.volume_ml
    if before is None and now is None:
        return "No lesion volume was measured then, nor now."
    if before is None:
        return f"No lesion volume was measured then; now {now:.1f} mL. No change in volume is stated."
    if now is None:
        return f"Lesion volume then {before:.1f} mL; now none was measured. No change in volume is stated."
    said = f"Lesion volume then {before:.1f} mL, now {now:.1f} mL: change {found.change_ml:+.1f} mL"
    margin = f"uncertainty of the difference ±{found.uncertainty_ml:.1f} mL (95 %, on phantoms)"
    if found.stated == "not distinguishable":
        return f"{said}, which cannot be told from none; {margin}."
    return f"{said}, {found.stated}; {margin}."
