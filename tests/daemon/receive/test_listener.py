"""The receiver processes: start, stop, death, and what they must not do."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ingest_sender import rejection
from ingest_support import associate, instances_in, listener_settings, make_series, wait_until
from pydicom.uid import MRImageStorage

from daemon.errors import ConfigurationError
from daemon.observe.audit import check_chain
from daemon.receive import processes
from daemon.receive.processes import start_receivers
from daemon.receive.store import Status
from tests.daemon.receive.test_ingest_durability import Load, endless_instances

ROOT = Path(__file__).parents[3]
PRINT = "1.2.840.10008.5.1.1.9"
"""Basic Grayscale Print Management: no storage."""


@pytest.fixture
def start(tmp_path):
    started = []

    def _start(**listener):
        receivers = start_receivers(listener_settings(tmp_path, **listener))
        started.append(receivers)
        return receivers

    yield _start
    for receivers in started:
        receivers.stop()


def test_an_address_in_use_is_a_configuration_error(tmp_path, start):
    receivers = start()
    with pytest.raises(ConfigurationError, match="cannot listen"):
        start_receivers(listener_settings(tmp_path, port=receivers.address[1]))


def test_stop_ends_everything_by_itself_and_frees_the_port(tmp_path, start, monkeypatch, caplog):
    """Also with an association that stays open: no process has to be killed."""
    monkeypatch.setattr(processes, "STOP_SECONDS", 60)
    receivers = start(processes=2)
    with associate(receivers.address) as association:
        association.send_c_store(make_series(1)[0])
        receivers.stop()
    assert caplog.records == []
    assert not receivers.alive()
    again = start(port=receivers.address[1])
    assert again.alive()


def test_at_sigterm_under_load_every_answer_is_kept(tmp_path, start):
    receivers = start(processes=2)
    with Load(receivers.address[1], endless_instances()) as load:
        wait_until(lambda: len(load.acknowledged) > 50)
        receivers.stop()
    stored = {record.meta["sop_instance_uid"] for record, _ in instances_in(tmp_path / "spool")}
    assert set(load.acknowledged) <= stored


def test_a_receiver_that_dies_is_replaced(start):
    receivers = start(processes=2)
    victim = receivers.pids[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not receivers.alive())
    assert receivers.restart_dead() == 1
    assert receivers.alive()
    with associate(receivers.address) as association:
        assert association.send_c_echo().Status == Status.SUCCESS


def test_a_receiver_for_which_there_is_no_memory_is_missed_until_it_runs(start, monkeypatch):
    receivers = start(processes=1)
    os.kill(receivers.pids[0], signal.SIGKILL)
    wait_until(lambda: not receivers.alive())

    def fail(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="memory"):
                receivers.restart_dead()
            assert not receivers.alive()
    assert receivers.restart_dead() == 1
    assert receivers.alive()
    with associate(receivers.address) as association:
        assert association.send_c_echo().Status == Status.SUCCESS


PARENT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from ingest_support import listener_settings
from daemon.receive.processes import start_receivers
folder = Path({folder!r})
receivers = start_receivers(listener_settings(folder, processes=2))
print(receivers.address[1], *receivers.pids, flush=True)
time.sleep(600)
"""


def test_receivers_leave_when_their_parent_is_killed(tmp_path):
    code = PARENT.format(root=str(ROOT), tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    port, *children = map(int, parent.stdout.readline().split())
    assert len(children) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: all(not Path(f"/proc/{pid}").exists() or is_zombie(pid) for pid in children))
    # A thread that is just syncing ends, and frees the port, when the disk has answered.
    wait_until(lambda: is_free(port), seconds=30)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_room_is_prepared_in_the_spool_and_goes_with_the_receiver(tmp_path, start):
    """A file that has its size is not ready yet (its last step is being synced): each instance asks anew for one."""
    receivers = start(reserve_mb=64)
    stored = itertools.count()
    with associate(receivers.address) as association:

        def is_in_prepared_room() -> bool:
            assert association.send_c_store(make_series(1)[0]).Status == Status.SUCCESS
            next(stored)
            return 64 << 20 in [path.stat().st_size for path in (tmp_path / "spool").glob("*.seg")]

        wait_until(is_in_prepared_room, seconds=60)
    receivers.stop()
    assert list((tmp_path / "spool").glob(".*.spare")) == []
    assert [path for path in (tmp_path / "spool").glob("*.seg") if path.stat().st_size == 64 << 20] == []
    assert len(instances_in(tmp_path / "spool")) == next(stored)


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_refusals_stand_in_the_audit_log_and_cannot_fill_it(tmp_path, start):
    """Who was refused, with the code of the standard; the same again is counted, not written."""
    receivers = start(allowed_peers=[{"ae_title": "SENDER"}])
    for calling in ("STRANGER", "STRANGER", "STRANGER", "OTHER"):
        assert rejection(receivers.address, calling=calling) == (1, 1, 3)
    with associate(receivers.address, PRINT, MRImageStorage) as association:
        assert association.is_established
    [log] = (tmp_path / "audit").glob("audit-*.jsonl")
    assert check_chain(log) == 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["calling_aet"], line.get("code")) for line in lines] == [
        ("STRANGER", "1/1/3"),
        ("OTHER", "1/1/3"),
        ("SENDER", None),
    ]
    assert [line["left_out_before"] for line in lines] == [0, 2, 0]
    assert {line["event"] for line in lines} == {"refused"}
    assert {line["peer"] for line in lines} == {"127.0.0.1"}
    assert lines[2]["presentation_contexts"] == PRINT


def test_receivers_do_not_import_torch(start):
    receivers = start()
    maps = Path(f"/proc/{receivers.pids[0]}/maps").read_text()
    assert "numpy" in maps or "pydantic" in maps
    assert "libtorch" not in maps


def test_no_patient_data_in_the_log(tmp_path):
    """The log of a receiver process, at its most talkative, names no patient."""
    code = PARENT.format(root=str(ROOT), tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    log = tmp_path / "log.txt"
    with log.open("w") as stderr:
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True)
    port = int(parent.stdout.readline().split()[0])
    with associate(("127.0.0.1", port)) as association:
        association.send_c_store(make_series(1)[0])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    text = log.read_text()
    assert "association from 'SENDER'" in text
    assert "Test^Case" not in text
    assert "T1" not in text
