"""The NVIDIA driver and its cards, without any package."""

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def nvidia_report() -> dict[str, Any]:
    """Return the version and the cards of the NVIDIA driver, or the fault. It needs no package."""
    report: dict[str, Any] = {"driver": None, "cuda": None, "devices": [], "fault": ""}
    try:
        cuda = ctypes.CDLL(_DRIVERS.get(sys.platform, "libcuda.so"))
    except OSError:
        return report | {"fault": "no NVIDIA driver found"}

    def call(function: str, *arguments: Any) -> None:
        if status := getattr(cuda, function)(*arguments):
            message = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(message))
            raise OSError(f"{function}: {message.value.decode() if message.value else status}")

    number, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    value = ctypes.byref(number)
    try:
        report["driver"] = _driver_version()
        call("cuDriverGetVersion", value)
        report["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
        call("cuInit", 0)
        call("cuDeviceGetCount", value)
        for index in range(number.value):
            call("cuDeviceGet", value, index)
            device, capability = number.value, []
            call("cuDeviceGetName", name, len(name), device)
            for attribute in (_MAJOR, _MINOR):
                call("cuDeviceGetAttribute", value, attribute, device)
                capability.append(str(number.value))
            report["devices"].append(
                {"name": name.value.decode(errors="replace"), "compute_capability": ".".join(capability)}
            )
    except (OSError, AttributeError) as error:
        report["fault"] = f"an NVIDIA driver is installed, but does not answer: {error}"
    return report


def _driver_version() -> str | None:
    """Return the driver's own version, such as "580.65.06"; None on other systems than Linux."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text("utf-8", "replace")
    except OSError:
        return None
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return match[0] if match else None
