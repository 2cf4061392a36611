"""Is this series a brain FLAIR that can be reported, and why.

Every rule looks at one thing and says what it saw; a series is accepted when all of them pass. Rules never raise: a
header that cannot be understood fails the rule that needed it. Where headers are silent on the contrast and nothing
else is against the series, its picture may be looked at; who looks is handed in, for it needs to know brains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, MRImageStorage

from dicom_io import header
from dicom_io.errors import DicomIoError, SeriesError
from dicom_io.select import physics
from dicom_io.select.naming import BRAIN_PARTS, OTHER_BODY_PARTS, UNSAID_PARTS, Name, fold, read_name
from dicom_io.series.group import Series, contrasts
from dicom_io.volume.geometry import SeriesGeometry
from dicom_io.volume.stack import series_geometry

MR_IMAGE_CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)

SERIES_PROTOCOL_VENDORS = ("SIEMENS", "PHILIPS", "UIH", "UNITED IMAGING", "HYPERFINE", "BRUKER")
"""Vendors whose ProtocolName is the series' own; at GE and others it may name the examination ("BRAIN W/WO STIR")."""

DERIVED_TYPES = re.compile(
    r"(?:MPR|MPR_CURVED|REFORMATTED|RESAMPLED|REFORMAT|CSA|MIP|MINIP|MAX_IP|MIN_IP|MEAN_IP|PROJECTION|VRT"
    r"|RENDERING|ADC|TRACEW|TRACE|FA|COLFA|DIFFUSION|TENSOR|SUB|SUBTRACT|SUBTRACTION|SUBTRACTED|SCREEN"
    r"|SCREENSHOT|SCREENSAVE|CAPTURE|LOCALIZER|SCOUT|SURVEY|PHASE|P|REAL|IMAGINARY|R|I|MAP|T1MAP|T2MAP|PERFUSION"
    r"|CBF|CBV|MTT|TTP|TMAX|ASL|MOSAIC|REPORT|SWI|MNIP|FMRI|TMAP|SPECTROSCOPY|SEGMENTATION|FUSED|FUSION|OVERLAY"
    r"|SYNTHETIC|COMPOSED|COLOR|AVERAGE|STDDEV|DSC|DIXON_FAT|STIR|SECONDARY_CAPTURE)"
)
"""Words in ImageType that mean a derived, partial or non-anatomical picture."""

BENIGN_DERIVATIONS = frozenset({"DIS2D", "DIS3D", "DIS", "NORM", "FIL", "FILTERED", "DND"})
"""Words in ImageType of corrections in place: the picture keeps its slices and its meaning."""


LOSSY_COMPRESSION = "113040"
"""Code (DCM) of a derivation that is lossy compression (PS3.16 CID 7203)."""


@dataclass(frozen=True)
class SelectionRules:
    """What a site adds to the built-in rules.

    Attributes:
        include: Each maps DICOM keywords to regular expressions (found anywhere, in either case); a series that
            matches all of one entry counts as named FLAIR, whatever else its name says.
        exclude: A series that matches all of one entry is refused.
        minimum_slices: Fewer slices are refused.
        minimum_extent_mm: Shortest length of the stack that can cover a brain.
        field_of_view_mm: Smallest and largest side of a slice.
    """

    include: tuple[Mapping[str, str], ...] = ()
    exclude: tuple[Mapping[str, str], ...] = ()
    minimum_slices: int = 10
    minimum_extent_mm: float = 50.0
    field_of_view_mm: tuple[float, float] = (100.0, 420.0)

    def __post_init__(self) -> None:
        """Refuse a rule that could never match.

        Raises:
            SeriesError: An unknown keyword, an empty entry, or a broken regular expression.
        """
        for entry in (*self.include, *self.exclude):
            if not entry:
                raise SeriesError("selection rule: expected at least one DICOM keyword, got none")
            for keyword, pattern in entry.items():
                if tag_for_keyword(keyword) is None:
                    raise SeriesError(f"selection rule: {keyword!r} is no DICOM keyword (such as SeriesDescription)")
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise SeriesError(f"selection rule: {keyword} = {pattern!r}: {error}") from error


GEOMETRY = "geometry"
"""The rule that the slices form one volume that can hold a brain."""


@dataclass(frozen=True)
class Reason:
    """What one rule saw.

    Attributes:
        rule: Name of the rule.
        passed: Whether the series may be a FLAIR as far as this rule can tell.
        detail: The values it saw.
    """

    rule: str
    passed: bool
    detail: str

    @property
    def line(self) -> str:
        """As lists for people show it."""
        return f"{'ok' if self.passed else 'REFUSED'}: {self.rule}: {self.detail}"

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'REFUSED'} {self.rule}: {self.detail}"


