"""`braingemma bench pipeline`: where the time of one study goes, from the last acknowledged instance to stored results.

The real daemon with the demo weights as a process, a trial PACS as its destination, a phantom study of the shape that
BraTS volumes have. The daemon's own overhead is everything but the quiet time that it is told to wait, the model
(`report`) and the explainer (`explain`). The first study loads the model and is not counted.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from braingemma.explain.grounding import lesion_map
from braingemma.model.braingemma3d import BrainGemma3D
from braingemma.reading.second_look import look_twice
from braingemma.volume.brain import find_brain
from braingemma.volume.preprocess import prepare_image
from daemon.database.tables import JobState
from daemon.errors import DaemonError
from daemon.jobs.records import Arrival
from daemon.jobs.store import Job
from daemon.trial.daemon import TrialService
from daemon.trial.pacs import LOOPBACK, EmbeddedPacs
from dicom_io.pack.encode import MANIFEST
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom
from training.progress import Say

SHAPE = (240, 240, 155)
"""Voxels: the grid of BraTS."""
SEED = 30107
"""Of the first phantom."""
BRIGHTEST = 1500
"""Stored value of the brightest voxel, as scanners have it."""
QUIET_SECONDS = 2.0
ASSOCIATIONS = 2
"""Over which results are delivered."""
NOT_OURS = ("report", "explain")
"""Steps of the model and the explainer."""
DEADLINE_SECONDS = 1800.0


@dataclass(frozen=True)
class Passage:
    """One study's way through the daemon; seconds by part, in order."""

    parts: dict[str, float]

    @property
    def own(self) -> float:
        """The daemon's overhead, seconds."""
        return sum(seconds for name, seconds in self.parts.items() if name not in NOT_OURS)


def bench_pipeline(folder: Path | None = None, *, slices: int = SHAPE[2], rounds: int = 3, say: Say) -> dict[str, Any]:
    """Measure it.

    Args:
        folder: Where the daemon keeps its data: on the disk that counts; None: a temporary folder.
        slices: Slices of the study.
        rounds: Studies that are counted; medians are printed.
        say: Told in one line what is being done.

    Returns:
        `overhead_seconds` (median), `parts` (median seconds of each), `report_seconds` (what brain extraction and the
        second look take of the report), `rounds`, `slices`, `cores`.

    Raises:
        DaemonError: a study was not reported.
    """
    with tempfile.TemporaryDirectory(prefix="braingemma-bench-", dir=folder) as temporary:
        return _measure(Path(temporary), slices, rounds, say)


def _measure(work: Path, slices: int, rounds: int, say: Say) -> dict[str, Any]:
    pacs = EmbeddedPacs(work / "pacs")
    service = TrialService(
        work / "daemon",
        {
            "listener": {"port": 0},
            "assembly": {"quiet_seconds": QUIET_SECONDS},
            "explain": {"samples": 16},
            "destinations": [
                {
                    "name": "pacs",
                    "ae_title": pacs.ae_title,
                    "host": LOOPBACK,
                    "port": pacs.port,
                    "associations": ASSOCIATIONS,
                }
            ],
        },
    )
    passages: list[Passage] = []
    try:
        service.start()
        for number in range(rounds + 1):
            say(f"study {number} of {rounds}" if number else "a study that loads the model, not counted")
            volume = brats_like_volume(slices, seed=SEED + number)  # the same instances again would start nothing
            service.send(write_series(volume, work / f"study{number}"))
            job = service.wait_for_jobs(number + 1, seconds=DEADLINE_SECONDS)[0]
            if job.state is not JobState.DONE:
                raise DaemonError(f"the study was not reported: {job.state}: {job.reason}")
            if number:
                passages.append(passage_of(job, service))
    finally:
        service.stop()
        pacs.stop()
    say("parts of the report")
    return {**_summary(passages, slices), "report_seconds": report_parts(brats_like_volume(slices))}


def report_parts(volume: nibabel.Nifti1Image) -> dict[str, float]:
    """Seconds of brain extraction, of the lesion map, and of map and second look in one batch."""
    model = BrainGemma3D.from_pretrained("demo")
    voxels, spacing = np.asarray(volume.dataobj, np.float32), volume.header.get_zooms()
    _, extraction = _timed(lambda: find_brain(voxels, spacing))
    prepared = prepare_image(volume, model.config)  # knows the brain by now
    lesion_map(model, prepared)  # plans its kernels
    _, once = _timed(lambda: lesion_map(model, prepared))
    _, twice = _timed(lambda: look_twice(model, prepared))
    return {"brain extraction": extraction, "lesion map": once, "lesion map and second look": twice}


def _timed(do: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return do(), round(time.perf_counter() - started, 3)


def brats_like_volume(slices: int, *, seed: int = SEED) -> nibabel.Nifti1Image:
    """A phantom on the grid of a BraTS volume."""
    drawn = make_phantom(seed, spacing=1.5, with_lesion=True).volume
    voxels = np.asarray(drawn.dataobj, dtype=np.float32)
    factors = [wanted / there for wanted, there in zip((*SHAPE[:2], slices), voxels.shape, strict=True)]
    finer = np.clip(ndimage.zoom(voxels / voxels.max(), factors, order=1) * BRIGHTEST, 0, None).astype(np.int16)
    return nibabel.Nifti1Image(finer, drawn.affine @ np.diag([*(1 / f for f in factors), 1.0]))


def passage_of(job: Job, service: TrialService) -> Passage:
    """Take a finished job apart by what it and its files noted."""
    folder = service.folder_of(job)
    arrival = Arrival.read(folder.arrival)
    encoded = (folder.dicom / MANIFEST).stat().st_mtime
    delivered = max(d.updated for d in service.store.deliveries(job.job_id))
    steps = dict(job.timings)
    parts = {
        "notice that the study is complete": arrival.completed - arrival.last_received - QUIET_SECONDS,
        "write the job's folder and queue it": job.created - arrival.completed,
        **steps,
        "between the steps": encoded - job.created - sum(steps.values()),
        "deliver": delivered - encoded,
    }
    return Passage(parts)


def _summary(passages: Sequence[Passage], slices: int) -> dict[str, Any]:
    parts = {name: statistics.median(p.parts[name] for p in passages) for name in passages[0].parts}
    return {
        "overhead_seconds": round(statistics.median(p.own for p in passages), 2),
        "parts": {name: round(seconds, 3) for name, seconds in parts.items()},
        "not_counted": list(NOT_OURS),
        "slices": slices,
        "rounds": len(passages),
        "cores": os.cpu_count(),
    }
