"""Half precision: matrix products in fp16, sensitive operators in fp32, inputs and outputs unchanged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from skinret_infer.bundle import GRAPHS, graph_file

# Operators that are faster in fp16 and lose nothing. Operators in neither set (LayerNormalization, Softmax,
# norms, sums, the subtraction of the image's mean) are computed in fp32.
_HALVED = {
    "Add", "AveragePool", "BatchNormalization", "Conv", "Div", "Erf", "Gather", "Gelu", "Gemm",
    "GlobalAveragePool", "MatMul", "MaxPool", "Mul", "Relu", "Sigmoid", "Tanh", "Where",
}  # fmt: skip
# Operators that keep the type of their inputs.
_MOVERS = {
    "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_MASKED = 1e4  # replaces numbers beyond the range of fp16: the minus infinity of an attention mask


def write_fp16(folder: Path) -> None:
    """Write the fp16 form of each graph of a bundle's folder, beside the graph.

    The similarity head is copied as it is: it takes little time, and the score needs its exact unit lengths.
    """
    for graph in GRAPHS:
        convert = shutil.copyfile if graph == "similarity_head" else to_fp16
        convert(folder / graph_file(graph), folder / graph_file(graph, "fp16"))


def to_fp16(path_in: str | Path, path_out: str | Path) -> None:
    """Write a graph with matrix products, convolutions and sums in fp16, and the same inputs and outputs.

    The converters of onnxconverter-common and onnxruntime lose the type of a Cast from integers, so that
    their graphs do not load.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path_in), strict_mode=True)
    _Conversion(model.graph).run()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path_out)


class _Conversion:
    """The conversion of one graph: its new nodes, and which values exist in which type."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
        self._floats = set(self._weights) | {
            value.name
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._outputs = {value.name for value in graph.output}
        self._halves: set[str] = set()  # names of fp16 values
        self._twins: dict[str, str] = {}  # by name of a value: the name of the same value in the other type
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        """Replace the graph's nodes and weights."""
        for node in list(self._graph.node):
            self._convert(node)
        used = {name for node in self._nodes for name in node.input}
        weights = [tensor for tensor in self._graph.initializer if tensor.name in used]
        for field, content in (
            (self._graph.node, self._nodes),
            (self._graph.initializer, weights),
            (self._graph.value_info, ()),
        ):
            del field[:]
            field.extend(content)

    def _convert(self, node: NodeProto) -> None:
        """Add a node that computes in fp16 if its operator may, else in fp32."""
        in_half = node.op_type in _HALVED or (
            node.op_type in _MOVERS and any(name in self._halves for name in node.input)
        )
        form: Callable[[str], str] = self._half if in_half else self._single
        node.input[:] = [form(name) for name in node.input]
        self._nodes.append(node)
        for i, name in enumerate(node.output):
            if not in_half or name not in self._floats:
                continue
            if name in self._outputs:  # an output of the contract keeps its name and type
                node.output[i] = self._twins[name] = f"{name}_fp16"
                self._cast(self._twins[name], name, TensorProto.FLOAT)
            self._halves.add(node.output[i])

    def _half(self, name: str) -> str:
        """Return the name of a float value's fp16 form."""
        if name in self._halves or name not in self._floats:
            return name
        if name not in self._twins:
            self._twins[name] = f"{name}_fp16"
            if name in self._weights:
                self._graph.initializer.append(_halve(self._weights[name], self._twins[name]))
            else:
                self._cast(name, self._twins[name], TensorProto.FLOAT16)
        return self._twins[name]

    def _single(self, name: str) -> str:
        """Return the name of an fp16 value's fp32 form; any other value keeps its name."""
        if name not in self._halves:
            return name
        if name not in self._twins:
            self._twins[name] = f"{name}_fp32"
            self._cast(name, self._twins[name], TensorProto.FLOAT)
        return self._twins[name]

    def _cast(self, name: str, new: str, to: int) -> None:
        self._nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}_cast", to=to))


def _halve(weight: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(weight)
    values = np.where(np.abs(values) > np.finfo(np.float16).max, np.copysign(_MASKED, values), values)
    return numpy_helper.from_array(values.astype(np.float16), name)
