"""`braingemma bench start`: from the command to the first answer, and what each process of the service loads before.

The service is the real one with the demo weights on loopback, with a new data folder and with the same again. Times are
by the clock; what is loaded is measured in processor time, which a busy machine changes less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from daemon.errors import DaemonError
from daemon.trial.daemon import TrialService
from training.progress import Say

PROCESSES = {
    "help": "daemon.cli.app",
    "service": "daemon.service.serve",
    "receiver": "daemon.receive.processes",
    "steps": "daemon.pipeline.steps.runner",
}
"""What each loads at its start; the process of the steps loads torch, at the first study."""
_LOAD = """
import time
from daemon.loading import loading
with loading():
    import {module}
print(time.process_time())
"""


def bench_start(*, rounds: int = 3, say: Say) -> dict[str, Any]:
    """Measure it.

    Args:
        rounds: Starts of each.
        say: Told in one line what is being done.

    Returns:
        `help_seconds`; `ready_seconds` until the service listens, by `new folder` and `same folder`; `load_cpu_seconds`
        by process, the interpreter included; `cores`.

    Raises:
        DaemonError: a process did not start.
    """
    helped: list[float] = []
    loaded: dict[str, list[float]] = {name: [] for name in PROCESSES}
    ready: dict[str, list[float]] = {"new folder": [], "same folder": []}
    for number in range(1, rounds + 1):
        say(f"round {number}/{rounds}")
        began = time.perf_counter()
        _run("-m", "daemon.cli", "--help")
        helped.append(time.perf_counter() - began)
        for name, module in PROCESSES.items():
            loaded[name].append(float(_run("-c", _LOAD.format(module=module))))
        with tempfile.TemporaryDirectory(prefix="braingemma-start-") as folder:
            service = TrialService(Path(folder), {"listener": {"port": 0}})
            for which in ready:
                ready[which].append(_until_ready(service))
    return {
        "help_seconds": statistics.median(helped),
        "ready_seconds": {which: statistics.median(seconds) for which, seconds in ready.items()},
        "load_cpu_seconds": {name: statistics.median(seconds) for name, seconds in loaded.items()},
        "cores": os.cpu_count(),
    }


def _until_ready(service: TrialService) -> float:
    began = time.perf_counter()
    try:
        service.start()
        return time.perf_counter() - began
    finally:
        service.stop()


def _run(*arguments: str) -> str:
    """What Python prints."""
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        said = run.stderr.strip().splitlines()[-1:] or ["no word"]
        raise DaemonError(f"python {' '.join(arguments)} ended with {run.returncode}: {said[0]}")
    return run.stdout
