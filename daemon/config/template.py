"""A configuration file to start from: every section and key with its default and what it means, commented out."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from daemon.config.sections import Destination, Notice, Peer, Rule, Section, Settings, Source, Tls, section_of

_EXAMPLES: dict[type[Section], dict[str, str]] = {
    Destination: {"name": '"pacs"', "ae_title": '"ORTHANC"', "host": '"127.0.0.1"', "port": "4242"},
    Source: {"name": '"archive"', "ae_title": '"ORTHANC"', "host": '"127.0.0.1"', "port": "4242"},
    Rule: {"priority": '"urgent"', "calling_aet": '"ER_*"', "match": '{ StudyDescription = "stroke|emergency" }'},
    Notice: {"name": '"team"', "url": '"https://chat.example/hooks/..."'},
    Peer: {"ae_title": '"ORTHANC"', "host": '"127.0.0.1"'},
    Tls: {"cert": '"/path/cert.pem"', "key": '"/path/key.pem"'},
}
"""Values of required keys, which have no default."""


def configuration_template() -> str:
    """TOML in which all is commented out: read as it is, it gives the defaults."""
    lines = [
        "# BrainGemma3D for PACS: research use only, no diagnosis.",
        "# Every key with its default; take the # away from what you change. The environment wins over this file:",
        "# BRAINGEMMA_SECTION__KEY. Check it with: braingemma config check",
    ]
    for name, field in Settings.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            header = f"[[{name}]]" if _is_list(field.annotation) else f"[{name}]"
            what = (section.__doc__ or "").splitlines()[0].partition(": ")[2]
            lines += ["", f"# {header}", *_comment(what, "  "), *_keys(section)]
    return "\n".join(lines) + "\n"


def _keys(section: type[Section]) -> Iterator[str]:
    examples = _EXAMPLES.get(section, {})
    for key, field in section.model_fields.items():
        yield from _comment(" ".join((field.description or "").split()), "  ")
        yield f"# {key} = {examples.get(key) or _value(field)}"


def _value(field: FieldInfo) -> str:
    """A default as TOML; what has none is shown by an example, or by dots."""
    if field.default is None:
        nested = section_of(field.annotation)
        examples = _EXAMPLES.get(nested) if nested else None
        return "{ " + ", ".join(f"{k} = {v}" for k, v in examples.items()) + " }" if examples else '"..."'
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    return json.dumps(default, default=str, ensure_ascii=False)


def _comment(text: str, indent: str = "") -> list[str]:
    width = 110 - len(indent)
    return [f"# {indent}{line}" for line in textwrap.wrap(text.replace("`", ""), width, break_long_words=False)]


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is tuple
