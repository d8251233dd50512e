"""The interface of all runtimes, and the parts that they share."""

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..bundle import DISTANCE, WORDS, Bundle
from ..descriptor import COMPOSED, LEVELS, Vector
from ..errors import BundleError, RuntimeUnavailable

Array = npt.NDArray[Any]
T = TypeVar("T")
# Returns tokens [B, n, d_T], already weighted, attention_mask [B, n], and the weight of each text [B].
TextFeatures = Callable[[], tuple[Array, Array, Array]]
Notify = Callable[[str], None]


class Embedded(NamedTuple):
    """Descriptors, float32 [B, D], and the distances of their pictures from those of the training, [B].

    distances : None for a bundle without a calibration.
    """

    descriptors: Vector
    distances: Vector | None


class Engine(Protocol):
    """A bundle's graphs on one runtime in one precision. Safe to call from several threads.

    name : the runtime, such as "openvino".
    precision : "fp32", "bf16" or "fp16".
    facts : the version, device and threads in use.
    """

    name: str
    precision: str
    facts: Mapping[str, Any]

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one graph on arrays by name and return the named outputs."""
        ...

    def encode_text(self, ids: Array, mask: Array) -> Array:
        """Return tokens, float32 [B, n, d_T], for ids and mask, int64 [B, n]."""
        ...

    def embed(self, pixels: Array, text: TextFeatures | None) -> Embedded:
        """Return the descriptors of uint8 [B, S, S, 3]: of queries with `text`, else of cases.

        `text` is called after the visual encoder has started, so that both encoders can run at once.
        """
        ...

    def close(self) -> None:
        """Release the memory of the runtime."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime that the registry can choose. Each engine file defines its own.

    name : as users write it, such as "openvino".
    extra : the extra of this package that installs it.
    on_card : it runs on an NVIDIA card, which a forked process cannot use.
    why_not : returns None if it can run here, or the reason why it cannot.
    precisions : returns the precisions in which it has a bundle's graphs here, the fastest first. Called only
        if the runtime can run here.
    open : opens a bundle in a precision, with a number of threads and a folder for built engines.
    cure : returns how to make it run here.
    """

    name: str
    extra: str
    on_card: bool
    why_not: Callable[[], str | None]
    precisions: Callable[[Bundle], tuple[str, ...]]
    open: Callable[[Bundle, str, int, Path, Notify], Engine]
    cure: Callable[[], str]


class HostEngine(ABC):
    """An engine whose graphs take and return arrays in main memory.

    visual_outputs : the names of the visual encoder's outputs.
    has_concepts : whether the similarity head takes the weight of the words.
    """

    visual_outputs: Sequence[str]
    has_concepts: bool

    @abstractmethod
    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]: ...

    def encode_text(self, ids: Array, mask: Array) -> Array:
        return self.run("text_encoder", {"input_ids": ids, "attention_mask": mask}, ["tokens"])["tokens"]

    def embed(self, pixels: Array, text: TextFeatures | None) -> Embedded:
        maps = self.run("visual_encoder", {"pixels": pixels}, self.visual_outputs)
        distances = maps.pop(DISTANCE, None)
        words = np.zeros(len(pixels), np.float32)
        if text is not None:
            tokens, mask, words = text()
            maps = as_levels(
                self.run("composer", {**maps, "tokens": tokens, "attention_mask": mask}, COMPOSED)
            )
        inputs = head_inputs(maps, words, self.has_concepts)
        return Embedded(self.run("similarity_head", inputs, ["descriptor"])["descriptor"], distances)

    def close(self) -> None:
        """Do nothing: the engine holds nothing but memory."""
        return


def head_inputs(maps: Mapping[str, T], words: T, has_concepts: bool) -> dict[str, T]:
    """Return the inputs of the similarity head: maps, and the weight of the words [B], 0 for a picture alone.

    A model without concepts has no use for the weight.
    """
    return {**maps, WORDS: words} if has_concepts else {**maps}


def as_levels(composed: Mapping[str, T]) -> dict[str, T]:
    """Rename the composer's outputs, composed_low and so on, to the levels, the inputs of the head."""
    return {level: composed[name] for level, name in zip(LEVELS, COMPOSED, strict=True)}


def graph_error(bundle: Bundle, graph: str, precision: str, package: str, error: Exception) -> BundleError:
    """Return the error for a graph that a runtime cannot load."""
    return BundleError(
        f"{bundle.graph(graph, precision)} cannot be loaded",
        code="bundle-graph",
        expected="an ONNX graph of the manifest's opset",
        found=str(error).strip()[:500],
        cure=f"upgrade {package}, or export the bundle again",
    )


def memory_error(what: str, found: str) -> RuntimeUnavailable:
    """Return the error for a graphics card without free memory."""
    return RuntimeUnavailable(
        f"the GPU has no memory for {what}",
        code="gpu-memory",
        found=found,
        cure="stop other programs on the card, send fewer images at once, or use another runtime",
    )


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