@dataclass(frozen=True)
class Verdict:
    """Whether a series is taken.

    Attributes:
        series_uid: SeriesInstanceUID.
        accepted: All rules passed.
        score: In [0, 1]; orders accepted series, best first. 0 where refused.
        reasons: One for each rule, in the order in which they were asked; of an accepted series that was ranked among
            others, its place too.
        merits: What the score rests on, in words; empty where refused.
        by_picture: The headers do not say that it is a FLAIR; it was taken for what it looks like.
    """

    series_uid: str
    accepted: bool
    score: float
    reasons: tuple[Reason, ...]
    merits: str = ""
    by_picture: bool = False

    @property
    def refusals(self) -> tuple[Reason, ...]:
        """The rules that did not pass."""
        return tuple(r for r in self.reasons if not r.passed)


@dataclass(frozen=True)
class Look:
    """What the picture of a series says.

    Attributes:
        flair: Whether it is a brain FLAIR beyond doubt.
        detail: What was seen.
    """

    flair: bool
    detail: str


@dataclass(frozen=True)
class _Case:
    """A series with what several rules need of it."""

    series: Series
    rules: SelectionRules
    name: Name
    acquisition: physics.Acquisition
    included: str
    geometry: SeriesGeometry | None
    geometry_error: str = field(default="")


def judge(series: Series, rules: SelectionRules | None = None, look: Callable[[Series], Look] | None = None) -> Verdict:
    """Ask every rule about one series.

    Args:
        series: As scanned; pixels are not read here.
        rules: The site's additions.
        look: Looks at the picture; asked where headers are silent on the contrast. None: such a series is refused.

    Returns:
        The verdict; odd headers make a refusal, never an error.
    """
    with header.quiet("pydicom"):  # pydicom warns of odd values when they are first looked at
        case = _case(series, rules or SelectionRules())
        reasons = (*(rule(case) for rule in RULES), *(Reason("parts", True, note) for note in series.notes))
        by_picture = False
        if look is not None and _is_silent(case) and [r.rule for r in reasons if not r.passed] == ["physics"]:
            seen = look(series)
            by_picture = seen.flair
            reasons = tuple(_with_picture(reason, seen) for reason in reasons)
        accepted = all(r.passed for r in reasons)
        score, merits = _score(case) if accepted else (0.0, "")
        return Verdict(series.series_uid, accepted, score, reasons, merits, by_picture)


def _is_silent(case: _Case) -> bool:
    """Whether headers say too little of the contrast, and nothing against FLAIR."""
    named = bool(case.name.flair or case.included)
    unclear = case.acquisition.inversion_recovery is not False and physics.absent(case.acquisition)
    return bool(unclear) and not physics.contradictions(case.acquisition, named=named)


def _with_picture(reason: Reason, seen: Look) -> Reason:
    if reason.rule != "physics":
        return reason
    return Reason("physics", seen.flair, f"{reason.detail}; its picture: {seen.detail}")


def judge_entry(entry: Dataset, rules: SelectionRules | None = None) -> Verdict:
    """Whether a series could be a FLAIR by what a PACS says of it in answer to a query, before it is fetched.

    What the PACS leaves out refuses nothing: modality, names, body part and, where they are told, type and timing.

    Args:
        entry: Attributes of the series level (PS3.4 C.6.2.1.4), and whatever else was answered.
        rules: The site's additions.
    """
    with header.quiet("pydicom"):
        series = Series(
            header.uid(entry, "SeriesInstanceUID"), "", header.text(entry, "Modality"), Path(), (Path(),), (entry,)
        )
        case = _Case(
            series=series,
            rules=rules or SelectionRules(),
            name=_name(series),
            acquisition=physics.read_acquisition(series),
            included=_matching(series, (rules or SelectionRules()).include),
            geometry=None,
        )
        reasons = (
            Reason("modality", series.modality in ("MR", ""), series.modality or "not told"),
            *(rule(case) for rule in (_site_rule, _image_type_rule, _name_rule)),
            _told_physics(case),
            _body_part_rule(case),
        )
        return Verdict(series.series_uid, all(r.passed for r in reasons), 0.0, reasons)


def _told_physics(case: _Case) -> Reason:
    """The timing as far as it is told."""
    against = physics.contradictions(case.acquisition, named=bool(case.name.flair or case.included))
    shown = case.acquisition.described
    return Reason("physics", not against, f"{shown}: {'; '.join(against)}" if against else shown)


