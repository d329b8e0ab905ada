"""Configs from JSON and from `key=value`, configs as JSON, and how two differ. Imports no jax."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest, require


def override(config, assignments):
    """Return a copy of `config` with `["model.num_frames=8", …]` applied.

    Values are JSON; what is not JSON is taken as a string. Raises ConfigError.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r}: write an override as key=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        config = _replace(config, path.split("."), value, path)
    return config


def _replace(config, keys, value, path):
    hints = typing.get_type_hints(type(config)) if dataclasses.is_dataclass(config) else {}
    head, *rest = keys
    if head not in hints:
        parent = path[: len(path) - len(".".join(keys))]
        if not hints:
            raise ConfigError(f"{path}: {parent[:-1]} is a value, it holds no options")
        name = f" {parent}{head}" if rest else ""
        raise ConfigError(f"{path}: no such option{name}; {nearest(head, hints)}")
    new = (
        _replace(getattr(config, head), rest, value, path)
        if rest
        else _coerce(value, hints[head], path)
    )
    return dataclasses.replace(config, **{head: new})


def from_dict(cls, values: dict, prefix: str = ""):
    """Return a config of class `cls` from nested dicts.

    Raises ConfigError for an unknown key or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: no such option; {nearest(key, hints)}")
    return cls(**{k: _coerce(v, hints[k], f"{prefix}{k}") for k, v in values.items()})


def _coerce(value, hint, name: str):
    """Return `value`, from JSON or a command line, as the type `hint`.

    Raises ConfigError that names the field and the type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        # `str | VisionConfig`: a mapping can only mean the sizes.
        sizes = [a for a in kinds if dataclasses.is_dataclass(a) and isinstance(value, dict | a)]
        return _coerce(value, (sizes or kinds)[0], name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, prefix=f"{name}.")
    if origin is tuple:
        require(isinstance(value, list | tuple), name, value, "a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        require(len(inner) == len(value), name, value, f"a list of {len(inner)} items")
        return tuple(
            _coerce(v, a, f"{name}[{i}]") for i, (v, a) in enumerate(zip(value, inner, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise ConfigError(
            f"{name} = {value!r}: must be {hint.__name__}, not {type(value).__name__}"
        )
    return value


def to_json(config) -> str:
    """Return the config as indented JSON, keys in the order of the fields."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def from_json(cls, text: str):
    """Return the config of class `cls` that `to_json` wrote. Raises ValueError."""
    return from_dict(cls, json.loads(text))


def differences(a, b, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield (name, value in a, value in b) of every option in which two configs differ."""
    for f in dataclasses.fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if x != y:
            if dataclasses.is_dataclass(x) and dataclasses.is_dataclass(y):
                yield from differences(x, y, f"{prefix}{f.name}.")
            else:
                yield prefix + f.name, x, y
