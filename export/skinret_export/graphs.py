"""The four graphs: export PyTorch modules to plain ONNX, and check the files without running them."""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxscript  # noqa: F401 - torch.onnx needs it, and would fail late without it
import torch
from torch import Tensor, nn

from skinret_infer.bundle import DISTANCE, GRAPHS, WORDS
from skinret_infer.descriptor import COMPOSED, LEVELS
from skinret_infer.errors import ParityError
from skinret_training.model import Skinret, VisualEncoder

from .portable import check_portable
from .swin import export_form

OPSET = 18
_MASKS = tuple(f"masks_{level}" for level in LEVELS)
OUTPUTS = {
    "visual_encoder": LEVELS,  # and DISTANCE, if the model knows what is typical
    "text_encoder": ("tokens",),
    "composer": COMPOSED,
    "similarity_head": ("descriptor", *_MASKS),
}


def outputs_of(model: Skinret, graph: str) -> tuple[str, ...]:
    """Return the names of the outputs of a model's graph."""
    has_distance = graph == "visual_encoder" and model.config.typicality
    return (*OUTPUTS[graph], DISTANCE) if has_distance else OUTPUTS[graph]


class _WithDistance(nn.Module):
    """A visual encoder that gives the distance of a picture too."""

    def __init__(self, encoder: VisualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.encoder.with_distance(pixels)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """A module, an example batch by input name, the contract's output names, and the open axes."""

    module: nn.Module
    example: dict[str, Tensor]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, Any]]


def graph_specs(model: Skinret, tokens: int) -> dict[str, GraphSpec]:
    """Return the four graphs of the contract with examples of batch 2; torch would take 1 as a fixed size.

    tokens : the largest number of tokens of a text; the graphs take any number up to it.
    """
    size, text_width = model.config.image_size, model.text_encoder.channels
    maps = {
        name: torch.zeros(2, *shape) for name, shape in zip(LEVELS, model.visual_encoder.shapes, strict=True)
    }
    ids, mask = torch.ones(2, tokens, dtype=torch.int64), torch.ones(2, tokens, dtype=torch.int64)
    examples: dict[str, dict[str, Tensor]] = {
        "visual_encoder": {"pixels": torch.zeros(2, size, size, 3, dtype=torch.uint8)},
        "text_encoder": {"input_ids": ids, "attention_mask": mask},
        "composer": {**maps, "tokens": torch.zeros(2, tokens, text_width), "attention_mask": mask},
        "similarity_head": maps | ({WORDS: torch.zeros(2)} if model.config.concepts else {}),
    }
    modules: dict[str, nn.Module] = {name: getattr(model, name) for name in GRAPHS}
    encoder = export_form(model.visual_encoder, size)
    modules["visual_encoder"] = _WithDistance(encoder) if model.config.typicality else encoder
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("tokens", min=1, max=tokens)
    text_axes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask", "tokens")}
    return {
        name: GraphSpec(
            modules[name],
            examples[name],
            outputs_of(model, name),
            {n: text_axes.get(n, {0: batch}) for n in examples[name]},
        )
        for name in GRAPHS
    }


def write_graph(spec: GraphSpec, path: Path) -> None:
    """Export a module with its open axes to one file that holds no path of this machine."""
    for package in ("torch.onnx", "onnxscript"):  # parity measures later what their warnings are about
        logging.getLogger(package).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                spec.module.eval(),
                kwargs=spec.example,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                external_data=False,
                input_names=list(spec.example),
                output_names=list(spec.outputs),
                dynamic_shapes=spec.axes,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ParityError(
                f"{path.name} cannot be written",
                code="graph-export",
                expected="a model that torch.onnx can export",
                found=str(error).splitlines()[0],
            ) from error
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    onnx.save(proto, path)


def check_graph(path: Path, spec: GraphSpec) -> None:
    """Check names, open axes, operators, opset and types without running the graph. Raises ParityError."""
    model = onnx.load(path)
    graph = model.graph
    inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
    faults = []
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        faults.append(str(error).splitlines()[0])
    if inputs != list(spec.example) or outputs != list(spec.outputs):
        faults.append(f"inputs {inputs} and outputs {outputs}")
    dims = {v.name: v.type.tensor_type.shape.dim for v in (*graph.input, *graph.output)}
    faults += [f"a fixed batch of {name}" for name, shape in dims.items() if not shape[0].dim_param]
    faults += [
        f"a fixed length of {name}"
        for name, shape in dims.items()
        if name in ("input_ids", "attention_mask", "tokens") and not shape[1].dim_param
    ]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer):
        faults.append("weights outside the file")
    if faults:
        raise ParityError(
            f"{path.name} breaks the contract of the graphs",
            code="graph-contract",
            found="; ".join(faults),
            expected=f"{list(spec.example)} -> {list(spec.outputs)}, open axes, one file",
        )
    check_portable(model, path.name)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which are stack traces with paths. What the graph computes stays."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.graph.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in _nodes(proto.graph):
        del node.metadata_props[:]
        node.doc_string = ""


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
