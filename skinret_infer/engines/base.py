"""What a runtime is to the rest of the package."""

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from ..bundle import Bundle
from ..descriptor import COMPOSED, LEVELS, Vector
from ..errors import BundleError, RuntimeUnavailable

Array = npt.NDArray[Any]
Words = Callable[[], tuple[Array, Array]]  # tokens [B, n, d_T] and attention_mask [B, n], once they are there
Say = Callable[[str], None]


class Engine(Protocol):
    """A bundle's graphs on one runtime in one precision. Safe to call from several threads.

    name : the runtime, such as "openvino".
    precision : "fp32", "bf16" or "fp16".
    facts : what really runs: version, device, threads.
    """

    name: str
    precision: str
    facts: Mapping[str, Any]

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run one graph on arrays by name and return the outputs asked for."""
        ...

    def encode_text(self, ids: Array, mask: Array) -> Array:
        """Return tokens, float32 [B, n, d_T], for ids and mask, int64 [B, n]."""
        ...

    def describe(self, pixels: Array, words: Words | None) -> Vector:
        """Return descriptors, float32 [B, D], of uint8 [B, S, S, 3]: with words of queries, without of cases.

        `words` is called once the visual encoder is under way: the text encoder may still be running.
        """
        ...

    def close(self) -> None:
        """Give back what the runtime holds."""
        ...


class HostEngine(ABC):
    """An engine whose graphs take and give arrays in main memory."""

    @abstractmethod
    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]: ...

    def encode_text(self, ids: Array, mask: Array) -> Array:
        return self.run("text_encoder", {"input_ids": ids, "attention_mask": mask}, ["tokens"])[0]

    def describe(self, pixels: Array, words: Words | None) -> Vector:
        maps = self.run("visual_encoder", {"pixels": pixels}, LEVELS)
        if words is not None:
            tokens, mask = words()
            feeds = dict(zip(LEVELS, maps, strict=True)) | {"tokens": tokens, "attention_mask": mask}
            maps = self.run("composer", feeds, COMPOSED)
        head = self.run("similarity_head", dict(zip(LEVELS, maps, strict=True)), ["descriptor"])
        descriptor: Vector = head[0]
        return descriptor

    def close(self) -> None:
        """Nothing is held but memory."""
        return


def graph_error(bundle: Bundle, graph: str, precision: str, package: str, error: Exception) -> BundleError:
    """Return the error of a graph that a runtime cannot load."""
    return BundleError(
        f"{bundle.graph(graph, precision)} cannot be loaded",
        code="bundle-graph",
        expected="an ONNX graph of the manifest's opset",
        found=str(error).strip()[:500],
        cure=f"upgrade {package}, or export the bundle again",
    )


def memory_error(what: str, found: str) -> RuntimeUnavailable:
    """Return the error of a graphics card that is full."""
    return RuntimeUnavailable(
        f"the GPU has no memory for {what}",
        code="gpu-memory",
        found=found,
        cure="end what else runs on the card, ask for fewer images at once, or use another runtime",
    )


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
