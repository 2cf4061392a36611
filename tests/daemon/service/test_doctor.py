"""What `braingemma doctor` says of machines that are not ready; no GPU is needed to be told of a small one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from daemon.config.data_folder import DataFolder
from daemon.config.sections import Settings
from daemon.observe.status import ServiceStatus
from daemon.service.doctor import Check, examine
from daemon.service.doctor import _device as device_checks
from daemon.trial.pacs import LOOPBACK, free_port


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


def test_senders_that_have_no_address_and_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    tls = {"cert": str(tmp_path / "x.pem"), "key": str(tmp_path / "none.pem")}
    peers = [{"ae_title": "GOOD", "host": LOOPBACK}, {"ae_title": "LOST", "host": "no-such-host.invalid"}]
    found = look(tmp_path, listener={"allowed_peers": peers, "tls": tls})
    assert found["sender GOOD"].ok
    assert not found["sender LOST"].ok
    assert not found["TLS of listener"].ok
