"""JSON to frozen dataclasses and back, strictly: a key nobody declared and a value of another type die here, by name.

Fields may be str, int, float, bool, None, Literal, Any, X | None, tuple, dict[str, X] and other dataclasses. A field
with a default may be absent. What a type cannot say, the dataclass checks in `__post_init__` and raises as ValueError.
"""

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdc_edge.errors import BundleError, suggest

T = TypeVar("T")
Path = tuple[str, ...]  # of keys, from the root of the document
SCALARS = {str: "a string", int: "an integer", float: "a number", bool: "true or false", types.NoneType: "null"}


def parse(cls: type[T], data: object, where: object) -> T:
    """Build `cls` from JSON data; `where` (a path, usually) opens every error. Raises BundleError."""
    try:
        return _dataclass(cls, data, ())
    except _Mismatch as error:
        raise BundleError(f"{where}: {error}") from None


def check_format(data: object, wanted: int, where: object, if_older: str) -> None:
    """BundleError for JSON data whose `format` is another number; a missing one is left to `parse`."""
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, int) and found != wanted:
        advice = "update kdc-edge" if found > wanted else if_older
        raise BundleError(f"{where}: format {found}, this kdc-edge reads {wanted}; {advice}")


def dump(obj: object) -> Any:
    """The JSON data `parse` would build `obj` from."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: dump(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {key: dump(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [dump(value) for value in obj]
    return obj


def canonical(data: object) -> bytes:
    """The one spelling of JSON data that is hashed: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class _Mismatch(Exception):
    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{'.'.join(path)} {problem}" if path else problem)


def _dataclass(cls: Any, data: object, path: Path) -> Any:
    if not isinstance(data, Mapping):
        raise _Mismatch(path, f"is {_show(data)}, must be an object")
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise _Mismatch(path, f"has a field '{key}' that {cls.__name__} does not know{suggest(str(key), hints)}")
    for field in dataclasses.fields(cls):
        if field.name not in data and _required(field):
            raise _Mismatch(path, f"lacks '{field.name}'")
    values = {key: _value(hints[key], value, (*path, key)) for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise _Mismatch(path, str(error)) from None


def _value(kind: Any, value: object, path: Path) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, path)
    if kind in SCALARS:
        return _scalar(kind, value, path)
    return _GENERIC[get_origin(kind)](get_args(kind), value, path)


def _scalar(kind: type, value: object, path: Path) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _Mismatch(path, "is too large a number") from None
    if type(value) is not kind:
        raise _Mismatch(path, f"is {_show(value)}, must be {SCALARS[kind]}")
    return value


def _union(kinds: tuple[Any, ...], value: object, path: Path) -> Any:
    """Each kind in turn; where none fits, the first one's complaint."""
    complaints = []
    for kind in kinds:
        try:
            return _value(kind, value, path)
        except _Mismatch as error:
            complaints.append(error)
    raise complaints[0]


def _literal(options: tuple[Any, ...], value: object, path: Path) -> Any:
    if value not in options:
        names = [str(option) for option in options]
        raise _Mismatch(path, f"is {_show(value)}, must be one of {', '.join(names)}{suggest(str(value), names)}")
    return value


def _tuple(kinds: tuple[Any, ...], value: object, path: Path) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _Mismatch(path, f"is {_show(value)}, must be a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise _Mismatch(path, f"has {len(value)} items, must have {len(kinds)}")
    return tuple(_value(kind, item, (*path, str(i))) for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _dict(kinds: tuple[Any, ...], value: object, path: Path) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _Mismatch(path, f"is {_show(value)}, must be an object")
    return {key: _value(kinds[1], item, (*path, key)) for key, item in value.items()}


_GENERIC = {Union: _union, types.UnionType: _union, Literal: _literal, tuple: _tuple, dict: _dict}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
