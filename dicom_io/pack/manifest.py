"""What a pack of result objects consists of, and its manifest on disk.

The manifest is written last and its folder is renamed into place, so a folder with a manifest is a whole pack; digests
prove that the bytes to be sent are those of the first encode.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError, field_validator

from dicom_io.errors import PackError, faults_of
from dicom_io.files import whole
from dicom_io.objects.kinds import BY_NAME

MANIFEST = "pack.json"


@dataclass(frozen=True)
class PackObject:
    """One result instance.

    Attributes:
        path: Its file.
        kind: Name of its kind, see `dicom_io.objects.kinds`.
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
        """The instances of one kind, by its name, in order."""
        return tuple(item for item in self.objects if item.kind == kind)


class Entry(BaseModel):
    """One object in a manifest."""

    model_config = ConfigDict(frozen=True, extra="allow")

    file: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    sha256: str

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in BY_NAME:
            raise ValueError(f"expected one of {', '.join(BY_NAME)}")
        return kind


class Manifest(BaseModel):
    """`pack.json`: what was encoded, and the digest of every file."""

    model_config = ConfigDict(frozen=True, extra="allow")

    identity: str
    study_uid: str
    synthetic_only: StrictBool
    objects: tuple[Entry, ...]


def save_manifest(folder: Path, pack: Pack) -> None:
    """Write the manifest of a pack whose files lie in `folder`."""
    entries = tuple(
        Entry(
            file=item.path.relative_to(folder).as_posix(),
            kind=item.kind,
            sop_class_uid=item.sop_class_uid,
            sop_instance_uid=item.sop_instance_uid,
            series_uid=item.series_uid,
            sha256=sha256_of(item.path),
        )
        for item in pack.objects
    )
    manifest = Manifest(
        identity=pack.identity, study_uid=pack.study_uid, synthetic_only=pack.synthetic_only, objects=entries
    )
    with whole(folder / MANIFEST) as draft:
        draft.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """What a pack consists of, without a look at its files.

    Raises:
        PackError: there is no manifest, or it cannot be read; the text names the field and what came.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PackError(f"{path}: expected the manifest of a pack of results: {error.strerror}") from error
    except ValidationError as error:
        raise PackError(f"{path}: expected the manifest of a pack of results; {faults_of(error)}") from error


def is_synthetic_only(folder: Path) -> bool:
    """Whether the results in a folder are by weights that were trained on synthetic images only.

    Raises:
        PackError: there is no manifest, or it does not say.
    """
    return read_manifest(folder).synthetic_only


def load_pack(folder: Path) -> Pack:
    """Read a pack and prove that its files are those that were encoded.

    Raises:
        PackError: there is no manifest, it cannot be read, or a file is missing or changed.
    """
    manifest = read_manifest(folder)
    objects = tuple(_proven(folder, entry) for entry in manifest.objects)
    return Pack(objects, manifest.identity, manifest.study_uid, manifest.synthetic_only)


def _proven(folder: Path, entry: Entry) -> PackObject:
    path = folder / entry.file
    try:
        found = sha256_of(path)
    except OSError as error:
        raise PackError(f"{path}: expected the bytes that were encoded: {error.strerror}") from error
    if found != entry.sha256:
        raise PackError(f"{path}: expected the bytes that were encoded (SHA-256 {entry.sha256}), got {found}")
    return PackObject(path, entry.kind, entry.sop_class_uid, entry.sop_instance_uid, entry.series_uid)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
