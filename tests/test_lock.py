"""`requirements.lock` pins every package that the service needs, torch apart, by version and by hash."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
LEFT_OUT = re.compile(r"torch|triton|nvidia[-_].*|cuda[-_].*")
"""torch comes in a build for each kind of machine; CUDA's parts come with it."""


def plain(name: str) -> str:
    """As PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    """Version by name."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\;]+)", path.read_text(), re.MULTILINE)
    return {plain(name): version for name, version in found}


def test_every_entry_has_hashes_and_the_version_of_the_constraints() -> None:
    lock, constraints = pinned(LOCK), pinned(ROOT / "constraints.txt")
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", LOCK.read_text(), flags=re.MULTILINE).strip())
    assert len(entries) == len(lock)
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert {name: version for name, version in lock.items() if constraints.get(name, version) != version} == {}
    assert not [name for name in lock if LEFT_OUT.fullmatch(name)]


def test_what_the_service_needs_is_in_it() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {plain(re.match(r"[A-Za-z0-9_.-]+", line)[0]) for line in needed}  # type: ignore[index]
    assert names - set(pinned(LOCK)) == {"torch"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_installs_into_an_empty_environment(tmp_path: Path) -> None:
    """As deploy/README.md says: torch first, then the lock, each file by its hash; nothing is missing then."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    pip = [str(tmp_path / "v" / "bin" / "pip"), "--quiet", "--disable-pip-version-check"]
    torch = pinned(ROOT / "constraints.txt")["torch"]
    subprocess.run([*pip, "install", "-c", ROOT / "constraints.txt", f"torch=={torch}"], check=True)
    subprocess.run([*pip, "install", "--require-hashes", "--no-deps", "-r", LOCK], check=True)
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    subprocess.run([*pip, "install", "--no-deps", source], check=True)
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout
    command = [tmp_path / "v" / "bin" / "braingemma", "select", "--help"]
    assert "Usage" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
