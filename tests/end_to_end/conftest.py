"""A phantom study, a PACS that counts, and the daemon as a real process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_support import MARKERS, sections
from postgres_support import Postgres

from daemon.trial.daemon import TrialService
from daemon.trial.pacs import EmbeddedPacs
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one small FLAIR series of a phantom."""
    phantom = make_phantom(900_001, spacing=(2.5, 2.5, 5.0))
    return write_series(phantom.volume, tmp_path_factory.mktemp("study"), overrides=MARKERS)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[EmbeddedPacs]:
    server = EmbeddedPacs(tmp_path / "pacs")
    yield server
    server.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture
def service(tmp_path: Path, pacs: EmbeddedPacs) -> Iterator[TrialService]:
    """The daemon with the embedded PACS as its destination; not yet started."""
    trial = TrialService(tmp_path / "daemon", sections(pacs.port))
    yield trial
    trial.stop()
    shutil.rmtree(trial.data, ignore_errors=True)
