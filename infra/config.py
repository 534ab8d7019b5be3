"""Configs: pydantic models read from one YAML file and `key=value` overrides, with every mistake reported at once."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import UserError


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, each field documented by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True)


C = TypeVar("C", bound=Config)


def load_config(model: type[C], yaml_path: str | Path | None = None, overrides: list[str] | None = None, preset: C | None = None) -> C:
    """Reads a config.

    Args:
        model: The config's class.
        yaml_path: A YAML file, on disk or in an object store, or None for the defaults.
        overrides: `a.b=value` strings, applied on top; values are read as YAML.
        preset: What the file changes; None is the class's defaults.

    Raises:
        UserError: One message with a line for each mistake: where, what was given, what was expected, the nearest key.
    """
    mistakes: list[str] = []
    values = preset.model_dump(mode="json") if preset else {}
    if yaml_path:
        _merge(values, _read_yaml(str(yaml_path), mistakes))
    for override in overrides or []:
        _apply(values, override, mistakes)
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        mistakes += [_describe(model, entry) for entry in error.errors()]
        config = None
    if mistakes or config is None:
        where = f" in {yaml_path}" if yaml_path else ""
        raise UserError(
            f"{len(mistakes)} mistake{'s' * (len(mistakes) != 1)} in the configuration{where}:\n" + "\n".join(f"  {m}" for m in mistakes)
        )
    return config


def dump_config(config: Config) -> str:
    """The resolved config as YAML, keys in the order of their definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: str, mistakes: list[str]) -> dict[str, Any]:
    from infra.storage import read_bytes  # not at the top: `lato --help` needs no file systems

    try:
        values = yaml.safe_load(read_bytes(path).decode())
    except (FileNotFoundError, IsADirectoryError):
        mistakes.append(f"{path}: there is no such file")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mistakes.append(f"{path}: not readable as YAML: {' '.join(str(error).split())}")
        return {}
    if values is not None and not isinstance(values, dict):
        mistakes.append(f"{path}: expected keys and values at the top level, given a {type(values).__name__}")
        return {}
    return values or {}


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Puts changes over values, section by section; a list is replaced whole."""
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            _merge(values[key], change)
        else:
            values[key] = change


def _apply(values: dict[str, Any], override: str, mistakes: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or not all(key.split(".")):
        mistakes.append(f"{override!r}: expected key=value, for example training.steps=100")
        return
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if child is None:
            child = values[parent] = {}
        if not isinstance(child, dict):
            mistakes.append(f"{key}: {parent} is a value, not a section")
            return
        values = child
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mistakes.append(f"{key}: {text!r} is not readable as YAML: {' '.join(str(error).split())}")


def _describe(model: type[BaseModel], entry: Any) -> str:
    path = [str(part) for part in entry["loc"]]
    name = ".".join(path) or "(top level)"
    if entry["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"{name}: unknown key; {hint}"
    if entry["type"] == "missing":
        return f"{name}: this key is required"
    return f"{name}: given {entry['input']!r}; {entry['msg'][0].lower()}{entry['msg'][1:]}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        field = current.model_fields.get(part) if _is_model(current) else None
        if field is None:
            continue  # an index into a list, or the tag of a union
        current = next((t for t in _types_in(field.annotation) if _is_model(t)), None)
    return list(current.model_fields) if _is_model(current) else []


def _types_in(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, dict, typing.Annotated):
        return [inner for argument in typing.get_args(annotation) for inner in _types_in(argument)]
    return [annotation]


def _is_model(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)
