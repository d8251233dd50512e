"""Runtimes: what runs the graphs of a bundle. One small file each; this one chooses.

"auto" takes the first of RUNTIMES that can run here, and of its precisions the fastest that has passed the
gate on ranks (gate.py); fp32 needs no gate.
"""

import logging
from pathlib import Path

from ..bundle import Bundle
from ..errors import BundleError, InputError, RuntimeUnavailable, SkinretError
from ..evaluation import precision as gate
from . import onnxruntime, openvino, tensorrt
from .base import Array, Engine, Say, version
from .cache import cache_folder
from .cpus import usable_cpus

__all__ = [
    "CARDS", "PRECISIONS", "RUNTIMES", "Array", "Engine", "available", "cache_folder", "choose", "cure",
    "open_engine", "precisions", "usable_cpus", "why_not",
]  # fmt: skip

# The order of "auto": cards before CPUs; of two for the same, the one that was the faster when measured.
RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime-cpu")
CARDS = frozenset(RUNTIMES[:3])  # what runs on an NVIDIA card: a fork does not carry it over
PRECISIONS = ("fp32", "bf16", "fp16")
_EXTRAS = {"onnxruntime-cpu": "cpu", "onnxruntime-cuda": "gpu"}
_logger = logging.getLogger(__name__)


def available() -> dict[str, str]:
    """Return for each runtime, in the order of "auto", "" if it can run here, or the reason why not."""
    return {name: why_not(name) for name in RUNTIMES}


def why_not(name: str) -> str:
    """Return "" if a runtime can run here, or the reason why not."""
    if name == "openvino":
        return openvino.why_not()
    return onnxruntime.why_not(name) if name.startswith("onnxruntime") else tensorrt.why_not(name)


def cure(name: str) -> str:
    """Return what makes a runtime work here."""
    if name.startswith("tensorrt"):
        return tensorrt.cure(name)
    wheel = name == "onnxruntime-cuda" and version("onnxruntime")  # the two must not meet
    first = "pip uninstall onnxruntime, then " if wheel else ""
    return f'{first}pip install "skinret-infer[{_EXTRAS.get(name, name)}]"'


def precisions(name: str, bundle: Bundle) -> tuple[str, ...]:
    """Return the precisions in which a runtime that can run here has a bundle's graphs, the fastest first."""
    if name == "openvino":
        return openvino.precisions()
    return ("fp16", "fp32") if name != "onnxruntime-cpu" and bundle.has("fp16") else ("fp32",)


def choose(
    bundle: Bundle,
    runtime: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    *,
    gated: bool = True,
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return what may run, best first, and why the rest may not, by "runtime" or "runtime/precision".

    gated : False does not ask the gate; see `open_engine`.

    Raises InputError for a name that is not known.
    """
    _known("runtime", runtime, RUNTIMES)
    _known("precision", precision, PRECISIONS)
    folder = cache or cache_folder()
    may, refused = [], {}
    for name in RUNTIMES if runtime == "auto" else (runtime,):
        if reason := why_not(name):
            refused[name] = reason
            continue
        has = precisions(name, bundle)
        if precision != "auto" and precision not in has:
            refused[f"{name}/{precision}"] = f"{name} has {', '.join(has)} here"
        for p in has if precision == "auto" else {precision} & set(has):
            if gated and (reason := gate.allowed(bundle, name, p, folder)):
                refused[f"{name}/{p}"] = reason
            else:
                may.append((name, p))
    return may, refused


def open_engine(
    bundle: Bundle,
    runtime: str = "auto",
    threads: int | None = None,
    *,
    precision: str = "auto",
    cache: str | Path | None = None,
    say: Say = _logger.info,
    gated: bool = True,
) -> Engine:
    """Open a bundle's graphs on a runtime in a precision. Raises RuntimeUnavailable, with the cure.

    What is named is used or refused; only "auto" chooses. If what it chose does not open, it logs a warning
    and takes the next.

    cache : where built engines and gate records are kept; see `cache_folder`.
    say : told when an engine is being built, which can take minutes the first time.
    gated : False opens a precision that the gate has not passed. To measure with, never to search with.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(
            "threads cannot be used",
            code="threads-range",
            expected="None or an int of at least 1",
            found=repr(threads),
        )
    folder = cache_folder(cache)
    may, refused = choose(bundle, runtime, precision, folder, gated=gated)
    last: SkinretError | None = None
    for name, p in may:
        try:
            return _open(bundle, name, p, threads or usable_cpus(), folder, say)
        except (RuntimeUnavailable, BundleError) as error:
            if runtime != "auto":
                raise
            _logger.warning("%s in %s is passed over: %s", name, p, error)
            last = error
    if last is not None:
        raise last
    asked = runtime if precision == "auto" else f"{runtime} in {precision}"
    raise RuntimeUnavailable(
        f"runtime {asked} cannot run here",
        code="precision-refused" if any("/" in name for name in refused) else "runtime-unavailable",
        expected=f"one of: {', '.join(n for n in RUNTIMES if not why_not(n)) or 'none is installed'}",
        found="; ".join(reason if runtime == n else f"{n}: {reason}" for n, reason in refused.items()),
        cure=_cure(runtime),
    )


def _open(bundle: Bundle, name: str, precision: str, threads: int, cache: Path, say: Say) -> Engine:
    try:
        if name == "openvino":
            return openvino.OpenVino(bundle, precision, threads, cache, say)
        if name == "onnxruntime-cpu":
            return onnxruntime.OnnxRuntimeCpu(bundle, threads)
        if name == "onnxruntime-cuda":
            return onnxruntime.OnnxRuntimeCuda(bundle, precision, threads)
        return tensorrt.TensorRT(bundle, name, precision, cache=cache, say=say)
    except (OSError, RuntimeError) as error:  # of the system, such as a full disk, or OpenVINO's
        raise RuntimeUnavailable(
            f"{name} does not open in {precision}",
            code="runtime-failed",
            found=f"{type(error).__name__}: {error}",
            cure="use another runtime, and see what `skinret doctor` says",
        ) from error


def _cure(runtime: str) -> str:
    if runtime == "auto":
        return 'pip install "skinret-infer[openvino]" or "skinret-infer[cpu]"'
    if why_not(runtime):
        return f'{cure(runtime)}; or use runtime="auto"'
    return 'measure it: `skinret gate BUNDLE CASES --runtime ... --precision ...`; or use precision="fp32"'


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name != "auto" and name not in names:
        raise InputError(
            f"the {what} is not known",
            code=f"{what}-unknown",
            expected=f"auto or one of {', '.join(names)}",
            found=repr(name),
        )
