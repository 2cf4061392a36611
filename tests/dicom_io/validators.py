"""Validators that others wrote, as the tests of results call them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

JAVA = (
    "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 "  # short runs: less time spent on compiling than on the check
    "-Djdk.xml.xpathExprGrpLimit=0 -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathTotalOpLimit=0"
)


def pixelmed(path: Path) -> str:
    done = subprocess.run(
        ["DicomSRValidator", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JDK_JAVA_OPTIONS": JAVA},
    )
    return done.stdout + done.stderr
