"""Prove that the graphs do what PyTorch does: shapes, NaN, values, ranks. Measure first, then judge."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skinret_infer.bundle import GRAPHS
from skinret_infer.descriptor import COMPOSED, LEVELS, score_weights
from skinret_infer.engines.base import Engine, as_levels, head_inputs
from skinret_infer.errors import ParityError
from skinret_infer.evaluation.precision import ValidationSet
from skinret_training.model import Skinret

from .graphs import OUTPUTS, outputs_of

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
BATCH = 8
TOP = 10
VALUE_TOLERANCE = 1e-4  # relative to a map's largest magnitude; absolute for a descriptor and a mask
SCORE_TOLERANCE = 3e-5  # absolute, of a score
TIE = 1e-6  # of a score: two cases this close in PyTorch may have either order


def measure(model: Skinret, engine: Engine, probe: ValidationSet) -> dict[str, Any]:
    """Run PyTorch and the graphs on the probe and return how far apart they are; judge nothing.

    Each graph gets PyTorch's inputs, so that errors of the graphs before it do not count. Scores and ranks
    come from the chained graphs, as in a query. Raises ParityError only if a graph gives other shapes than
    PyTorch.
    """
    model.eval()
    has_concepts = bool(model.config.concepts)
    errors: dict[str, dict[str, float]] = {name: {} for name in GRAPHS}
    not_finite: set[str] = set()
    sides = "torch_query", "torch_case", "onnx_query", "onnx_case"
    descriptors: dict[str, list[Array]] = {side: [] for side in sides}
    for start in range(0, len(probe.pixels), BATCH):
        rows = slice(start, start + BATCH)
        pixels, ids, mask = probe.pixels[rows], probe.ids[rows], probe.mask[rows]
        expected = _reference(model, pixels, ids, mask)
        outputs: dict[str, Array] = {}
        for graph, feeds in _reference_feeds(expected, pixels, ids, mask, has_concepts).items():
            for name, found in engine.run(graph, feeds, outputs_of(model, graph)).items():
                outputs[name] = found
                error = _error(graph, name, found, expected[name])
                errors[graph][name] = max(errors[graph].get(name, 0.0), error)
                if not np.isfinite(found).all():
                    not_finite.add(f"{graph}.{name}")
        query, case = _run_chain(engine, outputs, mask, has_concepts)
        descriptors["torch_query"].append(expected["descriptor"])
        descriptors["torch_case"].append(expected["case_descriptor"])
        descriptors["onnx_query"].append(query)
        descriptors["onnx_case"].append(case)
    d = {side: np.concatenate(batches).astype(np.float64) for side, batches in descriptors.items()}
    layout = model.similarity_head.layout
    w = score_weights(layout, model.config.beta, model.config.gamma, model.config.group_weight)
    s_torch, s_onnx = ((d[f"{side}_query"] * w) @ d[f"{side}_case"].T for side in ("torch", "onnx"))
    identical, equal = _compare_ranks(s_torch, s_onnx)
    return {
        "images": len(probe.pixels),
        "source": probe.source,
        "runtime": engine.name,
        "value_errors": errors,
        "value_tolerance": VALUE_TOLERANCE,
        "not_finite": sorted(not_finite),
        "max_score_error": float(np.abs(s_torch - s_onnx).max()),
        "score_tolerance": SCORE_TOLERANCE,
        "top": min(TOP, len(probe.pixels)),
        "lists_identical": identical,
        "lists_equal_up_to_ties": equal,
        "tie": TIE,
    }


def judge(report: Mapping[str, Any]) -> None:
    """Raise ParityError with the graph and its error, unless the report passes."""
    if report["not_finite"]:
        raise ParityError(
            "a graph gives NaN or infinity",
            code="parity-nan",
            expected="finite numbers",
            found=", ".join(report["not_finite"]),
        )
    too_large = {
        f"{graph}.{name}": error
        for graph, outputs in report["value_errors"].items()
        for name, error in outputs.items()
        if not error <= report["value_tolerance"]  # true for NaN
    }
    if too_large:
        listed = ", ".join(f"{name} off by {error:.2e}" for name, error in too_large.items())
        raise ParityError(
            "values of the graphs and of PyTorch disagree",
            code="parity-value",
            expected=f"at most {report['value_tolerance']:g}",
            found=listed,
        )
    if not report["max_score_error"] <= report["score_tolerance"]:
        raise ParityError(
            "scores of the chained graphs and of PyTorch disagree",
            code="parity-score",
            expected=f"at most {report['score_tolerance']:g}",
            found=f"{report['max_score_error']:.2e}",
        )
    if report["lists_equal_up_to_ties"] < report["images"]:
        raise ParityError(
            "ranks of the graphs and of PyTorch disagree",
            code="parity-rank",
            expected=f"{report['images']} equal top-{report['top']} lists",
            found=f"{report['lists_equal_up_to_ties']}",
        )


@torch.inference_mode()
def _reference(model: Skinret, pixels: Array, ids: Array, mask: Array) -> dict[str, Array]:
    """Run queries through PyTorch, and their images as cases; return every output of the contract."""
    p, i, m = (torch.from_numpy(a) for a in (pixels, ids, mask))
    encoder = model.visual_encoder
    encoded = encoder.with_distance(p) if model.config.typicality else encoder(p)
    maps = encoded[:3]
    tokens = model.text_encoder(i, m)
    composed = model.composer(*maps, tokens, m)
    head = model.similarity_head(*composed, torch.ones(len(p)))
    names = (
        *outputs_of(model, "visual_encoder"),
        "tokens",
        *COMPOSED,
        *OUTPUTS["similarity_head"],
        "case_descriptor",
    )
    values = (*encoded, tokens, *composed, *head, model.similarity_head(*maps)[0])
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def _reference_feeds(
    expected: dict[str, Array], pixels: Array, ids: Array, mask: Array, has_concepts: bool
) -> dict[str, Feeds]:
    """Return the inputs that PyTorch's own steps have, by graph."""
    words = np.ones(len(pixels), np.float32)
    return {
        "visual_encoder": {"pixels": pixels},
        "text_encoder": {"input_ids": ids, "attention_mask": mask},
        "composer": {name: expected[name] for name in (*LEVELS, "tokens")} | {"attention_mask": mask},
        "similarity_head": head_inputs(as_levels(expected), words, has_concepts),
    }


