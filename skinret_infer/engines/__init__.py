"""Runtimes: what runs the graphs of a bundle. One small file each; this one chooses."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from ..bundle import Bundle
from ..errors import InputError, RuntimeUnavailable
from . import onnxruntime

Array = npt.NDArray[Any]

RUNTIMES = ("onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx")


class Engine(Protocol):
    """The four graphs of a bundle, ready to run. Safe to call from several threads."""

    name: str

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run one graph on arrays by name and return the outputs asked for."""
        ...


def available() -> dict[str, str]:
    """Return for each runtime "" if it can run here, or the reason why not."""
    return {
        name: onnxruntime.why_not() if name == "onnxruntime-cpu" else "not part of this version"
        for name in RUNTIMES
    }


def open_engine(bundle: Bundle, runtime: str = "auto", threads: int | None = None) -> Engine:
    """Open a bundle's graphs on a runtime; "auto" takes the first that works. Raises RuntimeUnavailable."""
    if runtime != "auto" and runtime not in RUNTIMES:
        raise InputError(
            "the runtime is not known",
            code="runtime-unknown",
            expected=f"auto or one of {', '.join(RUNTIMES)}",
            found=repr(runtime),
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(
            "threads cannot be used",
            code="threads-range",
            expected="None or an int of at least 1",
            found=repr(threads),
        )
    reasons = available()
    chosen = next((n for n in RUNTIMES if not reasons[n]), RUNTIMES[0]) if runtime == "auto" else runtime
    if reasons[chosen]:
        raise RuntimeUnavailable(
            f"runtime {chosen} cannot run here",
            code="runtime-unavailable",
            found=reasons[chosen],
            expected=f"one of: {', '.join(n for n in RUNTIMES if not reasons[n]) or 'none is installed'}",
            cure='pip install "skinret-infer[cpu]"' if chosen == "onnxruntime-cpu" else 'use runtime="auto"',
        )
    return onnxruntime.OnnxRuntimeCpu(bundle, threads or usable_cpus())


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
