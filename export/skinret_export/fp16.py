"""Half precision: matrix work in fp16, what must not lose digits in fp32, inputs and outputs as they were."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from skinret_infer.bundle import GRAPHS, graph_file

# Fast in fp16 and none the worse. What is in neither set (LayerNormalization, Softmax, norms, sums, the
# subtraction of the image's mean) is computed in fp32.
_HALVED = {
    "Add", "AveragePool", "BatchNormalization", "Conv", "Div", "Erf", "Gather", "Gelu", "Gemm",
    "GlobalAveragePool", "MatMul", "MaxPool", "Mul", "Relu", "Sigmoid", "Tanh", "Where",
}  # fmt: skip
# They follow what they are given.
_MOVERS = {
    "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_MASKED = 1e4  # in the place of what fp16 has no number for, which is an attention mask's minus infinity


def write_fp16(folder: Path) -> None:
    """Write beside each graph of a bundle's folder its fp16 form.

    The similarity head's is a copy: its work is nothing, and its unit lengths are the score.
    """
    for graph in GRAPHS:
        convert = shutil.copyfile if graph == "similarity_head" else to_fp16
        convert(folder / graph_file(graph), folder / graph_file(graph, "fp16"))


def to_fp16(path_in: str | Path, path_out: str | Path) -> None:
    """Write a graph whose matrix products, convolutions and sums are in fp16, inputs and outputs as before.

    onnxconverter-common and onnxruntime's float16 write graphs here that do not load: the type of a Cast
    from integers is lost to them.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path_in), strict_mode=True)
    graph = model.graph
    weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    floats = set(weights) | {
        v.name
        for v in (*graph.input, *graph.value_info, *graph.output)
        if v.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    outputs = {v.name for v in graph.output}
    halves: set[str] = set()  # names of fp16 values
    twins: dict[str, str] = {}  # the same value in the other type
    nodes: list[NodeProto] = []

    def cast(name: str, new: str, to: int) -> None:
        nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}_cast", to=to))

    def half(name: str) -> str:
        """Return the name of a float value's fp16 form."""
        if name in halves or name not in floats:
            return name
        if name not in twins:
            twins[name] = f"{name}_fp16"
            if name in weights:
                graph.initializer.append(_halve(weights[name], twins[name]))
            else:
                cast(name, twins[name], TensorProto.FLOAT16)
        return twins[name]

    def whole(name: str) -> str:
        """Return the name of a value's fp32 form, if it is of fp16."""
        if name in halves and name not in twins:
            twins[name] = f"{name}_fp32"
            cast(name, twins[name], TensorProto.FLOAT)
        return twins[name] if name in halves else name

    for node in list(graph.node):
        into_half = node.op_type in _HALVED or (
            node.op_type in _MOVERS and any(name in halves for name in node.input)
        )
        form: Callable[[str], str] = half if into_half else whole
        node.input[:] = [form(name) for name in node.input]
        nodes.append(node)
        for i, name in enumerate(node.output):
            if not into_half or name not in floats:
                continue
            if name in outputs:  # the contract's name keeps its type
                node.output[i] = twins[name] = f"{name}_fp16"
                cast(twins[name], name, TensorProto.FLOAT)
            halves.add(node.output[i])
    used = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    for field, content in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, ())):
        del field[:]
        field.extend(content)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path_out)


def _halve(weight: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(weight)
    values = np.where(np.abs(values) > np.finfo(np.float16).max, np.copysign(_MASKED, values), values)
    return numpy_helper.from_array(values.astype(np.float16), name)
