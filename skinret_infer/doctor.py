"""Say what is installed here, what runs, and whether a bundle is whole and answers."""

import importlib.metadata
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .bundle import Bundle
from .engines import available, usable_cpus
from .errors import SkinretError
from .searcher import Searcher

NOTHING_RUNS = 'nothing here; pip install "skinret-infer[cpu]"'
_PACKAGES = (
    "numpy",
    "pillow",
    "tokenizers",
    "click",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "pydicom",
)


def examine(bundle: str | Path | None = None) -> dict[str, Any]:
    """Return a report of plain values; `healthy` says whether a query could be answered here."""
    reasons = available()
    report: dict[str, Any] = {
        "skinret_infer": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": usable_cpus(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "runtimes": {name: reason or "runs" for name, reason in reasons.items()},
        "auto": next((name for name, reason in reasons.items() if not reason), None),
    }
    healthy = report["auto"] is not None
    if bundle is not None:
        report["bundle"] = _examine_bundle(Path(bundle))
        healthy = healthy and "error" not in report["bundle"]
    return report | {"healthy": healthy}


def describe(report: dict[str, Any]) -> str:
    """Return the report as lines for a person."""
    lines = [
        f"skinret-infer {report['skinret_infer']}, Python {report['python']}, {report['platform']}, "
        f"{report['cpus']} CPUs"
    ]
    lines.append(
        "packages: " + ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    )
    lines += [f"  {name:<16} {state}" for name, state in report["runtimes"].items()]
    lines.append(f"auto takes: {report['auto'] or NOTHING_RUNS}")
    if bundle := report.get("bundle"):
        lines.append(f"bundle {bundle['path']}:")
        lines += [f"  {name}: {value}" for name, value in bundle.items() if name != "path"]
    return "\n".join([*lines, "healthy" if report["healthy"] else "NOT healthy"])


def _examine_bundle(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"path": str(path)}
    try:
        manifest = Bundle.load(path).manifest
        report |= {
            "model": f"{manifest.model} {manifest.version}",
            "fingerprint": manifest.fingerprint[:12],
            "precision": manifest.precision,
            "descriptor": manifest.layout.length,
            "hashes": "all right",
        }
        with (
            tempfile.TemporaryDirectory() as folder,
            Searcher(path, Path(folder) / "none.skinret") as searcher,
        ):
            searcher.warmup()
            picture = np.random.default_rng(0).integers(0, 255, (512, 768, 3), np.uint8)
            times = []
            for _ in range(3):
                began = time.perf_counter()
                searcher.describe(picture, "atypical pigment network")
                times.append((time.perf_counter() - began) * 1e3)
            report |= {"runtime": searcher.runtime, "query_ms": round(sorted(times)[1], 1)}
    except SkinretError as error:
        report |= {"error": str(error), "code": error.code}
    return report


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
