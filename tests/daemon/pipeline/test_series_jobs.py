"""`[selection] report = "all"`: each further series is a job of its own, and replaces what was said of that series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from record_support import a_selection, an_arrival, an_instance

from daemon.assemble.assembler import Assembler
from daemon.config.sections import Settings
from daemon.database.engine import open_database
from daemon.database.tables import ARRIVALS
from daemon.files import read_json, write_json
from daemon.jobs.files import LocalFiles
from daemon.jobs.folder import JobFolder
from daemon.jobs.records import Arrival
from daemon.jobs.store import JobStore
from daemon.pipeline.series_jobs import follow_choice

STUDY = "1.2.3"


class Site:
    """Jobs as the assembler and the selection step leave them."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.model_validate({"storage": {"folder": folder, "min_free_gb": 0}})
        self.engine = open_database(self.settings)
        self.store = JobStore(self.engine)
        self.files = LocalFiles(folder / "jobs")

    def study_job(
        self,
        name: str,
        series: dict[str, int],
        best_first: Sequence[str],
        supersedes: str | None = None,
        joined: Sequence[str] = (),
        **more: Any,
    ) -> JobFolder:
        """A study's job with so many instances of each series, selected in this order.

        `joined`: series that are one; `more`: of its arrival.
        """
        folder = JobFolder(self.files.jobs / name)
        folder.input.mkdir(parents=True)
        instances: list[dict[str, Any]] = []
        for uid, count in series.items():
            for number in range(count):
                file = f"{len(instances) + 1:06d}.dcm"
                (folder.input / file).write_text(f"{uid} {number}")
                instances.append(an_instance(file, uid, number))
        record = an_arrival(
            name,
            study_uid=STUDY,
            series_uids=sorted(series),
            supersedes=supersedes,
            instances=instances,
            **more,
        )
        record.write(folder.arrival)
        a_selection(*best_first, joined={uid: tuple(joined) for uid in joined[:1]}).write(folder.selection)
        self.store.add(name, study_uid=STUDY, supersedes=supersedes)
        return folder

    def follow(self, name: str, *, report_all: bool = True) -> list[str]:
        return follow_choice(self.store, self.files, name, report_all=report_all)

    def supersedes(self, name: str) -> str | None:
        """As the table and the folder have it; they never differ."""
        job = self.store.get(name)
        assert job is not None
        assert read_json(self.files.fetch(name).arrival)["supersedes"] == job.supersedes
        return job.supersedes


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.engine.dispose()


def test_only_the_best_is_reported_unless_all_are_asked_for(site) -> None:
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    assert site.follow("j1", report_all=False) == []
    assert [job.series_uid for job in site.store.recent()] == ["1.1"]


def test_each_further_series_is_a_job_with_its_own_instances_only(site) -> None:
    main = site.study_job("j1", {"1.1": 2, "1.2": 3, "1.9": 4}, ["1.1", "1.2"])
    [name] = site.follow("j1")
    job = site.store.get(name)
    assert (job.study_uid, job.series_uid, job.supersedes) == (STUDY, "1.2", None)
    folder = site.files.fetch(name)
    files = sorted(folder.input.iterdir())
    assert [f.read_text() for f in files] == ["1.2 0", "1.2 1", "1.2 2"]
    assert all(f.samefile(main.input / f.name) for f in files)  # linked, not copied
    record = read_json(folder.arrival)
    assert (record["part_of"], record["series_uids"], len(record["instances"])) == ("j1", ["1.2"], 3)
    assert record["calling_aets"] == ["SCANNER"]


def test_doing_it_again_after_a_crash_changes_nothing(site) -> None:
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    first = site.follow("j1")
    (site.files.jobs / f".part-{first[0]}").mkdir()  # what a crash leaves
    assert site.follow("j1") == first
    assert len(site.store.recent()) == 2


def test_a_job_of_a_further_series_makes_no_jobs(site) -> None:
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    [name] = site.follow("j1")
    choice = {"chosen": "1.2", "further": ["1.1"], "series": [], "problems": []}
    write_json(JobFolder(site.files.jobs / name).selection, choice)
    assert site.follow(name) == []


