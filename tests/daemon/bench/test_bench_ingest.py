from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from daemon.bench.ingest import bench_ingest, refuse_memory_file_system
from daemon.errors import DaemonError

needs_peers = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("storescu", "storescp", "Orthanc")), reason="needs dcmtk and orthanc"
)


@pytest.fixture
def on_disk(tmp_path):
    try:
        refuse_memory_file_system(tmp_path)
    except DaemonError as error:
        pytest.skip(str(error))
    return tmp_path


@needs_peers
@pytest.mark.orthanc
@pytest.mark.slow
def test_every_contestant_is_measured_on_the_same_images(on_disk):
    told = []
    second = on_disk / "second"
    second.mkdir()
    result = bench_ingest(
        on_disk, images=12, sizes=(64,), associations=(1, 3), rounds=1, processes=1, replicate=second,
        progress=told.append,
    )  # fmt: skip
    assert result["absent"] == []
    assert set(result["ratios"]) == {"vs_orthanc_sync", "vs_dcmtk", "vs_replicated"}
    for table in result["ratios"].values():
        assert set(table["64x64"]) == {"1", "3"}
        assert all(ratio > 0 for ratio in table["64x64"].values())
    for name in ("braingemma", "braingemma_replicated", "dcmtk_storescp", "orthanc_sync"):
        assert result["images_per_second"][name]["64x64"]["1"] > 0
        assert result["peak_memory_mb"][name]["64x64"]["1"] > 1
    assert len(told) == 8
    assert list(on_disk.rglob("*")) == [second], "nothing is left behind"


def test_a_folder_in_memory_is_refused():
    """Syncing there costs nothing."""
    shm = Path("/dev/shm")
    kinds = [line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines() if " /dev/shm " in line]
    if kinds[-1:] != ["tmpfs"]:
        pytest.skip("/dev/shm is no tmpfs here")
    with pytest.raises(DaemonError, match="expected a folder on a disk"):
        refuse_memory_file_system(shm)


def test_a_missing_sender_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DaemonError, match="storescu"):
        bench_ingest(tmp_path)


@needs_peers
def test_a_lost_image_fails_the_run(monkeypatch, on_disk):
    """A receiver that is fast because it loses images does not win."""
    import daemon.bench.ingest as module

    monkeypatch.setattr(module._Storescp, "stored", lambda _: 11)
    with pytest.raises(DaemonError, match="expected 12 instances, 11 arrived"):
        bench_ingest(on_disk, images=12, sizes=(32,), associations=(1,), rounds=1, processes=1)
