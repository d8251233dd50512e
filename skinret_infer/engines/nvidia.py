"""The NVIDIA driver and its cards, read without any package."""

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def nvidia_report() -> dict[str, Any]:
    """Return the version and the cards of the NVIDIA driver, or why there are none. It needs no package."""
    report: dict[str, Any] = {"driver": None, "cuda": None, "devices": [], "fault": ""}
    try:
        cuda = ctypes.CDLL(_DRIVERS.get(sys.platform, "libcuda.so"))
    except OSError:
        return report | {"fault": "no NVIDIA driver found"}

    def ask(function: str, *arguments: Any) -> None:
        if status := getattr(cuda, function)(*arguments):
            said = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(said))
            raise OSError(f"{function}: {(said.value or str(status).encode()).decode()}")

    number, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    value = ctypes.byref(number)
    try:
        report["driver"] = _driver_version()
        ask("cuDriverGetVersion", value)
        report["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
        ask("cuInit", 0)
        ask("cuDeviceGetCount", value)
        for index in range(number.value):
            ask("cuDeviceGet", value, index)
            device, parts = number.value, []
            ask("cuDeviceGetName", name, len(name), device)
            for attribute in (_MAJOR, _MINOR):
                ask("cuDeviceGetAttribute", value, attribute, device)
                parts.append(str(number.value))
            report["devices"].append(
                {"name": name.value.decode(errors="replace"), "compute_capability": ".".join(parts)}
            )
    except (OSError, AttributeError) as error:
        report["fault"] = f"an NVIDIA driver is installed, but does not answer: {error}"
    return report


def _driver_version() -> str | None:
    """Return the driver's own version, such as "580.65.06", where Linux tells it."""
    try:
        said = Path("/proc/driver/nvidia/version").read_text("utf-8", "replace")
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", said)
    return found[0] if found else None
