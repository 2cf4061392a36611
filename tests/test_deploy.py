"""The files in deploy/: units that systemd accepts and calls safe, a configuration that loads."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from daemon.config.load import load_settings

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = ("braingemma.service", "braingemma-worker@.service")
MOST_EXPOSED = 2.0
"""systemd's measure, 0 (safe) to 10; below 2 it says "OK"."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def analyze(tmp_path: Path, unit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on a copy whose command exists here."""
    name = unit.replace("@.", "@0.")
    text = (DEPLOY / unit).read_text().replace("/opt/braingemma/bin/braingemma", "/bin/true")
    (tmp_path / name).write_text(text)
    return subprocess.run(
        ["systemd-analyze", *arguments, str(tmp_path / name)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "SYSTEMD_PAGER": "cat"},
    )  # fmt: skip


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(tmp_path: Path, unit: str) -> None:
    done = analyze(tmp_path, unit, "verify")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_memory_is_bounded_and_a_childs_death_is_only_the_childs(unit: str) -> None:
    lines = (DEPLOY / unit).read_text().splitlines()
    assert {"MemoryMax=75%", "OOMPolicy=continue"} <= set(lines)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_calls_the_unit_safe(tmp_path: Path, unit: str) -> None:
    done = analyze(tmp_path, unit, "security", "--offline=true", "--no-pager")
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found.group(1)) < MOST_EXPOSED


def test_the_configuration_beside_compose_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINGEMMA_WEB__TOKEN", "0123456789abcdef")
    settings = load_settings(DEPLOY / "braingemma.toml")
    assert settings.web.token.get_secret_value() == "0123456789abcdef"
    assert settings.destinations[0].ae_title == "ORTHANC"


def test_compose_has_both_profiles_and_publishes_on_loopback_only() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    profiles = {p for service in compose["services"].values() for p in service.get("profiles", [])}
    assert profiles == {"cpu", "gpu"}
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for name, service in compose["services"].items():
        assert re.search(r":[\w.{}$-]+$|^\$\{ORTHANC_IMAGE:\?.*1\.14\.1", service["image"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), volume
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_what_the_image_copies_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY ") for part in line.split()[1:-1]]
    assert copied
    assert all((DEPLOY.parent / part).exists() for part in copied)
    assert "USER braingemma" in lines


@pytest.mark.skipif(shutil.which("luac") is None, reason="lua is not installed")
def test_the_rule_for_orthanc_is_lua() -> None:
    subprocess.run(["luac", "-p", str(DEPLOY / "forward.lua")], check=True, timeout=60)
