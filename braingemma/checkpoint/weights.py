"""Which weights there are, where they lie, and what they are: no torch here.

A reference is "demo" (bundled), a folder, or a hub id such as `praiselab-picuslab/BrainGemma3D`, with `@revision`
behind it where one revision is meant. What the hub's cache holds is used as it is, without a look at the network: the
revision stays the one that was fetched until `fetch_weights` is called again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from braingemma.errors import CheckpointError

MODEL_TYPE = "braingemma3d"
DEMO_FOLDER = Path(__file__).parents[1] / "weights" / "demo"
CONFIG_FILE = "config.json"
DELTA_FILE = "braingemma.safetensors"
PUBLISHED_PROJECTOR = "projector_vis_scale.pt"
CHECKSUM_FILE = "checksums.json"
VISION_FOLDER, LANGUAGE_FOLDER, LORA_FOLDER = "vision_model", "language_model", "lora_adapters"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Any of these is a tokenizer; without one transformers makes up an empty one, for which every word is unknown."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".bin")
IDENTITY_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".model", ".jinja")
"""Everything that the loader reads: all of it makes the weights what they are."""
FETCHED = tuple(f"*{suffix}" for suffix in IDENTITY_SUFFIXES)
"""What is fetched from the hub; code is never fetched, because none is run."""

Format = Literal["braingemma", "published"]


@dataclass(frozen=True)
class WeightsInfo:
    """What a set of weights is.

    Attributes:
        ref: What was asked for.
        folder: Where it lies.
        format: "braingemma" or "published" (the public code's layout and forward).
        name: Name of the weights.
        version: Their version; the hub's commit where they state none.
        sha256: Digest over the names and digests of all files that the loader reads.
        synthetic_only: Whether they were trained on synthetic images only.
        banner: A line that every result must carry; None for none.
    """

    ref: str
    folder: Path
    format: Format
    name: str
    version: str
    sha256: str
    synthetic_only: bool
    banner: str | None

    @property
    def bundled(self) -> bool:
        """Whether they are the demo weights that come with the package, wherever they lie."""
        return DEMO_FOLDER.is_dir() and self.sha256 == weights_digest(DEMO_FOLDER)


def describe_weights(ref: str) -> WeightsInfo:
    """Find weights and say what they are; a hub id that is not in the cache is downloaded, with progress.

    Raises:
        CheckpointError: there are no such weights, or files are missing or changed.
    """
    folder = find_folder(ref)
    check_layout(folder)
    check_sums(folder)
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    if config.get("model_type") == MODEL_TYPE:
        return WeightsInfo(
            ref=ref,
            folder=folder,
            format="published" if config.get("weights_format") == "published" else "braingemma",
            name=str(config.get("name", folder.name)),
            version=str(config.get("version", "0")),
            sha256=weights_digest(folder),
            synthetic_only=bool(config.get("synthetic_only", False)),
            banner=config.get("banner"),
        )
    digest = weights_digest(folder)
    return WeightsInfo(
        ref=ref,
        folder=folder,
        format="published",
        name=published_name(folder),
        version=_cached_commit(folder) or digest[:12],
        sha256=digest,
        synthetic_only=False,
        banner=None,
    )


def published_name(folder: Path) -> str:
    """Name of weights that state none: the hub's repository, else the folder."""
    found = re.search(r"models--[^/]+?--([^/]+)/snapshots/", folder.as_posix() + "/")
    return found.group(1) if found else folder.resolve().name


def list_weights() -> list[WeightsInfo]:
    """The bundled weights, and those in the hub's cache that this project can load."""
    found = [describe_weights("demo")] if (DEMO_FOLDER / CONFIG_FILE).exists() else []
    try:
        cache = scan_cache_dir()
    except CacheNotFound:  # nothing was ever downloaded on this machine
        return found
    for repo in sorted(cache.repos, key=lambda r: r.repo_id):
        newest = max(repo.revisions, key=lambda r: r.last_modified, default=None)
        if repo.repo_type == "model" and newest is not None and not layout_faults(newest.snapshot_path):
            found.append(describe_weights(f"{repo.repo_id}@{newest.commit_hash}"))
    return found


def fetch_weights(ref: str, revision: str | None = None) -> Path:
    """Download weights into the hub's cache, going on where an earlier download stopped; returns their folder."""
    if ref == "demo" or Path(ref).is_dir():
        return find_folder(ref)
    repo, _, stated = ref.partition("@")
    folder = _download(repo, revision or stated or None)
    check_layout(folder)
    return folder


# ---------------------------------------------------------------------- finding


def find_folder(ref: str) -> Path:
    """The folder of a reference; see `describe_weights`."""
    if ref == "demo":
        if not (DEMO_FOLDER / CONFIG_FILE).exists():
            raise CheckpointError(f"the bundled weights are missing: expected {DEMO_FOLDER}")
        return DEMO_FOLDER
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{ref}: expected a folder of weights, got a file")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", ref):
        raise CheckpointError(f"{ref}: no such folder, and not a hub id (owner/name or owner/name@revision)")
    repo, _, revision = ref.partition("@")
    cached = _cached(repo, revision or None)
    if cached is not None and not layout_faults(cached):
        return cached
    return _download(repo, revision or None)


