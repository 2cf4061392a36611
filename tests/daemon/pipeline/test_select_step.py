"""What the selection says of a study of which nothing can be reported."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from series_factory import make_files

from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Selection
from daemon.pipeline.steps.select import select


def test_a_flair_with_a_gap_says_where_slices_are_missing(tmp_path: Path) -> None:
    source = tmp_path / "series"
    files = sorted(make_files(source))
    for lost in files[10:12]:
        lost.unlink()
    (tmp_path / "job").mkdir()
    folder = JobFolder(tmp_path / "job", source)
    with pytest.raises(Rejected) as refused:
        select(SimpleNamespace(settings=Settings()), folder)  # type: ignore[arg-type]
    said = str(refused.value)
    assert f"lacks 2 of {len(files)}" in said
    assert "no brain FLAIR" not in said
    [verdict] = Selection.read(folder.selection).series
    assert (verdict.verdict, verdict.instances) == ("refused", len(files) - 2)
    assert verdict.description
    assert f"{verdict.description!r} ({len(files) - 2} images)" in said
