"""A child process that runs the steps, so that a segfault or an out-of-memory kill takes only the child with it.

Parent and child speak JSON lines over the child's standard input and a private copy of its standard output:
`{"id", "step", "folder"}` in; `{"id", "progress": [done, total, text]}` any number of times, then
`{"id", "done", "gpu_bytes"}` or `{"id", "error", "text"}` out. The child keeps the loaded model between jobs. It is
ended whenever the parent does not wait for the end of a step: what it would still say belongs to no later request.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from daemon.config.sections import Engine, Review, Settings, Web
from daemon.errors import DaemonError, DiskFull, Permanent, Rejected, Retryable
from daemon.files import is_disk_full
from daemon.jobs.folder import JobFolder
from daemon.loading import loading
from daemon.observe.logs import IDENTITIES, set_up_logging

ERRORS: dict[str, type[DaemonError]] = {
    "Rejected": Rejected, "DiskFull": DiskFull, "Retryable": Retryable, "Permanent": Permanent,
}  # fmt: skip
"""The errors that keep their kind on the way from child to parent; every other one arrives as Permanent."""

log = logging.getLogger(__name__)

KILL_SECONDS = 10.0
"""How long a killed child may take to end."""

ANSWER_BYTES = 1 << 16
"""Read at once of what the child says."""

POLL_SECONDS = 0.5
"""How often a waiting parent asks whether the job was cancelled."""

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends this process when its parent dies."""

Progress = Callable[[int, int, str], None]


class ChildDied(Retryable):
    """The child ended without an answer (segfault, out of memory, killed)."""


class Stuck(Retryable):
    """The child showed no progress for as long as is allowed, and was ended."""


class Cancelled(Permanent):
    """The job was cancelled; its step was stopped."""


class StepProcess:
    """The parent's end: starts the child when needed, and again after it died."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._busy = threading.Lock()
        self._requests = 0
        self._unread = b""
        self.gpu_bytes = 0
        """GPU memory that the child held after its last step."""

    def run(
        self,
        step: str,
        folder: Path,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Run one step of one job; calls from several threads wait for each other.

        Raises:
            Rejected, Retryable, Permanent: as the step raised it.
            ChildDied: the child ended without an answer; the next call starts a fresh one.
            Stuck: the child showed no progress for `[engine] step_seconds`.
            Cancelled: `cancelled` said so while the step ran.
        """
        with self._busy:
            while self._closed.is_set():
                time.sleep(3600)  # until the process ends: see close()
            try:
                answer = self._ask(step, folder, progress, cancelled)
            except BaseException:  # the step may go on, and nobody would read what it says
                self.stop()
                raise
        if "error" in answer:
            raise ERRORS.get(answer["error"], Permanent)(answer["text"])
        self.gpu_bytes = answer["gpu_bytes"]

    def _ask(
        self, step: str, folder: Path, progress: Progress | None, cancelled: Callable[[], bool] | None
    ) -> dict[str, Any]:
        """The last answer to one request."""
        child = self._running_child()
        assert child.stdin is not None
        assert child.stdout is not None
        self._requests += 1
        request = {"id": self._requests, "step": step, "folder": str(folder)}
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._died(step) from None
        while True:
            line = self._next_line(child.stdout, step, cancelled)
            if not line:
                raise self._died(step)
            answer: dict[str, Any] = json.loads(line)
            if answer["id"] != self._requests:
                raise ChildDied(f"step {step}: expected an answer to request {self._requests}, got {answer['id']}")
            if "progress" not in answer:
                return answer
            if progress is not None:
                progress(*answer["progress"])

    def close(self) -> None:
        """End the child for good, at the service's end.

        A call of `run` that waits then never returns: the step must stay unfinished in the engine's record, so that
        it starts again with the next service, and not fail because of a shutdown.
        """
        self._closed.set()
        if self._child is not None:
            self._child.kill()

    def stop(self) -> None:
        """End the child; the next call starts a fresh one."""
        child, self._child, self._unread = self._child, None, b""  # two threads may stop it at once
        if child is None:
            return
        child.kill()
        try:
            child.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:  # it waits in the kernel for a disk or a GPU that does not answer
            log.warning("the model process %d does not end; another one takes its place", child.pid)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self.gpu_bytes = 0

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.stop()
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "daemon.pipeline.step_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "BRAINGEMMA_STEP_SETTINGS": _for_steps(self._settings).model_dump_json()},
                bufsize=0,
            )
        return self._child

    def _next_line(self, stream: IO[bytes], step: str, cancelled: Callable[[], bool] | None) -> bytes:
        """One line; empty at the end of the stream.

        Raises:
            Stuck: none came in time.
            Cancelled: `cancelled` said so.
        """
        deadline = time.monotonic() + self._settings.engine.step_seconds
        while b"\n" not in self._unread:
            readable, _, _ = select.select([stream], [], [], POLL_SECONDS)
            if readable:
                chunk = os.read(stream.fileno(), ANSWER_BYTES)
                if not chunk:
                    return b""
                self._unread += chunk
            elif cancelled is not None and cancelled():
                raise Cancelled("cancelled by request while the step ran")
            if time.monotonic() > deadline:
                raise Stuck(f"step {step}: no progress for {self._settings.engine.step_seconds:g} s; it was ended")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self, step: str) -> ChildDied:
        while self._closed.is_set():
            time.sleep(3600)  # until the process ends: see close()
        assert self._child is not None
        try:
            code = self._child.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return ChildDied(f"step {step}: the model process closed its answers and did not end")
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ChildDied(f"step {step}: the model process was {how} (a crash, or out of memory)")


