"""What `braingemma doctor` says of machines that are not ready; no GPU is needed to be told of a small one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pynetdicom import AE
from pynetdicom.sop_class import SecondaryCaptureImageStorage, Verification

from daemon.cli.serve import doctor
from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.observe.status import ServiceStatus
from daemon.service.doctor import Check, examine
from daemon.service.doctor import _device as device_checks
from daemon.trial.pacs import LOOPBACK, EmbeddedPacs, free_port


def look(folder: Path, **sections: Any) -> dict[str, Check]:
    base: dict[str, Any] = {
        "storage": {"folder": folder, "min_free_gb": 0},
        "listener": {"port": free_port()},
        "web": {"port": free_port()},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    settings = Settings.model_validate(base)
    return {check.name: check for check in examine(settings)}


def test_the_demo_on_any_machine_is_ready(tmp_path: Path) -> None:
    found = look(tmp_path / "data", model={"device": "cpu"})
    assert [check for check in found.values() if not check.ok] == []
    assert "will be made" in found["data folder"].detail


@pytest.fixture
def large(tmp_path: Path) -> str:
    """Weights of 3 GB, of holes."""
    folder = tmp_path / "weights"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(3 * 10**9)
    return str(folder)


@pytest.mark.parametrize(
    ("gigabytes", "weights", "device", "ok"),
    [(8, "large", "auto", False), (16, "large", "auto", True), (8, "demo", "auto", True), (8, "large", "cpu", True),
     (0, "large", "auto", False), (0, "large", "cpu", True), (0, "demo", "cuda", False), (0, "demo", "auto", True)],
)  # fmt: skip
def test_a_model_as_the_card_means_it_asks_for_sixteen_gigabytes_of_gpu_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: str, gigabytes: int, weights: str, device: str, ok: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gigabytes > 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _n: SimpleNamespace(total_memory=gigabytes * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _n: "some GPU")
    chosen = {"weights": large if weights == "large" else "demo", "device": device}
    [check] = device_checks(Settings.model_validate({"storage": {"folder": tmp_path}, "model": chosen}))
    assert check.ok is ok, check.detail
    assert ("16 GB" in check.detail) is (weights == "large")


def test_a_folder_that_others_can_enter_and_a_taken_port_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        found = look(tmp_path, listener={"port": port})
        assert not found["data folder"].ok
        assert "mode 0755: expected 0700" in found["data folder"].detail
        assert not found["port"].ok
        tmp_path.chmod(0o700)
        ServiceStatus(pid=os.getpid(), dicom_port=port).write(DataFolder(tmp_path).status)
        found = look(tmp_path, listener={"port": port})
        assert found["port"].ok
        assert "the service runs" in found["port"].detail
        assert found["data folder"].ok


@pytest.fixture
def poor_pacs() -> Iterator[int]:
    """A PACS that takes Secondary Capture only; its port."""
    entity = AE("POOR")
    entity.add_supported_context(Verification)
    entity.add_supported_context(SecondaryCaptureImageStorage)
    server = entity.start_server((LOOPBACK, 0), block=False)
    yield server.socket.getsockname()[1]
    server.shutdown()


@pytest.fixture
def rich_pacs(tmp_path: Path) -> Iterator[int]:
    """A PACS that takes all; its port."""
    pacs = EmbeddedPacs(tmp_path / "pacs", ae_title="RICH")
    yield pacs.port
    pacs.stop()


# pynetdicom leaves the socket of a connection that does not stand to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_destination_is_asked_for_every_storage_class_that_will_be_sent(
    tmp_path: Path, poor_pacs: int, rich_pacs: int
) -> None:
    destinations = [
        {"name": name, "ae_title": name.upper(), "host": LOOPBACK, "port": port}
        for name, port in (("poor", poor_pacs), ("rich", rich_pacs), ("away", 1))
    ]
    found = look(tmp_path / "data", destinations=destinations, results={"seg": False, "pdf": True})
    assert found["destination rich"].ok
    assert "takes all 4 SOP classes that will be sent" in found["destination rich"].detail
    poor = found["destination poor"]
    assert not poor.ok
    assert f"POOR@{LOOPBACK}:{poor_pacs} answers C-ECHO, but does not take" in poor.detail
    for name in ("Enhanced SR Storage (sr)", "Parametric Map Storage (pm)", "Encapsulated PDF Storage (pdf)"):
        assert name in poor.detail
    for name in ("Secondary Capture", "Segmentation"):
        assert name not in poor.detail
    assert "switch that off in [results], or teach it the SOP class" in poor.detail
    assert not found["destination away"].ok
    assert "cannot be reached" in found["destination away"].detail


def test_what_is_looked_at_is_said_before_it_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress goes to standard error, results to standard output, each as soon as it is known."""
    settings = Settings.model_validate({"storage": {"folder": tmp_path, "min_free_gb": 0}})
    said: list[str] = []
    checks = examine(settings, said.append)
    assert said == []
    assert next(checks).name == "weights"
    assert said == ["looking at weights"]
    assert next(checks).name == "device"
    assert said == ["looking at weights", "looking at device"]
    checks.close()

    def one(_settings: Settings, say: Callable[[str], None]) -> Iterator[Check]:
        say("looking at destinations")
        yield Check("destination a", True, "answers")

    monkeypatch.setattr("daemon.service.doctor.examine", one)
    doctor(None)
    printed = capsys.readouterr()
    assert printed.out == "ok    destination a: answers\n"
    assert printed.err.splitlines()[-1] == "looking at destinations"


def test_senders_that_have_no_address_and_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    tls = {"cert": str(tmp_path / "x.pem"), "key": str(tmp_path / "none.pem")}
    peers = [{"ae_title": "GOOD", "host": LOOPBACK}, {"ae_title": "LOST", "host": "no-such-host.invalid"}]
    found = look(tmp_path, listener={"allowed_peers": peers, "tls": tls})
    assert found["sender GOOD"].ok
    assert not found["sender LOST"].ok
    assert not found["TLS of listener"].ok
