"""What a pack of result objects consists of, and its manifest on disk.

The manifest is written last and its folder is renamed into place, so a folder with a manifest is a whole pack; digests
prove that the bytes to be sent are those of the first encode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_io.errors import PackError

MANIFEST = "pack.json"


@dataclass(frozen=True)
class PackObject:
    """One result instance.

    Attributes:
        path: Its file.
        kind: `sr`, `sc`, `pm`, `seg`, `tid1500` or `rejection`.
        sop_class_uid: Its SOP Class UID.
        sop_instance_uid: Its SOP Instance UID.
        series_uid: Its Series Instance UID.
    """

    path: Path
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str


@dataclass(frozen=True)
class Pack:
    """All result instances of one case, in the order in which they are sent.

    Attributes:
        objects: The instances.
        identity: Digest of everything that affects their content.
        study_uid: The study that they belong to.
        synthetic_only: Whether they are by weights that were trained on synthetic images only.
    """

    objects: tuple[PackObject, ...]
    identity: str
    study_uid: str
    synthetic_only: bool

    def of_kind(self, kind: str) -> tuple[PackObject, ...]:
        """The instances of one kind, in order."""
        return tuple(item for item in self.objects if item.kind == kind)


def save_manifest(folder: Path, pack: Pack) -> Path:
    """Write the manifest of a pack whose files lie in `folder`."""
    entries = [
        {
            "file": item.path.relative_to(folder).as_posix(),
            "kind": item.kind,
            "sop_class_uid": item.sop_class_uid,
            "sop_instance_uid": item.sop_instance_uid,
            "series_uid": item.series_uid,
            "sha256": sha256_of(item.path),
        }
        for item in pack.objects
    ]
    path = folder / MANIFEST
    fields = {
        "identity": pack.identity,
        "study_uid": pack.study_uid,
        "synthetic_only": pack.synthetic_only,
        "objects": entries,
    }
    path.write_text(json.dumps(fields, indent=1), encoding="utf-8")
    return path


def load_pack(folder: Path) -> Pack:
    """Read a pack and prove that its files are those that were encoded.

    Raises:
        PackError: there is no manifest, it cannot be read, or a file is missing or changed.
    """
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        objects = tuple(_load_objects(folder, fields["objects"]))
        return Pack(objects, fields["identity"], fields["study_uid"], bool(fields["synthetic_only"]))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise PackError(f"{path}: expected the manifest of a pack of results: {error!r}") from error


def is_synthetic_only(folder: Path) -> bool:
    """Whether the results in a folder are by weights that were trained on synthetic images only.

    Raises:
        PackError: there is no manifest, or it does not say.
    """
    path = folder / MANIFEST
    try:
        flag = json.loads(path.read_text(encoding="utf-8"))["synthetic_only"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackError(f"{path}: expected the manifest of a pack of results: {error!r}") from error
    if not isinstance(flag, bool):
        raise PackError(f"{path}: synthetic_only: expected true or false, got {flag!r}")
    return flag


def _load_objects(folder: Path, entries: list[dict[str, Any]]) -> Iterable[PackObject]:
    for entry in entries:
        fields = dict(entry)
        path = folder / fields.pop("file")
        expected = fields.pop("sha256")
        found = sha256_of(path)
        if found != expected:
            raise PackError(f"{path}: expected the bytes that were encoded (SHA-256 {expected}), got {found}")
        yield PackObject(path=path, **fields)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
