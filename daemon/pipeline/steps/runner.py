"""One step by its name; errors of the two lower packages become the daemon's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from braingemma.checkpoint.load import resolve_device
from braingemma.errors import BrainGemmaError, CheckpointError, ExplainError, GenerationError
from braingemma.model.braingemma3d import BrainGemma3D
from daemon.config.sections import Settings
from daemon.errors import Permanent, Rejected
from daemon.jobs.folder import JobFolder
from daemon.pipeline.steps.context import Context, Progress, say_nothing
from daemon.pipeline.steps.convert import convert, import_nifti
from daemon.pipeline.steps.encode import encode
from daemon.pipeline.steps.explain import explain
from daemon.pipeline.steps.report import look, report
from daemon.pipeline.steps.select import select
from dicom_io.errors import DeidentificationError, DicomIoError, PackError

STEPS: dict[str, Callable[[Context, JobFolder], None]] = {
    "select": select,
    "convert": convert,
    "import": import_nifti,
    "look": look,
    "report": report,
    "explain": explain,
    "encode": encode,
}


class Steps:
    """The steps in one process; the model is loaded once and kept."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.context = Context(settings, _load_model, progress or say_nothing)
        if settings.model.threads:
            torch.set_num_threads(settings.model.threads)

    def check(self) -> None:
        """Look whether weights and device are there, before anything is begun.

        Raises:
            Permanent: they are not.
        """
        try:
            _ = self.context.weights
            resolve_device(self.context.settings.model.device)
        except BrainGemmaError as error:
            raise Permanent(str(error)) from error

    def run(self, step: str, folder: JobFolder) -> None:
        """Run one step by name.

        Raises:
            Rejected: the input is to blame.
            Permanent: the installation is to blame.
        """
        try:
            STEPS[step](self.context, folder)
        except (CheckpointError, GenerationError, ExplainError, PackError, DeidentificationError) as error:
            raise Permanent(f"{step}: {error}") from error
        except (BrainGemmaError, DicomIoError) as error:
            raise Rejected(str(error)) from error


def _load_model(settings: Settings) -> BrainGemma3D:
    """The model that the settings name, ready to be asked."""
    wanted = settings.model
    return BrainGemma3D.from_pretrained(
        wanted.weights, device=wanted.device, quantization=wanted.quantization, head_bits=wanted.head_bits
    ).eval()
