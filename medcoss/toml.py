"""TOML and typed dataclasses: tables checked field by field, overrides from a command line, values written back."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from typing import Any, Literal

from medcoss.contracts import UsageError


def build(cls: type, data: Any, where: str = "") -> Any:
    """A dataclass from a table; `where` is the table's key with a dot behind it. Raises `UsageError` naming the key."""
    if not isinstance(data, dict):
        raise UsageError(f"config: {where or 'the file'} is {data!r}: expected a table")
    hints = typing.get_type_hints(cls)
    names = {item.name for item in dataclasses.fields(cls)}
    for key in data:
        if key not in names:
            raise UsageError(f"config: unknown key {where}{key}: expected one of {', '.join(sorted(names))}")
    try:
        return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()})
    except TypeError as error:
        raise UsageError(f"config: {where.rstrip('.') or 'the file'}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one TOML value against a field's type; integers are taken for floats, lists for tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where + ".")
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise UsageError(f"config: {where} is {value!r}: expected one of {', '.join(map(str, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"config: {where} is {value!r}: expected a table")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list) or (Ellipsis not in arguments and len(value) != len(arguments)):
            raise UsageError(f"config: {where} is {value!r}: expected a list of {len(arguments)}")
        items = [arguments[0]] * len(value) if Ellipsis in arguments else arguments
        return tuple(_convert(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UsageError(f"config: {where} is {value!r}: expected {hint.__name__}")
    return value


def override(data: dict[str, Any], text: str) -> None:
    """Put `section.key=value`, the value in TOML notation or a bare word, into `data`. Raises `UsageError`."""
    name, separator, right = text.partition("=")
    if not separator or not name:
        raise UsageError(f"--set {text!r}: expected section.key=value, for example train.epochs=10")
    try:
        value = tomllib.loads(f"value = {right}")["value"]
    except tomllib.TOMLDecodeError:
        value = right
    *sections, key = name.strip().split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {text!r}: {section} is no section")
    place[key] = value


def write_value(value: Any) -> str:
    """A boolean, number, string or list as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(write_value(item) for item in value) + "]"
    return repr(value)
