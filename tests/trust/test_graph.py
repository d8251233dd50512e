"""A graph is looked at before a runtime sees it: what no bundle has is refused, and sizes that lie."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from skinret_infer import BundleError
from skinret_infer.bundle import GRAPHS
from skinret_infer.trust.onnx_check import MAX_FIELDS, check_graph

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def _model() -> onnx.ModelProto:
    """A graph with a weight, a constant within a node, and each kind of attribute that is allowed."""
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(VALUES, "constant")),
        helper.make_node("Constant", [], ["i"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["t"], value_strings=["a", "b"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5, transA=0),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(VALUES, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _check(model: onnx.ModelProto | bytes, folder: Path) -> None:
    path = folder / "a.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    check_graph(path)


def _refusal(model: onnx.ModelProto | bytes, folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        _check(model, folder)
    assert caught.value.code == "bundle-graph"
    message = str(caught.value)
    assert message.startswith(str(folder / "a.onnx")) and "To cure it" in message
    return message


def test_the_graphs_of_an_export_are_taken(bundle: Path) -> None:
    for name in GRAPHS:
        check_graph(bundle / f"{name}.onnx")


@pytest.mark.slow
def test_the_graphs_of_a_full_size_export_are_taken_in_both_precisions(full_bundle: Path) -> None:
    found = sorted(full_bundle.glob("*.onnx"))
    assert len(found) == 8
    for path in found:
        check_graph(path)


TYPES = [
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "BOOL",
    "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
]  # fmt: skip


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "fields"])
@pytest.mark.parametrize("kind", TYPES)
def test_tensors_are_taken_however_they_are_kept_and_refused_with_other_sizes(
    kind: str, raw: bool, tmp_path: Path
) -> None:
    for values, dims in (([1, 0, 1, 1, 0, 1], (2, 3)), ([1], ()), ([], (0, 5))):
        number = getattr(TensorProto, kind)
        stored = np.array(values, helper.tensor_dtype_to_np_dtype(number))
        tensor = helper.make_tensor("w", number, dims, stored.tobytes() if raw else values, raw)
        model = _model()
        model.graph.initializer[0].CopyFrom(tensor)
        _check(model, tmp_path)
        model.graph.initializer[0].dims.append(2)
        if values:
            assert "'w'" in _refusal(model, tmp_path)


def test_large_numbers_and_those_below_zero_are_counted_right(tmp_path: Path) -> None:
    model = _model()
    values = [-1, 2**62, 0, 127, 128, -(2**63)]
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [6], values))
    _check(model, tmp_path)


def _external(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _located(tensor: TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL


def _named(tensor: TensorProto) -> None:
    tensor.external_data.add(key="location", value="w.data")


def _sparse(model: onnx.ModelProto) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(VALUES[0], "s")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.arange(4), "i"), [12])


def _inner(model: onnx.ModelProto) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["z"], then_branch=model.graph, else_branch=model.graph)


LIES: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "external weights": (lambda m: _external(m.graph.initializer[0]), "another file"),
    "external by location": (lambda m: _located(m.graph.initializer[0]), "another file"),
    "external by name": (lambda m: _named(m.graph.initializer[0]), "another file"),
    "external constant": (lambda m: _external(m.graph.node[0].attribute[0].t), "another file"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.append(_sparse(m)), "sparse"),
    "sparse constant": (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=_sparse(m))),
        "sparse",
    ),
    "a subgraph": (lambda m: m.graph.node.append(_inner(m)), "a graph within a graph"),
    "subgraphs": (
        lambda m: m.graph.node.append(helper.make_node("Odd", [], ["z"], graphs=[m.graph])),
        "a graph within a graph",
    ),
    "a function": (
        lambda m: m.functions.append(helper.make_function("", "F", ["a"], ["b"], [], m.opset_import)),
        "a function",
    ),
    "training": (lambda m: m.training_info.add(), "training"),
    "a domain": (lambda m: setattr(m.graph.node[3], "domain", "com.microsoft"), "'com.microsoft'"),
    "a domain's opset": (lambda m: m.opset_import.append(helper.make_opsetid("mine", 1)), "'mine'"),
    "text": (
        lambda m: m.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])),
        "no bundle has",
    ),
    "a sequence": (
        lambda m: m.graph.input.append(helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, [1])),
        "no bundle has",
    ),
    "a huge tensor": (lambda m: m.graph.initializer[0].dims.extend([2**31, 2**31]), "2,147,483,647"),
    "a huge dimension": (
        lambda m: m.graph.initializer.add(name="z", data_type=1, dims=[0, 2**40]), "2,147,483,647"
    ),
    "a dimension below 0": (lambda m: m.graph.initializer[0].dims.extend([-1, -1]), "2,147,483,647"),
    "very many dimensions": (lambda m: m.graph.initializer[0].dims.extend([1] * 100), "2,147,483,647"),
    "a huge input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**40), "2,147,483,647"
    ),
    "no data": (lambda m: m.graph.initializer[0].ClearField("raw_data"), "'w' of 12 numbers with no data"),
    "data twice": (lambda m: m.graph.initializer[0].float_data.extend([1.0] * 12), "float_data"),
    "data in the wrong field": (
        lambda m: m.graph.initializer.add(name="z", data_type=1, dims=[1], int64_data=[1]), "int64_data"
    ),
    "no type": (lambda m: m.graph.initializer[0].ClearField("data_type"), "data type 0"),
    "an unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "data type 99"),
    "no graph": (lambda m: m.ClearField("graph"), "without a graph"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_a_graph_that_lies_or_has_what_no_bundle_has_is_refused(what: str, tmp_path: Path) -> None:
    model = _model()
    _check(model, tmp_path)
    change, said = LIES[what]
    change(model)
    assert said in _refusal(model, tmp_path)


def test_what_a_runtime_would_put_together_is_refused_in_its_parts(tmp_path: Path) -> None:
    whole = _model().SerializeToString()
    more = onnx.ModelProto(graph=_model().graph).SerializeToString()
    assert "graph twice" in _refusal(whole + more, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"\x3a", b"\x3a\x05\x0a", b"\xff" * 20, b"\x08" + b"\x80" * 12, b"\0\0", b"\x3d\1\2"],
    ids=repr,
)
def test_what_is_no_message_is_refused(content: bytes, tmp_path: Path) -> None:
    _refusal(content, tmp_path)


def test_a_file_of_very_many_fields_is_refused(tmp_path: Path) -> None:
    node = b"\x0a\x00"
    nodes = node * (MAX_FIELDS + 1)
    length, said = len(nodes), b""
    while length > 127:
        said, length = said + bytes((length & 127 | 128,)), length >> 7
    assert "2,000,000 fields" in _refusal(b"\x3a" + said + bytes((length,)) + nodes, tmp_path)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_taken(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        _check(bytes(content), tmp_path_factory.getbasetemp())
    except BundleError as error:
        assert error.code == "bundle-graph"


def test_the_file_is_left_as_it_was(tmp_path: Path) -> None:
    _check(_model(), tmp_path)
    path = tmp_path / "a.onnx"
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    check_graph(path)
    assert before == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    path.unlink()  # it is not held open
    with pytest.raises(BundleError):
        check_graph(path)
