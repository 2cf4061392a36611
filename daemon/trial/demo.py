"""`braingemma demo`: the main job end to end on loopback, with a phantom study and a trial PACS."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydicom.uid import EnhancedSRStorage, MRImageStorage, SecondaryCaptureImageStorage

from daemon.database.tables import JobState
from daemon.errors import DaemonError, Permanent
from daemon.jobs.folder import JobFolder
from daemon.jobs.store import Job
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import LOOPBACK, EmbeddedPacs, Orthanc, TrialPacs, free_port
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom
from training.progress import Say

DEMO_SEED = 30107
"""Of the phantom: a lesion on the left with mass effect. Training draws from 200000 up."""

CALLING_AET = "DEMOSCU"
DEADLINE_SECONDS = 600


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind."""

    folder: JobFolder
    truth: dict[str, Any]
    received: Counter[str]
    """Kind of object to number of instances that the PACS holds beside the images sent."""
    pacs: str


def demo(out: Path, *, pacs: Literal["embedded", "orthanc"] = "embedded", keep: bool = False, say: Say) -> DemoResult:
    """Run it.

    Args:
        out: Folder for the results; an earlier demo's are replaced.
        pacs: Which trial PACS.
        keep: Keep the working data too (`work/`: the study sent, the PACS's storage, the daemon's data and log).
        say: Told in one line what is being done.

    Raises:
        DaemonError: a part did not do its work; the text says which.
    """
    out.mkdir(parents=True, exist_ok=True)
    if keep:
        work = out / "work"
        shutil.rmtree(work, ignore_errors=True)
        return _run(work, out, pacs, say)
    with tempfile.TemporaryDirectory(prefix="braingemma-demo-") as temporary:
        return _run(Path(temporary), out, pacs, say)


def _run(work: Path, out: Path, pacs: Literal["embedded", "orthanc"], say: Say) -> DemoResult:
    say("making a phantom: a synthetic FLAIR brain with a lesion")
    phantom = make_phantom(DEMO_SEED, with_lesion=True)
    files = write_series(phantom.volume, work / "study", plane="axial")
    say(f"starting the {pacs} PACS on loopback")
    daemon_port = free_port()
    server = _start_pacs(work / "pacs", pacs, daemon_port)
    service = TrialService(work / "daemon", _configuration(server, daemon_port))
    try:
        say("starting the daemon")
        service.start()
        say(f"sending {len(files)} instances by C-STORE to {service.peer}")
        service.send(files, CALLING_AET)
        job = service.wait_for_jobs(1, seconds=DEADLINE_SECONDS, on_poll=lambda jobs: _tell(jobs, say))[0]
        if job.state is not JobState.DONE:
            raise Permanent(f"the job ended as {job.state}: {job.reason}")
        say("asking the PACS what it holds")
        received = _check(server, job, len(files))
        _keep_results(service.folder_of(job).root, out)
    finally:
        service.stop()
        server.stop()
    return DemoResult(JobFolder(out), phantom.truth, received, pacs)


def _start_pacs(folder: Path, kind: Literal["embedded", "orthanc"], daemon_port: int) -> TrialPacs:
    if kind == "embedded":
        return EmbeddedPacs(folder)
    return Orthanc(folder, modalities={"braingemma": ("BRAINGEMMA", LOOPBACK, daemon_port)})


def _configuration(server: TrialPacs, daemon_port: int) -> dict[str, Any]:
    return {
        "listener": {"ae_title": "BRAINGEMMA", "host": LOOPBACK, "port": daemon_port},
        "assembly": {"quiet_seconds": 2},
        "destinations": [{"name": "pacs", "ae_title": server.ae_title, "host": LOOPBACK, "port": server.port}],
    }


def _tell(jobs: list[Job], say: Say) -> None:
    if not jobs:
        say("waiting for the study to be quiet")
    else:
        say(
            " ".join(
                part for part in (f"job {jobs[0].job_id}:", jobs[0].step or jobs[0].state, jobs[0].progress) if part
            )
        )


def _check(server: TrialPacs, job: Job, slices: int) -> Counter[str]:
    """The PACS must hold one SR and one overlay picture for each slice, in the study that was sent."""
    held = server.instances()
    results = [d for d in held if d.StudyInstanceUID == job.study_uid and d.SOPClassUID != MRImageStorage]
    strangers = sum(d.StudyInstanceUID != job.study_uid for d in held)
    count = Counter(str(d.SOPClassUID.name).removesuffix(" Storage") for d in results)
    overlays = [d for d in results if d.SOPClassUID == SecondaryCaptureImageStorage]
    reports = sum(d.SOPClassUID == EnhancedSRStorage for d in results)
    series = len({d.SeriesInstanceUID for d in overlays})
    if strangers or reports != 1 or len(overlays) != slices or series != 1:
        raise DaemonError(
            f"expected 1 SR and {slices} SC in one series at the PACS, got {dict(count)}, the SC in {series} series, "
            f"and {strangers} instances of other studies"
        )
    return count


def _keep_results(job_folder: Path, out: Path) -> None:
    for source in sorted(job_folder.iterdir()):
        target = out / source.name
        if source.name == "input":
            continue
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
