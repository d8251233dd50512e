"""Train the model of Wang et al. 2026 on a Derm7pt-style folder, and write a checkpoint."""

import contextlib
import os

from skinret_infer.engines.cache import cache_folder  # also turns off telemetry, before transformers loads

if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # else torch creates a folder in /tmp when it loads
    with contextlib.suppress(OSError):
        _torch = cache_folder().absolute() / "torch"
        _torch.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_torch)
