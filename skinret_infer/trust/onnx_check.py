"""Check an ONNX file before a runtime loads it: it may only have what the bundles of this package have.

A file is a message of Protocol Buffers (protobuf.dev/programming-guides/encoding, onnx.proto3). Tables list
the fields that are allowed. All others are refused, known or unknown: weights in other files, functions,
graphs within graphs (control flow), training, sparse tensors. The values of weights are not read.

The calculation of a graph is not checked: a malicious graph can still use all time and memory.
"""

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from ..errors import BundleError

MAX_BYTES = (1 << 31) - 1  # of a file: the limit of Protocol Buffers
MAX_FIELDS = 2_000_000  # a graph of Swin-T has 25,000
MAX_SIZE = (1 << 31) - 1  # numbers in a tensor, and any one of its dimensions

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTINUED = bytes(range(128, 256))  # the bytes of a varint that are not its last
_Values: TypeAlias = dict[str, list[Any]]  # by the name of the field


class _Malformed(Exception):
    """A file is not a graph of a bundle; the message is the fault."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    many: bool = False
    message: "_Message | None" = None


@dataclass(frozen=True, slots=True)
class _Message:
    """The fields that a message may have, by their keys: the number and the wire type."""

    fields: Mapping[int, _Field]
    forbidden: Mapping[int, str]  # by number: the name for an error
    check: Callable[["_File", _Values], None] | None


@dataclass(slots=True)
class _File:
    data: mmap.mmap
    remaining_fields: int = MAX_FIELDS

    def walk(self, place: int, end: int, message: _Message) -> _Values:
        """Check a message and return its values: integers, and for other values the span of their bytes."""
        data, fields, values = self.data, message.fields, _Values()
        while place < end:
            self.remaining_fields -= 1
            if self.remaining_fields < 0:
                raise _Malformed(f"more than {MAX_FIELDS:,} fields")
            key = data[place]
            if key < 128:
                place += 1
            else:
                key, place = self.varint(place, end)
            field = fields.get(key)
            if field is None:
                raise _Malformed(message.forbidden.get(key >> 3, f"a field {key >> 3} that no bundle has"))
            wire, value = key & 7, cast(Any, None)
            if wire == _VARINT:
                value, place = self.varint(place, end)
            elif wire == _BYTES:
                length, start = self.varint(place, end)
                place = start + length
                if place > end:
                    raise _Malformed("a field that goes beyond its end")
                if field.message:
                    inner = self.walk(start, place, field.message)
                    if field.message.check:
                        field.message.check(self, inner)
                else:
                    value = (start, place)
            else:
                value = (place, place := place + (8 if wire == _FIXED64 else 4))
                if place > end:
                    raise _Malformed("a field that goes beyond its end")
            if field.name not in values:
                values[field.name] = [value]
            elif field.many:
                if value is not None:
                    values[field.name].append(value)
            else:
                raise _Malformed(f"{field.name} twice")
        return values

    def varint(self, place: int, end: int) -> tuple[int, int]:
        """Return the number at a place, and the place after it."""
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self.data[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, place
        raise _Malformed("a number that does not end")

    def text(self, values: _Values, name: str) -> str:
        start, end = values.get(name, [(0, 0)])[0]
        return self.data[start : min(end, start + 200)].decode("utf-8", "replace")

    def count(self, values: _Values, name: str, size: int) -> int:
        """Return how many numbers a repeated field has; size: bytes of a number, 0 for varints."""
        numbers = 0
        for value in values.get(name, []):
            if isinstance(value, int):
                numbers += 1
            elif size:
                numbers += (value[1] - value[0]) / size  # a fraction fits no tensor
            else:
                packed = self.data[slice(*value)]
                numbers += len(packed.translate(None, _CONTINUED))
                if packed[-1:] >= b"\x80":  # the last number has no end
                    numbers += 1
        return numbers

    def integers(self, values: _Values, name: str) -> list[int]:
        """Return the numbers of a repeated field of varints, packed or not."""
        numbers = []
        for value in values.get(name, []):
            if isinstance(value, int):
                numbers.append(value)
                continue
            place, end = value
            while place < end:
                self.remaining_fields -= 1
                number, place = self.varint(place, end)
                numbers.append(number)
                if self.remaining_fields < 0:
                    raise _Malformed(f"more than {MAX_FIELDS:,} fields")
        return numbers


def check_graph(path: Path) -> None:
    """Raise BundleError for a file that is not an ONNX graph of a bundle, or states wrong sizes."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            values = _File(data).walk(0, len(data), _MODEL)
        if "graph" not in values:
            raise _Malformed("a model without a graph")
    except (OSError, ValueError, _Malformed) as error:
        raise BundleError(
            f"{path} is not a graph of a bundle",
            code="bundle-graph",
            expected="an ONNX file with plain operators and its own weights",
            found=str(error),
            cure="export the bundle again, and take bundles only from those you trust",
        ) from None


