"""The JSON files of a job's folder as typed records: each is read and written here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from daemon.record import Record

Side = Literal["left", "right", "bilateral"]


class ReportFinding(Record):
    """One finding of a report; `braingemma.findings` says what the names mean."""

    finding: str
    presence: Literal["present", "absent", "undetermined"]
    laterality: Side | None = None
    sites: tuple[str, ...] = ()
    confidence: float | None = Field(None, ge=0, le=1)


class LesionEstimate(Record):
    """The lesion by the grounding map, or by that of the second look where only this shows one ("possible")."""

    peak: float
    volume_ml: float = Field(ge=0)
    laterality: Side | None = None
    sites: tuple[str, ...] = ()
    certainty: Literal["likely", "possible", "none"] | None = None
    second_look_peak: float | None = None


class Measurement(Record):
    """One value that image processing measured."""

    name: str
    value: float
    unit: str
    """UCUM."""
    method: str
    laterality: Side | None = None


class Unmeasured(Record):
    """What image processing could not measure, and why."""

    name: str
    reason: str


class Candidate(Record):
    """One of the texts from which the report was chosen."""

    text: str
    findings: tuple[ReportFinding, ...] = ()
    score: float | None = None
    ended: bool | None = None
    agrees: bool | None = None
    taken: bool = False


class Check(Record):
    """What was looked at before the model saw the picture."""

    name: str
    passed: bool | None
    detail: str


class EarlierResult(Record):
    """`earlier.json`: an earlier result of the same patient, to compare with."""

    what: ClassVar[str] = "an earlier result of a patient"

    job_id: str
    study_date: str = ""
    """YYYYMMDD; empty where it is not known."""
    label: str = ""
    """What the earlier examination is called where it has no date, such as a BIDS session."""
    model_name: str
    model_version: str
    weights_sha256: str
    volume_ml: float | None
    """The lesion volume that it states; None where it states none."""
    study_date_now: str = ""
    """Of the study that is compared with it."""


class Comparison(Record):
    """How the lesion changed since an earlier result of the same weights."""

    job_id: str
    label: str = ""
    study_date: str
    days_before: int | None
    model: str
    weights_sha256: str
    earlier_volume_ml: float | None
    volume_ml: float | None
    change_ml: float | None
    uncertainty_ml: float | None
    """95 of 100 differences between measurements of an unchanged lesion are smaller."""
    stated: Literal["larger", "smaller", "not distinguishable"] | None
    """None where one of the two measured no volume."""


class ReportInput(Record):
    """What the report is about."""

    series_uid: str | None = None
    file: str | None = None
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    sha256: str
    defaced: bool = False
    """Whether the face was removed before the model and all that was kept saw the volume."""
    preprocessing: Mapping[str, Any] = {}
    checks: tuple[Check, ...] = ()


class ReportModel(Record):
    """Who wrote it, and how."""

    name: str
    version: str
    weights_sha256: str
    format: str
    prompt: str
    generation: Mapping[str, Any]
    device: str
    quantization: str
    head_bits: int = 16

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides its output, but for its identity."""
        return {k: v for k, v in self.to_json().items() if k not in ("name", "version", "weights_sha256")}


class ReportExplanation(Record):
    """How the explanation was made, and how well it fits."""

    method: str
    description: str | None = None
    samples: int | None = None
    samples_at_most: int | None = None
    segments: int | None = None
    seed: int | None = None
    explained: Any = None
    r2: float | None = None
    rounding: float | None = None
    """What reading the perturbed volumes in eight bits changed of the score; None: they were read as for the report."""
    faithfulness: Any = None
    grounding: Any = None
    saliency_sha256: str | None = None
    warnings: tuple[str, ...] = ()
    """Those of the report's that are its own: of an explanation made again, these go."""

    @property
    def facts(self) -> dict[str, Any]:
        """How it was made, without the warnings, which stand among the report's."""
        return {key: value for key, value in self.to_json().items() if key != "warnings"}


class Report(Record):
    """`report.json`: see `docs/report-json.md`."""

    what: ClassVar[str] = "the report of a job"

    report: str
    findings: tuple[ReportFinding, ...]
    lesion_estimate: LesionEstimate | None = None
    measurements: tuple[Measurement, ...] = ()
    comparison: Comparison | None = None
    unmeasured: tuple[Unmeasured, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    input: ReportInput
    model: ReportModel
    explain: ReportExplanation | None = None
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] | None = None
    """Those of `warnings` that are about the text: it was cut, or else contradicted; None where that was not noted."""
    deidentified: bool = False
    """Whether UIDs in it are those of the de-identified objects, and it names no file."""
    banner: str | None = None
    intended_use: str

    @property
    def warnings_of_the_text(self) -> frozenset[str]:
        """The warnings that say something of this text, and would not of another one; all where that is not known."""
        if self.doubts is None:
            return frozenset(self.warnings)
        return frozenset((*self.doubts, *(self.explain.warnings if self.explain is not None else ())))


