"""Dataclasses to JSON data and back, strictly.

`to_data` leaves out fields that equal their default, so saved machines stay readable. `from_data` refuses unknown
keys, missing keys and wrong types with the path of the place (`$.gpus[0].capability`). A class that needs its own
shape defines `to_wire(self)` and `from_wire(cls, data, where)`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

from qlora_doctor.errors import WireError

T = TypeVar("T")
Decoder = Callable[[Any, str], Any]

SCALARS = (str, int, float, bool)


def to_data(value: Any) -> Any:
    """`value` as dicts, lists, strings, numbers, booleans and None, ready for `json.dumps`."""
    if value is None or isinstance(value, SCALARS):
        return value
    if hasattr(value, "to_wire"):
        return value.to_wire()
    if dataclasses.is_dataclass(value):
        return fields_to_data(value)
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(to_data(v) for v in value)
    return [to_data(v) for v in value]


def fields_to_data(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    data = {}
    for field in dataclasses.fields(value):
        item = object.__getattribute__(value, field.name)
        if field.default is not dataclasses.MISSING and item == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and item == field.default_factory():
            continue
        data[field.name] = to_data(item)
    return data


def from_data(cls: type[T], data: Any, where: str = "$") -> T:
    """The `cls` that `data` describes.

    Raises:
        WireError: `data` has another shape; the message names the place.
    """
    kind: Any = cls
    result: T = decoder(kind)(data, where)
    return result


@cache
def decoder(kind: Any) -> Decoder:
    """The function that reads one type. Built once for each type."""
    if kind is Any:
        return lambda data, where: data
    if kind in SCALARS or kind is type(None):
        return _scalar(kind)
    if hasattr(kind, "from_wire"):
        return kind.from_wire  # type: ignore[no-any-return]
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _literal(args)
    if origin in (Union, types.UnionType):
        return _union(args)
    if origin is tuple:
        return _tuple(args)
    if origin is frozenset:
        read = decoder(args[0])
        return lambda data, where: frozenset(_items(data, where, read))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(args)
    raise TypeError(f"no wire format for {kind!r}")


def _name(data: Any) -> str:
    return "null" if data is None else type(data).__name__


def _scalar(kind: Any) -> Decoder:
    def read(data: Any, where: str) -> Any:
        if type(data) is kind or (kind is float and type(data) is int):
            return data
        raise WireError(where, f"expected {'null' if kind is type(None) else kind.__name__}, found {_name(data)}")

    return read


def _literal(choices: tuple[Any, ...]) -> Decoder:
    def read(data: Any, where: str) -> Any:
        if isinstance(data, (str, int)) and data in choices:
            return data
        raise WireError(where, f"expected one of {', '.join(map(repr, choices))}, found {data!r:.60}")

    return read


def _union(members: tuple[Any, ...]) -> Decoder:
    readers = [decoder(m) for m in members if m is not type(None)]
    optional = type(None) in members

    def read(data: Any, where: str) -> Any:
        if data is None and optional:
            return None
        errors = []
        for reader in readers:
            try:
                return reader(data, where)
            except WireError as error:
                errors.append(error)
        raise max(errors, key=lambda e: len(e.where))

    return read


def _items(data: Any, where: str, read: Decoder) -> list[Any]:
    if not isinstance(data, (list, tuple)):
        raise WireError(where, f"expected a list, found {_name(data)}")
    return [read(item, f"{where}[{i}]") for i, item in enumerate(data)]


def _tuple(args: tuple[Any, ...]) -> Decoder:
    if len(args) == 2 and args[1] is Ellipsis:
        one = decoder(args[0])
        return lambda data, where: tuple(_items(data, where, one))
    readers = [decoder(a) for a in args]

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, (list, tuple)) or len(data) != len(readers):
            raise WireError(where, f"expected a list of {len(readers)}, found {_name(data)}")
        return tuple(r(item, f"{where}[{i}]") for i, (r, item) in enumerate(zip(readers, data, strict=True)))

    return read


def _mapping(args: tuple[Any, ...]) -> Decoder:
    one = decoder(args[1])

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            raise WireError(where, f"expected an object, found {_name(data)}")
        return {str(k): one(v, f"{where}.{k}") for k, v in data.items()}

    return read


def _dataclass(kind: Any) -> Decoder:
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    required = [
        f.name for f in fields.values() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    readers: dict[str, Decoder] = {}

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            raise WireError(where, f"expected an object, found {_name(data)}")
        values = {}
        for key, value in data.items():
            if key not in fields:
                raise WireError(where, f"unknown key {str(key)[:60]!r}")
            reader = readers.get(key)
            if reader is None:
                reader = readers[key] = decoder(hints[key])
            values[key] = reader(value, f"{where}.{key}")
        for name in required:
            if name not in values:
                raise WireError(where, f"key {name!r} is missing")
        return kind(**values)

    return read
