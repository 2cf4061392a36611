"""The wish for short time slices: taken by this kernel for every thread of a receiver, and never in the way."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ingest_support import associate, listener_settings

from daemon.receive import scheduling
from daemon.receive.processes import start_receivers


def slices_of(pid: int) -> set[int]:
    """The time slices of a process's threads, ns, as the kernel shows them."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/sched")]
    return {int(match[1]) for text in texts if (match := re.search(r"^se\.slice\s*:\s*(\d+)", text, re.MULTILINE))}


def test_every_thread_of_a_receiver_has_them(tmp_path):
    if tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 12) or not slices_of(os.getpid()):
        pytest.skip("this kernel has or shows no time slices of single threads")
    receivers = start_receivers(listener_settings(tmp_path))
    try:
        with associate(receivers.address):
            assert slices_of(receivers.pids[0]) == {scheduling.SLICE_NS}
        assert scheduling.SLICE_NS not in slices_of(os.getpid()), "the pipeline keeps the usual ones"
    finally:
        receivers.stop()


def test_another_policy_or_machine_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "unheard-of")
    assert not scheduling.ask_for_short_slices()
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_BATCH)
    assert not scheduling.ask_for_short_slices()


def test_niceness_is_kept():
    code = (
        "import os; from daemon.receive.scheduling import *; "
        "before = os.nice(3); ask_for_short_slices(); print(os.nice(0) - before)"
    )
    root = Path(scheduling.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["0"]
