"""Look at an ONNX file before a runtime does: it may hold what the bundles of this package hold, no more.

A file is a message of Protocol Buffers (protobuf.dev/programming-guides/encoding, onnx.proto3). It is walked
by tables of the fields that are allowed. What is in no table is refused: weights in other files, functions,
graphs within graphs (control flow), training, sparse tensors, and what is not thought of here. Weights are
passed over, not read.

What a graph calculates is not looked at: its maker can have it take all the time and memory there is.
"""

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from ..errors import BundleError

MAX_BYTES = (1 << 31) - 1  # of a file: Protocol Buffers hold no more
MAX_FIELDS = 2_000_000  # a graph of Swin-T has 25,000
MAX_SIZE = (1 << 31) - 1  # numbers in a tensor, and any one of its dimensions

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MORE = bytes(range(128, 256))  # bytes of a varint that another follows
_Found: TypeAlias = dict[str, list[Any]]


class _Lie(Exception):
    """What is wrong with a file, in a few words."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    many: bool = False
    message: "_Message | None" = None


@dataclass(frozen=True, slots=True)
class _Message:
    """The fields that a message may have, by their keys: the number and how it is written."""

    fields: Mapping[int, _Field]
    forbidden: Mapping[int, str]  # by number: what those that have a name in an error are
    check: Callable[["_File", _Found], None] | None


@dataclass(slots=True)
class _File:
    data: mmap.mmap
    left: int = MAX_FIELDS

    def walk(self, place: int, end: int, message: _Message) -> _Found:
        """Return what stands in a message: integers, and of all else the span of its bytes."""
        data, fields, found = self.data, message.fields, _Found()
        while place < end:
            self.left -= 1
            if self.left < 0:
                raise _Lie(f"more than {MAX_FIELDS:,} fields")
            key = data[place]
            if key < 128:
                place += 1
            else:
                key, place = self.varint(place, end)
            known = fields.get(key)
            if known is None:
                raise _Lie(message.forbidden.get(key >> 3, f"a field {key >> 3} that no bundle has"))
            wire, value = key & 7, cast(Any, None)
            if wire == _VARINT:
                value, place = self.varint(place, end)
            elif wire == _BYTES:
                length, start = self.varint(place, end)
                place = start + length
                if place > end:
                    raise _Lie("a field that goes beyond its end")
                if known.message:
                    inner = self.walk(start, place, known.message)
                    if known.message.check:
                        known.message.check(self, inner)
                else:
                    value = (start, place)
            else:
                value = (place, place := place + (8 if wire == _FIXED64 else 4))
                if place > end:
                    raise _Lie("a field that goes beyond its end")
            if known.name not in found:
                found[known.name] = [value]
            elif known.many:
                if value is not None:
                    found[known.name].append(value)
            else:
                raise _Lie(f"{known.name} twice")
        return found

    def varint(self, place: int, end: int) -> tuple[int, int]:
        """Return the number that stands at a place, and the place behind it."""
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self.data[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, place
        raise _Lie("a number that does not end")

    def text(self, found: _Found, name: str) -> str:
        start, end = found.get(name, [(0, 0)])[0]
        return self.data[start : min(end, start + 200)].decode("utf-8", "replace")

    def count(self, found: _Found, name: str, size: int) -> int:
        """Return how many numbers stand in a repeated field; size: bytes of each, 0 for varints."""
        numbers = 0
        for value in found.get(name, []):
            if isinstance(value, int):
                numbers += 1
            elif size:
                numbers += (value[1] - value[0]) / size  # a fraction fits no tensor
            else:
                packed = self.data[slice(*value)]
                numbers += len(packed.translate(None, _MORE)) + (packed[-1:] >= b"\x80")
        return numbers

    def integers(self, found: _Found, name: str) -> list[int]:
        """Return the numbers of a repeated field of varints, packed or not."""
        numbers = []
        for value in found.get(name, []):
            if isinstance(value, int):
                numbers.append(value)
                continue
            place, end = value
            while place < end:
                self.left -= 1
                number, place = self.varint(place, end)
                numbers.append(number)
                if self.left < 0:
                    raise _Lie(f"more than {MAX_FIELDS:,} fields")
        return numbers


def check_graph(path: Path) -> None:
    """Raise BundleError for a file that is no ONNX graph such as a bundle has, or lies about its sizes."""
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _File(data).walk(0, len(data), _MODEL)
        if "graph" not in found:
            raise _Lie("none")
    except (OSError, ValueError, _Lie) as error:
        raise BundleError(
            f"{path} is no graph of a bundle",
            code="bundle-graph",
            expected="an ONNX file of plain operators, with its weights in it",
            found=str(error),
            cure="export the bundle again, and take bundles only from those you trust",
        ) from None


def _check_domain(file: _File, found: _Found) -> None:
    if (domain := file.text(found, "domain")) not in ("", "ai.onnx"):
        raise _Lie(f"operators of the domain {domain!r:.80}")


def _check_dim(file: _File, found: _Found) -> None:
    if found.get("value", [0])[0] > MAX_SIZE:
        raise _Lie(f"a dimension of more than {MAX_SIZE:,}, or below 0")


# The bytes that a number has in raw_data, and the field that may hold it instead; by ONNX's data type.
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_HOLDERS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}
_WIDTHS = {
    "raw_data": 1,
    "float_data": 4,
    "int32_data": 0,
    "int64_data": 0,
    "double_data": 8,
    "uint64_data": 0,
}


def _check_tensor(file: _File, found: _Found) -> None:
    if found.get("data_location", [0])[0] != 0:
        raise _Lie(_OUTSIDE)
    name, kind = file.text(found, "name"), found.get("data_type", [0])[0]
    if kind not in _SIZES:
        raise _Lie(f"the tensor {name!r:.80} of data type {kind}")
    dims = file.integers(found, "dims")
    size = math.prod(dims) if len(dims) <= 64 else MAX_SIZE + 1
    if max(dims, default=0) > MAX_SIZE or size > MAX_SIZE:
        raise _Lie(f"the tensor {name!r:.80} of more than {MAX_SIZE:,} numbers")
    held = {holder: n for holder in _WIDTHS if (n := file.count(found, holder, _WIDTHS[holder]))}
    raw = "raw_data" in held
    holder = "raw_data" if raw else _HOLDERS.get(kind, "int32_data")
    if held.keys() - {holder} or held.get(holder, 0) != size * (_SIZES[kind] if raw else 1):
        has = ", ".join(f"{n:g} in {holder}" for holder, n in held.items()) or "no data"
        raise _Lie(f"the tensor {name!r:.80} of {size:,} numbers with {has}")


def _message(check: Callable[[_File, _Found], None] | None = None, **fields: Any) -> _Message:
    """Make a message of fields: name=(number, how it is written or what is forbidden, may there be many)."""
    made, forbidden = dict[int, _Field](), dict[int, str]()
    for name, (number, written, *many) in fields.items():
        if isinstance(written, str):
            forbidden[number] = written
            continue
        inner = written if isinstance(written, _Message) else None
        wire = _BYTES if inner else written
        made[number << 3 | wire] = made_field = _Field(name, bool(many), inner)
        if many:  # numbers may also stand together
            made[number << 3 | _BYTES] = made_field
    return _Message(made, forbidden, check)


_OUTSIDE = "weights in another file"
_SUBGRAPH = "a graph within a graph"
_SPARSE = "a sparse tensor"
_ENTRY = _message(key=(1, _BYTES), value=(2, _BYTES))
_DIM = _message(_check_dim, value=(1, _VARINT), param=(2, _BYTES), denotation=(3, _BYTES))
_SHAPE = _message(dim=(1, _DIM, True))
_TENSOR_TYPE = _message(elem_type=(1, _VARINT), shape=(2, _SHAPE))
_TYPE = _message(tensor_type=(1, _TENSOR_TYPE), denotation=(6, _BYTES))
_VALUE = _message(name=(1, _BYTES), type=(2, _TYPE), doc=(3, _BYTES), metadata=(4, _ENTRY, True))
_TENSOR = _message(
    _check_tensor, dims=(1, _VARINT, True), data_type=(2, _VARINT), float_data=(4, _FIXED32, True),
    int32_data=(5, _VARINT, True), int64_data=(7, _VARINT, True), name=(8, _BYTES), raw_data=(9, _BYTES),
    double_data=(10, _FIXED64, True), uint64_data=(11, _VARINT, True), doc=(12, _BYTES),
    external_data=(13, _OUTSIDE), data_location=(14, _VARINT), metadata=(16, _ENTRY, True),
)  # fmt: skip
_ATTRIBUTE = _message(
    name=(1, _BYTES), f=(2, _FIXED32), i=(3, _VARINT), s=(4, _BYTES), t=(5, _TENSOR),
    floats=(7, _FIXED32, True), ints=(8, _VARINT, True), strings=(9, _BYTES, True),
    tensors=(10, _TENSOR, True), doc=(13, _BYTES), type=(20, _VARINT), g=(6, _SUBGRAPH),
    graphs=(11, _SUBGRAPH), sparse_tensor=(22, _SPARSE), sparse_tensors=(23, _SPARSE),
)  # fmt: skip
_NODE = _message(
    _check_domain, input=(1, _BYTES, True), output=(2, _BYTES, True), name=(3, _BYTES), op_type=(4, _BYTES),
    attribute=(5, _ATTRIBUTE, True), doc=(6, _BYTES), domain=(7, _BYTES), metadata=(9, _ENTRY, True),
)  # fmt: skip
_GRAPH = _message(
    node=(1, _NODE, True), name=(2, _BYTES), initializer=(5, _TENSOR, True), doc=(10, _BYTES),
    input=(11, _VALUE, True), output=(12, _VALUE, True), value_info=(13, _VALUE, True),
    metadata=(16, _ENTRY, True), sparse_initializer=(15, _SPARSE),
)  # fmt: skip
_OPSET = _message(_check_domain, domain=(1, _BYTES), version=(2, _VARINT))
_MODEL = _message(
    ir_version=(1, _VARINT), producer_name=(2, _BYTES), producer_version=(3, _BYTES), domain=(4, _BYTES),
    model_version=(5, _VARINT), doc=(6, _BYTES), graph=(7, _GRAPH), opset_import=(8, _OPSET, True),
    metadata=(14, _ENTRY, True), training_info=(20, "training"), functions=(25, "a function"),
)  # fmt: skip
