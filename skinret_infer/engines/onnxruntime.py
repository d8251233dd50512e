"""ONNX Runtime: on the CPU, as the reference, and on NVIDIA cards, where the feature maps stay."""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import _telemetry
from ..bundle import DISTANCE, GRAPHS, Bundle, check_contract, visual_outputs
from ..descriptor import COMPOSED
from ..errors import RuntimeUnavailable
from .base import (
    Array,
    Embedded,
    HostEngine,
    Notify,
    Runtime,
    TextFeatures,
    as_levels,
    graph_error,
    head_inputs,
    memory_error,
    version,
)

_PROVIDERS = {"onnxruntime-cpu": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
_CUDA_OPTIONS = {"use_tf32": "0"}  # fp32 must be true fp32; a bundle's fp16 graphs are for speed


def why_not(name: str) -> str | None:
    """Return None if the runtime can run here, or the reason why not."""
    if version("onnxruntime") and version("onnxruntime-gpu"):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    if importlib.util.find_spec("onnxruntime") is None:
        package = "onnxruntime" if name == "onnxruntime-cpu" else "onnxruntime-gpu"
        return f"the package {package} is not installed"
    try:
        ort = _telemetry.onnxruntime()
    except Exception as error:  # a half-installed package may raise anything
        return f"the package onnxruntime cannot be imported: {error}"
    if not hasattr(ort, "InferenceSession"):
        return "onnxruntime lacks its files; uninstall onnxruntime and onnxruntime-gpu, then install one"
    if _PROVIDERS[name] not in ort.get_available_providers():
        return "the installed onnxruntime is the one for the CPU; install onnxruntime-gpu in its place"
    return None if name == "onnxruntime-cpu" else _cuda_fault(ort)


class OnnxRuntimeCpu(HostEngine):
    """The four graphs as ONNX Runtime sessions on the CPU."""

    name = "onnxruntime-cpu"
    precision = "fp32"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.facts: Mapping[str, Any] = {"onnxruntime": _version(), "threads": threads}
        self.visual_outputs = visual_outputs(bundle.manifest)
        self.has_concepts = bool(bundle.manifest.concepts)
        self._sessions = {
            graph: _session(bundle, graph, self.name, self.precision, threads) for graph in GRAPHS
        }

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one graph on arrays by name and return the named outputs."""
        return dict(zip(outputs, self._sessions[graph].run(list(outputs), dict(feeds)), strict=True))


class OnnxRuntimeCuda(HostEngine):
    """The four graphs on an NVIDIA card; the feature maps between them stay there.

    device : the memory of the maps. A test uses "cpu" to run the same code without a card.
    """

    name = "onnxruntime-cuda"

    def __init__(self, bundle: Bundle, precision: str, threads: int, device: str = "cuda") -> None:
        self.precision = precision
        self.facts: Mapping[str, Any] = {"onnxruntime": _version(), "device": device}
        runtime = self.name if device == "cuda" else "onnxruntime-cpu"
        self._device, self.visual_outputs = device, visual_outputs(bundle.manifest)
        self.has_concepts = bool(bundle.manifest.concepts)
        self._sessions = {graph: _session(bundle, graph, runtime, precision, threads) for graph in GRAPHS}

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one graph on arrays by name and return the named outputs."""
        return {name: value.numpy() for name, value in self._run_bound(graph, feeds, outputs, "cpu").items()}

    def embed(self, pixels: Array, text: TextFeatures | None) -> Embedded:
        """Return descriptors, float32 [B, D], and distances; only they leave the card."""
        maps = self._run_bound("visual_encoder", {"pixels": pixels}, self.visual_outputs, self._device)
        distances = maps.pop(DISTANCE, None)
        words = np.zeros(len(pixels), np.float32)
        if text is not None:
            tokens, mask, words = text()
            feeds = {**maps, "tokens": tokens, "attention_mask": mask}
            maps = as_levels(self._run_bound("composer", feeds, COMPOSED, self._device))
        inputs = head_inputs(maps, words, self.has_concepts)
        head = self._run_bound("similarity_head", inputs, ["descriptor"], "cpu")
        return Embedded(head["descriptor"].numpy(), None if distances is None else distances.numpy())

    def _run_bound(
        self, graph: str, feeds: Mapping[str, Any], outputs: Sequence[str], device: str
    ) -> dict[str, Any]:
        """Run a graph on arrays or OrtValues; return its outputs as OrtValues in the memory of a device."""
        session = self._sessions[graph]
        binding = session.io_binding()
        try:
            for name, value in feeds.items():
                if hasattr(value, "device_name"):
                    binding.bind_ortvalue_input(name, value)
                else:
                    binding.bind_cpu_input(name, value)
            for name in outputs:
                binding.bind_output(name, device)
            session.run_with_iobinding(binding)
        except Exception as error:  # the exceptions of ONNX Runtime have no common base class
            if not _out_of_memory(error):
                raise
            raise memory_error(graph, _first_line(error)) from None
        return dict(zip(outputs, binding.get_outputs(), strict=True))


def _session(bundle: Bundle, graph: str, runtime: str, precision: str, threads: int) -> Any:
    ort = _telemetry.onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Each session has its own thread pool. A pool without work must not spin while another one computes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = _PROVIDERS[runtime]
    providers: list[Any] = [provider]
    if runtime == "onnxruntime-cuda":
        providers = [(provider, _CUDA_OPTIONS), _PROVIDERS["onnxruntime-cpu"]]
    try:
        session = ort.InferenceSession(str(bundle.graph(graph, precision)), options, providers=providers)
    except Exception as error:  # the exceptions of ONNX Runtime have no common base class
        if _out_of_memory(error):
            raise memory_error(graph, _first_line(error)) from None
        raise graph_error(bundle, graph, precision, "onnxruntime", error) from None
    check_contract(
        bundle,
        graph,
        {i.name: i.shape for i in session.get_inputs()},
        {o.name: o.shape for o in session.get_outputs()},
    )
    if session.get_providers()[0] != provider:
        raise RuntimeUnavailable(
            f"{graph} does not run on the right execution provider",
            code="runtime-provider",
            expected=provider,
            found=", ".join(session.get_providers()),
            cure="run `skinret doctor`, which shows the fault of onnxruntime-cuda",
        )
    return session


def _cuda_fault(ort: Any) -> str | None:
    """Open a graph on CUDA; return None if that works, or the reason. A provider in the list may not work."""
    try:
        ort.preload_dlls()
        session = ort.InferenceSession(
            _IDENTITY, providers=[("CUDAExecutionProvider", _CUDA_OPTIONS), "CPUExecutionProvider"]
        )
    except Exception as error:  # the exceptions of ONNX Runtime have no common base class
        return f"CUDA does not start: {_first_line(error)}"
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return (
            "CUDA does not start, and ONNX Runtime would run on the CPU: an NVIDIA driver, CUDA or cuDNN is "
            'missing; pip install "skinret-infer[gpu]" installs CUDA and cuDNN'
        )
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _out_of_memory(error: Exception) -> bool:
    message = str(error).lower()
    signs = ("failed to allocate memory", "out of memory", "cudaerrormemoryallocation")
    return any(sign in message for sign in signs)


def _version() -> str | None:
    return version("onnxruntime-gpu") or version("onnxruntime")


# y = Identity(x), float [1], opset 18: the smallest possible graph, as onnx.helper writes it.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a"
    "0179120a0a08080112040a02080142040a001012"
)


