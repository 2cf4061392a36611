"""What the engine keeps of a job that fails, and what becomes of one that is killed before its end is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.database.tables import JobState
from daemon.jobs.store import JobStore

UID = "1.2.826.0.1.3680043.8.498.77"

PROGRAM = """
import os, sys
from pathlib import Path

from daemon import errors

from daemon.pipeline import workflow
from daemon.jobs.files import LocalFiles
from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.database.tables import FINAL_STATES
from daemon.jobs.store import JobStore
from daemon.engine.identifiers import EXECUTOR_ID
from daemon.service.wiring import launch_engine

folder, error, dies = Path(sys.argv[1]), getattr(errors, sys.argv[2]), sys.argv[3] == "dies"

class Steps:
    gpu_bytes = 0
    def run(self, step, folder, **_):
        raise error("series {uid} of Doe^Jane")

class Store(JobStore):
    def move(self, job_id, state, **values):
        if dies and state in FINAL_STATES:
            os._exit(9)
        return super().move(job_id, state, **values)

settings = Settings.model_validate({{"storage": {{"folder": folder, "min_free_gb": 0}}}})
engine = open_database(settings)
store = Store(engine)
(folder / "jobs" / "j1").mkdir(parents=True, exist_ok=True)
store.add("j1", study_uid="{uid}", supersedes=None)
launch_engine(engine, workflow.Context(settings, store, Steps(), LocalFiles(folder / "jobs")), EXECUTOR_ID)
workflow.submit("j1")
workflow.DBOS.retrieve_workflow("j1").get_result()
sys.stdout.flush()
os._exit(0)
"""


def run(folder: Path, error: str, *, dies: bool) -> int:
    """Report a study whose first step fails; where it `dies`, the process ends before the job's end is written."""
    program = PROGRAM.format(uid=UID)
    arguments = [sys.executable, "-c", program, str(folder), error, "dies" if dies else "lives"]
    return subprocess.run(arguments, capture_output=True, check=False, timeout=120).returncode


def held_by_the_engine(database: sa.Engine) -> str:
    """Everything in the engine's own tables."""
    ours = {"jobs", "series_verdicts", "received_instances", "received_arrivals"}
    with database.connect() as connection:
        tables = [name for name in sa.inspect(connection).get_table_names() if name not in ours]
        rows = [row for name in tables for row in connection.execute(sa.text(f"SELECT * FROM {name}"))]
    return repr(rows)


@pytest.mark.parametrize(
    ("error", "state", "prefix", "more"),
    [
        ("Rejected", JobState.SET_ASIDE, "", ""),
        ("Permanent", JobState.FAILED, "", ""),
        ("Retryable", JobState.SET_ASIDE, "given up after 3 attempts: ", "; `braingemma jobs retry j1` tries it again"),
    ],
)
def test_a_job_killed_before_its_end_was_written_ends_the_same_and_payloads_name_nobody(
    tmp_path: Path, error: str, state: JobState, prefix: str, more: str
) -> None:
    """After the restart the engine gives a recorded error back by name, as a class of its own."""
    assert run(tmp_path, error, dies=True) == 9
    assert run(tmp_path, error, dies=False) == 0
    database = open_database(Settings.model_validate({"storage": {"folder": tmp_path}}))
    job = JobStore(database).get("j1")
    assert job is not None
    assert (job.state, job.reason) == (state, f"{prefix}series {UID} of Doe^Jane{more}")
    assert (job.deaths > 0) is bool(more), "kept until a person decides"
    held = held_by_the_engine(database)
    assert "j1" in held
    assert UID not in held
    assert "Doe" not in held
    database.dispose()
