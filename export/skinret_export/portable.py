"""Check, without running it, that ONNX Runtime, OpenVINO and TensorRT all accept a graph."""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from skinret_infer.errors import ParityError

OPSETS = range(18, 21)
# Operators of all three; no control flow, no sequences, no output whose size depends on values.
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
# Inputs, by position, that set a shape: they may depend on shapes, but not on values.
_SHAPE_INPUTS = {
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

    name : the graph's name in the message. Raises ParityError, code "graph-portable", with the first faults.
    """
    faults = list(_faults(model))
    if faults:
        more = [f"and {len(faults) - 3} more"] if len(faults) > 3 else []
        raise ParityError(
            f"{name} does not run on every runtime",
            code="graph-portable",
            expected=f"opset {OPSETS[0]} to {OPSETS[-1]}, operators and types of every runtime",
            found="; ".join(faults[:3] + more),
            cure="use simpler operations there in the model, or choose another backbone",
        )


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    """Yield each fault of a graph as a noun for the message."""
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
            yield f"the value {value.name} of type {_type_name(value.type.tensor_type.elem_type)}"
    for tensor in graph.initializer:
        if tensor.data_type not in _TYPES:
            yield f"the constant {tensor.name} of type {_type_name(tensor.data_type)}"
    fixed = {tensor.name for tensor in graph.initializer} | {""}  # values that follow from the input shapes
    for node in graph.node:
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        label = f"the node {node.name} ({operator})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            yield label
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i not in _TYPES:
                yield f"{label} of type {_type_name(attribute.i)}"
            if attribute.HasField("t") and attribute.t.data_type not in _TYPES:
                yield f"{label} of type {_type_name(attribute.t.data_type)}"
        shape_inputs = (node.input[i] for i in _SHAPE_INPUTS.get(node.op_type, ()) if i < len(node.input))
        if any(name not in fixed for name in shape_inputs):
            yield f"{label}, whose output shape depends on values"
        if node.op_type == "Shape" or all(name in fixed for name in node.input):
            fixed.update(node.output)


def _type_name(number: int) -> str:
    return str(TensorProto.DataType.Name(number)).lower()
