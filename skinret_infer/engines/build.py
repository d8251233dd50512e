"""Build a bundle's TensorRT engines ahead of time."""

from collections.abc import Sequence
from pathlib import Path

from ..bundle import GRAPHS, Bundle
from ..errors import InputError
from . import tensorrt
from .base import Notify
from .cache import cache_folder


def build_engines(
    bundle_path: str | Path,
    runtime: str,
    precision: str = "fp32",
    *,
    capabilities: Sequence[str] | None = None,
    cache: str | Path | None = None,
    trusted_keys: str | Path | None = None,
    notify: Notify = lambda _: None,
) -> list[Path]:
    """Build the engines of the four graphs, unless the cache has valid ones, and return their paths.

    runtime : tensorrt or tensorrt-rtx.
    capabilities : the compute capabilities to build for, such as "8.6"; only for tensorrt-rtx, which then
        needs no GPU. None builds for the card that is here.
    cache : the folder of the engines; None is the folder that queries use.
    trusted_keys : as for Searcher.

    Raises RuntimeUnavailable if an engine cannot be built or written.
    """
    bundle = Bundle.load(bundle_path, trusted_keys)
    if runtime not in tensorrt.MODULES or (capabilities and runtime != "tensorrt-rtx"):
        raise InputError(
            "engines cannot be built for this target",
            code="engine-target",
            expected="tensorrt, for the card that is here, or tensorrt-rtx, for any compute capability",
            found=runtime + (f" for {', '.join(capabilities)}" if capabilities else ""),
        )
    targets = [tensorrt.Target(capability=c) for c in capabilities or ()] or [tensorrt.target_here(runtime)]
    trt, folder = tensorrt.load(runtime), cache_folder(cache)
    return [
        tensorrt.load_or_build(
            runtime, trt, bundle, graph, precision, target, cache=folder, notify=notify, required=True
        )[0]
        for target in targets
        for graph in GRAPHS
    ]
