"""What the selection says of a study of which nothing can be reported."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
from delivery_support import make_store
from series_factory import make_files

from daemon.config.sections import Settings
from daemon.errors import Rejected
from daemon.jobs.folder import JobFolder
from daemon.jobs.lists.worklist import keep_verdicts
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


def test_each_acquisition_under_one_series_uid_has_its_own_verdict(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "jobs" / "j1")
    flair = pydicom.dcmread(make_files(folder.input / "a")[0])
    shared = {k: flair[k].value for k in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    other = {"InversionTime": None, "EchoTime": "15", "SeriesDescription": "PD"}
    make_files(folder.input / "b", overrides=other, edit=lambda d, _: [setattr(d, k, v) for k, v in shared.items()])
    select(SimpleNamespace(settings=Settings()), folder)  # type: ignore[arg-type]
    store = make_store(tmp_path)
    store.add("j1", study_uid="1.2.3", supersedes=None)
    for _ in range(2):  # as often as the step begins again
        keep_verdicts(store, "j1", folder)
    kept = store.verdicts(series_uid=str(flair.SeriesInstanceUID))
    assert [(v.verdict, v.instances) for v in kept] == [("accepted", 21), ("refused", 21)]
    chosen = Selection.read(folder.selection)
    assert chosen.parts == {chosen.chosen: kept[0].part}
    assert kept[0].named == f"{chosen.chosen}, acquisition {kept[0].part}"
    store.engine.dispose()


def test_a_series_whose_slices_have_uids_of_their_own_is_found_by_each(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "jobs" / "j1")
    make_files(folder.input, edit=lambda d, i: setattr(d, "SeriesInstanceUID", f"1.2.826.7.{i + 1}"))
    select(SimpleNamespace(settings=Settings()), folder)  # type: ignore[arg-type]
    chosen = Selection.read(folder.selection)
    assert chosen.chosen is not None
    assert set(chosen.uids_of(chosen.chosen)) == {f"1.2.826.7.{n + 1}" for n in range(21)}
    store = make_store(tmp_path)
    store.add("j1", study_uid="1.2.3", supersedes=None)
    keep_verdicts(store, "j1", folder)
    [verdict] = store.verdicts(series_uid="1.2.826.7.9")
    assert (verdict.series_uid, verdict.joined) == (chosen.chosen, chosen.uids_of(chosen.chosen))
    assert store.verdicts(series_uid="1.2.826.7") == []
    store.engine.dispose()
