"""The worklist's search, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres_support import Postgres, missing

from daemon.database.engine import create_tables, make_engine
from daemon.database.tables import JOB_STUDIES, JOB_WORDS, DeliveryState, JobState
from daemon.jobs.lists.worklist import Asked, Sent, terms_of, words_of, worklist
from daemon.jobs.store import JobStore


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    if request.param == "sqlite":
        engine = make_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")
        create_tables(engine)
        yield JobStore(engine)
        engine.dispose()
        return
    if missing():
        pytest.skip(missing())
    server = Postgres()
    engine = make_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    create_tables(engine)
    yield JobStore(engine)
    engine.dispose()
    server.stop()


PEOPLE = {
    "j1": ("Doe^Jane", "P-001", "ACC 77/3"),
    "j2": ("Müller^Zoë", "p002", "_under%score"),
    "j3": ("Yamada^Tarou=山田^太郎=やまだ^たろう", "", ""),
    "j4": ("", "", ""),
    "j5": ("ZZZ^\U0010fffe", "\0\udcff" + "x" * 5000, "'; DROP TABLE jobs --"),
}


def test_words_are_found_by_how_they_begin(store: JobStore) -> None:
    for number, (job_id, identities) in enumerate(PEOPLE.items()):
        store.add(job_id, study_uid=f"1.2.{number}", supersedes=None)
        store.put_study(job_id, {"patient_name": identities[0]}, words_of(identities, (job_id, f"1.2.{number}")))
    expected = {
        "doe": "j1", "JANE DOE": "j1", "Doe^J": "j1", "p-001": "j1", "001": "j1", "acc 77": "j1", "77/3": "j1",
        "muller": "j2", "MÜLL": "j2", "zoe": "j2", "P002": "j2", "_under%s": "j2", "%": "", "_": "j2",
        "山田": "j3", "たろう": "j3", "tarou yamada": "j3", "oe": "", "doe muller": "", "\\": None, "": None, "^": None,
        "1.2.3": "j4", "j4": "j4", "xxxx": "j5", "y" * 9000: "", "\0": "j5", "drop": "j5", "zzz": "j5",
    }  # fmt: skip
    for text, job in expected.items():
        found = [row.job.job_id for row in worklist(store.engine, Asked(text, by_identity=True), limit=10)]
        assert found == (list(PEOPLE)[::-1] if job is None else [job] if job else []), text
    assert [row.job.job_id for row in worklist(store.engine, Asked("1.2.0"), limit=10)] == ["j1"]
    assert worklist(store.engine, Asked("doe"), limit=10) == []


def test_a_row_says_what_became_of_the_job_and_goes_with_it(store: JobStore) -> None:
    store.add("j1", study_uid="1.2", supersedes=None)
    for destination in ("a", "b"):
        store.put_deliveries("j1", destination, [("1.1", "sr", "sr.dcm"), ("1.2", "sc", "sc.dcm")])
    store.note_delivery("j1", "a", "1.1", state=DeliveryState.SENT, status="0000", reason="")
    store.give_up_delivery("j1", "b", "refused")
    store.put_study("j1", {"patient_id": "P1"}, {"p1": True})
    store.put_study("j1", {"patient_id": "P2"}, {"p2": True})
    [row] = worklist(store.engine, Asked("p", states=[JobState.QUEUED], by_identity=True), limit=10)
    assert row.study["patient_id"] == "P2"
    assert row.sent == [Sent("a", 1, 1, 0), Sent("b", 0, 0, 2)]
    assert worklist(store.engine, Asked(states=[JobState.DONE]), limit=10) == []
    store.remove("j1")
    with store.engine.connect() as connection:
        for table in (JOB_STUDIES, JOB_WORDS):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0


def test_the_search_is_answered_from_an_index(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")
    create_tables(engine)
    with engine.connect() as connection:
        plan = "EXPLAIN QUERY PLAN SELECT job_id FROM job_words WHERE word >= 'a' AND word < 'b'"
        assert "USING COVERING INDEX" in str(connection.execute(sa.text(plan)).all())
    engine.dispose()


@pytest.mark.parametrize(("text", "terms"), [("  Dóe^ JANE ", ["doe", "jane"]), ("ＡＢ１", ["ab1"]), ("ß", ["ss"])])
def test_folding(text: str, terms: list[str]) -> None:
    assert terms_of(text) == terms
