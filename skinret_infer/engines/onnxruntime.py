"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from ..bundle import GRAPHS, Bundle, check_contract
from ..errors import BundleError, RuntimeUnavailable

Array = npt.NDArray[Any]
_PROVIDER = "CPUExecutionProvider"


def why_not() -> str:
    """Return "" if ONNX Runtime can be imported here, or the reason why not."""
    both = [d for d in ("onnxruntime", "onnxruntime-gpu") if _installed(d)]
    if len(both) == 2:
        return "onnxruntime and onnxruntime-gpu overwrite each other; uninstall both, then install one"
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    return ""


class OnnxRuntimeCpu:
    """The four graphs as ONNX Runtime sessions on the CPU."""

    name = "onnxruntime-cpu"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Each session has a pool of its own, and one graph runs at a time: no pool may spin in wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions: dict[str, Any] = {}
        for graph in GRAPHS:
            try:
                session = ort.InferenceSession(str(bundle.graph(graph)), options, providers=[_PROVIDER])
            except Exception as error:  # ONNX Runtime raises a family of its own, without a common base
                raise BundleError(
                    f"{bundle.graph(graph)} cannot be loaded",
                    code="bundle-graph",
                    expected="an ONNX graph of the manifest's opset",
                    found=str(error),
                    cure="upgrade onnxruntime, or export the bundle again",
                ) from None
            check_contract(
                bundle,
                graph,
                {i.name: i.shape for i in session.get_inputs()},
                {o.name: o.shape for o in session.get_outputs()},
            )
            if session.get_providers() != [_PROVIDER]:
                raise RuntimeUnavailable(
                    f"{graph} does not run where it should",
                    code="runtime-provider",
                    expected=_PROVIDER,
                    found=", ".join(session.get_providers()),
                )
            self._sessions[graph] = session

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run one graph on arrays by name and return the outputs asked for."""
        result: list[Array] = self._sessions[graph].run(list(outputs), dict(feeds))
        return result


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