def rank(
    series_list: Iterable[Series], rules: SelectionRules | None = None, look: Callable[[Series], Look] | None = None
) -> list[tuple[Series, Verdict]]:
    """Judge several series: accepted ones first, best first, each with its place; then refused ones in their order.

    Acquisitions that share one SeriesInstanceUID are judged apart. Those taken by their picture come after all others.
    """
    judged = [(one, judge(one, rules, look)) for series in series_list for one in contrasts(series)]
    ranked = sorted(judged, key=lambda pair: (not pair[1].accepted, pair[1].by_picture, -pair[1].score))
    of = sum(verdict.accepted for _, verdict in ranked)
    return [(s, _placed(v, place, of) if v.accepted else v) for place, (s, v) in enumerate(ranked, start=1)]


def _placed(verdict: Verdict, place: int, of: int) -> Verdict:
    """An accepted series' verdict with its place among the accepted."""
    said = f"{place} of {of}, {verdict.score:.2f} of 1: {verdict.merits}"
    return replace(verdict, reasons=(*verdict.reasons, Reason("rank", True, said)))


def _case(series: Series, rules: SelectionRules) -> _Case:
    geometry, error = None, ""
    try:
        geometry = series_geometry(series)
    except DicomIoError as refusal:
        error = str(refusal)
    return _Case(
        series=series,
        rules=rules,
        name=_name(series),
        acquisition=physics.read_acquisition(series),
        included=_matching(series, rules.include),
        geometry=geometry,
        geometry_error=error,
    )


def _name(series: Series) -> Name:
    """What the series is called, by all its instances.

    ProtocolName counts only where it names the series and not the whole examination.
    """
    descriptions = series.distinct("SeriesDescription")
    texts = [*descriptions, *(t for k in ("SequenceName", "PulseSequenceName") for t in series.distinct(k))]
    vendor = " ".join(series.distinct("Manufacturer")).upper()
    if not descriptions or any(v in vendor for v in SERIES_PROTOCOL_VENDORS):
        texts += series.distinct("ProtocolName")
    return read_name(texts)


def _matching(series: Series, entries: Iterable[Mapping[str, str]]) -> str:
    """The first entry that the series matches, as text; empty where none does."""
    for entry in entries:
        if all(
            re.search(pattern, header.text(series.header, keyword), re.IGNORECASE) for keyword, pattern in entry.items()
        ):
            return ", ".join(f"{k} = {p!r}" for k, p in entry.items())
    return ""


def _modality_rule(case: _Case) -> Reason:
    modalities = case.series.distinct("Modality")
    classes = [UID(u) for u in dict.fromkeys(header.uid(h, "SOPClassUID") for h in case.series.headers)]
    passed = modalities == ("MR",) and all(found in MR_IMAGE_CLASSES for found in classes)
    shown = ", ".join(found.name or "no SOP class" for found in classes)
    return Reason("modality", passed, f"{', '.join(modalities) or 'no modality'}, {shown}")


def _site_rule(case: _Case) -> Reason:
    excluded = _matching(case.series, case.rules.exclude)
    if excluded:
        return Reason("site rules", False, f"excluded by {excluded}")
    return Reason("site rules", True, f"included by {case.included}" if case.included else "none matches")


def _image_type_rule(case: _Case) -> Reason:
    for head in case.series.headers:
        types = _image_types(head)
        words = {w.upper() for t in types for w in re.split(r"[^A-Za-z0-9_]+", t)}
        shown = "\\".join(types) or "absent"
        telling = sorted(w for w in words if DERIVED_TYPES.fullmatch(w))
        if telling:
            return Reason("image type", False, f"{shown}: {', '.join(telling)}")
        if "SECONDARY" in words:
            return Reason("image type", False, f"{shown}: made after the examination")
        if "DERIVED" in words and not words & BENIGN_DERIVATIONS and not _derived_by_compression(head, types):
            return Reason("image type", False, f"{shown}: derived from other images")
    shown = "\\".join(_image_types(case.series.header)) or "absent"
    return Reason(
        "image type", True, f"{shown}, compressed with loss" if header.is_lossy(case.series.header) else shown
    )


def _derived_by_compression(head: Dataset, types: tuple[str, ...]) -> bool:
    """Whether DERIVED need mean no more than that the archive compressed with loss (PS3.3 C.7.6.1.1.2)."""
    primary = "PRIMARY" in (t.upper() for t in types)
    codes = {header.text(i, "CodeValue") for i in header.items(head, "DerivationCodeSequence")}
    return primary and header.is_lossy(head) and codes <= {LOSSY_COMPRESSION}


def _image_types(head: Dataset) -> tuple[str, ...]:
    """ImageType and, in an enhanced header, the first frame's FrameType and ComplexImageComponent."""
    types = header.texts(head, "ImageType")
    frame = header.functional_group(head, 0, "MRImageFrameTypeSequence")
    if frame is None:
        return types
    component = header.texts(frame, "ComplexImageComponent")
    return tuple(dict.fromkeys((*types, *header.texts(frame, "FrameType"), *component)))