def _check_domain(file: _File, values: _Values) -> None:
    if (domain := file.text(values, "domain")) not in ("", "ai.onnx"):
        raise _Malformed(f"operators of the domain {domain!r:.80}")


def _check_dim(file: _File, values: _Values) -> None:
    if values.get("value", [0])[0] > MAX_SIZE:
        raise _Malformed(f"a dimension of more than {MAX_SIZE:,}, or below 0")


# By ONNX's data type: the bytes of a number in raw_data, and the other field that may hold the numbers.
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_HOLDERS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}
_WIDTHS = {  # the bytes of a number in each field, 0 for varints
    "raw_data": 1,
    "float_data": 4,
    "int32_data": 0,
    "int64_data": 0,
    "double_data": 8,
    "uint64_data": 0,
}


def _check_tensor(file: _File, values: _Values) -> None:
    if values.get("data_location", [0])[0] != 0:
        raise _Malformed(_OUTSIDE)
    name, kind = file.text(values, "name"), values.get("data_type", [0])[0]
    if kind not in _SIZES:
        raise _Malformed(f"the tensor {name!r:.80} of data type {kind}")
    dims = file.integers(values, "dims")
    size = math.prod(dims) if len(dims) <= 64 else MAX_SIZE + 1
    if max(dims, default=0) > MAX_SIZE or size > MAX_SIZE:
        raise _Malformed(f"the tensor {name!r:.80} of more than {MAX_SIZE:,} numbers")
    counts = {holder: n for holder in _WIDTHS if (n := file.count(values, holder, _WIDTHS[holder]))}
    if "raw_data" in counts:
        holder, expected = "raw_data", size * _SIZES[kind]
    else:
        holder, expected = _HOLDERS.get(kind, "int32_data"), size
    if counts.keys() - {holder} or counts.get(holder, 0) != expected:
        content = ", ".join(f"{n:g} in {holder}" for holder, n in counts.items()) or "no data"
        raise _Malformed(f"the tensor {name!r:.80} of {size:,} numbers with {content}")


def _message(check: Callable[[_File, _Values], None] | None = None, **fields: Any) -> _Message:
    """Return a message with these fields: name=(number, content), or (number, content, True) if repeated.

    content : a wire type, the _Message of an inner message, or the name of a forbidden thing for an error.
    """
    allowed, forbidden = dict[int, _Field](), dict[int, str]()
    for name, (number, content, *many) in fields.items():
        if isinstance(content, str):
            forbidden[number] = content
            continue
        inner = content if isinstance(content, _Message) else None
        wire = _BYTES if inner else content
        allowed[number << 3 | wire] = field = _Field(name, bool(many), inner)
        if many:  # repeated numbers may also be packed into one field
            allowed[number << 3 | _BYTES] = field
    return _Message(allowed, forbidden, check)


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