def _for_steps(settings: Settings) -> Settings:
    """The configuration without the sections that hold secrets, and what needs these: steps need none of them."""
    listener = settings.listener.model_copy(update={"replicate": "none"})
    return settings.model_copy(update={"web": Web(), "engine": Engine(), "review": Review(), "listener": listener})


def main() -> None:
    """The child: answers one request after the other until its standard input ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):  # where memory runs out, this process ends and not its parent
        Path("/proc/self/oom_score_adj").write_text("500")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers

    def answer(value: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps({"id": request["id"], **value}).encode() + b"\n")
        except BrokenPipeError:  # the parent has ended, or has given this process up: nobody waits for it
            os._exit(1)

    settings = Settings.model_validate_json(os.environ.pop("BRAINGEMMA_STEP_SETTINGS"))
    set_up_logging(settings.log.format)
    with loading():
        from daemon.pipeline.steps.runner import Steps  # late: torch is loaded in the child only

    request: dict[str, Any] = {"id": 0}
    steps = Steps(settings, progress=lambda done, total, text: answer({"progress": [done, total, text]}))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _hide_identities(request["folder"])
        try:
            steps.run(request["step"], JobFolder(Path(request["folder"])))
        except DaemonError as error:
            kind = next((name for name, cls in ERRORS.items() if isinstance(error, cls)), "Permanent")
            answer({"error": "DiskFull" if is_disk_full(error) else kind, "text": IDENTITIES.removed(str(error))})
        except Exception as error:  # the edge of the process: the parent must learn what happened
            if is_disk_full(error):
                answer({"error": "DiskFull", "text": f"step {request['step']}: no room on the disk"})
                continue
            log.exception("step %s", request["step"])
            fault = IDENTITIES.removed(f"{type(error).__name__}: {error}")
            answer({"error": "Permanent", "text": f"step {request['step']}: unexpected {fault} (see the log)"})
        else:
            answer({"done": request["step"], "gpu_bytes": _gpu_bytes()})


@functools.lru_cache(maxsize=64)
def _hide_identities(folder: str) -> None:
    """From this job's first step on, no line and no reason of this process names the people in its files."""
    from dicom_io.series.identities import identities

    source = JobFolder(Path(folder)).input
    IDENTITIES.hide(folder, identities(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else ())


def _gpu_bytes() -> int:
    """GPU memory that this process holds; torch, where no step has loaded it, is not loaded for the answer."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0


if __name__ == "__main__":
    main()
