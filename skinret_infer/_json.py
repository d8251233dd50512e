"""A JSON object as a dataclass, after a check of its fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

MAX_BLOCK = 65_536  # numbers in a block of a descriptor
MAX_CONCEPTS = 256
T = TypeVar("T")
_TEXTS, _OBJECT, _SHAPE = Mapping[str, str], Mapping[str, Any], tuple[int, int, int]
_SIZES, _VALUES = tuple[int, ...], Mapping[str, list[str]]


def build(cls: type[T], data: Any, where: str) -> T:
    """Return a JSON object as a dataclass. Raises TypeError or ValueError for a wrong field."""
    if not isinstance(data, dict):
        raise TypeError(f"{where}: {data!r:.80}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(data) - set(fields):
        raise TypeError(f"{where}: unknown {', '.join(sorted(unknown)):.200}")
    values = {}
    for name, value in data.items():
        kind = fields[name].type
        if kind in (_SHAPE, _SIZES) and isinstance(value, list):
            value = tuple(value)
        if not _fits(kind, value):
            raise ValueError(f"{where}.{name}: {value!r:.80}")
        values[name] = value
    return cls(**values)


def _fits(kind: Any, value: Any) -> bool:
    """Say whether a value read from JSON may be in a field: integers are sizes, floats lie in [0, 1]."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if kind is str:
        return isinstance(value, str)
    if kind in (_SHAPE, _SIZES):
        if not isinstance(value, tuple):
            return False
        length_fits = len(value) == 3 if kind == _SHAPE else len(value) <= MAX_CONCEPTS
        return length_fits and all(_fits(int, v) and v <= MAX_BLOCK for v in value)
    if kind == _VALUES:
        lists = isinstance(value, dict) and all(isinstance(v, list) for v in value.values())
        return lists and all(isinstance(name, str) for names in value.values() for name in names)
    if kind == _TEXTS:
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    return kind != _OBJECT or isinstance(value, dict)
