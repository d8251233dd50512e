"""TensorRT and TensorRT-RTX: one backend for the modules `tensorrt` and `tensorrt_rtx`.

TensorRT reports a failure by None or False and a line in its log, never by an exception, and without a driver
it crashes. So every return value is checked, and a device is checked before the first object is made.
"""

import collections
import contextlib
import functools
import importlib
import importlib.util
import logging
import math
import platform
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import DISTANCE, GRAPHS, WORDS, Bundle, check_contract, contract
from ..descriptor import COMPOSED, LEVELS
from ..errors import BundleError, InputError, RuntimeUnavailable
from .base import Array, Embedded, Notify, Runtime, TextFeatures, memory_error
from .cache import cache_folder, cached, engine_path

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
BATCHES = ((1, 1, 1), (1, 8, 32))  # of each optimization profile: least, best and largest batch
_MAX_BATCH = BATCHES[-1][-1]
_OLDEST = (10, 12)  # of tensorrt; tensorrt_rtx has its own version numbers
_FLAGS = "strongly typed, no TF32"  # fp32 must be true fp32; a bundle's fp16 graphs are for speed
_TYPES = {"FLOAT": np.dtype("float32"), "INT64": np.dtype("int64"), "UINT8": np.dtype("uint8")}
_REPORT_SECONDS = 10.0  # between two messages on the progress of a build
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The card for an engine: TensorRT builds for this card only, TensorRT-RTX for a compute capability."""

    capability: str  # "8.6"
    device: str = "any"  # name and multiprocessors
    driver: str = "any"


def why_not(name: str) -> str | None:
    """Return None if the runtime can run here, or the reason why not. It needs no device."""
    if importlib.util.find_spec(MODULES[name]) is None:
        return f"the package {MODULES[name]} is not installed"
    try:
        cuda = _cuda()
    except ImportError as error:
        return f"the package cuda-bindings cannot be imported: {error}"
    status, count = cuda.cudaGetDeviceCount()
    if status != cuda.cudaError_t.cudaSuccess or not count:
        return f"there is no CUDA device: {cuda.cudaGetErrorString(status)[1].decode()}"
    try:
        trt, card = load(name), _first_device(cuda)
    except RuntimeUnavailable as error:
        return str(error)
    # The similarity head multiplies in fp32, which TensorRT-RTX does not have for Turing, 7.5.
    if name == "tensorrt-rtx" and card.capability not in _capabilities(trt).keys() - {"7.5"}:
        return f"TensorRT-RTX does not build for {card.device}, of compute capability {card.capability}"
    return None


def cure(name: str) -> str:
    """Return how to make the runtime work here."""
    return f'pip install "skinret-infer[{name}]", and an NVIDIA driver with which nvidia-smi shows the card'


def load(name: str) -> Any:
    """Import the runtime's module and check its version. Raises RuntimeUnavailable."""
    found = ""
    try:
        trt = importlib.import_module(MODULES[name])
        version = tuple(int(number) for number in trt.__version__.split(".")[:2])
        if name == "tensorrt" and version < _OLDEST:
            found = f"version {trt.__version__}"
    except Exception as error:  # a half-installed package may raise anything
        found = f"{type(error).__name__}: {error}"
    if found:
        raise RuntimeUnavailable(
            f"the package {MODULES[name]} cannot be used",
            code="runtime-unavailable",
            expected="tensorrt {}.{} or newer, or tensorrt_rtx".format(*_OLDEST),
            found=found,
            cure=cure(name),
        )
    return trt


def target_here(name: str) -> Target:
    """Return the target of engines that run here. Raises RuntimeUnavailable if none can run here."""
    if reason := why_not(name):
        raise RuntimeUnavailable(
            f"runtime {name} cannot run here", code="runtime-unavailable", found=reason, cure=cure(name)
        )
    return _first_device(_cuda())


