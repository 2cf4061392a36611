"""Where `process` writes, whatever the headers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.sections import Settings
from daemon.files import write_json
from daemon.jobs.folder import JobFolder
from daemon.pipeline import process as module

HOSTILE = (
    "../../outside",
    "..",
    ".",
    "",
    "/outside",
    "a/b",
    "1.2/../../../outside",
    "1..2",
    "1.2\\0",
    "1.2\0",
    "ü" * 70,
    "1" * 300,
)


class Steps:
    """Leaves a file in each folder that it is given, as the real ones do."""

    def __init__(self, *_: object) -> None: ...

    def check(self) -> None: ...

    def run(self, step: str, folder: JobFolder) -> None:
        if step == "select":
            record = {"chosen": "1.2", "further": [*HOSTILE, "1.3"], "series": [], "problems": []}
            write_json(folder.selection, record)
        (folder.root / "mark").write_text(step)


def test_a_series_uid_chooses_no_place_outside_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Steps", Steps)
    settings = Settings.model_validate({"selection": {"report": "all"}})
    source, out = tmp_path / "in", tmp_path / "a" / "b" / "out"
    source.mkdir()
    module.process(source, out, settings)
    marks = {path.parent for path in tmp_path.rglob("mark")}
    further = {path for path in marks if path != out}
    assert {path.parent for path in further} == {out / "further"}
    assert len(further) == len(HOSTILE) + 1, "each has a folder of its own"
    assert out / "further" / "1.3" in further
