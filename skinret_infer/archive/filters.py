"""The filter of a query, and the facts of cases as columns of codes, which filter a million cases at once."""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .._values import AttributeValue, is_storable, nfc
from ..errors import InputError

FIELDS = ("diagnosis", "group", "confirmed_by")  # of every case; they hide an attribute of the same name
_Key: TypeAlias = tuple[str, AttributeValue]  # the kind of a value, and the value
# A text that counts as a number. 00123 and 1e3 are names.
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to `high`, both included; None leaves an end open.

    Raises InputError for an end that is not a finite number, and for a low end above the high one.
    """

    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        if not all(map(_is_finite_number, ends)) or ends != sorted(ends):
            raise InputError(
                "the range cannot be used",
                code="filter-type",
                expected="two finite numbers, the lower one first, or None for an open end",
                found=f"{self.low!r} to {self.high!r}",
            )

    def to_dict(self) -> dict[str, float | None]:
        """Return the range as JSON has it: {"from": ..., "to": ...}."""
        return {"from": self.low, "to": self.high}


Filter: TypeAlias = AttributeValue | Range | list[AttributeValue]


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter on one field or attribute: one of some values, or a number in a range."""

    name: str
    values: frozenset[_Key]
    range: Range | None
    kind: str  # the kind of value that can match: "text", "a number", "true or false", or "" for any
    text: str  # the filter as it was written, for a message


