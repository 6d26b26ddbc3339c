"""Configuration: frozen dataclasses, set by dotted names, with one digest.

A field marked `machinery()` says where or how to work, never what comes out: places, addresses, worker counts, ports.
The digest leaves it out, so that the same data made elsewhere has the same digest.
"""

from __future__ import annotations

import math
from dataclasses import field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cookgen.errors import UnknownNameError, UsageError
from cookgen.files import digest

C = TypeVar("C")
_MACHINERY = "machinery"


def machinery(default: Any) -> Any:
    """A dataclass field that does not change what comes out, and so is left out of the digest."""
    return field(default=default, metadata={_MACHINERY: True})


def to_values(config: Any, *, with_machinery: bool = True) -> dict[str, Any]:
    """The configuration as nested plain values."""
    values = {}
    for item in fields(config):
        if item.metadata.get(_MACHINERY) and not with_machinery:
            continue
        value = getattr(config, item.name)
        values[item.name] = to_values(value, with_machinery=with_machinery) if is_dataclass(value) else _plain(value)
    return values


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def config_digest(config: Any) -> str:
    """sha256 (64 hex digits) of all that the configuration says about the data; machinery is left out."""
    return digest(to_values(config, with_machinery=False))


def known_names(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every settable dotted name with its present value."""
    names: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            names |= known_names(value, f"{prefix}{item.name}.")
        else:
            names[prefix + item.name] = value
    return names


def apply_settings(config: C, settings: list[str]) -> C:
    """The configuration with each `name=value` applied; a value is coerced to the type of its field.

    Raises UnknownNameError (with the nearest name) for a name that is not there, UsageError for a value that does not
    fit its type or contradicts another one.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: write it as name=value, for example --set clips.max_s=20")
        if name not in known_names(config):
            raise UnknownNameError("setting", name, known_names(config))
        *groups, last = name.split(".")
        part, branch = config, tree
        for group in groups:
            part, branch = getattr(part, group), branch.setdefault(group, {})
        branch[last] = _coerce(get_type_hints(type(part))[last], name, text)
    try:
        return _replaced(config, tree)  # all at once: two values may contradict the old ones but not each other
    except ValueError as error:
        raise UsageError(f"--set {' '.join(settings)}: {error}") from error


def _replaced(config: C, tree: dict[str, Any]) -> C:
    changes = {
        name: _replaced(old, value) if is_dataclass(old := getattr(config, name)) else value
        for name, value in tree.items()
    }
    return replace(config, **changes)  # type: ignore[type-var]


def _coerce(hint: Any, name: str, text: str) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    problems = []
    for candidate in _readings(text):
        try:
            value = adapter.validate_python(candidate)
        except ValidationError as error:
            problems.append(error.errors()[0]["msg"])
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--set {name}={text}: must be a finite number")
        return value
    raise UsageError(f"--set {name}={text}: {problems[0]}; expected {_type_name(hint)}")


def _readings(text: str) -> list[Any]:
    """What a value's text can mean, the plainest first: the text, none, a comma-separated list."""
    if text.lower() in ("none", "null"):
        return [None, text]
    return [text, [part.strip() for part in text.split(",")] if text else []]


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint).replace("typing.", "")