class SeriesVerdict(Record):
    """What selection said of one series."""

    series_uid: str
    verdict: Literal["accepted", "refused"]
    reasons: tuple[str, ...] = ()
    description: str = ""
    number: int | None = None
    instances: int = 0
    part: int = 0
    """1, 2, ... of several acquisitions under one series UID; 0 otherwise."""
    joined: tuple[str, ...] = ()
    """Where each slice came as a series of its own: the SeriesInstanceUIDs of all; the first is the series'."""


class UnreadFile(Record):
    """A file that took no part."""

    file: str
    reason: str


class Selection(Record):
    """`selection.json`: the verdict on each series, and which is reported."""

    what: ClassVar[str] = "the selection of a job"

    chosen: str | None
    further: tuple[str, ...] = ()
    """Series that were accepted besides, the best first."""
    parts: Mapping[str, int] = {}
    """Of series UIDs under which several acquisitions came: which of them is meant, by `contrasts`."""
    by_picture: tuple[str, ...] = ()
    """Accepted series whose headers do not say that they are FLAIR: their picture does."""
    series: tuple[SeriesVerdict, ...] = ()
    problems: tuple[UnreadFile, ...] = ()

    def uids_of(self, series_uid: str) -> tuple[str, ...]:
        """Every SeriesInstanceUID under which instances of an accepted series came."""
        said = (v.joined for v in self.series if v.series_uid == series_uid and v.verdict == "accepted")
        return next(said, ()) or (series_uid,)


class Conversion(Record):
    """`conversion.json`: what was noticed on the way from DICOM, or from a NIfTI file, to the volume, and from what."""

    what: ClassVar[str] = "what the conversion of a job noticed"

    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Files of the converted series, relative to the input; none of a NIfTI file, nor by an earlier version."""


class SourceFile(Record):
    """`source.json`: the file that a person named, where the input was one."""

    what: ClassVar[str] = "the input file of a job"

    file: str


class CorrectedIdentity(Record):
    """`identity.json`: what is said of a patient now."""

    what: ClassVar[str] = "the corrected identity of a job's patient"

    values: Mapping[str, str]
    """Keyword to text, in Unicode, of each attribute that says something."""
    changed: tuple[str, ...]
    """Keywords whose text differs from that of the reported series."""


class ReceivedInstance(Record):
    """One instance in a job's input folder; further fields are those of the index of what was received."""

    file: str
    sop_uid: str
    series_uid: str
    sha256: str


class Conflict(Record):
    """An instance that came under a UID that other bytes had already."""

    series_uid: str
    sop_uid: str
    sha256: str
    calling_aet: str
    received: float
    same_pixels: bool | None
    """Whether its pixels are those of the one that stands, where that is known."""


class LostInstance(Record):
    """An instance whose bytes are lost."""

    series_uid: str
    sop_uid: str


class SharedUids(Record):
    """Instances of a series whose SOP Instance UIDs stand in another series, too."""

    series_uid: str
    instances: int
    study_uid: str
    other_series_uid: str


class SeriesGap(Record):
    """Something that is missing from a series."""

    series_uid: str
    present: int
    missing: int
    reason: str


class Arrival(Record):
    """`arrival.json`: where a job's instances came from, and what of the study is not among them. Times: POSIX, s."""

    what: ClassVar[str] = "the arrival of a job"

    job_id: str
    study_uid: str
    series_uids: tuple[str, ...]
    supersedes: str | None
    """The earlier job whose results this one's replace."""
    completed: float
    first_received: float
    last_received: float
    calling_aets: tuple[str, ...]
    peers: tuple[str, ...]
    repeats: int = 0
    own_results: int = 0
    conflicts: tuple[Conflict, ...] = ()
    damaged: tuple[LostInstance, ...] = ()
    gaps: tuple[SeriesGap, ...] = ()
    shared_uids: tuple[SharedUids, ...] = ()
    instances: tuple[ReceivedInstance, ...]
    part_of: str | None = None
    """Of a job of one further series: the study's job that made it."""
    study_supersedes: str | None = None
    """Of a study's job whose `supersedes` was changed to that of the series: the study's earlier job."""
    anew: bool = False
    """Whether a person asked for the study to be reported again."""
    set_aside: str = ""
    """Why it is not to be worked on: the study could not be handed over."""
