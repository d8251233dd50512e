"""TensorRT, without a GPU but for the last test: the cache, builds, and the calls of a device."""

import ctypes
import dataclasses
import enum
import importlib.util
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto

from skinret_export.fp16 import write_fp16
from skinret_export.portable import OPERATORS, check_portable
from skinret_infer._files import file_sha256
from skinret_infer.bundle import GRAPHS, Bundle, graph_file
from skinret_infer.descriptor import COMPOSED, LEVELS
from skinret_infer.engines import tensorrt
from skinret_infer.engines.base import as_levels, head_inputs
from skinret_infer.engines.build import build_engines
from skinret_infer.engines.cache import cache_folder, cached, drop, engine_path
from skinret_infer.engines.registry import open_engine
from skinret_infer.engines.tensorrt import Target, TensorRT
from skinret_infer.errors import BundleError, InputError, ParityError, RuntimeUnavailable

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the package tensorrt_rtx is not installed"
)
TARGET = Target(capability="8.6", device="NVIDIA RTX A4000, 48 multiprocessors", driver="CUDA 13.0")


# -- the cache --

_NAMES = ("graph", "onnx", "precision", "runtime", "version", "capability", "device", "driver", "platform")
KEY = {name: name for name in _NAMES}


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    path, messages = engine_path(tmp_path / "new", KEY), []
    assert cached(path, KEY, lambda: b"engine", notify=messages.append) == b"engine"
    assert cached(path, KEY, pytest.fail, notify=messages.append) == b"engine"
    assert messages == []


def test_a_cached_engine_is_mapped_at_an_aligned_address(tmp_path: Path) -> None:
    path, engine = engine_path(tmp_path, KEY), bytes(range(256)) * 100
    for build in (lambda: engine, pytest.fail):
        found = cached(path, KEY, build, notify=pytest.fail)
        assert isinstance(found, memoryview) and found.readonly
        assert np.frombuffer(found, np.uint8).ctypes.data % 64 == 0
        drop(found)
        assert found == engine
    path.unlink()  # while it is in use
    drop(found)
    assert found == engine
    drop(engine)  # bytes of an engine that was not cached


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: content[:40], "not an engine"),
        (lambda content: content.replace(b"engine of", b"engine or"), "damaged"),
        (lambda content: b"", "not an engine"),
        (lambda content: b"ftrt" + bytes(100), "not an engine"),
        (lambda content: content.split(b"\n")[0] + b"\n[1]\n" + content, "header"),
        (
            lambda content: content.replace(b'"version": "version"', b'"version": "10.9"'),
            "version 10.9, not version",
        ),
        (lambda content: content.replace(b'"driver": "driver"', b'"driver": "CUDA 12.1"'), "CUDA 12.1"),
        (lambda content: content.replace(b'"device": "device"', b'"device": "other"'), "device other"),
    ],
)
def test_a_wrong_or_damaged_engine_is_built_again(tmp_path: Path, damage, words) -> None:
    path, messages = engine_path(tmp_path, KEY), []
    cached(path, KEY, lambda: b"the engine of old", notify=messages.append)
    path.write_bytes(damage(path.read_bytes()))
    assert cached(path, KEY, lambda: b"the new", notify=messages.append) == b"the new"
    assert len(messages) == 1 and words in messages[0] and "built again" in messages[0]
    assert cached(path, KEY, pytest.fail, notify=messages.append) == b"the new"


def test_a_cache_that_cannot_be_written_costs_time_not_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    path = engine_path(tmp_path / "file", KEY)
    assert cached(path, KEY, lambda: b"engine", notify=pytest.fail) == b"engine"
    assert "cannot be written" in caplog.text and "SKINRET_CACHE" in caplog.text
    with pytest.raises(RuntimeUnavailable, match="cannot be written") as caught:
        cached(path, KEY, pytest.fail, notify=pytest.fail, required=True)
    assert caught.value.code == "engine-cache"


@pytest.mark.skipif(sys.platform == "win32", reason="no flock: both build")
def test_two_processes_build_one_engine(tmp_path: Path) -> None:
    program = f"""
import os, time
from pathlib import Path
from skinret_infer.engines.cache import cached
def build():
    time.sleep(1)
    return str(os.getpid()).encode()
print(bytes(cached(Path({str(tmp_path)!r}) / "e.engine", {KEY!r}, build, notify=print)).decode())
"""
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    outs = sorted((process.communicate()[0].splitlines() for process in both), key=len)
    assert [len(lines) for lines in outs] == [1, 2] and "waiting" in outs[1][0]
    assert outs[0][0] == outs[1][1]


