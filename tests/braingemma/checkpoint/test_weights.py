"""References, digests and the hub's cache; no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from published_files import write_published

from braingemma import BrainGemma3D
from braingemma.checkpoint import weights
from braingemma.checkpoint.weights import describe_weights, fetch_weights, list_weights
from braingemma.errors import CheckpointError

HUB_ID = "praiselab-picuslab/BrainGemma3D"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as a finished download leaves it, with a random checkpoint in the published layout."""
    repo = tmp_path / "hub" / "models--praiselab-picuslab--BrainGemma3D"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    write_published((repo / "snapshots" / COMMIT).resolve())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection fails at once, as on a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_describing_weights_needs_no_torch(tiny_checkpoint: Path) -> None:
    code = (
        "import sys; from braingemma.checkpoint import weights; print(weights.describe_weights(sys.argv[1]).sha256);"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code, tiny_checkpoint], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == describe_weights(str(tiny_checkpoint)).sha256


def test_a_folder_says_what_it_is(tiny_checkpoint: Path) -> None:
    info = BrainGemma3D.verify_pretrained(tiny_checkpoint)
    assert (info.name, info.version, info.format, info.folder) == ("tiny", "1", "braingemma", tiny_checkpoint)
    assert len(info.sha256) == 64


def test_a_cached_hub_id_is_used_without_a_network(hub_cache: Path, no_network: None) -> None:
    for ref in (HUB_ID, f"{HUB_ID}@{COMMIT}"):
        info = describe_weights(ref)
        assert (info.name, info.version, info.format) == ("BrainGemma3D", COMMIT[:12], "published")
        assert info.folder.is_relative_to(hub_cache)
        assert info.ref == ref


def test_a_download_that_stopped_half_way_is_not_used(hub_cache: Path, no_network: None) -> None:
    folder = describe_weights(HUB_ID).folder
    (folder / "language_model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not whole weights: language_model/ holds no weights"):
        describe_weights(HUB_ID)


def test_what_is_not_cached_says_so_in_one_line(hub_cache: Path, no_network: None) -> None:
    with pytest.raises(CheckpointError, match="someone/else: ") as caught:
        fetch_weights("someone/else")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ref", ["nowhere", "/no/such/folder", "a/b/c", ""])
def test_what_is_no_reference_is_refused(ref: str, no_network: None) -> None:
    with pytest.raises(CheckpointError):
        describe_weights(ref)


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"vision_model/config\.json is missing; .*projector_vis_scale\.pt is missing"
    ):
        describe_weights(str(tmp_path))


def test_the_digest_covers_everything_that_is_read(tmp_path: Path) -> None:
    folder = write_published(tmp_path)
    seen = {weights.weights_digest(folder)}
    for name in ("vision_model/model.safetensors", "language_model/tokenizer.json", "language_model/config.json"):
        file = folder / name
        file.write_bytes(file.read_bytes() + b" ")
        seen.add(weights.weights_digest(folder))
    assert len(seen) == 4
    (folder / "README.md").write_text("about")
    assert weights.weights_digest(folder) in seen


def test_bundled_weights_are_sound_and_small() -> None:
    if not weights.DEMO_FOLDER.exists():
        pytest.skip("the bundled weights are not there yet")
    info = BrainGemma3D.verify_pretrained(weights.DEMO_FOLDER)
    assert info.synthetic_only
    assert info.banner
    assert sum(p.stat().st_size for p in weights.DEMO_FOLDER.rglob("*") if p.is_file()) < 20e6
    assert info.sha256 in {i.sha256 for i in list_weights()}
    assert info.bundled


def test_weights_of_the_same_recipe_are_not_the_bundled_ones(tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(weights.DEMO_FOLDER, own)
    assert weights.describe_weights(str(own)).bundled, "a copy"
    (own / weights.CHECKSUM_FILE).unlink()
    config = own / weights.CONFIG_FILE
    config.write_text(config.read_text() + " ")
    info = weights.describe_weights(str(own))
    assert (info.name, info.synthetic_only, info.bundled) == ("demo", True, False)
