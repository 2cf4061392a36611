"""The entry point: an error that was foreseen becomes one line and an exit code, never a traceback.

The commands are imported in here, so that an interrupt while they load is a line, too.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number, as shells have it."""


def main() -> None:
    """Run the command line."""
    try:
        _run()
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # Typer ends a command that is interrupted by this status, and says nothing
            _say("interrupted")
        raise
    except BrokenPipeError:
        # The reader of our output (`| head`) has enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run() -> None:
    from daemon.cli.app import app
    from daemon.faults import ending

    try:
        app()
    except BrokenPipeError:
        raise
    except Exception as error:
        told = ending(error)
        if told is None:
            raise
        status, line = told
        _say(line)
        sys.exit(status)


def _say(text: str) -> None:
    sys.stderr.write(f"braingemma: {text}\n")


if __name__ == "__main__":
    main()
