"""One cold start in a process of its own: import, load, answer; then what the process holds. Prints JSON.

python benchmarks/cold_start.py '{"runtime": "openvino", "precision": "bf16", ...}'
"""

import functools
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(asked: dict[str, Any]) -> dict[str, float]:
    """Return seconds by step since the process was asked for, and megabytes."""
    times = [asked["began"]]
    if asked["runtime"] == "pytorch":
        import peer
        import torch

        torch.set_num_threads(asked["threads"])
        times.append(time.time())
        query = peer.load(asked["checkpoint"], asked["matrix"]).query
    else:
        from skinret_infer import encoder, searcher
        from skinret_infer.engines import registry

        registry.why_not(asked["runtime"])  # imports its package
        times.append(time.time())
        encoder.open_engine = functools.partial(registry.open_engine, check=False)
        options = {name: asked[name] for name in ("runtime", "precision", "threads", "cache")}
        query = searcher.Searcher(asked["bundle"], asked["archive"], **options).query
    times.append(time.time())
    hits = len(query(asked["image"], asked["texts"][0]))
    times.append(time.time())
    for text in asked["texts"][1:]:
        query(asked["image"], text)
    importing, loading, answer = (after - before for before, after in itertools.pairwise(times))
    steps = {
        "importing": importing,
        "loading": loading,
        "answer": answer,
        "cold": sum((importing, loading, answer)),
    }
    return {**steps, "hits": hits, **memory()}


def memory() -> dict[str, float]:
    """Return what Linux says of this process, in MB: resident now, of that mapped files, and the peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident": "VmRSS", "files": "RssFile", "peak": "VmHWM"}
    return {name: int(status[key].split()[0]) * 1024 / 1e6 for name, key in names.items()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
