"""The engine takes jobs by their turns, not as they come: with steps of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys, threading, time
from pathlib import Path

from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.engine.client import enqueue_report
from daemon.engine.identifiers import EXECUTOR_ID
from daemon.errors import Rejected
from daemon.jobs.files import LocalFiles
from daemon.jobs.store import JobStore, now
from daemon.pipeline import workflow
from daemon.service.wiring import launch_engine

folder, order = Path(sys.argv[1]), []
at_work, all_queued = threading.Event(), threading.Event()

class Steps:
    gpu_bytes = 0
    def run(self, step, folder, **_):
        order.append(folder.name)
        at_work.set()
        all_queued.wait()
        raise Rejected("no brain")

settings = Settings.model_validate({"storage": {"folder": folder, "min_free_gb": 0}})
engine = open_database(settings)
store = JobStore(engine)
launch_engine(engine, workflow.Context(settings, store, Steps(), LocalFiles(folder / "jobs")), EXECUTOR_ID)

def add(job_id, priority, hours):
    (folder / "jobs" / job_id).mkdir(parents=True)
    store.add(job_id, study_uid="1.2", supersedes=None, priority=priority)
    store.update(job_id, created=now() - 3600 * hours)
    if priority == "routine":
        workflow.submit(job_id)
    else:
        enqueue_report(engine, store.get(job_id))

add("first", "off-peak", 0)
at_work.wait()
for job in (("offpeak", "off-peak", 1), ("routine", "routine", 0.5), ("routineold", "routine", 2.5),
            ("urgent", "urgent", 0), ("offpeakold", "off-peak", 27)):
    add(*job)
all_queued.set()
for job_id in ("first", "offpeak", "routine", "routineold", "urgent", "offpeakold"):
    workflow.DBOS.retrieve_workflow(job_id).get_result()
print(" ".join(order))
sys.stdout.flush()
os._exit(0)
"""


def test_what_is_urgent_or_waited_its_time_goes_first(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.stdout.split() == ["first", "offpeakold", "routineold", "urgent", "routine", "offpeak"], done.stderr