class Column:
    """One field or attribute of n cases: a code for each case, the index of its value, -1 if it has none."""

    def __init__(self, values: Sequence[AttributeValue], codes: npt.NDArray[np.int32]) -> None:
        self.values, self.codes = values, codes

    def matches(self, condition: Condition) -> npt.NDArray[np.bool_]:
        """Return for each case whether the condition is true, bool [n]."""
        allowed = np.zeros(len(self.values) + 1, bool)  # the last is for cases without a value: code -1
        if condition.range:
            low = -math.inf if condition.range.low is None else condition.range.low
            high = math.inf if condition.range.high is None else condition.range.high
            allowed[:-1] = (self.numbers >= low) & (self.numbers <= high)
        else:
            allowed[[code for key in condition.values for code in self.places.get(key, ())]] = True
        return allowed[self.codes]

    @functools.cached_property
    def kinds(self) -> frozenset[str]:
        """The kinds of the values."""
        return frozenset(kind for kind, _ in self.places)

    @functools.cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The values as numbers, NaN for a value that is not a number."""
        return np.array([np.nan if (x := parse_number(v)) is None else x for v in self.values], np.float64)

    @functools.cached_property
    def places(self) -> Mapping[_Key, list[int]]:
        """The indices of the values that a filter on a key finds. A text such as "63" is also found as 63."""
        places: dict[_Key, list[int]] = {}
        for place, value in enumerate(self.values):
            number = parse_number(value) if isinstance(value, str) else None
            places.setdefault((_kind(value), value), []).append(place)
            if number is not None:
                places.setdefault(("a number", number), []).append(place)
        return places


class Columns(dict[str, Column]):
    """The facts of n cases by name."""

    @classmethod
    def of(cls, facts: Sequence[Mapping[str, AttributeValue]]) -> "Columns":
        """Return the facts of cases as columns of codes."""
        places: dict[str, dict[_Key, int]] = {}
        codes: dict[str, npt.NDArray[np.int32]] = {}
        for n, row in enumerate(facts):
            for name, value in row.items():
                if name not in places:
                    places[name], codes[name] = {}, np.full(len(facts), -1, np.int32)
                places_of = places[name]
                codes[name][n] = places_of.setdefault((_kind(value), value), len(places_of))
        return cls({name: Column([v for _, v in places[name]], codes[name]) for name in places})

    def rows(self, rows: slice) -> "Columns":
        """Return the facts of some of the cases, without the values that none of them has."""
        columns = Columns()
        for name, column in self.items():
            old_codes, codes = np.unique(np.append(column.codes[rows], -1), return_inverse=True)
            if len(old_codes) > 1:  # the first is -1
                values = [column.values[n] for n in old_codes[1:]]
                columns[name] = Column(values, codes[:-1].astype(np.int32) - 1)
        return columns

    def concat(self, more: "Columns", count: int, further: int) -> "Columns":
        """Return the facts of these `count` cases, followed by `further` more cases."""
        both = Columns()
        for name in dict.fromkeys([*self, *more]):
            places: dict[_Key, int] = {}
            codes = []
            for columns, n in ((self, count), (more, further)):
                column = columns.get(name)
                values = column.values if column else ()
                new_codes = [places.setdefault((_kind(v), v), len(places)) for v in values]
                old_codes = column.codes if column else np.full(n, -1, np.int32)
                codes.append(np.array([*new_codes, -1], np.int32)[old_codes])
            both[name] = Column([v for _, v in places], np.concatenate(codes))
        return both

    def matches(self, conditions: Iterable[Condition], count: int) -> npt.NDArray[np.bool_]:
        """Return for each of the n cases whether all conditions are true, bool [n]."""
        mask = np.ones(count, bool)
        for condition in conditions:
            column = self.get(condition.name)
            mask &= column.matches(condition) if column else False
        return mask


def check_filter(where: Mapping[str, Any] | None) -> dict[str, Filter]:
    """Return a filter with its names in Unicode's normal form C and its values as plain values and Ranges.

    A value is a text, a number or a bool; or a list, tuple or set of them, which matches any of them; or a
    Range, also in its JSON form. The function accepts its own result, and the JSON form of its result.

    Raises InputError.
    """
    if where is None:
        return {}
    if not isinstance(where, Mapping):
        raise InputError(
            "the filter cannot be used",
            code="filter-type",
            expected='a mapping such as {"sex": "female"}',
            found=f"{where!r:.80}",
        )
    return {
        nfc(name) if isinstance(name, str) else str(name): _check_value(name, value)
        for name, value in where.items()
    }


def parse_filter(where: Mapping[str, Any] | None, columns: Sequence[Columns]) -> list[Condition]:
    """Return the conditions of a filter on cases whose facts are in `columns`, one for each segment.

    A text finds that text. A number finds that number, also where a table has it as a text.

    Raises InputError for a name that no case has, and for a condition that no case can match.
    """
    conditions = [_condition(name, value) for name, value in check_filter(where).items()]
    for condition in conditions:
        kinds = {kind for segment in columns if (c := segment.get(condition.name)) for kind in c.kinds}
        if not kinds and condition.name not in FIELDS:
            known = sorted({name for segment in columns for name in segment} - set(FIELDS))
            raise InputError(
                f"no case has the attribute {condition.name!r}",
                code="filter-unknown",
                found=repr(condition.name),
                expected=f"one of {', '.join([*FIELDS, *known])}",
            )
        if condition.name in FIELDS:
            kinds.add("text")
        if condition.kind and condition.kind not in kinds:
            raise InputError(
                f"no case can match the filter on {condition.name!r}",
                code="filter-type",
                expected=" or ".join(sorted(kinds)),
                found=f"{condition.text}, {condition.kind}",
            )
    return conditions


def _check_value(name: object, value: Any) -> Filter:
    if isinstance(value, Range):
        return value
    if isinstance(value, Mapping) and set(value) == {"from", "to"}:
        return Range(value["from"], value["to"])
    is_list = isinstance(value, list | tuple | set | frozenset)
    values = [v.item() if isinstance(v, np.generic) else v for v in (value if is_list else [value])]
    if not all(isinstance(v, str | int | float) and is_storable(v) for v in values):
        raise InputError(
            f"the filter on {name!r} cannot be used",
            code="filter-type",
            expected="a text, number or bool, a list of them, or a Range",
            found=f"{value!r:.80}",
        )
    return values if is_list else values[0]


def _condition(name: str, value: Filter) -> Condition:
    if isinstance(value, Range):
        return Condition(name, frozenset(), value, "a number", repr(value))
    values = value if isinstance(value, list) else [value]
    keys = frozenset((_kind(v), nfc(v) if isinstance(v, str) else v) for v in values)
    kinds = {kind for kind, _ in keys}
    return Condition(name, keys, None, kinds.pop() if len(kinds) == 1 else "", repr(value))


def _kind(value: AttributeValue) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "text" if isinstance(value, str) else "a number"


def parse_number(value: AttributeValue) -> float | None:
    """Return a value as a number, also a number that is written as a text; None if it is not a number."""
    if not isinstance(value, str):
        return None if isinstance(value, bool) else value
    return float(value) if _NUMBER.fullmatch(value) else None


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
