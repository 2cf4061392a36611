"""The durable workflow of one study: the ordered list of steps, and nothing else.

DBOS keeps the result of every finished step; after a crash the workflow goes on with the step that was interrupted.
Payloads are job ids only: pixel data and identities stay in the job's folder.
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, PortableWorkflowError, SetEnqueueOptions, SetWorkflowID
from dbos import error as dbos_error

from daemon.config.sections import Settings
from daemon.database.patience import cause, may_pass, patient
from daemon.database.tables import FINAL_STATES, STOPPED_STATES, DeliveryState, JobState
from daemon.deliver.delivery import deliver_to, give_up_all, is_open, plan_deliveries
from daemon.engine.identifiers import DELIVERY_WORKFLOW, DESTINATION_QUEUE, FIRST_TURN, REPORT_QUEUE, REPORT_WORKFLOW
from daemon.errors import DaemonError, DiskFull, Permanent, Rejected, Retryable
from daemon.files import free_bytes, is_disk_full
from daemon.jobs.files import JobFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.figures import count_report
from daemon.jobs.lists.worklist import keep_verdicts, note_study
from daemon.jobs.records import Arrival
from daemon.jobs.report import findings_line, read_report, write_report
from daemon.jobs.steps import DELIVER, STEPS
from daemon.jobs.store import Job, JobStore
from daemon.observe import metrics
from daemon.observe.logs import about_job
from daemon.pipeline import actions, earlier
from daemon.pipeline.corrections import Correction, find_correction
from daemon.pipeline.series_jobs import follow_choice
from daemon.pipeline.step_process import Cancelled, StepProcess
from dicom_io.pack.manifest import MANIFEST

log = logging.getLogger(__name__)

STEP_ATTEMPTS = 3
"""A step that crashes the model process is tried this often, each time in a fresh process."""

AT_WORK = (JobState.QUEUED, JobState.RUNNING)
"""States of a job whose results are still to be made."""

ROOM_BYTES = 1 << 20
"""A step that found the disk full is tried again once so many more bytes are free."""

PAUSE_SECONDS = 0.5
"""How often a study that waits for its turn looks whether the queue is still paused."""
PAUSE_SIGN_SECONDS = 30.0
ROOM_PAUSE = 1.0
"""Seconds between two looks at the disk."""

LONGEST_WITHOUT_ROOM = 60.0
"""After so many seconds it is tried again in any case: room for others may be too little for it."""

RECOVERY_ATTEMPTS = 50
"""How often a restarted daemon takes the same workflow up again before it is left as failed."""


@dataclass
class Context:
    """What the steps of this process work with; set once by the service, before DBOS is launched."""

    settings: Settings
    store: JobStore
    steps: StepProcess
    files: JobFiles
    elsewhere: earlier.Elsewhere | None = None
    """Where earlier results are looked for that are not known here."""


_context: Context | None = None


def set_context(context: Context) -> None:
    """Give the workflows of this process their surroundings."""
    global _context  # noqa: PLW0603 - DBOS registers plain functions at import, before any service exists
    _context = context


def context() -> Context:
    """The surroundings given by `set_context`."""
    if _context is None:
        raise RuntimeError("set_context() must be called before a workflow runs")
    return _context


def submit(job_id: str) -> None:
    """Queue the job at its turn; queueing it twice starts it once (the workflow's id is the job's)."""
    job = context().store.get(job_id)
    with SetWorkflowID(job_id), SetEnqueueOptions(priority=None if job is None else job.turn):
        DBOS.enqueue_workflow(REPORT_QUEUE, report_study, job_id)


@DBOS.workflow(name=REPORT_WORKFLOW, max_recovery_attempts=RECOVERY_ATTEMPTS)
def report_study(job_id: str) -> str:
    """Select, convert, report, explain, encode; then hand the results to the deliveries."""
    with about_job(job_id):
        return _report_study(job_id)


def _report_study(job_id: str) -> str:
    try:
        for step in STEPS:
            for other in DURABLE_STEPS[step](job_id):
                submit(other)
        destinations = plan_step(job_id)
    except (DaemonError, PortableWorkflowError, dbos_error.DBOSMaxStepRetriesExceeded) as error:
        return end_step(job_id, _kind(error), str(error))
    state = end_step(job_id, "", "")
    for destination in destinations if state == JobState.DELIVERING else ():  # it may have been cancelled meanwhile
        _queue_delivery(f"{DBOS.workflow_id}:{destination}", job_id, destination, FIRST_TURN)
    return state


def _queue_delivery(workflow_id: str, job_id: str, destination: str, turn: int, wait: float | None = None) -> None:
    """Queue one attempt for its destination, seconds from now where `wait` is given."""
    options = SetEnqueueOptions(queue_partition_key=destination, delay_seconds=wait)
    with SetWorkflowID(workflow_id), options:
        DBOS.enqueue_workflow(DESTINATION_QUEUE, deliver_results, job_id, destination, turn)


@DBOS.workflow(name=DELIVERY_WORKFLOW, max_recovery_attempts=RECOVERY_ATTEMPTS)
def deliver_results(job_id: str, destination: str, turn: int) -> str:
    """One attempt at one destination; the next is another workflow, later: nothing waits in a thread.

    So a destination that is down holds up no other, and a job that it refuses holds up no other job.
    """
    with about_job(job_id):
        wait = attempt_step(job_id, destination, turn)
        if wait is None:
            return finish_step(job_id)
        first = str(DBOS.workflow_id).partition("#")[0]
        _queue_delivery(f"{first}#{turn + 1}", job_id, destination, turn + 1, wait)
        return "waiting"


def _kind(error: Exception) -> str:
    """Name of the error that ended a job; one that the engine recorded before a restart comes back by name only."""
    name = error.name if isinstance(error, PortableWorkflowError) else type(error).__name__
    return Retryable.__name__ if name == dbos_error.DBOSMaxStepRetriesExceeded.__name__ else str(name)


def _retry(error: BaseException) -> bool:
    return isinstance(error, Retryable)


def _durable(work: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """A step of the engine, tried again where its error may pass; any other error ends this job and no more."""

    @functools.wraps(work)
    def guarded(job_id: str) -> list[str]:
        while True:
            try:
                return patient(work)(job_id)
            except Exception as error:  # noqa: BLE001 - it must end this job, and not leave it running for ever
                if not is_disk_full(error) and not isinstance(error, DiskFull):
                    raise _foreseen(error, job_id, work.__name__) from None
            _wait_for_room(job_id)

    step: Callable[[str], list[str]] = DBOS.step(
        name=work.__name__,
        retries_allowed=True,
        max_attempts=STEP_ATTEMPTS,
        interval_seconds=0.5,
        should_retry=_retry,
    )(guarded)
    return step


def _foreseen(error: Exception, job_id: str, step: str) -> Exception:
    """The error itself where it says what to do, else a permanent one whose reason is in the job's row."""
    if isinstance(error, DaemonError) or may_pass(error):
        return error
    log.error("job %s: step %s failed unexpectedly", job_id, step, exc_info=error)
    why = f"step {step}: unexpected {type(error).__name__}"
    patient(context().store.update)(job_id, reason=f"{why}: {error} (see the log of the service)")
    return Permanent(f"{why}: why stands in the job's record")


