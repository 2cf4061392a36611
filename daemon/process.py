"""`braingemma process`: the steps of one study without the daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from daemon.config import Settings
from daemon.errors import Rejected
from daemon.folders import JobFolder, make_private
from daemon.steps import Progress, Steps

NIFTI_ENDINGS = (".nii", ".nii.gz")


def process(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    progress: Progress | None = None,
    on_step: Callable[[str], None] | None = None,
) -> JobFolder:
    """Report one study.

    Args:
        source: A NIfTI file, or a folder of DICOM files (any nesting, several series).
        out: Folder for the results; made where it is missing. Results of an earlier run in it are replaced.
        settings: The sections `model`, `explain`, `results` and `selection` count.
        progress: Called with (done, total, what) while a step works.
        on_step: Called with each step's name before it starts.

    Raises:
        Rejected: the input cannot be reported; the text says what was expected and what came.
    """
    names = _steps_for(source, settings)
    make_private(out)
    folder = JobFolder(out, source)
    _forget_earlier_run(folder)
    steps = Steps(settings, progress)
    for name in names:
        if on_step is not None:
            on_step(name)
        steps.run(name, folder)
    return folder


def _steps_for(source: Path, settings: Settings) -> tuple[str, ...]:
    explain = ("explain",) if settings.explain.enabled else ()
    if source.is_dir():
        return ("select", "convert", "report", *explain, "encode")
    if not source.exists():
        raise Rejected(f"{source}: expected a NIfTI file or a folder of DICOM files, found nothing there")
    if not source.name.endswith(NIFTI_ENDINGS):
        raise Rejected(
            f"{source}: expected a NIfTI file ({' or '.join(NIFTI_ENDINGS)}) or a folder of DICOM files, got neither"
        )
    return ("import", "report", *explain)


def _forget_earlier_run(folder: JobFolder) -> None:
    """Remove what an earlier run left, so that nothing old stands beside the new; other files stay."""
    for path in (
        folder.selection, folder.source_facts, folder.conversion, folder.volume, folder.geometry,
        folder.report_text, folder.report_json, folder.report_html,
    ):  # fmt: skip
        path.unlink(missing_ok=True)
    for path in (*folder.explain.glob("*"), *folder.dicom.glob("sc/*.dcm"), *folder.dicom.glob("*.*")):
        path.unlink()
    for emptied in (folder.dicom / "sc", folder.dicom):
        if emptied.exists():
            emptied.rmdir()