def _name_rule(case: _Case) -> Reason:
    shown = header.text(case.series.header, "SeriesDescription") or "no description"
    if case.included:
        return Reason("name", True, f"{shown!r} (named FLAIR by the site)")
    if case.name.others:
        return Reason("name", False, f"{shown!r} means {', '.join(case.name.others)}")
    if case.name.flair:
        return Reason("name", True, f"{shown!r} means FLAIR ({case.name.flair!r})")
    return Reason("name", True, f"{shown!r} does not say; the timing must")


def _physics_rule(case: _Case) -> Reason:
    acquisition = case.acquisition
    named = bool(case.name.flair or case.included)
    against = physics.contradictions(acquisition, named=named)
    missing = physics.absent(acquisition)
    if against:
        return Reason("physics", False, f"{acquisition.described}: {'; '.join(against)}")
    if not named and (missing or acquisition.inversion_recovery is False):
        return Reason("physics", False, f"{acquisition.described}: not enough to know a FLAIR that is not named so")
    if len(missing) == len(("TI", "TE", "TR")) and not case.included:
        return Reason("physics", False, f"{acquisition.described}: nothing to judge by")
    return Reason("physics", True, acquisition.described)


def _body_part_rule(case: _Case) -> Reason:
    head = case.series.header
    parts = [
        *case.series.distinct("BodyPartExamined"),
        *(header.text(i, "CodeMeaning") for i in header.items(head, "AnatomicRegionSequence")),
    ]
    shown = ", ".join(t for t in parts if t) or "absent"
    for text in (fold(t) for t in parts if t):
        if not UNSAID_PARTS.fullmatch(text) and (not BRAIN_PARTS.search(text) or "spin" in text):
            return Reason("body part", False, f"{shown}: not the head")
    words = fold(header.text(head, "SeriesDescription"))
    found = OTHER_BODY_PARTS.search(words)
    if found and not BRAIN_PARTS.search(words):
        return Reason("body part", False, f"{shown}; the description says {found.group().strip()!r}")
    return Reason("body part", True, shown)


def _patient_rule(case: _Case) -> Reason:
    patients = case.series.distinct("PatientID")
    return Reason("one patient", len(patients) <= 1, f"{len(patients)} PatientID" + ("s" if len(patients) != 1 else ""))


def _geometry_rule(case: _Case) -> Reason:
    if case.geometry is None:
        return Reason(GEOMETRY, False, case.geometry_error)
    geometry, rules = case.geometry, case.rules
    count = len(geometry.slices)
    sides = (geometry.rows * geometry.pixel_spacing[0], geometry.columns * geometry.pixel_spacing[1])
    extent = count * geometry.slice_spacing
    shown = f"{count} slices every {geometry.slice_spacing:.2f} mm, field of view {sides[1]:.0f} x {sides[0]:.0f} mm"
    if count < rules.minimum_slices:
        return Reason(GEOMETRY, False, f"{shown}: expected at least {rules.minimum_slices} slices")
    if extent < rules.minimum_extent_mm:
        return Reason(GEOMETRY, False, f"{shown}: {extent:.0f} mm of stack cannot cover a brain")
    low, high = rules.field_of_view_mm
    if not (low <= min(sides) and max(sides) <= high and extent <= high):
        return Reason(GEOMETRY, False, f"{shown}: expected sides of {low:.0f} to {high:.0f} mm")
    return Reason(GEOMETRY, True, shown)


RULES: tuple[Callable[[_Case], Reason], ...] = (
    _modality_rule,
    _site_rule,
    _image_type_rule,
    _name_rule,
    _physics_rule,
    _body_part_rule,
    _patient_rule,
    _geometry_rule,
)


def _score(case: _Case) -> tuple[float, str]:
    """How good a choice an accepted series is: sure to be FLAIR, then fine and whole, then without contrast agent.

    Returns:
        The score in [0, 1], and what it rests on, in words.
    """
    geometry = case.geometry
    if geometry is None:
        return 0.0, ""
    named, timed = bool(case.name.flair or case.included), not physics.absent(case.acquisition)
    voxel = geometry.pixel_spacing[0] * geometry.pixel_spacing[1] * geometry.slice_spacing
    extent = len(geometry.slices) * geometry.slice_spacing
    plain = not case.series.distinct("ContrastBolusAgent")
    score = 0.2 * named + 0.2 * timed + 0.25 / (1.0 + voxel / 4.0) + 0.25 * min(1.0, extent / 150.0) + 0.1 * plain
    merits = (
        "named FLAIR" if named else "not named",
        "timing complete" if timed else "timing incomplete",
        f"voxels of {voxel:.1f} mm3",
        f"{extent:.0f} mm of stack",
        "no contrast agent" if plain else "contrast agent",
    )
    return round(score, 4), ", ".join(merits)