def test_the_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKINRET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "skinret"
    monkeypatch.setenv("SKINRET_CACHE", "elsewhere")
    assert cache_folder() == Path("elsewhere")
    assert cache_folder(tmp_path) == tmp_path


class Builds:
    """Counts the builds of engines, which do nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, cache: Path) -> None:
        self.bundle, self.cache, self.count, self.version = bundle, cache, 0, "11.0"
        monkeypatch.setattr(tensorrt, "build", self._build)

    def _build(self, *_: object, **__: object) -> bytes:
        self.count += 1
        return b"engine"

    def __call__(
        self, name="tensorrt", graph="composer", precision="fp32", bundle=None, **target: str
    ) -> int:
        """Load or build an engine, and return how many have been built so far."""
        tensorrt.load_or_build(
            name, SimpleNamespace(__version__=self.version), bundle or self.bundle, graph, precision,
            dataclasses.replace(TARGET, **target), cache=self.cache, notify=lambda _: None,
        )  # fmt: skip
        return self.count


@pytest.fixture
def with_fp16(bundle: Path, tmp_path: Path) -> Bundle:
    """The bundle with fp16 graphs beside the others."""
    folder = tmp_path / "with_fp16"
    shutil.copytree(bundle, folder)
    loaded = Bundle.load(bundle)
    write_fp16(folder)
    files = {file.name: file_sha256(file) for file in folder.glob("*.onnx")}
    manifest = dataclasses.replace(loaded.manifest, files={**loaded.manifest.files, **files})
    return Bundle(folder, manifest)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, with_fp16: Bundle, tmp_path: Path) -> Builds:
    return Builds(monkeypatch, with_fp16, tmp_path / "cache")


def test_the_key_has_everything_that_an_engine_depends_on(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert builds() == builds() == 1
    assert builds(device="another") == 2 and builds(capability="8.9") == 3 and builds(driver="CUDA 13.1") == 4
    assert builds(graph="text_encoder") == 5 and builds(precision="fp16") == 6
    other = dict(builds.bundle.manifest.files, **{"composer.onnx": "0" * 64})
    assert (
        builds(bundle=Bundle(builds.bundle.path, dataclasses.replace(builds.bundle.manifest, files=other)))
        == 7
    )
    builds()
    count = builds.count
    for name, value in {"_FLAGS": "with TF32", "BATCHES": ((1, 1, 1),)}.items():
        monkeypatch.setattr(tensorrt, name, value)
        count += 1
        assert builds() == count
    longer = dataclasses.replace(builds.bundle.manifest.text, length=7)
    text = dataclasses.replace(builds.bundle.manifest, text=longer)
    assert builds(bundle=Bundle(builds.bundle.path, text)) == count + 1
    builds.version = "11.1"
    assert builds() == count + 2


def test_a_precision_that_the_bundle_lacks_is_an_error(builds: Builds) -> None:
    with pytest.raises(BundleError, match="no int8 graphs"):
        builds(precision="int8")


def test_rtx_engines_depend_on_the_compute_capability_alone(builds: Builds) -> None:
    assert builds("tensorrt-rtx") == builds("tensorrt-rtx", device="another", driver="CUDA 14.0") == 1
    assert builds("tensorrt-rtx", capability="8.9") == 2


# -- without a driver --


def test_a_missing_driver_is_an_error_not_a_crash(bundle: Path) -> None:
    for name in tensorrt.MODULES:
        if reason := tensorrt.why_not(name):
            with pytest.raises(RuntimeUnavailable, match="cannot run here") as caught:
                TensorRT(Bundle.load(bundle), name)
            assert reason in str(caught.value) and tensorrt.cure(name) in str(caught.value)
            with pytest.raises(RuntimeUnavailable):
                build_engines(bundle, name)


def test_tensorrt_builds_for_no_other_card(bundle: Path) -> None:
    with pytest.raises(InputError, match="the card that is here"):
        build_engines(bundle, "tensorrt", capabilities=["8.6"])


# -- tensorrt_rtx parses and builds without a GPU --


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_full_size_graphs_parse_and_build(full_bundle: Path, graph: str, precision: str) -> None:
    path = full_bundle / graph_file(graph, precision)
    check_portable(onnx.load(path), path.name)
    engine = tensorrt.build(
        tensorrt.load("tensorrt-rtx"), path.read_bytes(), tokens=64, capabilities=["8.0", "8.6", "8.9"]
    )
    assert len(engine) > path.stat().st_size // 2


@rtx
def test_engines_are_built_ahead_of_time_and_used_again(bundle: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    options = {"capabilities": ["8.6", "8.9"], "cache": tmp_path, "notify": messages.append}
    paths = build_engines(bundle, "tensorrt-rtx", **options)
    assert len(set(paths)) == 8 and all(path.is_file() for path in paths)
    assert sum("built in" in line for line in messages) == 8
    messages.clear()
    assert build_engines(bundle, "tensorrt-rtx", **options) == paths and messages == []


@rtx
@pytest.mark.parametrize(
    ("model", "capability", "code", "words"),
    [
        (b"no ONNX at all", "8.6", "engine-parse", "Failed to parse the ONNX model"),
        ("agraph (float[N] x) => (int64[1, M] y) { y = Foo(x) }", "8.6", "engine-parse", "Foo"),
        ("agraph (float[N, 4] x) => (float[N, N] y) { t = Transpose(x) y = MatMul(x, t) }", "7.5",
         "engine-failed", "Turing"),
    ],
)  # fmt: skip
def test_a_refusal_of_tensorrt_is_an_error_in_its_words(model, capability, code, words) -> None:
    if isinstance(model, str):
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 18]> {model}'
        ).SerializeToString()
    with pytest.raises(RuntimeUnavailable, match=words) as caught:
        tensorrt.build(tensorrt.load("tensorrt-rtx"), model, tokens=4, capabilities=[capability])
    assert caught.value.code == code


@rtx
def test_an_unknown_compute_capability_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"9\.0.*8\.6"):
        build_engines(bundle, "tensorrt-rtx", capabilities=["9.0"], cache=tmp_path)


@rtx
def test_a_build_reports_its_progress_and_can_be_stopped(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt, "_REPORT_SECONDS", 0.0)
    model, messages = (bundle / "composer.onnx").read_bytes(), []
    trt = tensorrt.load("tensorrt-rtx")
    tensorrt.build(trt, model, tokens=64, capabilities=["8.6"], what="composer", notify=messages.append)
    assert messages and all(line.startswith("composer: ") for line in messages)
    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(trt, model, tokens=64, capabilities=["8.6"], notify=stop)


# -- fp16 --


def test_fp16_keeps_contract_sums_and_values(with_fp16: Bundle) -> None:
    cpu = open_engine(with_fp16, "onnxruntime-cpu")
    pixels, ids, mask = random_inputs(3, tokens_of(with_fp16.path))
    mask[2] = 0  # nothing at all to attend to
    feeds = {"pixels": pixels, "input_ids": ids, "attention_mask": mask}
    for graph in GRAPHS[:3]:
        path = with_fp16.path / f"{graph}.fp16.onnx"
        model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
        check_portable(model, graph)
        types = {
            v.name: v.type.tensor_type.elem_type
            for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        } | {t.name: t.data_type for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("LayerNormalization", "Softmax"):
                assert {types[name] for name in node.input} == {TensorProto.FLOAT}
            if node.op_type in ("MatMul", "Gemm", "Conv"):
                assert {types[name] for name in node.input if name} == {TensorProto.FLOAT16}
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = {i.name: feeds[i.name] for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        expected = cpu.run(graph, inputs, names)
        for name, fp16 in zip(names, session.run(names, inputs), strict=True):
            fp32 = expected[name]
            assert fp16.dtype == fp32.dtype == np.float32 and np.isfinite(fp16).all()
            assert np.abs(fp16[:2] - fp32[:2]).max() < 5e-3 * np.abs(fp32).max(), name
            feeds[name] = fp32


# -- the static check --


def model_of(body: str, opset: int = 18, also: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}{also}]> {body}')


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (model_of("a (float[N] x) => (float[N] y) { y = Relu(x) }", opset=17), "opset 17"),
        (
            model_of(
                "a (float[N] x) => (float[N] y) { y = com.microsoft.Gelu(x) }", also=', "com.microsoft": 1'
            ),
            r"com\.microsoft\.Gelu",
        ),
        (model_of("a (float[N] x) => (double[N] y) { y = Cast<to=11>(x) }"), "double"),
        (
            model_of("a (float[N] x) => (float[N] y) <double[1] c = {1}> { y = Relu(x) }"),
            "constant c of type double",
        ),
        (model_of("a (float[N] x) => (int64[1, M] y) { y = NonZero(x) }"), "NonZero"),
        (
            model_of("a (float[N] x, int64[1] s) => (float[M] y) { y = Reshape(x, s) }"),
            r"Reshape.*depends on values",
        ),
        (
            model_of(
                "a (bool c, float[1] x) => (float[1] y) { y = If (c) "
                "<then_branch = t () => (float[1] a) { a = Relu(x) }, "
                "else_branch = e () => (float[1] b) { b = Neg(x) }> }"
            ),
            "If",
        ),
    ],
)
def test_a_graph_that_a_runtime_would_refuse_is_named(model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ParityError, match=words) as caught:
        check_portable(model, "composer.onnx")
    assert caught.value.code == "graph-portable"


def test_exported_graphs_are_portable(bundle: Path) -> None:
    for graph in GRAPHS:
        check_portable(onnx.load(bundle / f"{graph}.onnx"), graph)


@rtx
def test_tensorrt_supports_every_operator_that_is_allowed() -> None:
    trt = tensorrt.load("tensorrt-rtx")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert [name for name in OPERATORS if not parser.supports_operator(name)] == []


# -- a device of host memory: the real backend over ONNX Runtime in place of TensorRT --


class Card:
    """The functions of cuda.bindings.runtime that the backend calls, on host memory."""

    cudaStreamNonBlocking = 1
    cudaError_t = enum.IntEnum("cudaError_t", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2})
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.free, self.blocks, self.streams = 1 << 40, {}, 0
        self.lock = threading.Lock()

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"out of memory"

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        with self.lock:
            self.streams += 1
        return 0, self.streams

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        with self.lock:
            self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        with self.lock:
            if size > self.free:
                return self.cudaError_t.cudaErrorMemoryAllocation, None
            block = ctypes.create_string_buffer(size)
            self.free -= size
            self.blocks[ctypes.addressof(block)] = block
            return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        with self.lock:
            self.free += len(self.blocks.pop(address))
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        device = to if kind == 1 else source
        assert size <= len(self.blocks[device]), "beyond the block"
        ctypes.memmove(to, source, size)
        return (0,)


class Engine:
    """An engine whose contexts run an ONNX Runtime session."""

    def __init__(self, model: bytes) -> None:
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        types = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(uint8)": "u1"}
        self.tensors = {
            tensor.name: (mode, tensor.shape, np.dtype(types[tensor.type]))
            for mode, some in (("OUTPUT", self.session.get_outputs()), ("INPUT", self.session.get_inputs()))
            for tensor in some
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.tensors[name][1])

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name={"f": "FLOAT", "i": "INT64", "u": "UINT8"}[self.tensors[name][2].kind])

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 * (1 + profile)

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=object,
            set_runtime_cache=lambda cache: True,
        )

    def create_execution_context(self, how: object) -> "Context":
        return Context(self)


class Context:
    """A context that computes immediately."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses, self.profile = engine, {}, {}, 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = tensorrt.BATCHES[self.profile]
        self.shapes[name] = shape
        return least <= shape[0] <= most

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            symbol: size
            for tensor, shape in self.shapes.items()
            for symbol, size in zip(self.engine.tensors[tensor][1], shape, strict=True)
        }
        return tuple(sizes.get(d, d) for d in self.engine.tensors[name][1])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = size

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch == 1000 * (1 + self.profile)
        feeds = {}
        for name, shape in self.shapes.items():
            feeds[name] = np.empty(shape, self.engine.tensors[name][2])
            ctypes.memmove(feeds[name].ctypes.data, self.addresses[name], feeds[name].nbytes)
        names = [name for name, (mode, *_) in self.engine.tensors.items() if mode == "OUTPUT"]
        for name, array in zip(names, self.engine.session.run(names, feeds), strict=True):
            assert array.shape == self.get_tensor_shape(name)
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        return True


