"""The real model process with small steps in place of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from record_support import a_report

QUICK_STEPS = r"""
import json
from daemon.errors import Rejected

PACK = {"identity": "x", "study_uid": "1.2.3", "synthetic_only": False, "objects": []}

class Steps:
    def __init__(self, settings, progress):
        self.progress = progress

    def run(self, step, folder):
        self.progress(0, 1, "working")
        with (folder.root / "steps").open("a") as file:
            file.write(step + "\n")
        if step == "select":
            if folder.root.name.startswith("bad"):
                raise Rejected("no brain in " + folder.root.name)
            folder.selection.write_text(json.dumps({"chosen": None, "further": [], "series": [], "problems": []}))
        elif step == "report":
            folder.report_json.write_text('REPORT')
        elif step == "encode":
            folder.dicom.mkdir(exist_ok=True)
            (folder.dicom / "pack.json").write_text(json.dumps(PACK))
        self.progress(1, 1, "working")
""".replace("REPORT", a_report(findings=[]).model_dump_json())
"""Each notes itself in the job's folder, and leaves what the workflow reads; a job called `bad...` is refused."""


def replace_steps(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let model processes find `source` as `daemon.pipeline.steps.runner`; everything else is the real daemon.

    Args:
        folder: Takes the files for it.
        source: Of a module with a class `Steps`.
        monkeypatch: Takes it back when the test ends.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "name = 'daemon.pipeline.steps.runner'\n"
        f"spec = importlib.util.spec_from_file_location(name, {str(folder / 'steps.py')!r})\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return spec if name == spec.name else None\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    (folder / "steps.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")