def _wait_for_room(job_id: str) -> None:
    """Until there is more room on the disk than now, or long enough to try in any case.

    Raises:
        Cancelled: the job was, meanwhile.
    """
    store, folder = context().store, context().settings.data.root
    there = free_bytes(folder)
    log.warning("job %s waits for room on the disk: %d bytes are free", job_id, there)
    patient(store.update)(job_id, progress="waits for room on the disk")
    deadline = time.monotonic() + LONGEST_WITHOUT_ROOM
    while free_bytes(folder) < there + ROOM_BYTES and time.monotonic() < deadline:
        time.sleep(ROOM_PAUSE)
        if _is_cancelled(job_id):
            raise Cancelled("cancelled by request")


def _wait_while_paused(job_id: str) -> None:
    """Until nobody holds the queue back; a sign of life now and then says that this is no standstill.

    Raises:
        Cancelled: the job was, meanwhile.
    """
    store, told = context().store, 0.0
    while (pause := patient(store.paused)()) is not None:
        if _is_cancelled(job_id):
            raise Cancelled("cancelled by request")
        if time.monotonic() - told > PAUSE_SIGN_SECONDS:
            told = time.monotonic()
            patient(store.update)(job_id, progress=f"the queue is paused by {pause.by}")
        time.sleep(PAUSE_SECONDS)


def _is_cancelled(job_id: str) -> bool:
    try:
        job = context().store.get(job_id)
    except (sa.exc.DBAPIError, sa.exc.TimeoutError):
        return False  # asked again soon
    return job is None or job.state in STOPPED_STATES


def select(job_id: str) -> list[str]:
    """Which series is the FLAIR; verdicts on all of them are kept.

    Returns:
        Jobs of other series of the study, to be queued.
    """
    _wait_while_paused(job_id)
    try:
        _run("select", job_id)
    finally:
        folder = _folder(job_id)
        if folder.selection.exists():
            keep_verdicts(context().store, job_id, folder)
            note_study(context().store, job_id, folder)
    report_all = context().settings.selection.report == "all"
    return follow_choice(context().store, context().files, job_id, report_all=report_all)


def convert(job_id: str) -> list[str]:
    """DICOM to RAS NIfTI."""
    _run("convert", job_id)
    return []


