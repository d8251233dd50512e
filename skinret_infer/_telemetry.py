"""Switch off the telemetry of libraries before they load, in every process of the package.

Importing skinret_infer, as all the packages do, sets the environment variables that they read. ONNX Runtime
(from 1.29 on) and OpenVINO would write to the user's home and call their makers at their import, so no other
module of the package imports them.
"""

import functools
import logging
import os
import sys
from typing import Any

OFF = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read once, when the library loads
_OPENVINO = "openvino_telemetry"
_logger = logging.getLogger(__name__)


def _switch_off() -> frozenset[str]:
    """Set the variables of OFF, also if they have values; return the libraries that loaded without them."""
    on = os.environ.get("ORT_DISABLE_TELEMETRY", "").strip().lower() in ("", "0", "false", "no", "off")
    early = frozenset({"onnxruntime"} & sys.modules.keys()) if on else frozenset[str]()
    os.environ.update(OFF)
    return early


_EARLY = _switch_off()


@functools.cache
def onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry. Raises ImportError; a broken package may raise others."""
    import onnxruntime as ort

    if hasattr(ort, "disable_telemetry_events"):
        ort.disable_telemetry_events()  # on Windows there is no other way
    _warn("onnxruntime")
    return ort


@functools.cache
def openvino() -> Any:
    """Import OpenVINO without its telemetry package. Raises ImportError."""
    if "openvino" not in sys.modules and _OPENVINO not in sys.modules:
        sys.modules[_OPENVINO] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[_OPENVINO]
    import openvino

    _warn("openvino")
    return openvino


def state(library: str) -> str:
    """Return "off", or why telemetry is on: "onnxruntime" or "openvino" was imported before this package."""
    on = library in _EARLY or (library == "openvino" and _OPENVINO in sys.modules)
    return f"not off from the start: {library} was imported before skinret_infer" if on else "off"


def _warn(library: str) -> None:
    if (fault := state(library)) != "off":
        _logger.warning("the telemetry of %s was %s; import skinret_infer first", library, fault)
