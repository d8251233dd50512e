"""A runtime by name runs or is refused, "auto" takes the best that is allowed, and all agree."""

import dataclasses
import errno
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from helpers import WORDS

from skinret_infer import BundleError, Case, InputError, RuntimeUnavailable, Searcher, doctor
from skinret_infer.bundle import GRAPHS, Bundle
from skinret_infer.descriptor import COMPOSED, LEVELS
from skinret_infer.engines import cache, cpus, onnxruntime, openvino, registry
from skinret_infer.engines.base import Engine
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.engines.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCuda
from skinret_infer.engines.registry import choose, open_engine
from skinret_infer.engines.verdicts import save_record
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess

with_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the package openvino is not installed"
)
CPU = [pytest.param("openvino", marks=with_openvino), "onnxruntime-cpu"]


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return Bundle.load(bundle)


@pytest.fixture(scope="module")
def pixels(loaded: Bundle, cases: list[Case]) -> np.ndarray:
    return np.stack([preprocess(decode(case.image), loaded.manifest.image) for case in cases[:8]])


@pytest.fixture(scope="module")
def reference(loaded: Bundle) -> Engine:
    return open_engine(loaded, "onnxruntime-cpu")


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CPU has bf16, with OpenVINO and ONNX Runtime and no card."""
    runs_on(monkeypatch, "openvino", "onnxruntime-cpu")
    monkeypatch.setattr(openvino, "precisions", lambda: ("bf16", "fp32"))


def runs_on(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(
        registry, "why_not", lambda name: None if name in names else f"no {name} in this test"
    )


def words(batch: int, length: int, valid: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(length).integers(5, 60, (batch, length))
    mask = np.zeros((batch, length), np.int64)
    mask[:, : valid or length] = 1
    return ids * mask, mask


def descriptors_of(engine: Engine, pixels: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    tokens = engine.encode_text(ids, mask)
    return engine.embed(pixels, lambda: (tokens, mask, np.ones(len(ids), np.float32))).descriptors


def verdict(passed: bool, **more: Any) -> dict[str, Any]:
    faults = (
        [] if passed else ["image_words, archive in fp32: 0.912 of the hits are the same; 0.97 is required"]
    )
    return {
        "runtime": "openvino", "precision": "bf16", "passed": passed, "faults": faults,
        "archive_passed": passed, "archive_faults": faults, **more,
    }  # fmt: skip


def with_record(loaded: Bundle, record: dict[str, Any]) -> Bundle:
    """Return the bundle with a record of openvino/bf16 in its manifest."""
    checks = {"openvino/bf16": record}
    return dataclasses.replace(loaded, manifest=dataclasses.replace(loaded.manifest, precision_checks=checks))


# -- by name --


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ({"runtime": "cuda"}, "runtime-unknown"),
        ({"runtime": ""}, "runtime-unknown"),
        ({"precision": "int3"}, "precision-unknown"),
        *(({"threads": n}, "threads-range") for n in (0, -1, True, 1.5, "2")),
    ],
)
def test_an_unknown_option_is_refused_by_name(loaded: Bundle, option: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        open_engine(loaded, **option)
    assert caught.value.code == code and repr(next(iter(option.values()))) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("onnxruntime-cpu", "cpu"),
        ("onnxruntime-cuda", "gpu"),
        ("openvino", "openvino"),
        ("tensorrt", "tensorrt"),
        ("tensorrt-rtx", "tensorrt-rtx"),
    ],
)
def test_a_runtime_by_name_that_cannot_run_is_an_error_that_names_its_extra(
    loaded: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match="is not installed") as caught:
        open_engine(loaded, name)
    assert caught.value.code == "runtime-unavailable" and caught.value.exit_code == 4
    assert f"skinret-infer[{extra}]" in str(caught.value)


def test_two_onnxruntime_wheels_are_an_error(loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "version", lambda distribution: "1.31")
    for name in ("onnxruntime-cpu", "onnxruntime-cuda"):
        with pytest.raises(RuntimeUnavailable, match=r"overwrite each other.*pip uninstall"):
            open_engine(loaded, name)


def test_an_onnxruntime_without_its_files_is_an_error(
    loaded: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ort, "InferenceSession")
    assert "lacks its files" in onnxruntime.why_not("onnxruntime-cpu")


def test_a_session_that_falls_back_to_another_provider_is_an_error(
    loaded: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["AzureExecutionProvider"])
    with pytest.raises(RuntimeUnavailable, match="AzureExecutionProvider") as caught:
        open_engine(loaded, "onnxruntime-cpu")
    assert caught.value.code == "runtime-provider"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_never_silently_becomes_the_cpu(loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "onnxruntime-gpu" in onnxruntime.why_not("onnxruntime-cuda")
    with pytest.raises(RuntimeUnavailable, match="expected CUDAExecutionProvider; found CPUExecution"):
        OnnxRuntimeCuda(loaded, "fp32", 1)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert onnxruntime.why_not("onnxruntime-cuda").startswith("CUDA does not start")


# -- auto --


def test_auto_takes_cards_first_then_openvino(loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(monkeypatch, *registry.RUNTIMES)
    monkeypatch.setattr(openvino, "precisions", lambda: ("fp32",))
    allowed, refused = choose(loaded)
    order = ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime-cpu"]
    assert allowed == [(name, "fp32") for name in order] and refused == {}
    runs_on(monkeypatch, "onnxruntime-cpu")
    allowed, refused = choose(loaded)
    assert allowed == [("onnxruntime-cpu", "fp32")]
    assert refused["tensorrt"] == "no tensorrt in this test" and len(refused) == 4


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (RuntimeUnavailable("it does not open today", code="engine-failed"), "engine-failed"),
        (OSError(errno.ENOSPC, "it does not open today"), "runtime-failed"),
        (FileNotFoundError("it does not open today"), "runtime-failed"),
        (RuntimeError("it does not open today"), "runtime-failed"),
    ],
)
def test_auto_skips_a_runtime_that_does_not_open_with_a_warning(
    loaded: Bundle, both: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    fault: Exception, code: str,
) -> None:  # fmt: skip
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(openvino, "OpenVino", broken)
    with caplog.at_level(logging.WARNING, "skinret_infer"):
        assert open_engine(loaded).name == "onnxruntime-cpu"
    assert "openvino in fp32 is skipped: " in caplog.text and "not open today" in caplog.text
    with pytest.raises(RuntimeUnavailable, match="not open today") as caught:
        open_engine(loaded, "openvino")
    assert caught.value.code == code
    monkeypatch.setattr(onnxruntime, "OnnxRuntimeCpu", broken)
    with pytest.raises(RuntimeUnavailable, match="not open today"):
        open_engine(loaded)


def test_if_nothing_runs_the_error_has_every_reason(loaded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(monkeypatch)
    with pytest.raises(RuntimeUnavailable, match="none is installed") as caught:
        open_engine(loaded)
    assert all(f"{name}: no {name} in this test" in str(caught.value) for name in registry.RUNTIMES)


# -- precisions and the check --


def test_a_precision_that_a_runtime_lacks_is_refused_by_name(loaded: Bundle, both: None) -> None:
    with pytest.raises(RuntimeUnavailable, match="onnxruntime-cpu has fp32 here") as caught:
        open_engine(loaded, "onnxruntime-cpu", precision="bf16")
    assert caught.value.code == "precision-unsupported" and "among fp32" in str(caught.value)


def test_a_precision_without_a_check_runs_neither_by_auto_nor_by_name(
    loaded: Bundle, both: None, tmp_path: Path
) -> None:
    allowed, refused = choose(loaded, cache=tmp_path)
    assert allowed == [("openvino", "fp32"), ("onnxruntime-cpu", "fp32")]
    assert "were not measured" in refused["openvino/bf16"]
    with pytest.raises(RuntimeUnavailable, match=r"not measured.*skinret validate-precision") as caught:
        open_engine(loaded, "openvino", precision="bf16", cache=tmp_path)
    assert caught.value.code == "precision-refused"


def test_a_precision_that_failed_the_check_is_refused_with_its_figures(
    loaded: Bundle, both: None, tmp_path: Path
) -> None:
    refused = with_record(loaded, verdict(False))
    assert ("openvino", "bf16") not in choose(refused, cache=tmp_path)[0]
    with pytest.raises(RuntimeUnavailable, match=r"failed the precision check: .* 0\.912 of the hits"):
        open_engine(refused, "openvino", precision="bf16", cache=tmp_path)


def test_a_precision_that_passed_the_check_is_taken_first(loaded: Bundle, both: None, tmp_path: Path) -> None:
    allowed, refused = choose(with_record(loaded, verdict(True)), cache=tmp_path)
    assert allowed == [("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime-cpu", "fp32")]
    assert "openvino/bf16" not in refused
    only, _ = choose(with_record(loaded, verdict(True)), "openvino", "fp32", tmp_path)
    assert only == [("openvino", "fp32")]


@pytest.mark.parametrize("record", ["passed", {"passed": "yes"}, {"passed": 1}, {}, None, ["passed"]])
def test_a_record_that_does_not_say_passed_allows_nothing(
    loaded: Bundle, both: None, tmp_path: Path, record: Any
) -> None:
    assert choose(with_record(loaded, record), cache=tmp_path)[0][0] == ("openvino", "fp32")


@pytest.mark.parametrize("passed", [True, False])
def test_a_record_made_on_site_overrides_that_of_the_bundle(
    loaded: Bundle, both: None, tmp_path: Path, passed: bool
) -> None:
    other = with_record(loaded, verdict(not passed))
    save_record(other, verdict(passed), tmp_path)
    assert (choose(other, cache=tmp_path)[0][0] == ("openvino", "bf16")) is passed


def test_a_record_of_another_bundle_is_ignored(loaded: Bundle, both: None, tmp_path: Path) -> None:
    save_record(loaded, verdict(True), tmp_path)
    assert choose(loaded, cache=tmp_path)[0][0] == ("openvino", "bf16")
    files = {**loaded.manifest.files, "visual_encoder.onnx": "0" * 64}
    again = dataclasses.replace(loaded, manifest=dataclasses.replace(loaded.manifest, files=files))
    assert again.manifest.fingerprint == loaded.manifest.fingerprint
    assert choose(again, cache=tmp_path)[0][0] == ("openvino", "fp32")


# -- the same answers --


@pytest.mark.parametrize("batch", [1, 8])
@with_openvino
def test_openvino_and_onnxruntime_agree_on_any_number_of_tokens(
    loaded: Bundle, reference: Engine, pixels: np.ndarray, batch: int
) -> None:
    engine = open_engine(loaded, "openvino", precision="fp32")
    for length in (1, 2, 15, 16, 17, 48, 64):
        inputs = pixels[:batch], *words(batch, length, max(1, length - 3))
        np.testing.assert_allclose(
            descriptors_of(engine, *inputs), descriptors_of(reference, *inputs), atol=1e-4
        )
    np.testing.assert_allclose(
        engine.embed(pixels[:batch], None).descriptors,
        reference.embed(pixels[:batch], None).descriptors,
        atol=1e-4,
    )


@with_openvino
def test_every_runtime_finds_the_same_top_10(bundle: Path, archive: Path, cases: list[Case]) -> None:
    queries = [(case.image, text) for case in cases[40:46] for text in (WORDS, None)]
    hits = []
    for name in ("openvino", "onnxruntime-cpu"):
        with Searcher(bundle, archive, runtime=name, precision="fp32") as searcher:
            hits.append([[hit.case_id for hit in searcher.query(*query)] for query in queries])
            assert searcher.runtime == name and searcher.precision == "fp32"
    assert hits[0] == hits[1]


@pytest.mark.parametrize("name", CPU)
def test_padding_to_sixteen_or_to_the_full_length_makes_no_difference(
    loaded: Bundle, pixels: np.ndarray, name: str
) -> None:
    engine = open_engine(loaded, name, precision="fp32")
    ids, mask = words(2, 64, 11)
    exact, whole = engine.encode_text(ids[:, :11], mask[:, :11]), engine.encode_text(ids, mask)
    steps = engine.encode_text(ids[:, :16], mask[:, :16])
    np.testing.assert_allclose(steps[:, :11], whole[:, :11], atol=1e-5)
    np.testing.assert_allclose(steps[:, :11], exact, atol=1e-5)
    short, long = (descriptors_of(engine, pixels[:2], ids[:, :n], mask[:, :n]) for n in (16, 64))
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_the_code_for_cuda_gives_the_descriptors_of_the_cpu(
    loaded: Bundle, reference: Engine, pixels: np.ndarray
) -> None:
    bound = OnnxRuntimeCuda(loaded, "fp32", 2, device="cpu")
    assert bound.name == "onnxruntime-cuda" and bound.facts["device"] == "cpu"
    for batch in (1, 5, 8):
        ids, mask = words(batch, 64, 20)
        inputs = pixels[:batch], ids[:, :32], mask[:, :32]  # rows of a longer array, as the searcher gives
        np.testing.assert_allclose(
            descriptors_of(bound, *inputs), descriptors_of(reference, *inputs), atol=1e-6
        )
        part = pixels[:batch]
        np.testing.assert_allclose(
            bound.embed(part, None).descriptors, reference.embed(part, None).descriptors, atol=1e-6
        )
    maps = bound.run("visual_encoder", {"pixels": pixels}, LEVELS)
    assert all(isinstance(level, np.ndarray) for level in maps.values())
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda n: bound.embed(pixels[n : n + 1], None).descriptors[0], [*range(8)] * 2))
    np.testing.assert_allclose(rows, np.tile(reference.embed(pixels, None).descriptors, (2, 1)), atol=1e-5)


@with_openvino
def test_bf16_is_close_to_fp32_and_holds_half_the_weights(
    loaded: Bundle, reference: Engine, pixels: np.ndarray, tmp_path: Path
) -> None:
    if "bf16" not in openvino.precisions():
        pytest.skip("this CPU does not compute in bf16")
    engine = open_engine(loaded, "openvino", precision="bf16", cache=tmp_path, check=False)
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    inputs = pixels, *words(8, 16)
    low, high = descriptors_of(engine, *inputs), descriptors_of(reference, *inputs)
    assert low.dtype == np.float32
    assert (low * high).sum(axis=1).min() / 6 > 0.995  # the mean of the six cosines
    assert np.abs(low - high).max() > 1e-5, "it ran in fp32 after all"


@pytest.mark.parametrize("name", CPU)
def test_threads_are_the_option_or_all_available_cpus(
    loaded: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_engine(loaded, name, 3).facts["threads"] == 3
    monkeypatch.setattr(registry, "available_cpus", lambda: 2)
    assert open_engine(loaded, name).facts["threads"] == 2


# -- the CPUs that a process may use --

V2, V1 = "cgroup2 cgroup2 rw", "cgroup cgroup rw,cpu,cpuacct"
MAX, QUOTA, PERIOD = "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("group", "mounts", "files", "least"),
    [
        ("0::/", [("/", V2)], {MAX: "150000 100000"}, 2),
        ("0::/", [("/", V2)], {MAX: "max 100000"}, None),
        ("0::/", [("/", V2)], {}, None),
        ("0::/a/b", [("/", V2)], {f"a/b/{MAX}": "500000 100000"}, 5),
        ("0::/a/b", [("/", V2)], {f"a/b/{MAX}": "max 100000", f"a/{MAX}": "300000 100000"}, 3),
        ("0::/a/b", [("/", V2)], {f"a/b/{MAX}": "400000 100000", f"a/{MAX}": "700000 100000"}, 4),
        ("0::/a/b", [("/a", V2)], {f"b/{MAX}": "400000 100000"}, 4),
        ("0::/a/b", [("/a/b", V2)], {MAX: "50000 100000"}, 1),
        ("0::/a/b", [("/", V2)], {MAX: "200000 100000"}, 2),  # the name outside the container
        ("0::/../../b", [("/", V2)], {MAX: "200000 100000"}, 2),
        ("4:cpu,cpuacct:/", [("/", V1)], {QUOTA: "250000", PERIOD: "100000"}, 3),
        ("4:cpu,cpuacct:/", [("/", V1)], {QUOTA: "-1", PERIOD: "100000"}, None),
        ("4:cpu,cpuacct:/", [("/", V1)], {QUOTA: "100000", PERIOD: "0"}, None),
        ("4:cpu:/d/c", [("/d/c", V1)], {QUOTA: "200000", PERIOD: "100000"}, 2),
        ("4:cpu:/d/c", [("/", V1)], {f"d/{QUOTA}": "40000", f"d/{PERIOD}": "20000"}, 2),
        ("0::/\n4:cpu:/a", [("/", V2), ("/", V1)], {f"a/{QUOTA}": "70000", f"a/{PERIOD}": "10000"}, 7),
        ("3:memory:/a", [("/", "cgroup cgroup rw,memory")], {QUOTA: "1", PERIOD: "1"}, None),
        ("", [("/", V2)], {MAX: "150000 100000"}, None),
        ("nonsense", [("/", V2)], {MAX: "nonsense"}, None),
    ],
)  # fmt: skip
def test_the_least_quota_of_all_groups_limits_the_cpus(
    group: str, mounts: list[tuple[str, str]], files: dict[str, str], least: int | None, tmp_path: Path
) -> None:
    lines = [
        f"31 23 0:28 {top} /sys/fs/c{n} rw,nosuid master:1 - {kind}" for n, (top, kind) in enumerate(mounts)
    ]
    written = {
        "proc/self/cgroup": group,
        "proc/self/mountinfo": "\n".join(["23 1 8:1 / / rw - ext4 /dev/sda1 rw", "cut short", *lines]),
        **{f"sys/fs/c{len(mounts) - 1}/{name}": text for name, text in files.items()},
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert min(cpus._quotas(tmp_path), default=None) == least
    alone = available_cpus(tmp_path / "none")
    assert available_cpus(tmp_path) == min(alone, least or alone)


# -- the cache of OpenVINO --


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, cache.Key]]:
    """Return the list of what OpenVINO compiles: graph, path and key."""
    builds: list[tuple[str, Path, cache.Key]] = []
    real = cache.cached

    def count(path: Path, key: cache.Key, build: Any, **options: Any) -> Any:
        def build_and_count() -> bytes:
            builds.append((key["graph"], path, key))
            blob: bytes = build()
            return blob

        return real(path, key, build_and_count, **options)

    monkeypatch.setattr(openvino, "cached", count)
    return builds


@with_openvino
def test_openvino_compiles_once_and_again_if_the_file_is_not_its_own(
    loaded: Bundle, pixels: np.ndarray, tmp_path: Path, built: list[tuple[str, Path, cache.Key]]
) -> None:
    messages: list[str] = []

    def open_again() -> np.ndarray:
        built.clear()
        messages.clear()
        engine = open_engine(loaded, "openvino", precision="fp32", cache=tmp_path, notify=messages.append)
        return engine.embed(pixels[:1], None).descriptors

    first = open_again()
    assert [graph for graph, _, _ in built] == list(GRAPHS) and messages == []
    still_open = open_engine(loaded, "openvino", precision="fp32", cache=tmp_path, notify=messages.append)
    places = {graph: (path, key) for graph, path, key in built}
    assert np.array_equal(open_again(), first)
    assert built == [] and messages == []

    head, key = places["similarity_head"]
    good = head.read_bytes()
    damages = {
        "cut short": good[:-100],
        "not an engine": b"garbage" * 1000,
        "another kind": places["composer"][0].read_bytes(),
    }
    for word, content in damages.items():
        head.unlink()
        head.write_bytes(content)
        assert np.array_equal(open_again(), first)
        assert [graph for graph, _, _ in built] == ["similarity_head"]
        assert len(messages) == 1 and word in messages[0] and "built again" in messages[0]
        assert np.array_equal(open_again(), first) and built == []

    for path, _ in places.values():  # an engine that reads them still works
        path.unlink()
    assert np.array_equal(still_open.embed(pixels[:1], None).descriptors, first)
    assert np.array_equal(still_open.embed(pixels[:1], None).descriptors, first)
    assert np.array_equal(open_again(), first)

    head.unlink()
    cache.cached(head, key, lambda: b"whole, of the right key, and no model", notify=messages.append)
    assert np.array_equal(open_again(), first)
    assert [graph for graph, _, _ in built] == ["similarity_head"]
    assert len(messages) == 1 and "refused by OpenVINO" in messages[0]
    assert np.array_equal(open_again(), first) and built == []


@with_openvino
def test_a_cache_that_cannot_be_written_costs_time_not_answers_and_warns_once(
    loaded: Bundle, reference: Engine, pixels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        engine = open_engine(loaded, "openvino", precision="fp32", cache=tmp_path / "file" / "cache")
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "cannot be written" in record.message and "SKINRET_CACHE" in record.message
    np.testing.assert_allclose(
        engine.embed(pixels, None).descriptors, reference.embed(pixels, None).descriptors, atol=1e-4
    )


@with_openvino
def test_the_command_warns_that_its_cache_cannot_be_written(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    command = ["query", bundle, archive, "--image", str(cases[50].image), "--runtime", "openvino"]
    done = subprocess.run(
        [sys.executable, "-m", "skinret_infer.cli.main", *command],
        capture_output=True, text=True, env={**os.environ, "SKINRET_CACHE": str(tmp_path / "file")},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr.count("cannot be written") == 1, done.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@with_openvino
def test_openvino_needs_no_folder_for_temporary_files(
    loaded: Bundle, pixels: np.ndarray, tmp_path: Path, precision: str, nowhere: None
) -> None:
    if precision not in openvino.precisions():
        pytest.skip("this CPU does not compute in bf16")
    (tmp_path / "file").touch()
    engine = open_engine(
        loaded, "openvino", precision=precision, cache=tmp_path / "file" / "cache", check=False
    )
    assert engine.embed(pixels[:1], None).descriptors.shape == (1, loaded.manifest.layout.length)


def test_a_user_without_a_home_gets_an_answer(
    loaded: Bundle, nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a user id without an entry in /etc/passwd."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "SKINRET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert open_engine(loaded).precision == "fp32"
    with pytest.raises(RuntimeUnavailable, match="SKINRET_CACHE") as caught:
        save_record(loaded, verdict(True), cache.cache_folder())
    assert caught.value.code == "engine-cache"
    report = doctor.examine(loaded.path)
    assert report["healthy"] is True and "cannot be written" in report["cache"]["fault"]


def test_a_folder_that_was_removed_under_the_process_is_a_fault_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("SKINRET_CACHE", "relative")
    assert "cannot be written" in doctor.examine()["cache"]["fault"]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without a folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder in which no file can grow beyond half a megabyte, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_time_not_answers(
    full: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = dict.fromkeys((*cache._PLACE, "version"), "same")
    path = cache.engine_path(full, key)
    assert cache.cached(path, key, lambda: bytes(2**20), notify=pytest.fail) == bytes(2**20)
    assert "cannot be written" in caplog.text
    assert [file.suffix for file in path.parent.iterdir()] == [".lock"]
    monkeypatch.setenv("SKINRET_CACHE", str(full))
    assert "cannot be written" in doctor.examine()["cache"]["fault"]


OPEN = """
import json, os, sys
def refuse(event, args):
    if event.startswith("socket."):
        raise RuntimeError(event)