def load_or_build(
    name: str,
    trt: Any,
    bundle: Bundle,
    graph: str,
    precision: str,
    target: Target,
    *,
    cache: Path,
    notify: Notify,
    rejection: str = "",
    required: bool = False,
) -> tuple[Path, bytes | memoryview]:
    """Return the path of a graph's engine and the engine; build it if the cache has no valid one.

    rejection, required : as in `cached`.
    """
    onnx = bundle.graph(graph, precision)
    if onnx.name not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} has no {precision} graphs",
            code="bundle-precision",
            expected=onnx.name,
            cure=f"export it again with {precision}, or use fp32",
        )
    if name == "tensorrt-rtx":  # it compiles for the card and the driver at run time
        target = Target(capability=target.capability)
    key = _engine_key(name, trt, bundle, graph, precision, target)
    path = engine_path(cache, key)

    def build_engine() -> bytes:
        notify(f"{graph}: building an engine of {precision} for compute capability {target.capability}")
        start = time.monotonic()
        capabilities = [target.capability] if name == "tensorrt-rtx" else []
        engine = build(
            trt,
            onnx.read_bytes(),
            tokens=bundle.manifest.text.length,
            capabilities=capabilities,
            what=graph,
            notify=notify,
        )
        notify(f"{graph}: built in {time.monotonic() - start:.0f} s")
        return engine

    return path, cached(path, key, build_engine, notify=notify, rejection=rejection, required=required)


def _engine_key(
    name: str, trt: Any, bundle: Bundle, graph: str, precision: str, target: Target
) -> dict[str, str]:
    """Return everything that the engine of a graph depends on, by name."""
    return {
        "graph": graph,
        "onnx": bundle.manifest.files[bundle.graph(graph, precision).name],
        "precision": precision,
        "runtime": name,
        "version": trt.__version__,
        "capability": target.capability,
        "device": target.device,
        "driver": target.driver,
        "platform": f"{sys.platform} {platform.machine()}",
        "profiles": f"batches {BATCHES}, tokens 1 to {bundle.manifest.text.length}",
        "flags": _FLAGS,
    }


def build(
    trt: Any,
    model: bytes,
    *,
    tokens: int,
    capabilities: Sequence[str] = (),
    what: str = "the graph",
    notify: Notify = lambda _: None,
) -> bytes:
    """Build an engine of an ONNX model, with a profile for single queries and one for batches.

    tokens : the largest length of the token axis, if the model leaves it open.
    capabilities : compute capabilities to build for, with tensorrt_rtx only, which then needs no device.
        Without them the engine is for the first device; the caller must have checked that there is one.

    Raises RuntimeUnavailable with TensorRT's own message if it cannot parse or build the model.
    """
    log = _log(trt)
    log.errors.clear()
    builder = _require(trt.Builder(log), log, "a builder")
    # In TensorRT 11 and RTX every network is strongly typed; 10.x needs the flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    flags = 0 if typed is None else 1 << int(typed)
    network = _require(builder.create_network(flags), log, "a network")
    parser = _require(trt.OnnxParser(network, log), log, "a parser")
    _parse(trt, parser, model, what, log)
    config = _require(builder.create_builder_config(), log, "a configuration")
    config.clear_flag(trt.BuilderFlag.TF32)
    monitor = _monitor(trt, what, notify)
    config.progress_monitor = monitor
    if capabilities:
        _set_capabilities(trt, config, capabilities, log)
    _add_profiles(builder, network, config, tokens, log)
    engine = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    return bytes(memoryview(_require(engine, log, f"to build {what}")))


