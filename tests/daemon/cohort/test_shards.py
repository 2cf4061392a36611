"""Tasks of a Slurm array are processes on one SOURCE and one OUT: each case is taken by one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from daemon.cohort.batch import CASE_FILE

pytestmark = pytest.mark.timeout(900)

CASES = 24
TASK = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from daemon.cohort import batch
from daemon.cohort.cases import find_cases
from daemon.config.sections import Settings

class Steps:  # in place of the model: waits, and writes down who did what
    def __init__(self, settings, progress=None):
        self.context = SimpleNamespace(weights=SimpleNamespace(sha256="0", banner=None))
    def check(self): pass
    def run(self, step, folder):
        if step == "report":
            time.sleep(0.02)
            with open(sys.argv[3], "a") as log:
                log.write(f"{os.getpid()} {folder.root.name}\\n")

batch.Steps = Steps
print("ready", flush=True)
sys.stdin.readline()
settings = Settings.model_validate({"explain": {"enabled": False}})
batch.Batch(find_cases(Path(sys.argv[1])), Path(sys.argv[2]), settings, lambda text: None).run()
"""


@pytest.mark.parametrize("shards", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shards_take_each_case_once(tmp_path: Path, shards: int) -> None:
    for number in range(CASES):
        (tmp_path / f"c{number:02}.nii.gz").touch()
    rows = "".join(f"c{number:02},c{number:02}.nii.gz\n" for number in range(CASES))
    (tmp_path / "list.csv").write_text(f"case,path\n{rows}")
    arguments = [str(tmp_path / "list.csv"), str(tmp_path / "out"), str(tmp_path / "log")]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(shards)
    ]
    for task in tasks:
        assert task.stdout is not None
        assert task.stdout.readline() == "ready\n"
    for task in tasks:
        assert task.stdin is not None
        task.stdin.write("go\n")
        task.stdin.flush()
    for task in tasks:
        task.communicate()
    assert [task.returncode for task in tasks] == [0] * shards
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter(case for _, case in done) == {f"c{number:02}": 1 for number in range(CASES)}
    assert len({task for task, _ in done}) > 1
    records = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cases").glob(f"*/{CASE_FILE}")]
    assert {record["status"] for record in records} == {"reported"}
    assert len(records) == CASES
