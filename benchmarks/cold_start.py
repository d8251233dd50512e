"""Measure one cold start in a new process: import, load, answer, then the memory. Prints JSON.

python benchmarks/cold_start.py '{"runtime": "openvino", "precision": "bf16", ...}'
"""

import functools
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(task: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each step since the process was started, and the memory in MB."""
    times = [task["began"]]
    if task["runtime"] == "pytorch":
        import pytorch_baseline
        import torch

        torch.set_num_threads(task["threads"])
        times.append(time.time())
        query = pytorch_baseline.load(task["checkpoint"], task["matrix"]).query
    else:
        from skinret_infer import encoder, searcher
        from skinret_infer.engines import registry

        registry.why_not(task["runtime"])  # imports its package
        times.append(time.time())
        encoder.open_engine = functools.partial(registry.open_engine, check=False)
        options = {name: task[name] for name in ("runtime", "precision", "threads", "cache")}
        query = searcher.Searcher(task["bundle"], task["archive"], **options).query
    times.append(time.time())
    hits = len(query(task["image"], task["texts"][0]))
    times.append(time.time())
    for text in task["texts"][1:]:
        query(task["image"], text)
    importing, loading, answer = (after - before for before, after in itertools.pairwise(times))
    steps = {
        "importing": importing,
        "loading": loading,
        "answer": answer,
        "cold": importing + loading + answer,
    }
    return {**steps, "hits": hits, **memory()}


def memory() -> dict[str, float]:
    """Return the memory of this process in MB: resident, mapped files in it, and the peak resident."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident": "VmRSS", "files": "RssFile", "peak": "VmHWM"}
    return {name: int(status[key].split()[0]) * 1024 / 1e6 for name, key in names.items()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