def _parse(trt: Any, parser: Any, model: bytes, what: str, log: Any) -> None:
    """Read an ONNX model into the network of a parser. Raises RuntimeUnavailable."""
    if not parser.parse(model):
        raise RuntimeUnavailable(
            f"{trt.__name__} cannot read {what}",
            code="engine-parse",
            expected="only operators and types that its ONNX parser knows",
            found="; ".join(str(parser.get_error(i)) for i in range(min(parser.num_errors, 3))) or log.last,
            cure="use another runtime, or export the bundle again",
        )


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str], log: Any) -> None:
    """Set the compute capabilities that an engine is built for. Raises RuntimeUnavailable."""
    known = _capabilities(trt)
    if unknown := [c for c in capabilities if c not in known]:
        raise RuntimeUnavailable(
            f"{trt.__name__} does not build for compute capability {', '.join(unknown)}",
            code="engine-capability",
            expected=f"any of {', '.join(known)}",
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        done = config.set_compute_capability(known[capability], index)
        _check(done, log, f"compute capability {capability}")


def _add_profiles(builder: Any, network: Any, config: Any, tokens: int, log: Any) -> None:
    """Add an optimization profile for each batch of BATCHES.

    tokens : the largest length of an axis that the model leaves open.
    """
    for batch in BATCHES:
        profile = _require(builder.create_optimization_profile(), log, "a profile")
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            shape = tuple(tensor.shape)[1:]
            shortest = tuple(1 if size < 0 else size for size in shape)
            longest = tuple(tokens if size < 0 else size for size in shape)
            least, best, largest = batch
            profile.set_shape(tensor.name, (least, *shortest), (best, *longest), (largest, *longest))
        _check(config.add_optimization_profile(profile) >= 0, log, f"a profile of batch {batch}")


class TensorRT:
    """The four graphs of a bundle as TensorRT engines on the first CUDA device.

    Each call has a stream, execution contexts and device memory for itself. The next call uses them again.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        precision: str = "fp32",
        *,
        cache: str | Path | None = None,
        notify: Notify = lambda _: None,
    ) -> None:
        """Load the engines from the cache, and build those that it lacks; `notify` is called with each step.

        Raises RuntimeUnavailable if there is no device, or if an engine cannot be built or loaded.
        """
        self.name, self.precision = name, precision
        self._has_distance = bundle.manifest.calibration is not None
        self._has_concepts = bool(bundle.manifest.concepts)
        target = target_here(name)  # must come before the first object of TensorRT
        self._cuda, self._trt = _cuda(), load(name)
        self._log = _log(self._trt)
        self.facts: Mapping[str, Any] = {
            MODULES[name]: self._trt.__version__,
            "device": target.device,
            "compute_capability": target.capability,
            "driver": target.driver,
        }
        folder = cache_folder(cache)
        runtime = _require(self._trt.Runtime(self._log), self._log, "a runtime")
        # TensorRT-RTX's kernels for this card. All contexts share them, and they must outlive the contexts.
        self._kernel_cache: Any = None
        self._graphs = {graph: self._load(runtime, bundle, graph, target, folder, notify) for graph in GRAPHS}
        # The text encoder runs in parallel to the rest. It has its own streams, since a stream keeps the
        # memory of every graph that it has run.
        self._idle: dict[str, list[_Stream]] = {"text": [], "image": []}
        self._is_open, self._lock = True, threading.Lock()

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one graph on arrays by name, of any batch size, and return the named outputs."""
        batches: dict[str, list[Array]] = {name: [] for name in outputs}
        with self._borrow_stream("text" if graph == "text_encoder" else "image") as stream:
            for batch in _batches(len(next(iter(feeds.values())))):
                for name, array in feeds.items():
                    stream.put(name, array[batch])
                stream.enqueue(graph)
                for name, results in batches.items():
                    results.append(stream.get(name))
        return {name: np.concatenate(arrays) for name, arrays in batches.items()}

    def encode_text(self, ids: Array, mask: Array) -> Array:
        """Return the token vectors, float32 [B, n, d_T], of ids and mask, int64 [B, n]."""
        return self.run("text_encoder", {"input_ids": ids, "attention_mask": mask}, ["tokens"])["tokens"]

    def embed(self, pixels: Array, text: TextFeatures | None) -> Embedded:
        """Return the descriptors of pixels, uint8 [B, H, W, 3], and distances; the maps stay on the device.

        text : returns tokens [B, n, d_T], mask [B, n] and weights [B] to compose with. It is called after the
            device has started with the first images.
        """
        features: tuple[Array, Array, Array] | None = None
        descriptors: list[Array] = []
        distances: list[Array] = []
        with self._borrow_stream("image") as stream:
            for batch in _batches(len(pixels)):
                stream.put("pixels", pixels[batch])
                stream.enqueue("visual_encoder")
                words, maps = np.zeros(len(pixels[batch]), np.float32), LEVELS
                if text is not None:
                    features = features or text()
                    stream.put("tokens", features[0][batch])
                    stream.put("attention_mask", features[1][batch])
                    stream.enqueue("composer")
                    words, maps = features[2][batch], COMPOSED
                if self._has_concepts:
                    stream.put(WORDS, words)
                stream.enqueue("similarity_head", dict(zip(LEVELS, maps, strict=True)))
                descriptors.append(stream.get("descriptor"))
                if self._has_distance:
                    distances.append(stream.get(DISTANCE))
        return Embedded(np.concatenate(descriptors), np.concatenate(distances) if distances else None)

    def close(self) -> None:
        """Free the device memory. A call in another thread finishes first, and then frees its own."""
        with self._lock:
            self._is_open = False
            streams = [*self._idle["text"], *self._idle["image"]]
            self._idle = {"text": [], "image": []}
            self._graphs = {}
        for stream in streams:
            stream.close()

    def _load(
        self, runtime: Any, bundle: Bundle, graph: str, target: Target, folder: Path, notify: Notify
    ) -> "_Graph":
        """Load the engine of a graph and check its tensors. A refused engine is built again."""
        rejection = ""
        for _ in range(2):
            _, payload = load_or_build(
                self.name, self._trt, bundle, graph, self.precision, target,
                cache=folder, notify=notify, rejection=rejection,
            )  # fmt: skip
            self._log.errors.clear()
            engine = runtime.deserialize_cuda_engine(payload)
            if engine is not None or _out_of_memory(self._log.last):
                break
            rejection = f"is refused by {self._trt.__name__} ({self._log.last})"
        _require(engine, self._log, f"to load the engine of {graph}, which was built here")
        inputs, outputs = _check_tensors(engine, bundle, graph)
        scratch = [engine.get_device_memory_size_for_profile_v2(i) for i in range(len(BATCHES))]
        options = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.name == "tensorrt-rtx":
            config = _require(engine.create_runtime_config(), self._log, "a runtime configuration")
            config.set_execution_context_allocation_strategy(options)
            self._kernel_cache = self._kernel_cache or _require(
                config.create_runtime_cache(), self._log, "a kernel cache"
            )
            _check(config.set_runtime_cache(self._kernel_cache), self._log, "a shared kernel cache")
            options = config
        return _Graph(engine, options, inputs, outputs, scratch)

    @contextlib.contextmanager
    def _borrow_stream(self, kind: str) -> Iterator["_Stream"]:
        """Yield an idle stream for "text" or "image", or a new one. After an error it is closed."""
        with self._lock:
            if not self._is_open:
                raise RuntimeUnavailable("the engine is closed", code="engine-closed", cure="open it again")
            stream = self._idle[kind].pop() if self._idle[kind] else None
            graphs = self._graphs
        stream = stream or _Stream(self._cuda, self._log, graphs)
        try:
            yield stream
        except BaseException:  # its work may be incomplete: another call must not continue from there
            stream.close()
            raise
        with self._lock:
            if self._is_open:
                self._idle[kind].append(stream)
                return
        stream.close()


@dataclass(frozen=True, slots=True)
class _Graph:
    """An engine with all that a stream needs to run it."""

    engine: Any
    context_options: Any  # of create_execution_context
    inputs: Mapping[str, np.dtype[Any]]
    outputs: Mapping[str, np.dtype[Any]]
    scratch: Sequence[int]  # bytes for each profile


class _Stream:
    """A stream with its execution contexts and device memory, for one thread at a time.

    Each tensor name has one block of memory, so a graph finds the outputs of the graph before it.
    """

    def __init__(self, cuda: Any, log: Any, graphs: Mapping[str, _Graph]) -> None:
        self._cuda, self._log, self._graphs = cuda, log, graphs
        self._contexts: dict[tuple[str, int], Any] = {}
        self._memory: dict[str, tuple[int, int]] = {}  # address and size in bytes
        self._tensors: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._sources: list[Array] = []  # of copies to the device: they must live until the stream is done
        self._stream = int(_call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking))

    def put(self, name: str, array: Array) -> None:
        """Copy an array to the device."""
        array = np.ascontiguousarray(array)
        self._sources.append(array)
        address = self._reserve(name, array.shape, array.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(self._cuda, "cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def enqueue(self, name: str, sources: Mapping[str, str] | None = None) -> None:
        """Run a graph on tensors on the device and leave its outputs there.

        sources : for an input, the tensor to use in place of the one with its name.
        """
        graph, log = self._graphs[name], self._log
        inputs = {tensor: (sources or {}).get(tensor, tensor) for tensor in graph.inputs}
        first_shape, _ = self._tensors[next(iter(inputs.values()))]
        profile = 1 if first_shape[0] > 1 else 0  # of BATCHES
        log.errors.clear()
        context = self._context(name, profile)
        for tensor, source in inputs.items():
            shape, dtype = self._tensors[source]
            if dtype != graph.inputs[tensor]:
                raise InputError(
                    f"{name} cannot take {source}",
                    code="feed-type",
                    expected=str(graph.inputs[tensor]),
                    found=str(dtype),
                )
            _check(context.set_input_shape(tensor, shape), log, f"{source} of {shape} in {name}")
            _check(context.set_tensor_address(tensor, self._memory[source][0]), log, f"{source} in {name}")
        _check(not context.infer_shapes(), log, f"the shapes in {name}")
        for tensor, dtype in graph.outputs.items():
            address = self._reserve(tensor, tuple(context.get_tensor_shape(tensor)), dtype)
            _check(context.set_tensor_address(tensor, address), log, f"{tensor} of {name}")
        _check(context.execute_async_v3(self._stream), log, f"to run {name}")

    def get(self, name: str) -> Array:
        """Wait for a tensor and return it."""
        shape, dtype = self._tensors[name]
        array = np.empty(shape, dtype)
        kind, source = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, self._memory[name][0]
        _call(self._cuda, "cudaMemcpyAsync", array.ctypes.data, source, array.nbytes, kind, self._stream)
        _call(self._cuda, "cudaStreamSynchronize", self._stream)
        self._sources.clear()
        return array

    def close(self) -> None:
        """Free everything. No error is raised, so that it cannot hide the one that led here."""
        self._cuda.cudaStreamSynchronize(self._stream)
        self._contexts.clear()
        for address, _ in self._memory.values():
            self._cuda.cudaFree(address)
        self._memory.clear()
        self._cuda.cudaStreamDestroy(self._stream)

    def _context(self, name: str, profile: int) -> Any:
        """Return the context of a graph's profile, with the scratch memory of the stream."""
        graph, is_new = self._graphs[name], (name, profile) not in self._contexts
        if is_new:
            context = graph.engine.create_execution_context(graph.context_options)
            _require(context, self._log, f"a context of {name}")
        else:
            context = self._contexts[name, profile]
        size = graph.scratch[profile]  # all graphs share one block: a stream runs one after another
        context.set_device_memory(self._allocate("", size), size)
        if is_new:
            done = context.set_optimization_profile_async(profile, self._stream)
            _check(done, self._log, f"profile {profile} of {name}")
            self._contexts[name, profile] = context
        return context

    def _reserve(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        self._tensors[name] = (shape, dtype)
        return self._allocate(name, math.prod(shape) * dtype.itemsize)

    def _allocate(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes; its content is lost when it grows."""
        address, old_size = self._memory.get(name, (0, 0))
        if not address or old_size < size:
            if address:
                _call(self._cuda, "cudaStreamSynchronize", self._stream)  # it may still be in use
                del self._memory[name]
                _call(self._cuda, "cudaFree", address)
            address = int(_call(self._cuda, "cudaMalloc", max(size, 1)))
            self._memory[name] = (address, size)
        return address


def _batches(size: int) -> Iterator[slice]:
    return (slice(start, start + _MAX_BATCH) for start in range(0, size, _MAX_BATCH))


def _cuda() -> Any:
    return importlib.import_module("cuda.bindings.runtime")


def _first_device(cuda: Any) -> Target:
    attribute = cuda.cudaDeviceAttr
    major, minor, processors = (
        _call(cuda, "cudaDeviceGetAttribute", which, 0)
        for which in (
            attribute.cudaDevAttrComputeCapabilityMajor,
            attribute.cudaDevAttrComputeCapabilityMinor,
            attribute.cudaDevAttrMultiProcessorCount,
        )
    )
    name = _call(cuda, "cudaGetDeviceProperties", 0).name.decode().rstrip("\0")
    driver = _call(cuda, "cudaDriverGetVersion")
    return Target(
        capability=f"{major}.{minor}",
        device=f"{name}, {processors} multiprocessors",
        driver=f"CUDA {driver // 1000}.{driver % 1000 // 10}",
    )


def _call(cuda: Any, function: str, *arguments: Any) -> Any:
    """Call a function of CUDA and return its result. Raises RuntimeUnavailable if it fails."""
    error, *values = getattr(cuda, function)(*arguments)
    if error == cuda.cudaError_t.cudaSuccess:
        return values[0] if values else None
    found = cuda.cudaGetErrorString(error)[1].decode()
    if error == cuda.cudaError_t.cudaErrorMemoryAllocation:
        what = f"{arguments[0] / 2**20:.1f} MiB" if function == "cudaMalloc" else function
        raise memory_error(what, found)
    raise RuntimeUnavailable(
        f"{function} failed",
        code="gpu-failed",
        found=found,
        cure="look at nvidia-smi and the system's log for the cause, and start the process again",
    )


def _check_tensors(
    engine: Any, bundle: Bundle, graph: str
) -> tuple[dict[str, np.dtype[Any]], dict[str, np.dtype[Any]]]:
    """Check the tensors of an engine against the manifest; return the types of its inputs and outputs.

    Raises BundleError.
    """
    shapes: dict[str, dict[str, Any]] = {"INPUT": {}, "OUTPUT": {}}
    types: dict[str, dict[str, Any]] = {"INPUT": {}, "OUTPUT": {}}
    for i in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(i)
        mode = engine.get_tensor_mode(tensor).name
        shapes[mode][tensor] = tuple(d if d >= 0 else None for d in engine.get_tensor_shape(tensor))
        types[mode][tensor] = _TYPES.get(engine.get_tensor_dtype(tensor).name)
        if types[mode][tensor] is None:
            raise BundleError(
                f"{graph} has a tensor of another type",
                code="bundle-graph",
                expected=", ".join(map(str, _TYPES.values())),
                found=f"{tensor}: {engine.get_tensor_dtype(tensor)}",
                cure="export the bundle again",
            )
    input_names, output_names = contract(bundle.manifest)[graph]
    inputs, outputs = _order(shapes["INPUT"], input_names), _order(shapes["OUTPUT"], output_names)
    check_contract(bundle, graph, inputs, outputs)
    return types["INPUT"], types["OUTPUT"]


def _order(shapes: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Put shapes in the order of the names, others after them: the order of an engine is arbitrary."""
    return {name: shapes[name] for name in (*names, *shapes) if name in shapes}


def _out_of_memory(message: str) -> bool:
    return "outofmemory" in message.lower().replace(" ", "").replace("_", "")


def _capabilities(trt: Any) -> dict[str, Any]:
    """Return TensorRT-RTX's enum values by compute capability, such as "8.6"."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}


def _require(thing: Any, log: Any, what: str) -> Any:
    """Return an object that TensorRT was asked to make. Raises RuntimeUnavailable if it is None."""
    _check(thing is not None, log, what)
    return thing


def _check(success: bool, log: Any, what: str) -> None:
    """Raise RuntimeUnavailable, with the last lines of TensorRT's log, unless a call was a success."""
    if success:
        return
    if _out_of_memory(log.last):
        raise memory_error(what, log.last)
    raise RuntimeUnavailable(
        f"TensorRT refuses {what}", code="engine-failed", found=log.last, cure="use another runtime"
    )


@functools.cache
def _log(trt: Any) -> Any:
    """Return TensorRT's log: it must outlive every object, and there is only one in a process."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: collections.deque[str] = collections.deque(maxlen=4)

        @property
        def last(self) -> str:
            return "; ".join(self.errors) or "no message in TensorRT's log"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            _logger.debug("%s: %s", severity.name, message)

    return Log()


def _monitor(trt: Any, what: str, notify: Notify) -> Any:
    """Return a monitor that reports the progress of a build every ten seconds, and stops it at Ctrl-C."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stopped: BaseException | None = None
            self.start = self.last_report = time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            pass

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                now = time.monotonic()
                if now - self.last_report > _REPORT_SECONDS:
                    self.last_report = now
                    notify(f"{what}: {phase.lower()}, {now - self.start:.0f} s so far")
            except BaseException as error:  # an exception must not pass through TensorRT
                self.stopped = error
            return self.stopped is None

    return Monitor()


def _runtime(name: str) -> Runtime:
    def open_engine(bundle: Bundle, precision: str, threads: int, cache: Path, log: Notify) -> TensorRT:
        return TensorRT(bundle, name, precision, cache=cache, notify=log)

    return Runtime(
        name=name,
        extra=name,
        on_card=True,
        why_not=functools.partial(why_not, name),
        precisions=lambda bundle: ("fp16", "fp32") if bundle.has("fp16") else ("fp32",),
        open=open_engine,
        cure=functools.partial(cure, name),
    )


TENSORRT, TENSORRT_RTX = _runtime("tensorrt"), _runtime("tensorrt-rtx")