def _run_chain(
    engine: Engine, outputs: dict[str, Array], mask: Array, has_concepts: bool
) -> tuple[Array, Array]:
    """Return descriptors of queries and of cases, by the graphs alone, from the outputs of the encoders."""
    words = np.ones(len(mask), np.float32)
    maps = {name: outputs[name] for name in LEVELS}
    composed = _run(engine, "composer", maps | {"tokens": outputs["tokens"], "attention_mask": mask})
    query = _run(engine, "similarity_head", head_inputs(as_levels(composed), words, has_concepts))[
        "descriptor"
    ]
    case = _run(engine, "similarity_head", head_inputs(maps, 0 * words, has_concepts))["descriptor"]
    return query, case


def _run(engine: Engine, graph: str, feeds: Feeds) -> dict[str, Array]:
    return engine.run(graph, feeds, OUTPUTS[graph])


def _error(graph: str, name: str, found: Array, expected: Array) -> float:
    """Return the largest difference: absolute for the similarity head, else relative to the largest value."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ParityError(
            f"{graph} gives {name} in another shape or type",
            code="parity-shape",
            expected=f"{expected.dtype} {expected.shape}",
            found=f"{found.dtype} {found.shape}",
        )
    scale = 1.0 if graph == "similarity_head" else max(float(np.abs(expected).max()), 1e-12)
    return float(np.abs(found - expected).max()) / scale


def _compare_ranks(reference: Array, found: Array) -> tuple[int, int]:
    """Return how many queries have the same top list, exactly and up to ties of the reference."""
    k = min(TOP, reference.shape[1])
    identical = equal = 0
    for expected, scores in zip(reference, found, strict=True):
        best, top = np.argsort(-expected, kind="stable")[:k], np.argsort(-scores, kind="stable")[:k]
        identical += bool((best == top).all())
        equal += bool((np.abs(expected[best] - expected[top]) <= TIE).all())
    return identical, equal
