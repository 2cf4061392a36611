"""The configuration read: file, environment, every fault at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

from daemon.config.sections import ENVIRONMENT_PREFIX, Settings
from daemon.errors import ConfigurationError


def without_password(url: str) -> str:
    """A database's URL as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def load_settings(path: Path | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: TOML file; None uses the defaults and the environment.

    Raises:
        ConfigurationError: every fault that was found, one on a line, each with its source and value.
    """
    if path is not None and not path.is_file():
        raise ConfigurationError(f"configuration: expected a TOML file, found none at {path}")

    class FileSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
            if path is not None:
                sources.append(TomlConfigSettingsSource(settings_cls, toml_file=path))
            return tuple(sources)

    try:
        return FileSettings()
    except ValidationError as error:
        raise ConfigurationError("\n".join(_faults(error, path))) from error
    except ValueError as error:  # TOML that cannot be parsed, or JSON in an environment variable
        raise ConfigurationError(f"configuration: {path or 'environment'}: {error}") from error


def _faults(error: ValidationError, path: Path | None) -> Iterator[str]:
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "configuration"
        variable = ENVIRONMENT_PREFIX + "__".join(str(part) for part in fault["loc"]).upper()
        source = f"environment {variable}" if variable in os.environ else str(path or "defaults")
        value: Any = fault.get("input")
        secret = fault["loc"][:1] in (("web",), ("engine",)) or (
            fault["loc"][:1] == ("destinations",) and (isinstance(value, dict) or "port" not in fault["loc"])
        )
        yield f"{source}: {where}: {fault['msg']}" + ("" if secret else f" (got {value!r:.80})")


def origins(settings: Settings, path: Path | None) -> list[tuple[str, Any, str]]:
    """Each value of the configuration as (dotted name, value, where it came from)."""
    written = tomllib.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    rows: list[tuple[str, Any, str]] = []
    shown = settings.model_dump(mode="json")
    if settings.engine.database_url:
        shown["engine"]["database_url"] = without_password(settings.engine.database_url)
    for section, values in shown.items():
        if not isinstance(values, dict):
            rows.append((section, values, str(path) if section in written else "default"))
            continue
        for key, value in values.items():
            variable = f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
            in_file = key in written.get(section, {})
            rows.append(
                (f"{section}.{key}", value, variable if variable in os.environ else str(path) if in_file else "default")
            )
    return rows