def report(job_id: str) -> list[str]:
    """The model writes."""
    earlier.look_up(context().store.engine, context().settings, context().files, job_id, context().elsewhere)
    _run("report", job_id)
    written = read_report(_folder(job_id))
    patient(context().store.update)(job_id, result=findings_line(written.findings))
    earlier.note(context().store.engine, _folder(job_id), job_id, written)
    patient(count_report)(context().store.engine, job_id, _folder(job_id))
    return []


def explain(job_id: str) -> list[str]:
    """The saliency map."""
    if context().settings.explain.enabled:
        _run("explain", job_id)
    return []


def encode(job_id: str) -> list[str]:
    """The result pack, under the patient's corrected identity where that was corrected meanwhile and not taken back.

    Raises:
        Permanent: it was, and the results are to wait until a person starts the job again; or results under another
            identity were sent already.
    """
    settings, store, folder = context().settings, context().store, _folder(job_id)
    correction = find_correction(store.engine, settings, folder)
    job = store.get(job_id)
    if correction is not None and job is not None:
        asked_for = job.runs > 1 or Arrival.read(folder.arrival).anew
        if settings.patient.corrected == "wait" and not asked_for:
            why = (
                f"the results wait: the patient's identity ({correction.named}) was corrected after the images came; "
                f"`braingemma jobs retry {job_id}` lets them go out under the corrected one"
            )
            store.update(job_id, reason=why)
            raise Permanent(why)
    _settle_identity(job_id, folder, correction)
    _run("encode", job_id)
    return []


def _settle_identity(job_id: str, folder: JobFolder, correction: Correction | None) -> None:
    """Let `identity.json` say whose the results are; those of an earlier run that are another one's make room.

    Raises:
        Permanent: they were sent.
    """
    settings, store = context().settings, context().store
    used = Correction.read_if_there(folder.identity)
    if correction != used and (folder.dicom / MANIFEST).exists():
        if any(delivery.attempts for delivery in store.deliveries(job_id)):
            why = f"results were sent under another identity; `braingemma jobs retry --anew {job_id}` replaces them"
            store.update(job_id, reason=why)
            raise Permanent(why)
        store.drop_deliveries(job_id)
        shutil.rmtree(folder.dicom)
    if correction is not None:
        correction.write(folder.identity)
        note_study(store, job_id, folder)
        earlier.forget(store.engine, job_id)
    elif used is not None:
        Correction(values={}, changed=()).write(folder.identity)  # until all of this is done
        written = read_report(folder)
        write_report(folder, written, named=not settings.results.deidentify)
        note_study(store, job_id, folder)
        earlier.note(store.engine, folder, job_id, written)
        folder.identity.unlink()


DURABLE_STEPS = {work.__name__: _durable(work) for work in (select, convert, report, explain, encode)}
"""The steps of `STEPS`, each kept by the engine; they return jobs to be queued."""


def plan(job_id: str) -> list[str]:
    """Write down what goes where, before anything is sent.

    Returns:
        Names of the destinations.
    """
    return plan_deliveries(context().store, job_id, _folder(job_id), context().settings.destinations)


plan_step = _durable(plan)


@DBOS.step(name="end")
@patient
def end_step(job_id: str, error: str, text: str) -> str:
    """Write down how the job ended, or that its results are on their way, unless it was cancelled or set aside before.

    Args:
        job_id: The job.
        error: Name of the error that ended it; empty where every step was done.
        text: Of the error; why stands in the job's row, and here only in the records of versions before that.

    Returns:
        The job's state.
    """
    store = context().store
    job = store.get(job_id)
    reason = (job.reason if job is not None else "") or text
    more: dict[str, Any] = {}
    if error == "":
        reason = ""
        waiting = bool(store.deliveries(job_id))
        state = JobState.DELIVERING if waiting else JobState.DONE
    elif error == Rejected.__name__:
        state = JobState.SET_ASIDE
    elif error == Retryable.__name__:
        state, more = JobState.SET_ASIDE, {"deaths": STEP_ATTEMPTS}
        reason = f"given up after {STEP_ATTEMPTS} attempts: {reason}; `braingemma jobs retry {job_id}` tries it again"
    else:
        state = JobState.FAILED
    of = () if error == Cancelled.__name__ else AT_WORK
    if not store.move(job_id, state, of=of, reason=reason, progress="", **more):
        store.update(job_id, progress="")
        job = store.get(job_id)
        state = JobState.CANCELLED if job is None else job.state
    if state is not JobState.DELIVERING:
        metrics.JOBS_ENDED.labels(str(state), error).inc()
    log.info("job %s: %s%s", job_id, state, f" ({error}; `braingemma jobs show` says why)" if error else "")
    return str(state)