class Fake(SimpleNamespace):
    """The parts of the module tensorrt that the backend uses; it refuses to load `refuse` engines."""

    def __init__(self) -> None:
        logger = type("ILogger", (), {"ERROR": 1})
        strategy = SimpleNamespace(USER_MANAGED="managed")
        super().__init__(
            __name__="tensorrt", __version__="11.0", ILogger=logger, refuse=0,
            ExecutionContextAllocationStrategy=strategy,
        )  # fmt: skip

    __hash__ = object.__hash__

    def Runtime(self, log: object) -> "Fake":
        return self

    def deserialize_cuda_engine(self, payload: bytes | memoryview) -> Engine | None:
        self.refuse -= 1
        return None if self.refuse >= 0 else Engine(bytes(payload))


def random_inputs(count: int, tokens: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw pixels, ids and masks."""
    draw = np.random.default_rng(count)
    mask = (np.arange(tokens) < draw.integers(1, tokens + 1, (count, 1))).astype(np.int64)
    return (
        draw.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
        draw.integers(0, 100, (count, tokens)),
        mask,
    )


def embed_by_graphs(engine, pixels: np.ndarray, words: tuple[np.ndarray, ...] | None) -> np.ndarray:
    """Return descriptors from graphs that run one at a time."""
    maps, weights = (
        engine.run("visual_encoder", {"pixels": pixels}, LEVELS),
        np.zeros(len(pixels), np.float32),
    )
    if words is not None:
        feeds = {**maps, "tokens": words[0], "attention_mask": words[1]}
        maps, weights = as_levels(engine.run("composer", feeds, COMPOSED)), words[2]
    return engine.run("similarity_head", head_inputs(maps, weights, True), ["descriptor"])["descriptor"]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card, fake = Card(), Fake()
    card.trt = fake
    monkeypatch.setattr(tensorrt, "target_here", lambda name: TARGET)
    monkeypatch.setattr(tensorrt, "_cuda", lambda: card)
    monkeypatch.setattr(tensorrt, "load", lambda name: fake)
    monkeypatch.setattr(tensorrt, "build", lambda trt, model, **_: model)
    return card


@pytest.mark.parametrize("name", list(tensorrt.MODULES))
@pytest.mark.parametrize("count", [1, 5, 70])
def test_maps_stay_on_the_device_and_give_the_same_descriptor(
    card: Card, bundle: Path, tmp_path: Path, count: int, name: str
) -> None:
    loaded, (pixels, ids, mask) = Bundle.load(bundle), random_inputs(count, tokens=tokens_of(bundle))
    engine, cpu = TensorRT(loaded, name, cache=tmp_path), open_engine(loaded, "onnxruntime-cpu")
    calls = []

    weights = np.linspace(0, 1, count, dtype=np.float32)

    def words() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        calls.append(1)
        return engine.encode_text(ids, mask), mask, weights

    tokens = cpu.run("text_encoder", {"input_ids": ids, "attention_mask": mask}, ["tokens"])["tokens"]
    np.testing.assert_allclose(
        engine.embed(pixels, None).descriptors, embed_by_graphs(cpu, pixels, None), atol=2e-6
    )
    np.testing.assert_allclose(
        engine.embed(pixels, words).descriptors,
        embed_by_graphs(cpu, pixels, (tokens, mask, weights)),
        atol=2e-6,
    )
    assert calls == [1]
    np.testing.assert_allclose(
        embed_by_graphs(engine, pixels, None), embed_by_graphs(cpu, pixels, None), atol=2e-6
    )
    engine.close()
    assert not card.blocks and not card.streams
    with pytest.raises(RuntimeUnavailable, match="closed"):
        engine.embed(pixels, None)


def test_the_distances_of_the_pictures_come_with_the_descriptors(
    card: Card, calibrated: Path, tmp_path: Path
) -> None:
    loaded, (pixels, _, _) = Bundle.load(calibrated), random_inputs(70)
    engine = TensorRT(loaded, "tensorrt", cache=tmp_path)
    expected = open_engine(loaded, "onnxruntime-cpu").embed(pixels, None).distances
    np.testing.assert_allclose(engine.embed(pixels, None).distances, expected, rtol=1e-4)
    engine.close()


def test_threads_do_not_share_their_tensors(card: Card, bundle: Path, tmp_path: Path) -> None:
    engine, n = TensorRT(Bundle.load(bundle), "tensorrt", cache=tmp_path), tokens_of(bundle)
    inputs = [random_inputs(count, tokens=n) for count in (1, 2, 3, 40, 5, 1)]

    def embed(one_input: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        pixels, ids, mask = one_input
        return engine.embed(
            pixels, lambda: (engine.encode_text(ids, mask), mask, np.ones(len(ids), np.float32))
        ).descriptors

    alone = [embed(one_input) for one_input in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(embed, inputs * 4), alone * 4, strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6)
    engine.close()
    assert not card.blocks and not card.streams


def test_a_card_without_memory_is_an_error_and_works_again_later(
    card: Card, bundle: Path, tmp_path: Path
) -> None:
    engine, (pixels, _, _) = TensorRT(Bundle.load(bundle), "tensorrt", cache=tmp_path), random_inputs(8)
    expected = engine.embed(pixels[:1], None).descriptors
    card.free, free = 10_000, card.free
    with pytest.raises(RuntimeUnavailable, match=r"no memory for .* MiB") as caught:
        engine.embed(pixels, None)
    assert caught.value.code == "gpu-memory" and not card.blocks
    card.free = free
    np.testing.assert_array_equal(engine.embed(pixels[:1], None).descriptors, expected)


def test_an_engine_that_tensorrt_refuses_is_built_again_once(
    card: Card, bundle: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    TensorRT(Bundle.load(bundle), "tensorrt", cache=tmp_path).close()
    card.trt.refuse = 1
    TensorRT(Bundle.load(bundle), "tensorrt", cache=tmp_path, notify=messages.append).close()
    assert "refused by tensorrt" in messages[0] and "visual_encoder: built" in messages[-1]
    card.trt.refuse = 2
    with pytest.raises(RuntimeUnavailable, match="refuses to load the engine of visual_encoder"):
        TensorRT(Bundle.load(bundle), "tensorrt", cache=tmp_path)


def test_an_array_of_another_type_is_refused(card: Card, bundle: Path, tmp_path: Path) -> None:
    engine = TensorRT(Bundle.load(bundle), "tensorrt", cache=tmp_path)
    with pytest.raises(InputError, match="uint8"):
        engine.embed(random_inputs(1)[0].astype(np.float32), None)


def tokens_of(bundle: Path) -> int:
    """Return a token length that the exported graphs take."""
    axis = onnx.load(bundle / "text_encoder.onnx").graph.input[0].type.tensor_type.shape.dim[1]
    return axis.dim_value or 9


# -- a real device --


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", list(tensorrt.MODULES))
def test_a_real_gpu_gives_the_descriptors_of_the_cpu(
    with_fp16: Bundle, tmp_path: Path, name: str, precision: str
) -> None:
    if reason := tensorrt.why_not(name):
        pytest.skip(reason)
    n = tokens_of(with_fp16.path)
    engine = TensorRT(with_fp16, name, precision, cache=tmp_path, notify=print)
    cpu = open_engine(with_fp16, "onnxruntime-cpu")
    inputs = [random_inputs(count, tokens=n) for count in (1, 5, 70, 1)]

    def embed(one_input: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        pixels, ids, mask = one_input
        return engine.embed(
            pixels, lambda: (engine.encode_text(ids, mask), mask, np.ones(len(ids), np.float32))
        ).descriptors

    with ThreadPoolExecutor(3) as pool:
        for (pixels, ids, mask), found in zip(inputs * 2, pool.map(embed, inputs * 2), strict=True):
            tokens = cpu.run("text_encoder", {"input_ids": ids, "attention_mask": mask}, ["tokens"])["tokens"]
            expected = embed_by_graphs(cpu, pixels, (tokens, mask))
            assert np.abs(found - expected).max() < (1e-4 if precision == "fp32" else 1e-2)
    engine.close()
    again = TensorRT(with_fp16, name, precision, cache=tmp_path, notify=pytest.fail)
    assert again.embed(inputs[0][0], None).descriptors.shape == (1, with_fp16.manifest.layout.length)
    again.close()
