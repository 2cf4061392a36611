"""Classes by rule, and turns: who goes before whom, and that nobody waits for ever."""

from __future__ import annotations

import heapq
import random
from pathlib import Path

import pytest
from record_support import an_arrival, an_instance

from daemon.config.load import load_settings
from daemon.config.sections import Rule
from daemon.errors import ConfigurationError
from daemon.jobs.folder import JobFolder
from daemon.jobs.priority import ALLOWANCE, priority_of, turn
from dicom_io.series_writer import write_series
from training.phantoms.phantom import make_phantom

NOW = 1_800_000_000.0
HOUR = 3600.0
RULES = (
    Rule(priority="urgent", calling_aet="ER_*"),
    Rule(priority="urgent", match={"StudyDescription": "stroke|emergency", "Modality": "^MR$"}),
    Rule(priority="off-peak", match={"InstitutionName": "research"}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """A job with one series that says Stroke protocol."""
    root = tmp_path_factory.mktemp("job")
    volume = make_phantom(900_001, spacing=(8.0, 8.0, 12.0)).volume
    write_series(volume, root / "input", overrides={"StudyDescription": "Stroke protocol"})
    return JobFolder(root)


@pytest.mark.parametrize(
    ("rules", "sender", "pulled", "expected"),
    [
        ((), "SCANNER", False, "routine"),
        ((), "PACS", True, "off-peak"),
        (RULES[:1], "ER_MR1", False, "urgent"),
        (RULES[:1], "ER_MR1", True, "off-peak"),
        (RULES[:1], "SCANNER", False, "routine"),
        (RULES, "SCANNER", False, "urgent"),
        (RULES, "PACS", True, "urgent"),
        ((RULES[2], *RULES[:1]), "SCANNER", False, "routine"),
    ],
)
def test_the_first_rule_that_matches_gives_the_class(
    folder: JobFolder, rules: tuple[Rule, ...], sender: str, pulled: bool, expected: str
) -> None:
    arrival = an_arrival(calling_aets=[sender], instances=[an_instance("0001.dcm", "1.2")])
    assert priority_of(rules, arrival, folder, pulled=pulled) == expected


def test_a_header_that_cannot_be_read_matches_nothing(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "a.dcm").write_bytes(b"\0" * 300)
    arrival = an_arrival(instances=[an_instance("a.dcm", "1.2"), an_instance("gone.dcm", "1.3")])
    assert priority_of(RULES[1:], arrival, JobFolder(tmp_path), pulled=False) == "routine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('priority = "urgnt"', "Input should be 'urgent', 'routine' or 'off-peak'"),
        ('priority = "urgent"', "expected calling_aet or match"),
        ('priority = "urgent"\nmatch = { StudyDesc = "x" }', "'StudyDesc' is no DICOM keyword"),
        ('priority = "urgent"\nmatch = { StudyDescription = "(" }', "StudyDescription"),
    ],
)
def test_a_rule_that_could_never_match_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(f"[[rules]]\n{text}\n")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(tmp_path / "c.toml")
    assert said in str(refused.value)


def test_urgent_goes_first_but_not_before_what_waited_out_its_allowance() -> None:
    turns = {
        "urgent": turn(NOW, "urgent"),
        "routine": turn(NOW - HOUR, "routine"),
        "routine of long ago": turn(NOW - 2.1 * HOUR, "routine"),
        "off-peak": turn(NOW - 23.5 * HOUR, "off-peak"),
        "off-peak of long ago": turn(NOW - 25 * HOUR, "off-peak"),
    }
    order = sorted(turns, key=turns.__getitem__)
    assert order == ["off-peak of long ago", "routine of long ago", "urgent", "off-peak", "routine"]
    assert turn(NOW, "off-peak") > turn(NOW, "routine") > turn(NOW, "urgent")
    assert turn(3_700_000_000.0, "off-peak") < 2**31


def served(arrivals: list[tuple[float, str]], service: float) -> list[tuple[str, float]]:
    """(class, wait) of each job by one worker that takes the smallest turn: a model of the queue."""
    clock, waiting, done = 0.0, [], []
    left = sorted(arrivals)
    while left or waiting:
        if not waiting:
            clock = max(clock, left[0][0])
        while left and left[0][0] <= clock:
            created, priority = left.pop(0)
            heapq.heappush(waiting, (turn(NOW + created, priority), created, priority))
        _, created, priority = heapq.heappop(waiting)
        done.append((priority, clock - created))
        clock += service
    return done


def test_nobody_starves_under_urgent_work_that_never_ends_and_urgent_waits_for_one_at_most() -> None:
    """Urgent studies alone keep the worker busy for two days; a few of the others come at the beginning."""
    service = 60.0
    busy = [(n * service, "urgent") for n in range(2 * 24 * 60)]
    waits = served([*busy, (30.0, "routine"), (45.0, "off-peak")], service)
    by_class = {name: [wait for priority, wait in waits if priority == name] for name in ALLOWANCE}
    assert by_class["routine"] == [pytest.approx(2 * HOUR, abs=2 * service)]
    assert by_class["off-peak"] == [pytest.approx(24 * HOUR, abs=3 * service)]

    random.seed(5)
    archive = [(0.0, "off-peak")] * 600
    urgent = [(random.uniform(0, 9 * HOUR), "urgent") for _ in range(40)]
    waits = served([*archive, *urgent], service)
    found = sorted(wait for priority, wait in waits if priority == "urgent")
    assert found[int(0.95 * len(found))] <= 2 * service  # what is at work, and now and then another urgent one