@DBOS.step(name="attempt")
@patient
def attempt_step(job_id: str, destination: str, attempt: int) -> float | None:
    """One attempt at one destination; returns the wait before the next in seconds, or None when it is over.

    How often it was tried is on record with each object; `attempt` names the step in the engine's record only.
    """
    del attempt
    there = next((d for d in context().settings.destinations if d.name == destination), None)
    store = context().store
    job = store.get(job_id)
    if job is None or job.state in (*STOPPED_STATES, *AT_WORK):  # or started again: its results are being made
        return None
    if there is None:
        give_up_all(store, job_id, destination, f"destination {destination!r} is no longer in the configuration")
        return None
    if _holds_back(job, destination):
        return None
    settings = context().settings
    return deliver_to(
        store, job_id, _folder(job_id), there, settings.listener.ae_title, allow_demo=settings.model.allow_demo
    )


def _holds_back(job: Job, destination: str) -> bool:
    """Give up what still waits where the patient was corrected, or that was taken back, since the results were made.

    With `[patient] corrected = "carry"` another job goes out in its place, under the corrected identity.
    """
    settings, store, folder = context().settings, context().store, _folder(job.job_id)
    correction = find_correction(store.engine, settings, folder)
    used = Correction.read_if_there(folder.identity)
    told = correction or used
    if told is None or correction == used:
        return False
    reason = f"the patient's identity ({told.named}) was corrected after the results were made"
    of = (JobState.DELIVERING, JobState.FAILED)
    if not store.move(job.job_id, JobState.FAILED, of=of, reason=reason, step=DELIVER):
        return True  # cancelled, or started again
    if settings.patient.corrected == "carry":
        anew = actions.report_anew(store, store.engine, context().files, job.job_id)
        reason = f"{reason}; job {anew} carries the corrected one"
    else:
        reason = f"{reason}; `braingemma jobs retry --anew {job.job_id}` reports it under the corrected one"
    store.give_up_delivery(job.job_id, destination, reason)
    store.move(job.job_id, JobState.FAILED, of=[JobState.FAILED], reason=f"{destination}: {reason}")
    log.warning("job %s: held back from %s: %s", job.job_id, destination, reason)
    return True


@DBOS.step(name="finish")
@patient
def finish_step(job_id: str) -> str:
    """The job is done when nothing of it waits any more, and failed when something is in the dead letter."""
    store = context().store
    job = store.get(job_id)
    deliveries = store.deliveries(job_id)
    if job is None or job.state in FINAL_STATES:
        return "waiting"
    dead = sorted({f"{d.destination}: {d.reason}" for d in deliveries if d.state is DeliveryState.DEAD})
    if is_open(deliveries):  # other destinations are still served, but somebody should know
        if dead:
            store.update(job_id, reason="; ".join(dead))
        return "waiting"
    state = JobState.FAILED if dead else JobState.DONE
    if not store.move(job_id, state, of=[JobState.DELIVERING], settled=True, reason="; ".join(dead), step=DELIVER):
        return "waiting"
    metrics.JOBS_ENDED.labels(str(state), "DeadLetter" if dead else "").inc()
    log.info("job %s: %s", job_id, state)
    return str(state)


def _folder(job_id: str) -> JobFolder:
    return context().files.fetch(job_id)


def _run(step: str, job_id: str) -> None:
    """Run one step in the child process, with state, progress and time kept in the job's row.

    So is the reason of an error: it may name series, and the engine keeps what is raised here in its own tables. While
    the child works, a database that does not answer costs lines of progress only.
    """
    store = context().store
    update = patient(store.update)

    def note(done: int, total: int, text: str) -> None:
        try:
            store.update(job_id, progress=f"{text} {done}/{total}")
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            log.warning("progress not noted: %s", cause(error))

    if not patient(store.move)(job_id, JobState.RUNNING, of=AT_WORK, step=step, progress="", reason=""):
        raise Cancelled("cancelled by request")
    started = time.monotonic()
    folder = patient(_folder)(job_id)
    for replaced in patient(store.superseded_by)(job_id) if step == "encode" else ():
        patient(context().files.fetch)(replaced)  # its report is named as predecessor, its images are rejected
    try:
        context().steps.run(step, Path(folder.root), progress=note, cancelled=lambda: _is_cancelled(job_id))
    except DaemonError as error:
        metrics.STEP_FAILURES.labels(step, type(error).__name__).inc()
        update(job_id, reason=str(error))
        raise type(error)(f"step {step}: why stands in the job's record") from None
    finally:
        metrics.MODEL_GPU_BYTES.set(context().steps.gpu_bytes)
        patient(context().files.keep)(job_id, step)  # what a refusal leaves, too: the verdict on each series
    seconds = time.monotonic() - started
    metrics.STEP_SECONDS.labels(step).observe(seconds)
    patient(store.add_timing)(job_id, step, seconds)
    log.info("job %s: %s took %.2f s", job_id, step, seconds)