sys.addaudithook(refuse)
import numpy as np
from skinret_infer.bundle import Bundle
from skinret_infer.engines.registry import open_engine
engine = open_engine(Bundle.load(sys.argv[1]), "openvino", precision="fp32", cache=sys.argv[2])
size = engine.embed(np.zeros((1, 64, 64, 3), np.uint8), None).descriptors
print(json.dumps({"sum": float(size.sum()), "openvino": "openvino" in sys.modules,
                  "telemetry": "openvino_telemetry" in sys.modules,
                  "home": os.listdir(os.environ["HOME"])}))
"""


@with_openvino
def test_two_processes_share_a_cache_and_none_calls_home(bundle: Path, tmp_path: Path) -> None:
    """OpenVINO comes with a package of telemetry: it may not be imported, nor the user's home be touched."""
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", OPEN, str(bundle), str(tmp_path / "cache")]
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        )
        for _ in "ab"
    ]  # fmt: skip
    answers = []
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    assert answers[0] == answers[1]
    assert answers[0] | {"sum": 0} == {"sum": 0, "openvino": True, "telemetry": False, "home": []}
    engines = list((tmp_path / "cache").rglob("*.engine"))
    assert len(engines) == len(GRAPHS) and not list((tmp_path / "cache").rglob("*.partial"))


