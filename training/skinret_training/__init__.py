"""Train the model of Wang et al. 2026 on a Derm7pt-style folder: a checkpoint out."""

import contextlib
import os

from skinret_infer.engines.cache import cache_folder  # and, before transformers loads, its _telemetry

if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # or torch leaves a folder in /tmp as soon as it loads
    with contextlib.suppress(OSError):
        _torch = cache_folder().absolute() / "torch"
        _torch.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_torch)
