"""The configuration read: file, environment, every fault at once."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

from daemon.config.sections import ENVIRONMENT_PREFIX, Settings, section_of
from daemon.errors import ConfigurationError


def without_password(url: str) -> str:
    """A database's URL as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


PATH_VARIABLE = "BRAINGEMMA_CONFIG"
"""Environment variable that names the configuration file."""


def find_configuration(path: Path | None = None) -> Path | None:
    """The configuration file that counts: the first of those that are named or there.

    Args:
        path: As given on the command line; it counts even where no file is there, so that a typing error is noticed.

    Returns:
        `path`; else what `BRAINGEMMA_CONFIG` names; else `./braingemma.toml`, the user's
        (`$XDG_CONFIG_HOME/braingemma/braingemma.toml`) or `/etc/braingemma/braingemma.toml`; None where there is none.
    """
    if path is not None:
        return path
    if named := os.environ.get(PATH_VARIABLE, ""):
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    places = (Path("braingemma.toml"), home / "braingemma/braingemma.toml", Path("/etc/braingemma/braingemma.toml"))
    return next((place for place in places if place.is_file()), None)


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
    except OSError as error:
        raise ConfigurationError(f"configuration: {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOML that cannot be parsed, or JSON in an environment variable
        raise ConfigurationError(f"configuration: {path or 'environment'}: {error}") from error


def with_options(settings: Settings, **sections: Mapping[str, Any]) -> Settings:
    """The configuration with options of a command line in its sections.

    Args:
        settings: As the file and the environment say.
        sections: Values by section and key; None: the option was not given.

    Raises:
        ConfigurationError: a section does not take a value; every fault, a line for each.
    """
    changed = {}
    for name, options in sections.items():
        section = getattr(settings, name)
        given = {key: value for key, value in options.items() if value is not None}
        try:
            changed[name] = type(section).model_validate({**section.model_dump(), **given})
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, (name, *fault['loc'])))}: {fault['msg']}" for fault in error.errors()]
            raise ConfigurationError("options: " + "\n".join(lines)) from error
    return settings.model_copy(update=changed)


def _faults(error: ValidationError, path: Path | None) -> Iterator[str]:
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "configuration"
        variable = ENVIRONMENT_PREFIX + "__".join(str(part) for part in fault["loc"]).upper()
        source = f"environment {variable}" if variable in os.environ else str(path or "defaults")
        value: Any = fault.get("input")
        section = str(fault["loc"][0]) if fault["loc"] else ""
        secret = section in ("web", "engine") or (
            section in ("destinations", "sources") and (isinstance(value, dict) or "port" not in fault["loc"])
        )
        meant = _meant(fault["loc"]) if fault["type"] == "extra_forbidden" else ""
        yield f"{source}: {where}: {fault['msg']}{meant}" + ("" if secret else f" (got {value!r:.80})")


def _meant(place: tuple[int | str, ...]) -> str:
    """The known key that an unknown one is most like, in words."""
    known: type[BaseModel] = Settings
    for part in place[:-1]:
        if isinstance(part, str):
            nested = section_of(known.model_fields[part].annotation)
            if nested is None:
                return ""
            known = nested
    near = difflib.get_close_matches(str(place[-1]), known.model_fields, n=1)
    return f", did you mean {near[0]}?" if near else ""


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