def test_late_slices_replace_the_report_of_their_series_alone(site) -> None:
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    [first] = site.follow("j1")
    site.study_job("j2", {"1.1": 2, "1.2": 4}, ["1.1", "1.2"], supersedes="j1")
    [second] = site.follow("j2")
    assert second != first
    assert site.supersedes("j2") == "j1"
    assert site.supersedes(second) == first


def test_an_unchanged_further_series_is_not_reported_again(site) -> None:
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    site.study_job("j2", {"1.1": 4, "1.2": 3}, ["1.1", "1.2"], supersedes="j1")
    assert site.follow("j1") == site.follow("j2")


def test_when_another_series_becomes_the_best_each_report_still_replaces_its_own(site) -> None:
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    [first] = site.follow("j1")
    site.study_job("j2", {"1.1": 2, "1.2": 30}, ["1.2", "1.1"], supersedes="j1")
    [second] = site.follow("j2")
    assert site.supersedes("j2") == first
    assert site.supersedes(second) == "j1"
    assert site.follow("j2") == [second]
    assert site.supersedes("j2") == first


def test_a_series_whose_slices_have_uids_of_their_own_is_followed_by_all_of_them(site) -> None:
    gap = {"present": 1, "missing": 2, "reason": "r"}
    lost = [{"series_uid": uid, "sop_uid": "9"} for uid in ("1.1", "1.2.7", "1.2.99")]
    site.study_job(
        "j1", {"1.1": 2, "1.2": 1, "1.2.7": 1, "1.2.8": 1}, ["1.1", "1.2"],
        gaps=[{"series_uid": "1.2.8", **gap}, {"series_uid": "1.1", **gap}], damaged=lost,
        joined=["1.2", "1.2.7", "1.2.8"],
    )  # fmt: skip
    [first] = site.follow("j1")
    record = Arrival.read(site.files.fetch(first).arrival)
    assert record.series_uids == tuple(sorted(i.series_uid for i in record.instances)) == ("1.2", "1.2.7", "1.2.8")
    assert [gap.series_uid for gap in record.gaps] == ["1.2.8"]
    assert [lost.series_uid for lost in record.damaged] == ["1.2.7", "1.2.99"], "the last may be a slice of it"
    site.study_job("j2", {"1.1": 2, "1.0": 1, "1.2": 1}, ["1.1", "1.0"], "j1", joined=["1.0", "1.2"])
    [second] = site.follow("j2")  # by its late first slice it is called otherwise
    assert site.supersedes(second) == first


def test_a_series_that_was_never_reported_replaces_nothing(site) -> None:
    site.study_job("j1", {"1.1": 2}, ["1.1"])
    site.follow("j1")
    site.study_job("j2", {"1.1": 2, "1.2": 30}, ["1.2", "1.1"], supersedes="j1")
    [second] = site.follow("j2")
    assert site.supersedes("j2") is None
    assert site.supersedes(second) == "j1"


def test_jobs_from_before_series_were_noted_are_still_replaced(site) -> None:
    site.study_job("j1", {"1.1": 2}, ["1.1"])
    site.study_job("j2", {"1.1": 4, "1.2": 3}, ["1.1", "1.2"], supersedes="j1")
    site.follow("j2")
    assert site.supersedes("j2") == "j1"


def test_the_assembler_takes_no_such_job_for_a_received_study(site) -> None:
    """After a lost index only what was received is taken into it again."""
    site.study_job("j1", {"1.1": 2, "1.2": 3}, ["1.1", "1.2"])
    [name] = site.follow("j1")
    record = read_json(site.files.jobs / "j1" / "arrival.json")
    write_json(site.files.jobs / "j1" / "arrival.json", {**record, "instances": []})
    Assembler(site.settings, site.engine, lambda _arrival: None).recover(1.0)
    with site.engine.connect() as connection:
        assert list(connection.execute(sa.select(ARRIVALS.c.job_id)).scalars()) == ["j1"]
    assert (site.files.jobs / name).exists()
