"""`braingemma batch`: each case by the steps of `process`, resumable, several processes on one folder."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from daemon.cohort.cases import Case, SeriesFacts, Source
from daemon.config.sections import Settings
from daemon.errors import DaemonError, Rejected
from daemon.files import make_private
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Selection
from daemon.observe.logs import Identities
from daemon.pipeline.steps.runner import Steps
from daemon.record import Record
from dicom_io.deidentify import Deidentifier, load_key, scrub, without_uids
from dicom_io.series.identities import identities

CASE_FILE = "case.json"
WORK = ".work"
"""Folder of what is needed only while a case is worked on: locks, and links to its files."""
AHEAD = 2
"""Cases that are converted while the model works on another: what they take on the disk is kept small."""

Say = Callable[[str], None]
Prepared = tuple[JobFolder, Exception | None]
"""A series that was converted, or why it could not be."""


class CaseRecord(Record):
    """`case.json`: what became of one case; its folder has what `process` writes."""

    what: ClassVar[str] = "a case of a batch"

    case: str
    status: Literal["reported", "refused", "failed"]
    reason: str = ""
    subject: str = ""
    patient_id: str = ""
    study_uid: str = ""
    series_uid: str = ""
    manufacturer: str = ""
    model_name: str = ""
    field_strength_t: float | None = None


class BatchRecord(Record):
    """`batch.json`: what all cases of a folder have in common."""

    what: ClassVar[str] = "what the cases of a batch have in common"

    weights_sha256: str
    deidentified: bool
    explained: bool
    defaced: bool = False


@dataclass(frozen=True)
class Tally:
    """How many cases of each kind this call has seen."""

    reported: int
    refused: int
    failed: int
    skipped: int
    """Done by an earlier call, or being done by another process."""


@dataclass
class Batch:
    """One call of `braingemma batch`.

    Attributes:
        source: What is to be reported.
        out: Takes `cases/<case>/` and the tables.
        settings: The sections `model`, `checks`, `explain`, `results` and `selection` count.
        say: Told what is being done.
    """

    source: Source
    out: Path
    settings: Settings
    say: Say
    counts: dict[str, int] = field(default_factory=dict)

    def run(self) -> Tally:
        """Report every case that has no result yet; one that fails is a record that says why.

        Raises:
            DaemonError: the folder has results of other weights or settings.
        """
        self._steps = Steps(self.settings)
        self._check_same()
        self._deidentifier = deidentifier_of(self.settings)
        self.counts = dict.fromkeys(("reported", "refused", "failed", "skipped"), 0)
        started, total = time.monotonic(), len(self.source.cases)
        with ThreadPoolExecutor(1, thread_name_prefix="convert") as converting:
            for worked, prepared in enumerate(_ahead(self._claimed(), self._prepare, converting), start=1):
                self._finish(*prepared)
                self._tell(started, total, worked)
        return Tally(**self.counts)

    def encode_anew(self) -> int:
        """Make the DICOM objects that `compare_sessions` took away; how many cases failed, each with its record."""
        failed = 0
        for case in self.source.cases:
            root = self.out / "cases" / case.name
            done = CaseRecord.read_if_there(root / CASE_FILE)
            if case.is_nifti or done is None or done.status != "reported" or JobFolder(root).dicom.exists():
                continue
            folder = JobFolder(root, self._links(case))
            try:
                self._steps.run("encode", folder)
            except (DaemonError, OSError) as error:
                self._record(case, case.name, error, folder)
                failed += 1
            finally:
                shutil.rmtree(self.out / WORK / case.name, ignore_errors=True)
        return failed

    @property
    def banner(self) -> str | None:
        """What must be said about the weights."""
        return self._steps.context.weights.banner

    def _check_same(self) -> None:
        """Cases of one folder are comparable: of the same weights, all explained or none, all de-identified or none."""
        mine = BatchRecord(
            weights_sha256=self._steps.context.weights.sha256,
            deidentified=self.settings.results.deidentify,
            explained=self.settings.explain.enabled,
            defaced=self.settings.results.deface,
        )
        file = make_private(self.out) / "batch.json"
        with only_one_writes(self.out):  # processes that start at once must not each find nothing there
            theirs = BatchRecord.read_if_there(file)
            if theirs is None:
                mine.write(file)
        if theirs is not None and theirs != mine:
            raise DaemonError(
                f"{self.out}: expected cases of the same weights and options as before, got others "
                f"(before: {theirs.to_json()}, now: {mine.to_json()}): name another folder"
            )

    def _claimed(self) -> Iterator[tuple[Case, Any]]:
        """Cases that lack a result and that no other process works on, each with the lock that says so."""
        for case in self.source.cases:
            lock = _lock(make_private(self.out / WORK) / f"{case.name}.lock")
            if lock is None or not self._pending(case):
                self.counts["skipped"] += 1
                if lock is not None:
                    lock.close()
                continue
            yield case, lock

    def _pending(self, case: Case) -> list[str]:
        """Names of a study's series without a result; of one that none was selected of, the study's name alone."""
        done = self._result(case.name)
        if done is None:
            return [case.name]
        if case.is_nifti or not done.series_uid:  # refused as a whole: series may be listed, but none is to be reported
            return []
        selection = Selection.read(JobFolder(self._root(case.name)).selection)
        return [name for name in _further(case, selection) if self._result(name) is None]

    def _result(self, name: str) -> CaseRecord | None:
        """What became of a case; None where nothing has yet, or where it is to be tried again."""
        record = CaseRecord.read_if_there(self._root(name) / CASE_FILE)
        return None if record is None or record.status == "failed" else record

    def _root(self, name: str) -> Path:
        return self.out / "cases" / name

    def _prepare(self, claimed: tuple[Case, Any]) -> list[Prepared]:
        """Select and convert, or import: what needs no model, for each series that lacks a result."""
        case, _ = claimed
        if case.is_nifti:
            return [self._converted("import", JobFolder(make_private(self._root(case.name)), case.files[0]))]
        return [self._converted("convert", folder) for folder in self._selected(case)]

    def _selected(self, case: Case) -> list[JobFolder]:
        """Folders of the series that are to be reported and lack a result, each with its selection."""
        if not all(file.is_file() for file in case.files):
            raise Rejected(f"{case.files[0]}: expected a NIfTI file or a folder of DICOM files, found nothing there")
        links = self._links(case)
        first = JobFolder(make_private(self._root(case.name)), links)
        folders = []
        if self._result(case.name) is None:
            self._steps.run("select", first)
            folders.append(first)
        selection = Selection.read(first.selection)
        for name, uid in _further(case, selection).items():
            if self._result(name) is None:
                further = JobFolder(make_private(self._root(name)), links)
                selection.model_copy(update={"chosen": uid, "further": ()}).write(further.selection)
                folders.append(further)
        return folders

    def _converted(self, step: str, folder: JobFolder) -> Prepared:
        """One series that cannot be converted does not take the others with it."""
        try:
            self._steps.run(step, folder)
            self._steps.run("look", folder)
        except (DaemonError, OSError) as error:
            return folder, error
        return folder, None

    def _links(self, case: Case) -> Path:
        """The files of a study, wherever they lie, as one folder of links."""
        folder = self.out / WORK / case.name
        shutil.rmtree(folder, ignore_errors=True)
        make_private(folder)
        for count, file in enumerate(case.files, start=1):
            (folder / f"{count:06d}.dcm").symlink_to(file.resolve())
        return folder

    def _finish(self, claimed: tuple[Case, Any], prepared: Future[list[Prepared]]) -> None:
        """Report, explain and encode; what was not possible becomes the case's record."""
        case, lock = claimed
        try:
            try:
                folders = prepared.result()
            except (DaemonError, OSError) as error:
                for name in self._pending(case):
                    self._record(case, name, error)
                return
            for folder, fault in folders:
                self._record(case, folder.root.name, fault or self._reported(case, folder), folder)
        finally:
            shutil.rmtree(self.out / WORK / case.name, ignore_errors=True)
            lock.close()

    def _reported(self, case: Case, folder: JobFolder) -> Exception | None:
        """Report, explain and encode one series; why that was not possible."""
        explain = ("explain",) if self.settings.explain.enabled else ()
        encode = () if case.is_nifti else ("encode",)
        try:
            for step in ("report", *explain, *encode):
                self._steps.run(step, folder)
        except (DaemonError, OSError) as error:
            return error
        finally:
            folder.whole_head.unlink(missing_ok=True)
        return None

    def _record(self, case: Case, name: str, fault: Exception | None, folder: JobFolder | None = None) -> None:
        status: Literal["reported", "refused", "failed"] = "reported"
        if fault is not None:
            status = "refused" if isinstance(fault, Rejected) else "failed"
        series = chosen_uid(folder) if folder is not None else ""
        facts = case.facts.get(series) or next(iter(case.facts.values()), SeriesFacts())
        hide = self._deidentifier
        patient = facts.patient_id
        if hide is not None and patient:
            patient = hide.patient(patient, facts.issuer)
        CaseRecord(
            case=name,
            status=status,
            reason="" if fault is None else self._said(fault, case),
            subject=case.subject,
            patient_id=patient,
            study_uid=facts.study_uid if hide is None else hide.uid(facts.study_uid),
            series_uid=series if hide is None else hide.uid(series),
            manufacturer=facts.manufacturer,
            model_name=facts.model_name,
            field_strength_t=facts.field_strength_t,
        ).write(make_private(self.out / "cases" / name) / CASE_FILE)
        self.counts[status] += 1

    def _said(self, fault: Exception, case: Case) -> str:
        """Why, in one line; of a de-identified case without what its headers, file names and UIDs say."""
        text = " ".join(str(fault).split())
        if self._deidentifier is None:
            return text
        hidden = Identities()
        hidden.hide(case.name, identities(case.files))
        names = [name for path in case.files for name in (str(path), path.name)]
        return without_uids(hidden.removed(scrub(text, names)), self._deidentifier)

    def _tell(self, started: float, total: int, worked: int) -> None:
        done = worked + self.counts["skipped"]
        rate = (time.monotonic() - started) / worked
        left = max(0, total - done)
        self.say(f"case {done}/{total}: {rate:.1f} s a case, {_span(rate * left)} left, {self.counts['failed']} failed")