@with_openvino
def test_openvino_from_many_threads_gives_the_answers_of_one(loaded: Bundle, pixels: np.ndarray) -> None:
    engine = open_engine(loaded, "openvino", precision="fp32")
    ids, mask = words(8, 16)
    alone = [descriptors_of(engine, pixels[n : n + 1], ids[n : n + 1], mask[n : n + 1]) for n in range(8)]

    def embed(n: int) -> np.ndarray:
        return descriptors_of(engine, pixels[n : n + 1], ids[n : n + 1], mask[n : n + 1])

    with ThreadPoolExecutor(8) as pool:
        for n, found in zip([*range(8)] * 4, pool.map(embed, [*range(8)] * 4), strict=True):
            assert np.array_equal(found, alone[n])


@pytest.mark.parametrize("name", CPU)
def test_a_file_that_is_no_graph_is_named(bundle: Path, tmp_path: Path, name: str, loaded: Bundle) -> None:
    for graph in GRAPHS:
        (tmp_path / f"{graph}.onnx").write_bytes((bundle / f"{graph}.onnx").read_bytes())
    (tmp_path / "composer.onnx").write_bytes(b"no graph")
    files = {**loaded.manifest.files, "composer.onnx": "1" * 64}
    damaged = Bundle(tmp_path, dataclasses.replace(loaded.manifest, files=files))
    with pytest.raises(BundleError, match=r"composer\.onnx"):
        open_engine(damaged, name, precision="fp32", cache=tmp_path)


def test_outputs_have_the_order_of_the_request(reference: Engine, pixels: np.ndarray) -> None:
    maps = reference.run("visual_encoder", {"pixels": pixels[:2]}, ["low", "high"])
    swapped = reference.run("visual_encoder", {"pixels": pixels[:2]}, ["high", "low"])
    assert list(maps) == ["low", "high"] and list(swapped) == ["high", "low"]
    assert all(np.array_equal(swapped[name], maps[name]) for name in maps)
    assert isinstance(reference, OnnxRuntimeCpu) and len(COMPOSED) == 3
