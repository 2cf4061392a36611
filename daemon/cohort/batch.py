"""`braingemma batch`: each case by the steps of `process`, resumable, several processes on one folder."""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TextIO

from daemon.cohort.cases import WORK, Case, SeriesFacts, Source
from daemon.cohort.origin import origin_of
from daemon.config.sections import Settings
from daemon.errors import DaemonError, Rejected
from daemon.files import make_private
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Selection
from daemon.observe.logs import IDENTITIES, Identities, WithoutIdentities
from daemon.pipeline.steps.runner import Steps
from daemon.record import Record
from dicom_io.deidentify import scrub, without_quotes, without_uids
from dicom_io.series.identities import identities

CASE_FILE = "case.json"
AHEAD = 2
"""Cases that are converted while the model works on another: what they take on the disk is kept small."""

Say = Callable[[str], None]
Claimed = tuple[Case, TextIO]
"""A case, and the lock that says that it is this process's."""
Prepared = tuple[JobFolder, Exception | None]
"""A series that was converted, or why it could not be."""

log = logging.getLogger(__name__)
log.addFilter(WithoutIdentities())


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
    origin: str = ""
    """What it was made from, see `origin.origin_of`; empty in records of before that was noted."""


class BatchRecord(Record):
    """`batch.json`: what all cases of a folder have in common."""

    what: ClassVar[str] = "what the cases of a batch have in common"

    weights_sha256: str
    deidentified: bool
    explained: bool
    defaced: bool = False
    key: str = ""
    """A digest of the key of the pseudonyms; empty where there are none."""


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
        source: What is to be reported; its `hide` makes the pseudonyms of this batch.
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
            DaemonError: the folder has results of other weights or settings, or under one name another case.
            ValueError: the source's names were made with pseudonyms, and results are to be without, or the other way.
        """
        if (self.source.hide is not None) != self.settings.results.deidentify:
            raise ValueError("expected a source whose names are pseudonyms where results are de-identified, only there")
        self._steps = Steps(self.settings)
        self._check_same()
        self._origins: dict[str, str] = {}
        for case in self.source.cases:  # before hours are spent on others
            self._result(case, case.name)
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
        for case in (case for case in self.source.cases if not case.is_nifti):
            lock = self._locked(case)
            if lock is None:  # another process has links to the same files; it comes here itself once it has ended
                continue
            with lock:
                done = self._result(case, case.name)
                objects = JobFolder(self._root(case.name)).dicom
                if done is not None and done.status == "reported" and not objects.exists():
                    failed += not self._encoded_anew(case)
        return failed

    def _encoded_anew(self, case: Case) -> bool:
        """Whether that was possible; if not, the case's record says why."""
        folder = JobFolder(self._root(case.name), self.out / WORK / case.name)
        try:
            fault = self._fault(case, partial(self._links, case))
            fault = fault or self._fault(case, partial(self._steps.run, "encode", folder))
            if fault is not None:
                self._record(case, case.name, fault, folder)
        finally:
            shutil.rmtree(folder.input, ignore_errors=True)
        return fault is None

    @property
    def banner(self) -> str | None:
        """What must be said about the weights."""
        return self._steps.context.weights.banner

    def _check_same(self) -> None:
        """Cases of one folder are comparable: of the same weights and options, and pseudonyms by the same key."""
        hide = self.source.hide
        mine = BatchRecord(
            weights_sha256=self._steps.context.weights.sha256,
            deidentified=self.settings.results.deidentify,
            explained=self.settings.explain.enabled,
            defaced=self.settings.results.deface,
            key="" if hide is None else hide.digest("key", "")[:16],
        )
        file = make_private(self.out) / "batch.json"
        with only_one_writes(self.out):  # processes that start at once must not each find nothing there
            theirs = BatchRecord.read_if_there(file)
            if theirs is None:
                mine.write(file)
        if theirs is not None and theirs != mine:
            before, now = theirs.to_json(), mine.to_json()
            changed = [f"{k} {before.get(k)!r}, now {now[k]!r}" for k in now if before.get(k) != now[k]]
            raise DaemonError(
                f"{self.out}: expected cases of the same weights, options and key of pseudonyms "
                f"({self.settings.pseudonym_key}) as before, got others ({'; '.join(changed)}): name another folder"
            )

    def _claimed(self) -> Iterator[Claimed]:
        """Cases that lack a result and that no other process works on, each with the lock that says so."""
        for case in self.source.cases:
            lock = self._locked(case)
            if lock is None or not self._pending(case):
                self.counts["skipped"] += 1
                if lock is not None:
                    lock.close()
                continue
            yield case, lock

    def _pending(self, case: Case) -> list[str]:
        """Names of a study's series without a result; of one that none was selected of, the study's name alone."""
        done = self._result(case, case.name)
        if done is None:
            return [case.name]
        if case.is_nifti or not done.series_uid:  # refused as a whole: series may be listed, but none is to be reported
            return []
        selection = Selection.read(JobFolder(self._root(case.name)).selection)
        return [name for name in _further(case, selection) if self._result(case, name) is None]

    def _result(self, case: Case, name: str) -> CaseRecord | None:
        """What became of a case, or of a further series; None where nothing has yet, or where it is to be tried again.

        Raises:
            DaemonError: the record is of another study or file that had the same name.
        """
        record = CaseRecord.read_if_there(self._root(name) / CASE_FILE)
        if record is None:
            return None
        origin = self._origin(case)
        if record.origin and origin and record.origin != origin:
            raise DaemonError(
                f"{self._root(name)}: expected the study or file that this case was made from (digest "
                f"{record.origin[:12]}), got another of the same name (digest {origin[:12]}): {case.files[0]}: name "
                "another --out for another source; where the file itself was changed, remove this case's folder"
            )
        came_since = record.status == "refused" and origin and not record.origin
        return None if record.status == "failed" or came_since else record

    def _origin(self, case: Case) -> str:
        if case.name not in self._origins:
            self._origins[case.name] = origin_of(case, self.source.hide)
        return self._origins[case.name]

    def _locked(self, case: Case) -> TextIO | None:
        """The lock of a case and its further series; None where another process works on them."""
        return _lock(make_private(self.out / WORK) / f"{case.name}.lock")

    def _root(self, name: str) -> Path:
        return self.out / "cases" / name

    def _prepare(self, claimed: Claimed) -> list[Prepared]:
        """Select and convert, or import: what needs no model, for each series that lacks a result."""
        case, _ = claimed
        if case.is_nifti:
            return [self._converted(case, "import", JobFolder(make_private(self._root(case.name)), case.files[0]))]
        return [self._converted(case, "convert", folder) for folder in self._selected(case)]

    def _selected(self, case: Case) -> list[JobFolder]:
        """Folders of the series that are to be reported and lack a result, each with its selection."""
        if not all(file.is_file() for file in case.files):
            raise Rejected(f"{case.files[0]}: expected a NIfTI file or a folder of DICOM files, found nothing there")
        links = self._links(case)
        first = JobFolder(make_private(self._root(case.name)), links)
        folders = []
        if self._result(case, case.name) is None:
            self._steps.run("select", first)
            folders.append(first)
        selection = Selection.read(first.selection)
        for name, uid in _further(case, selection).items():
            if self._result(case, name) is None:
                further = JobFolder(make_private(self._root(name)), links)
                selection.model_copy(update={"chosen": uid, "further": ()}).write(further.selection)
                folders.append(further)
        return folders

    def _converted(self, case: Case, step: str, folder: JobFolder) -> Prepared:
        """One series that cannot be converted does not take the others with it."""
        fault = self._fault(case, partial(self._steps.run, step, folder))
        return folder, fault or self._fault(case, partial(self._steps.run, "look", folder))

    def _fault(self, case: Case, work: Callable[[], object]) -> Exception | None:
        """Do a part of a case; why it was not possible, whatever the reason: the next case goes on."""
        try:
            work()
        except (DaemonError, OSError) as error:
            return error
        except Exception as error:  # the edge of a case: nobody foresaw this, so where it came from must be told
            IDENTITIES.hide(case.name, identities(case.files))
            log.exception("case %s", case.name)
            return error
        return None

    def _links(self, case: Case) -> Path:
        """The files of a study, wherever they lie, as one folder of links."""
        folder = self.out / WORK / case.name
        shutil.rmtree(folder, ignore_errors=True)
        make_private(folder)
        for count, file in enumerate(case.files, start=1):
            (folder / f"{count:06d}.dcm").symlink_to(file.resolve())
        return folder

    def _finish(self, claimed: Claimed, prepared: Future[list[Prepared]]) -> None:
        """Report, explain and encode; what was not possible becomes the case's record."""
        case, lock = claimed
        folders: list[Prepared] = []
        try:
            if (unprepared := self._fault(case, lambda: folders.extend(prepared.result()))) is not None:
                for name in self._pending(case):
                    self._record(case, name, unprepared)
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
                if (fault := self._fault(case, partial(self._steps.run, step, folder))) is not None:
                    return fault
        finally:
            folder.whole_head.unlink(missing_ok=True)
        return None

    def _record(self, case: Case, name: str, fault: Exception | None, folder: JobFolder | None = None) -> None:
        status: Literal["reported", "refused", "failed"] = "reported"
        if fault is not None:
            status = "refused" if isinstance(fault, Rejected) else "failed"
        series = chosen_uid(folder) if folder is not None else ""
        facts = case.facts.get(series) or next(iter(case.facts.values()), SeriesFacts())
        hide = self.source.hide
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
            origin=self._origin(case),
        ).write(make_private(self.out / "cases" / name) / CASE_FILE)
        self.counts[status] += 1

    def _said(self, fault: Exception, case: Case) -> str:
        """Why, in one line; of a de-identified case without what its headers, file names and UIDs say."""
        text = " ".join(str(fault).split())
        if not isinstance(fault, (DaemonError, OSError)):
            text = f"unexpected {type(fault).__name__}: {text} (see the log)"
        if self.source.hide is None:
            return text
        hidden = Identities()
        hidden.hide(case.name, identities(case.files))
        names = [name for path in case.files for name in (str(path), path.name)]
        return without_uids(hidden.removed(without_quotes(scrub(text, names))), self.source.hide)

    def _tell(self, started: float, total: int, worked: int) -> None:
        done = worked + self.counts["skipped"]
        rate = (time.monotonic() - started) / worked
        left = max(0, total - done)
        self.say(f"case {done}/{total}: {rate:.1f} s a case, {_span(rate * left)} left, {self.counts['failed']} failed")


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


def _lock(path: Path) -> TextIO | None:
    """The open file that holds a case for this process; None where another holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _ahead(
    claimed: Iterator[Claimed],
    prepare: Callable[[Claimed], list[Prepared]],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Claimed, Future[list[Prepared]]]]:
    """Each case with its conversion, which runs while the case before it is with the model."""
    waiting: list[tuple[Claimed, Future[list[Prepared]]]] = []
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
