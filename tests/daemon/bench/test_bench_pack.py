from pathlib import Path

from daemon.bench.pack import bench_pack


def test_it_encodes_every_kind_and_says_how_long_that_took(tmp_path: Path) -> None:
    said: list[str] = []
    found = bench_pack(tmp_path, slices=12, rounds=2, say=said.append)
    assert found["objects"] == 12 + 3  # overlays; SR, PM, SEG
    assert 0 < found["fastest"] <= found["seconds"] <= found["slowest"]
    assert said == ["drawing the study", "pack 1 of 2", "pack 2 of 2"]
    assert list(tmp_path.iterdir()) == []
