"""A static check that a graph is one that ONNX Runtime, OpenVINO and TensorRT all take."""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from skinret_infer.errors import ParityError

OPSETS = range(18, 21)
# What all three know; no control flow, no sequences, nothing whose output's size depends on values.
_OPERATORS = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp
    Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization
    LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow
    QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu
    Reshape Resize Round Shape Sigmoid Sign Sin Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum
    Tanh Tile Transpose Trilu Unsqueeze Where
"""
OPERATORS = frozenset(_OPERATORS.split())
# Inputs that make a shape: they may be computed from shapes, not from what runs through the graph.
_SHAPING = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
}
_TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.BOOL,
)


def check_portable(model: onnx.ModelProto, name: str) -> None:
    """Check operators, domains, opset, types and that no shape depends on values.

    name : the graph's, for the message. Raises ParityError, code "graph-portable", with the first faults.
    """
    faults = list(_faults(model))
    if faults:
        raise ParityError(
            f"{name} is not a graph for every runtime",
            code="graph-portable",
            expected=f"opset {OPSETS[0]} to {OPSETS[-1]} as ONNX Runtime, OpenVINO and TensorRT know it",
            found="; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else ""),
            cure="write what the model does there in plainer operations, or choose another backbone",
        )


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    if opsets.get("ai.onnx") not in OPSETS:
        yield f"opset {opsets.get('ai.onnx')}"
    if foreign := sorted(opsets.keys() - {"ai.onnx"}):
        yield f"operators of {', '.join(foreign)}"
    if model.functions:
        yield f"the function {model.functions[0].name}"
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type not in _TYPES:
            yield f"the value {value.name} of type {_type(value.type.tensor_type.elem_type)}"
    for tensor in graph.initializer:
        if tensor.data_type not in _TYPES:
            yield f"the constant {tensor.name} of type {_type(tensor.data_type)}"
    fixed = {tensor.name for tensor in graph.initializer} | {""}  # known once the shapes of the inputs are
    for node in graph.node:
        what = f"the node {node.name} ({node.domain + '.' if node.domain else ''}{node.op_type})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            yield what
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i not in _TYPES:
                yield f"{what} of type {_type(attribute.i)}"
            if attribute.HasField("t") and attribute.t.data_type not in _TYPES:
                yield f"{what} of type {_type(attribute.t.data_type)}"
        shaping = (node.input[i] for i in _SHAPING.get(node.op_type, ()) if i < len(node.input))
        if any(name not in fixed for name in shaping):
            yield f"{what}, whose output's shape depends on values"
        if node.op_type == "Shape" or all(name in fixed for name in node.input):
            fixed.update(node.output)


def _type(number: int) -> str:
    return str(TensorProto.DataType.Name(number)).lower()
