"""Another time for processes that a test starts, by a small library that stands before the C library's clocks.

Debian's faketime would do the same, but answers EINVAL where Python sleeps by `clock_nanosleep` and the monotonic
clock, also where it is told to leave that clock alone.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_clock = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *offset;

__attribute__((constructor)) static void open_offset(void) {
    const char *path = getenv("TEST_CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *there = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(long long), PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (there != MAP_FAILED) offset = there;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int answer = syscall(SYS_clock_gettime, clock, time);
    if (answer == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *offset;
    return answer;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class FakeClock:
    """A clock that runs as the machine's does, some seconds before or after it; processes see at once how it is set.

    The monotonic clock, by which they wait, stays as it is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        assert COMPILER is not None
        (folder / "clock.c").write_text(SOURCE)
        self._library = folder / "clock.so"
        command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(folder / "clock.c")]
        subprocess.run(command, check=True, timeout=120)
        self._file = folder / "offset"
        self.offset = 0
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """For the processes."""
        return {"LD_PRELOAD": str(self._library), "TEST_CLOCK_FILE": str(self._file)}

    def set(self, offset: int) -> None:
        """So many seconds after the machine's clock."""
        with self._file.open("r+b" if self._file.exists() else "xb") as file:
            file.write(struct.pack("q", offset))
        self.offset = offset