def _cached(repo: str, revision: str | None) -> Path | None:
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _download(repo: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FETCHED)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{repo}: not in the cache, and the hub cannot be reached: {_line(error)}") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{repo}: download failed: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _cached_commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache."""
    found = re.search(r"/snapshots/([0-9a-f]{40})", folder.as_posix())
    return found.group(1)[:12] if found else None


# ---------------------------------------------------------------------- checks


def layout_faults(folder: Path) -> list[str]:
    """What a folder lacks to be weights of either layout; empty when it is whole."""
    ours = (folder / CONFIG_FILE).exists() and read_json(folder / CONFIG_FILE).get("model_type") == MODEL_TYPE
    needed = [folder / VISION_FOLDER / CONFIG_FILE, folder / LANGUAGE_FOLDER / CONFIG_FILE]
    needed.append(folder / (DELTA_FILE if ours else PUBLISHED_PROJECTOR))
    faults = [f"{path.relative_to(folder)} is missing" for path in needed if not path.exists()]
    for part in (VISION_FOLDER, LANGUAGE_FOLDER):
        if (folder / part).is_dir():
            faults += _missing_shards(folder / part)
    language = folder / LANGUAGE_FOLDER
    if language.is_dir() and not any((language / name).exists() for name in TOKENIZER_FILES):
        faults.append(f"{LANGUAGE_FOLDER}/ holds no tokenizer (expected {TOKENIZER_FILES[0]} or another)")
    return faults


def _missing_shards(folder: Path) -> list[str]:
    """Weight files that an index names and that are not there."""
    indexes = sorted(folder.glob("*.index.json"))
    if not indexes:
        there = any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir())
        return [] if there else [f"{folder.name}/ holds no weights"]
    shards = {shard for index in indexes for shard in read_json(index).get("weight_map", {}).values()}
    return [f"{folder.name}/{shard} is missing" for shard in sorted(shards) if not (folder / shard).exists()]


def check_layout(folder: Path) -> None:
    """Raise `CheckpointError` for what `layout_faults` finds."""
    faults = layout_faults(folder)
    if faults:
        raise CheckpointError(f"{folder}: not whole weights: {'; '.join(faults)}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


# ---------------------------------------------------------------------- digests


def identity_files(folder: Path) -> list[Path]:
    """All files that the loader reads, sorted by name."""
    parts = [folder, *(folder / p for p in (VISION_FOLDER, LANGUAGE_FOLDER, LORA_FOLDER))]
    files = [path for part in parts if part.is_dir() for path in part.iterdir() if path.is_file()]
    ours = [path for path in files if path.suffix in IDENTITY_SUFFIXES and path.name != CHECKSUM_FILE]
    return sorted(ours, key=lambda path: path.relative_to(folder).as_posix())


def weights_digest(folder: Path) -> str:
    """sha256 over the sorted lines `name sha256` of `identity_files`."""
    digest = hashlib.sha256()
    for path in identity_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file; remembered while the file stays the same."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001  (size and time are the cache's key)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write the digest of every file that the loader reads, so that later damage is seen."""
    sums = {path.relative_to(folder).as_posix(): file_digest(path) for path in identity_files(folder)}
    (folder / CHECKSUM_FILE).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Compare with what `write_sums` wrote; nothing is checked where nothing was written.

    Raises:
        CheckpointError: names the files that are missing or have changed.
    """
    if not (folder / CHECKSUM_FILE).exists():
        return
    for name, expected in read_json(folder / CHECKSUM_FILE).items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"{folder}: {name} is missing, which {CHECKSUM_FILE} lists")
        got = file_digest(path)
        if got != expected:
            raise CheckpointError(f"{path}: damaged or changed: expected sha256 {expected}, got {got}")
