"""JSON files as typed records: what each holds is said by its class, and it is read and written by it alone.

A record that cannot be read gives one error that names the file, what was expected and what came. Fields that this
version does not know are kept, so that a record that a later version wrote loses nothing when it is written again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from daemon.errors import Permanent
from daemon.files import write_json
from dicom_io.errors import faults_of


class Record(BaseModel):
    """What all records have in common; they never change, `model_copy(update=...)` makes another one."""

    model_config = ConfigDict(frozen=True, extra="allow")
    what: ClassVar[str] = "a record"
    """In errors: what the file was expected to be."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            Permanent: the file is not there, or not such a record.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise Permanent(f"{path}: expected {cls.what}, found no such file") from error
        except OSError as error:
            raise Permanent(f"{path}: expected {cls.what}: {error.strerror}") from error
        except ValidationError as error:
            raise Permanent(f"{path}: expected {cls.what}; {faults_of(error)}") from error

    @classmethod
    def read_if_there(cls, path: Path) -> Self | None:
        """As `read`; None where there is no such file."""
        return cls.read(path) if path.exists() else None

    def write(self, path: Path) -> None:
        """Write it durably, whole or not at all."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return self.model_dump(mode="json")
