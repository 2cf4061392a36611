"""Steps that need no model load no model: a job that only waits for its encoding costs no gigabyte of libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("step", ["select", "convert", "encode", "context"])
def test_a_step_without_the_model_loads_no_torch(step: str) -> None:
    code = (
        f"import sys, daemon.pipeline.steps.{step}; "
        "print(*sorted({'torch', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
