"""Data classes as JSON objects: what a file holds is written once, as annotations, and checked when it is read."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import UnionType
from typing import Self, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class JsonData:
    """Base of data classes whose fields are plain values, lists or dictionaries of them, or other such data classes."""

    def to_json(self) -> dict[str, object]:
        """The fields as values that `json` can write."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, values: object) -> Self:
        """What `to_json` gave, or a person wrote.

        Raises:
            ValueError: a name is unknown or missing, or a value is of another kind.
        """
        if not isinstance(values, dict):
            raise ValueError(f"{values!r} is not an object with the names {', '.join(f.name for f in fields(cls))}")
        kinds, known = get_type_hints(cls), {field.name: field for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{name!r} is not known, expected {', '.join(known)}")
        for name, field in known.items():
            if name not in values and field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{name!r} is missing")
        return cls(**{name: _read(kinds[name], value, name) for name, value in values.items()})


def _plain(value: object) -> object:
    if isinstance(value, JsonData):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str)
    return value


def _read(kind: object, value: object, name: str) -> object:
    """The value as an annotation asks for it; `name` is for the error."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, JsonData):
        return kind.from_json(value)
    if origin in (Union, UnionType):
        return _read_union(arguments, value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, name) for item in value)
    if origin in (list, dict) and isinstance(value, origin):
        if isinstance(value, list):
            return [_read(arguments[0], item, name) for item in value]
        return {key: _read(arguments[1], item, name) for key, item in value.items()}
    if kind is object:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise ValueError(f"{name} is {value!r}, expected {getattr(kind, '__name__', kind)}")


def _read_union(kinds: tuple[object, ...], value: object, name: str) -> object:
    if value is None and type(None) in kinds:
        return None
    ours = [kind for kind in kinds if kind is not type(None)]
    for kind in ours[:-1]:
        try:
            return _read(kind, value, name)
        except ValueError:
            continue
    return _read(ours[-1], value, name)
