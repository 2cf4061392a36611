"""The child that can die alone. The child itself is real; only the steps that it runs are replaced by small ones."""

import sys
from pathlib import Path

import pytest

from daemon.config.sections import Settings
from daemon.errors import Permanent, Rejected
from daemon.pipeline.step_process import Cancelled, ChildDied, StepProcess

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
            time.sleep(600)
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # `daemon.pipeline.steps.runner` is the module above, everything else is the real daemon.
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "name = 'daemon.pipeline.steps.runner'\n"
        f"spec = importlib.util.spec_from_file_location(name, {str(overlay / 'steps.py')!r})\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return spec if name == spec.name else None\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    (overlay / "steps.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(overlay))
    process = StepProcess(Settings())
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
