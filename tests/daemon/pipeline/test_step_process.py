"""The child that can die alone. The child itself is real; only the steps that it runs are replaced by small ones."""

import os
import signal
import sys
from pathlib import Path

import pytest
from steps_support import replace_steps

from daemon.config.sections import Engine, Settings
from daemon.errors import Permanent, Rejected
from daemon.pipeline.step_process import Cancelled, ChildDied, StepProcess, Stuck

STEPS = """
import os, signal, time
from daemon.errors import Rejected

class Steps:
    def __init__(self, settings, progress):
        self.progress = progress

    def run(self, step, folder):
        print("noise on standard output", flush=True)
        if step == "work":
            for done in range(3):
                self.progress(done, 3, "working")
            (folder.root / "pid").write_text(str(os.getpid()))
        elif step == "reject":
            raise Rejected("expected a brain, got a knee")
        elif step == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif step == "exit":
            os._exit(7)
        elif step == "bug":
            raise ZeroDivisionError("division by zero")
        elif step == "hang":
            self.progress(0, 1, "hanging")
            time.sleep(600)
        elif step == "slow":
            for done in range(25):
                time.sleep(0.2)
                self.progress(done, 25, "slowly")
        elif step == "chatter":
            for done in range(1000):
                self.progress(done, 1000, "working")
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace_steps(tmp_path / "overlay", STEPS, monkeypatch)
    process = StepProcess(Settings(engine=Engine(step_seconds=60)))
    yield process
    process.stop()


def test_a_step_runs_with_progress_and_the_child_is_kept(steps: StepProcess, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    steps.run("work", tmp_path, progress=lambda *p: seen.append(p))
    first = (tmp_path / "pid").read_text()
    steps.run("work", tmp_path)
    assert seen == [(0, 3, "working"), (1, 3, "working"), (2, 3, "working")]
    assert (tmp_path / "pid").read_text() == first != str(sys.executable)


def test_errors_keep_their_kind(steps: StepProcess, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="expected a brain, got a knee"):
        steps.run("reject", tmp_path)
    with pytest.raises(Permanent, match="ZeroDivisionError"):
        steps.run("bug", tmp_path)
    steps.run("work", tmp_path)


@pytest.mark.parametrize(("step", "how"), [("segfault", "SIGSEGV"), ("exit", "exit code 7")])
def test_a_dead_child_is_named_and_the_next_step_runs(steps: StepProcess, tmp_path: Path, step: str, how: str) -> None:
    with pytest.raises(ChildDied, match=how):
        steps.run(step, tmp_path)
    steps.run("work", tmp_path)


def test_a_running_step_can_be_cancelled(steps: StepProcess, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        steps.run("hang", tmp_path, cancelled=lambda: True)
    steps.run("work", tmp_path)


def test_a_parent_that_fails_leaves_no_answers_for_the_next_step(steps: StepProcess, tmp_path: Path) -> None:
    """The database was away when progress was to be noted, and the child's last answers stood in the pipe."""

    def fail(*_: object) -> None:
        raise OSError("database is locked")

    with pytest.raises(OSError, match="locked"):
        steps.run("chatter", tmp_path, progress=fail)
    seen: list[int] = []
    steps.run("work", tmp_path, progress=lambda _done, total, _text: seen.append(total))
    assert seen == [3, 3, 3]
    with pytest.raises(Rejected, match="a knee"):
        steps.run("reject", tmp_path)


def test_many_answers_at_once_are_told_apart(steps: StepProcess, tmp_path: Path) -> None:
    seen: list[int] = []
    steps.run("chatter", tmp_path, progress=lambda done, *_: seen.append(done))
    assert seen == list(range(1000))


def test_a_child_that_stands_still_is_ended_and_one_that_is_slow_is_not(steps: StepProcess, tmp_path: Path) -> None:
    steps.run("work", tmp_path)  # the child is there: what follows measures steps, not its start
    limited = Settings(engine=Engine(step_seconds=3))
    steps._settings = limited
    steps.run("slow", tmp_path)

    def stop(*_: object) -> None:
        assert steps._child is not None
        os.kill(steps._child.pid, signal.SIGSTOP)

    with pytest.raises(Stuck, match="no progress for 3 s"):
        steps.run("hang", tmp_path, progress=stop)
    steps._settings = Settings()
    steps.run("work", tmp_path)


def test_an_answer_to_another_request_is_no_answer(steps: StepProcess, tmp_path: Path) -> None:
    steps.run("work", tmp_path)
    steps._unread = b'{"id": 1, "done": "work", "gpu_bytes": 0}\n'
    with pytest.raises(ChildDied, match="expected an answer to request 2, got 1"):
        steps.run("work", tmp_path)
    steps.run("work", tmp_path)