def deidentifier_of(settings: Settings) -> Deidentifier | None:
    """What makes pseudonyms where results are to name nobody."""
    return Deidentifier(load_key(settings.pseudonym_key)) if settings.results.deidentify else None


def _further(case: Case, selection: Selection) -> dict[str, str]:
    """Name to SeriesInstanceUID of what is reported of a study beside its best series."""
    return {f"{case.name}-{number}": uid for number, uid in enumerate(selection.further, start=2)}


def chosen_uid(folder: JobFolder) -> str:
    """The series that was selected, as it was received; empty for a NIfTI file."""
    selection = Selection.read_if_there(folder.selection)
    return (selection.chosen or "") if selection is not None else ""


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _lock(path: Path) -> Any | None:
    """The open file that holds a case for this process; None where another holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _ahead(
    claimed: Iterator[tuple[Case, Any]],
    prepare: Callable[[tuple[Case, Any]], list[Prepared]],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[tuple[Case, Any], Future[list[Prepared]]]]:
    """Each case with its conversion, which runs while the case before it is with the model."""
    waiting: list[tuple[tuple[Case, Any], Future[list[Prepared]]]] = []
    for case in claimed:
        waiting.append((case, pool.submit(prepare, case)))
        if len(waiting) > AHEAD:
            yield waiting.pop(0)
    yield from waiting


@contextmanager
def only_one_writes(out: Path) -> Iterator[None]:
    """What all processes share is written by one at a time; the last one to end writes tables of what all have done."""
    with (make_private(out / WORK) / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
