"""The page's line for each pull that has not ended, and its button."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from web_support import Site, audit_lines, start_site

from daemon.database.tables import PullState
from daemon.pull.asks import query
from daemon.pull.store import PullStore


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    served = start_site(tmp_path)
    yield served
    served.server.stop()


def test_a_pull_is_a_line_with_its_progress_and_can_be_paused(site: Site) -> None:
    store = PullStore(site.store.engine)
    pull_id = store.add("archive", [query("PatientID=4711")], all_series=False)
    store.note(pull_id, "waits for its time of day, 19:00-06:00")
    line = " ".join(site.ask("/")[2].decode().split())
    assert (
        f"<code>{pull_id}</code> from <strong>archive</strong>, running: not searched yet; waits for its time" in line
    )
    assert "4711" not in line, "what is asked for may name somebody"
    form = {"form_token": site.form_token("/")}
    for change, state in (("pause", PullState.PAUSED), ("resume", PullState.RUNNING)):
        assert site.ask(f"/pulls/{pull_id}/{change}", method="POST", form=form)[0] == 303
        assert store.get(pull_id).state is state
    assert site.ask(f"/pulls/{pull_id}/pause", method="POST", form={})[0] == 403
    assert site.ask("/pulls/p0/pause", method="POST", form=form)[0] == 400
    assert [entry["state"] for entry in audit_lines(site) if entry["event"] == "pull_changed"] == ["paused", "running"]
    store.set_state(pull_id, PullState.CANCELLED)
    assert pull_id not in site.ask("/")[2].decode()
