"""The list of runtimes, and the choice among them.

"auto" takes the first of RUNTIMES that can run here, and the fastest of its precisions that has passed the
precision check (verdicts.py). fp32 needs no check.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from ..bundle import Bundle
from ..errors import BundleError, InputError, RuntimeUnavailable, SkinretError
from . import onnxruntime, openvino, tensorrt
from .base import Engine, Notify, Runtime
from .cache import cache_folder
from .cpus import available_cpus
from .verdicts import refusal

PRECISIONS = ("fp32", "bf16", "fp16")
# The order of "auto": cards before CPUs; for the same device, the runtime that was faster in measurements.
RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        tensorrt.TENSORRT,
        tensorrt.TENSORRT_RTX,
        onnxruntime.CUDA,
        openvino.OPENVINO,
        onnxruntime.CPU,
    )
}
_logger = logging.getLogger(__name__)


def why_not(name: str) -> str | None:
    """Return None if a runtime can run here, or the reason why not."""
    return RUNTIMES[name].why_not()


def precisions(name: str, bundle: Bundle) -> tuple[str, ...]:
    """Return the precisions in which a runtime that can run here has a bundle's graphs, the fastest first."""
    return RUNTIMES[name].precisions(bundle)


def choose(
    bundle: Bundle,
    runtime: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    *,
    check: bool = True,
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return the pairs (runtime, precision) that are allowed to run, best first, and why others are not.

    The reasons are by "runtime" or by "runtime/precision".

    check : False leaves out the precision check; see `open_engine`.

    Raises InputError for an unknown name.
    """
    _check_name("runtime", runtime, RUNTIMES)
    _check_name("precision", precision, PRECISIONS)
    folder = cache or cache_folder()
    allowed: list[tuple[str, str]] = []
    refused: dict[str, str] = {}
    for name in RUNTIMES if runtime == "auto" else (runtime,):
        if reason := why_not(name):
            refused[name] = reason
            continue
        supported = precisions(name, bundle)
        for candidate in supported if precision == "auto" else (precision,):
            if candidate not in supported:
                refused[f"{name}/{candidate}"] = f"{name} has {', '.join(supported)} here"
            elif check and (reason := refusal(bundle, name, candidate, folder)):
                refused[f"{name}/{candidate}"] = reason
            else:
                allowed.append((name, candidate))
    return allowed, refused


def open_engine(
    bundle: Bundle,
    runtime: str = "auto",
    threads: int | None = None,
    *,
    precision: str = "auto",
    cache: str | Path | None = None,
    notify: Notify = _logger.info,
    check: bool = True,
) -> Engine:
    """Open a bundle's graphs on a runtime in a precision. Raises RuntimeUnavailable, with the cure.

    A runtime by name is used or refused; only "auto" chooses. If its choice does not open, "auto" logs a
    warning and tries the next one.

    cache : the folder of built engines and of precision checks; see `cache_folder`.
    notify : called when an engine is built, which can take minutes the first time.
    check : False also opens a precision that has not passed the precision check; only for measurements.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(
            "threads cannot be used",
            code="threads-range",
            expected="None or an int of at least 1",
            found=repr(threads),
        )
    folder = cache_folder(cache)
    allowed, refused = choose(bundle, runtime, precision, folder, check=check)
    last_error: SkinretError | None = None
    for name, candidate in allowed:
        try:
            return _open(bundle, RUNTIMES[name], candidate, threads or available_cpus(), folder, notify)
        except (RuntimeUnavailable, BundleError) as error:
            if runtime != "auto":
                raise
            _logger.warning("%s in %s is skipped: %s", name, candidate, error)
            last_error = error
    raise last_error or _unavailable(bundle, runtime, precision, refused)


def _open(
    bundle: Bundle, runtime: Runtime, precision: str, threads: int, cache: Path, notify: Notify
) -> Engine:
    try:
        return runtime.open(bundle, precision, threads, cache, notify)
    except (OSError, RuntimeError) as error:  # from the system, such as a full disk, or from OpenVINO
        raise RuntimeUnavailable(
            f"{runtime.name} does not open in {precision}",
            code="runtime-failed",
            found=f"{type(error).__name__}: {error}",
            cure="use another runtime, or look for the cause with `skinret doctor`",
        ) from error


def _unavailable(bundle: Bundle, runtime: str, precision: str, refused: dict[str, str]) -> RuntimeUnavailable:
    """Return the error for a runtime and a precision with which nothing is allowed to run."""
    choice = runtime if precision == "auto" else f"{runtime} in {precision}"
    found = "; ".join(reason if runtime == name else f"{name}: {reason}" for name, reason in refused.items())
    running = [name for name in RUNTIMES if not why_not(name)]
    candidates = running if runtime == "auto" else [name for name in running if name == runtime]
    if not candidates:
        default = 'pip install "skinret-infer[openvino]" or "skinret-infer[cpu]"'
        return RuntimeUnavailable(
            f"runtime {choice} cannot run here",
            code="runtime-unavailable",
            expected=f"one of: {', '.join(running) or 'none is installed'}",
            found=found,
            cure=default if runtime == "auto" else f'{RUNTIMES[runtime].cure()}; or use runtime="auto"',
        )
    supported = list(dict.fromkeys(p for name in candidates for p in precisions(name, bundle)))
    if precision not in supported:
        return RuntimeUnavailable(
            f"runtime {choice} cannot run here",
            code="precision-unsupported",
            expected=f"a precision among {', '.join(supported)}",
            found=found,
            cure='use precision="auto"',
        )
    command = f"skinret validate-precision BUNDLE CASES --runtime ... --precision {precision}"
    return RuntimeUnavailable(
        f"runtime {choice} is not allowed to run",
        code="precision-refused",
        expected="a precision that has passed the precision check",
        found=found,
        cure=f'measure it: `{command}`; or use precision="fp32"',
    )


def _check_name(what: str, name: str, names: Collection[str]) -> None:
    if name != "auto" and name not in names:
        raise InputError(
            f"the {what} is not known",
            code=f"{what}-unknown",
            expected=f"auto or one of {', '.join(names)}",
            found=repr(name),
        )
