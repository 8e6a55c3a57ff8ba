"""What JSON files from outside may hold: declared once, as data classes, and checked by pydantic when it is read.

Pydantic is imported then: every command declares such classes, few read one.
"""

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_ADAPTERS: dict[type, "TypeAdapter[Any]"] = {}
SHOWN = 60  # characters of a wrong value that an error repeats


@dataclass(frozen=True)
class JsonData:
    """Base of data classes whose fields are plain values, lists or dictionaries of them, or other such data classes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json` can write."""
        return dict(_adapter(type(self)).dump_python(self, mode="json"))

    @classmethod
    def from_json(cls, values: object) -> Self:
        """What `to_json` gave, or a person wrote.

        Raises:
            ValueError: a name is unknown or missing, or a value is of another kind: one line, with its place.
        """
        from pydantic import ValidationError

        try:
            return _adapter(cls).validate_json(json.dumps(values))  # JSON's own kinds: a list does for a tuple
        except ValidationError as error:
            raise ValueError(_first_line(error, [field.name for field in fields(cls)])) from None


def _adapter(cls: type) -> "TypeAdapter[Any]":
    """What reads and writes a class, made once, as that takes a while."""
    from pydantic import TypeAdapter

    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def _first_line(error: "ValidationError", names: list[str]) -> str:
    """The first of pydantic's errors: where it is, what stands there, what is accepted."""
    first = error.errors(include_url=False, include_context=False)[0]
    place, kind = ".".join(map(str, first["loc"])), first["type"]
    if kind == "missing":
        return f"{place!r} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{place!r} is not known" + (f", expected {', '.join(names)}" if len(first["loc"]) == 1 else "")
    shown = repr(first["input"])
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    expected = first["msg"].removeprefix("Input should be ")
    if not place:
        return f"{shown} is not an object with the names {', '.join(names)}"
    return f"{place} is {shown}, expected {expected}"
