"""`braingemma process`: the steps of one study without the daemon."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.files import make_private
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Selection
from daemon.jobs.steps import NIFTI_STEPS, STEPS, steps_of
from daemon.pipeline.steps.context import Progress
from daemon.pipeline.steps.runner import Steps
from dicom_io.pack.manifest import MANIFEST

FURTHER = "further"
"""Folder of the further series below that of the best."""
UID = re.compile(r"[0-9](\.?[0-9]+)*")
"""Digits, with single dots between them."""
NIFTI_NAME = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
"""How the name of a NIfTI file ends."""


def process(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    study_uid: str | None = None,
    progress: Progress | None = None,
    on_step: Callable[[str], None] | None = None,
) -> JobFolder:
    """Report one study.

    Args:
        source: A NIfTI file, or a folder of DICOM files (any nesting, several series).
        out: Folder for the results; made where it is missing. Results of an earlier run in it are replaced. With
            `[selection] report = "all"`, those of further series lie in `further/<series UID>` below it.
        settings: The sections `model`, `checks`, `explain`, `results` and `selection` count.
        study_uid: The study of the folder to report; needed where it holds several patients or days.
        progress: Called with (done, total, what) while a step works.
        on_step: Called with each step's name before it starts.

    Raises:
        Rejected: the input cannot be reported; the text says what was expected and what came.
        Permanent: the weights or the device are not there; nothing was begun, and an earlier run's results stand.
        OSError: nothing can be written to the folder.
    """
    names = _steps_for(source, settings)
    make_private(out)
    with tempfile.TemporaryFile(dir=out):  # what cannot be written is told before minutes are spent
        pass
    steps = Steps(settings, progress)
    steps.check()
    folder = JobFolder(out, source, study_uid)
    _forget_earlier_run(folder)
    _run(steps, names, folder, on_step)
    if settings.selection.report == "all" and names[0] == STEPS[0]:
        for uid in Selection.read(folder.selection).further:
            _report_further(steps, folder, uid, names[1:], on_step)
    return folder


def _report_further(
    steps: Steps, best: JobFolder, series_uid: str, names: tuple[str, ...], on_step: Callable[[str], None] | None
) -> None:
    """One more series of the same input, in a folder of its own."""
    folder = JobFolder(make_private(best.root / FURTHER / folder_name(series_uid)), best.source, best.study_uid)
    selection = Selection.read(best.selection)
    selection.model_copy(update={"chosen": series_uid, "further": ()}).write(folder.selection)
    _run(steps, names, folder, on_step and (lambda name: on_step(f"{name}, series {series_uid}")))


def _run(steps: Steps, names: tuple[str, ...], folder: JobFolder, on_step: Callable[[str], None] | None) -> None:
    """The steps in order; a volume with its face does not outlive them."""
    try:
        for name in names:
            if on_step is not None:
                on_step(name)
            steps.run(name, folder)
    finally:
        folder.whole_head.unlink(missing_ok=True)


def folder_name(uid: str) -> str:
    """The UID where it is one (PS3.5 9.1), else a name made of it: what a file says must not choose a place on disk."""
    return (
        uid
        if UID.fullmatch(uid) and len(uid) <= 64
        else "no-uid-" + hashlib.sha256(uid.encode("utf-8", "replace")).hexdigest()[:16]
    )


def _steps_for(source: Path, settings: Settings) -> tuple[str, ...]:
    if source.is_dir():
        return steps_of(STEPS, explain=settings.explain.enabled)
    if not source.exists():
        raise Rejected(f"{source}: expected a NIfTI file or a folder of DICOM files, found nothing there")
    if not NIFTI_NAME.search(source.name):
        raise Rejected(f"{source}: expected a NIfTI file (.nii or .nii.gz) or a folder of DICOM files, got neither")
    return steps_of(NIFTI_STEPS, explain=settings.explain.enabled)


def _forget_earlier_run(folder: JobFolder) -> None:
    """Remove what an earlier run left, so that nothing old stands beside the new; other files stay."""
    for path in (
        folder.selection, folder.source_facts, folder.conversion, folder.volume, folder.whole_head, folder.brain_mask,
        folder.geometry, folder.lesion,
        folder.report_text, folder.report_json, folder.report_html,
    ):  # fmt: skip
        path.unlink(missing_ok=True)
    if (folder.root / FURTHER).exists():
        shutil.rmtree(folder.root / FURTHER)
    for path in folder.explain.glob("*"):
        path.unlink()
    if (folder.dicom / MANIFEST).exists():
        shutil.rmtree(folder.dicom)
