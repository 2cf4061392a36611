"""One study's results over several associations at a time: each instance once, also where the peer takes fewer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ingest_support import make_series, save
from pydantic import ValidationError
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import MRImageStorage

from daemon.config.sections import Destination
from daemon.deliver import dimse
from daemon.deliver.addresses import addresses_of
from daemon.deliver.client import client_for
from daemon.deliver.outgoing import Outgoing, StoreOutcome
from daemon.errors import DaemonError, Permanent, Retryable
from daemon.trial.pacs import LOOPBACK

Keep = Callable[[Event], int]


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts a PACS; its port."""
    servers = []

    def start(keep: Keep, *, associations: int = 10) -> int:
        ae = AE("PACS")
        ae.maximum_associations = associations
        ae.add_supported_context(MRImageStorage)
        servers.append(ae.start_server((LOOPBACK, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]))
        return int(servers[-1].socket.getsockname()[1])

    yield start
    for server in servers:
        server.shutdown()


def files(folder: Path, count: int) -> list[Outgoing]:
    return [Outgoing.read(save(dataset, folder / f"{n}.dcm")) for n, dataset in enumerate(make_series(count))]


def sent(port: int, results: list[Outgoing], associations: int) -> list[StoreOutcome]:
    there = Destination(name="pacs", ae_title="PACS", host=LOOPBACK, port=port, associations=associations)
    told: list[StoreOutcome] = []
    outcomes = client_for(there, "US").store(results, on_outcome=told.append)
    assert told == outcomes
    assert sorted(o.outgoing.sop_instance_uid for o in outcomes) == sorted(r.sop_instance_uid for r in results)
    return outcomes


@pytest.mark.timeout(60)
def test_as_many_associations_as_configured_send_at_the_same_time(serve: Callable[..., int], tmp_path: Path) -> None:
    """Each request is answered only when three are there: over fewer associations none ever would be."""
    together, got = threading.Barrier(3), []

    def keep(event: Event) -> int:
        together.wait(50)
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    results = files(tmp_path, 6)
    outcomes = sent(serve(keep), results, 3)
    assert all(outcome.stored for outcome in outcomes)
    assert sorted(got) == sorted(r.sop_instance_uid for r in results)
    assert set(got[:3]) == {r.sop_instance_uid for r in results[:3]}, "begun in their order"


def test_a_peer_that_takes_one_association_gets_all_by_it(serve: Callable[..., int], tmp_path: Path) -> None:
    got = []

    def keep(event: Event) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    results = files(tmp_path, 5)
    assert all(outcome.stored for outcome in sent(serve(keep, associations=1), results, 4))
    assert got == [r.sop_instance_uid for r in results]


@pytest.mark.parametrize("error", [Retryable, Permanent])
def test_a_further_association_that_cannot_be_made_ends_nothing(
    error: type[DaemonError], serve: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a name that leads elsewhere meanwhile, or a certificate that is being replaced."""
    asked = iter([addresses_of])

    def once(*arguments: Any, **more: Any) -> list[str]:
        ask = next(asked, None)
        if ask is None:
            raise error("not now")
        return ask(*arguments, **more)

    monkeypatch.setattr(dimse, "addresses_of", once)
    assert all(outcome.stored for outcome in sent(serve(lambda _: 0x0000), files(tmp_path, 6), 3))


def test_an_association_that_is_lost_loses_the_instance_that_it_carried_alone(
    serve: Callable[..., int], tmp_path: Path
) -> None:
    results, both, first = files(tmp_path, 8), threading.Barrier(2), []

    def keep(event: Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in (results[0].sop_instance_uid, results[1].sop_instance_uid):
            both.wait(50)
        if uid == results[0].sop_instance_uid:
            first.append(uid)
            event.assoc.abort()
        return 0x0000

    outcomes = {o.outgoing.sop_instance_uid: o for o in sent(serve(keep), results, 2)}
    assert not outcomes[results[0].sop_instance_uid].stored
    assert "no answer" in outcomes[results[0].sop_instance_uid].reason
    assert all(outcomes[r.sop_instance_uid].stored for r in results[1:])


def test_where_every_association_is_lost_each_instance_is_said_to_be_unsent(
    serve: Callable[..., int], tmp_path: Path
) -> None:
    def keep(event: Event) -> int:
        event.assoc.abort()
        return 0x0000

    outcomes = sent(serve(keep), files(tmp_path, 6), 2)
    assert not any(outcome.stored for outcome in outcomes)
    assert sum("the association ended before" in outcome.reason for outcome in outcomes) == 4


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_that_cannot_be_read_ends_all(serve: Callable[..., int], tmp_path: Path) -> None:
    results = files(tmp_path, 4)
    results[1].path.unlink()
    there = Destination(name="pacs", ae_title="PACS", host=LOOPBACK, port=serve(lambda _: 0x0000), associations=2)
    with pytest.raises(Permanent, match=r"1\.dcm cannot be read"):
        client_for(there, "US").store(results, on_outcome=lambda _: None)


def test_a_dicomweb_server_has_no_associations() -> None:
    with pytest.raises(ValidationError, match="associations are for an AE only"):
        Destination.model_validate({"name": "web", "stow_url": "https://pacs.example/dicom-web", "associations": 2})
