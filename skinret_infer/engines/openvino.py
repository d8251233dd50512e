"""OpenVINO on the CPU: the fastest runtime there, above all on a CPU with bf16 (AMX, AVX512-BF16)."""

import ctypes
import importlib
import importlib.util
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _telemetry
from ..bundle import GRAPHS, Bundle, check_contract, visual_outputs
from .base import Array, HostEngine, Notify, Runtime, graph_error, version
from .cache import cached, drop, engine_path

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def why_not() -> str | None:
    """Return None if OpenVINO can run here, or the reason why not."""
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed"
    try:
        devices = _core().available_devices
    except Exception as error:  # OpenVINO raises bare RuntimeErrors
        return f"OpenVINO does not start: {error}"
    return None if "CPU" in devices else f"OpenVINO finds no CPU, only {', '.join(devices) or 'nothing'}"


def precisions() -> tuple[str, ...]:
    """Return the precisions of this CPU, the fastest first."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if "BF16" in capabilities else ("fp32",)


class OpenVino(HostEngine):
    """The four graphs compiled by OpenVINO for the CPU, and cached: the next start takes half the time.

    For bf16 the weights are stored in fp16: half the memory, and more digits than bf16 has.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, precision: str, threads: int, cache: Path, notify: Notify) -> None:
        core = _core()
        self.precision, self.visual_outputs = precision, visual_outputs(bundle.manifest)
        self.has_concepts = bool(bundle.manifest.concepts)
        device = core.get_property("CPU", "FULL_DEVICE_NAME").strip()
        release = version("openvino") or "unknown"
        self.facts: Mapping[str, Any] = {"openvino": release, "device": device, "threads": threads}
        properties = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # several processes would pin themselves to the same cores
        }
        common_key = {
            "precision": precision,
            "runtime": self.name,
            "version": release,
            "capability": "cpu",
            "device": f"{device} {core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}",
            "platform": f"{sys.platform} {platform.machine()}",
            "flags": str(properties),
        }
        self._compiled: dict[str, Any] = {}
        # A request serves one thread at a time. The next call uses it again, so its memory is allocated once.
        self._idle: dict[str, list[Any]] = {graph: [] for graph in GRAPHS}
        self._blobs: dict[str, bytes | memoryview] = {}  # the graphs read weights from them: free them last
        self._known_shapes: set[tuple[Any, ...]] = set()  # graphs with the shapes that they have run on
        for graph in GRAPHS:
            onnx = bundle.graph(graph)
            key = common_key | {"graph": graph, "onnx": bundle.manifest.files[onnx.name]}

            def build(onnx: Path = onnx) -> bytes:
                model = core.read_model(onnx)
                if precision == "bf16":
                    _store_in_fp16(model)
                return bytes(core.compile_model(model, "CPU", properties).export_model().getvalue())

            path = engine_path(cache, key)
            try:
                try:
                    compiled = self._load(graph, cached(path, key, build, notify=notify), core, properties)
                except RuntimeError as error:
                    rejection = f"is refused by OpenVINO ({str(error).strip().splitlines()[-1]})"
                    blob = cached(path, key, build, notify=notify, rejection=rejection)
                    compiled = self._load(graph, blob, core, properties)
            except RuntimeError as error:  # OpenVINO raises bare RuntimeErrors
                raise graph_error(bundle, graph, "fp32", "openvino", error) from None
            check_contract(bundle, graph, _shapes(compiled.inputs), _shapes(compiled.outputs))
            self._compiled[graph] = compiled

    def _load(self, graph: str, blob: bytes | memoryview, core: Any, properties: Mapping[str, Any]) -> Any:
        """Load a compiled graph without a copy: it reads its weights from the blob as long as it runs."""
        self._blobs[graph] = blob
        content = np.frombuffer(blob, np.uint8)
        # By its address: OpenVINO does not accept a read-only array, although it writes nothing.
        address = content.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        array = np.ctypeslib.as_array(address, content.shape)
        tensor = _telemetry.openvino().Tensor(array, shared_memory=True)
        return core.import_model(tensor, "CPU", properties)

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one graph on arrays by name and return the named outputs."""
        idle = self._idle[graph]
        try:
            request = idle.pop()
        except IndexError:
            request = self._compiled[graph].create_infer_request()
        request.infer(dict(feeds), share_inputs=True)
        results = {name: request.get_tensor(name).data.copy() for name in outputs}
        idle.append(request)
        if (shapes := (graph, *(array.shape for array in feeds.values()))) not in self._known_shapes:
            self._known_shapes.add(shapes)  # for new shapes OpenVINO packs the weights, and reads all pages
            drop(self._blobs[graph])
        return results

    def close(self) -> None:
        """Release the compiled graphs."""
        self._idle.clear()
        self._compiled.clear()


def _shapes(ports: Sequence[Any]) -> dict[str, list[int | None]]:
    return {
        port.any_name: [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
        for port in ports
    }


def _store_in_fp16(model: Any) -> None:
    """Store a model's weights in fp16, as OpenVINO's save_model does, but without a file."""
    transformations = importlib.import_module("openvino._offline_transformations")
    transformations.compress_model_transformation(model)


def _core() -> Any:
    return _telemetry.openvino().Core()


def _open(bundle: Bundle, precision: str, threads: int, cache: Path, log: Notify) -> OpenVino:
    return OpenVino(bundle, precision, threads, cache, log)


OPENVINO = Runtime(
    name="openvino",
    extra="openvino",
    on_card=False,
    why_not=lambda: why_not(),
    precisions=lambda bundle: precisions(),
    open=_open,
    cure=lambda: 'pip install "skinret-infer[openvino]"',
)