def _open_cpu(bundle: Bundle, precision: str, threads: int, cache: Path, log: Notify) -> OnnxRuntimeCpu:
    return OnnxRuntimeCpu(bundle, threads)


def _open_cuda(bundle: Bundle, precision: str, threads: int, cache: Path, log: Notify) -> OnnxRuntimeCuda:
    return OnnxRuntimeCuda(bundle, precision, threads)


def _cuda_cure() -> str:
    # onnxruntime and onnxruntime-gpu must not be installed together.
    uninstall = "pip uninstall onnxruntime, then " if version("onnxruntime") else ""
    return f'{uninstall}pip install "skinret-infer[gpu]"'


CPU = Runtime(
    name="onnxruntime-cpu",
    extra="cpu",
    on_card=False,
    why_not=partial(why_not, "onnxruntime-cpu"),
    precisions=lambda bundle: ("fp32",),
    open=_open_cpu,
    cure=lambda: 'pip install "skinret-infer[cpu]"',
)
CUDA = Runtime(
    name="onnxruntime-cuda",
    extra="gpu",
    on_card=True,
    why_not=partial(why_not, "onnxruntime-cuda"),
    precisions=lambda bundle: ("fp16", "fp32") if bundle.has("fp16") else ("fp32",),
    open=_open_cuda,
    cure=_cuda_cure,
)
