"""A composed query, graph by graph, at full size (Swin-T, BERT-base, random weights) beside PyTorch eager.

.venv/bin/python -m pytest benchmarks/test_latency.py -s
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from skinret_export.graphs import OUTPUTS, GraphSpec, graph_specs, write_graph
from skinret_infer.bundle import GRAPHS, Bundle
from skinret_infer.engines import open_engine
from skinret_training.model import ModelConfig, Skinret

ROUNDS = 7


def milliseconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, GraphSpec]]:
    torch.manual_seed(0)
    swin = {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]}
    specs = graph_specs(
        Skinret(ModelConfig(vision=swin, text={"model_type": "bert"}, map_side=28)), tokens=64
    )
    folder = tmp_path_factory.mktemp("full")
    for name, spec in specs.items():
        write_graph(spec, folder / f"{name}.onnx")
    return folder, specs


def test_each_graph_beside_pytorch_eager(graphs: tuple[Path, dict[str, GraphSpec]], threads: int) -> None:
    folder, specs = graphs
    engine = open_engine(Bundle(folder, None), "onnxruntime-cpu", threads)  # type: ignore[arg-type]
    print(f"\n{threads} threads, medians of {ROUNDS}, ms a batch")
    print(f"{'graph':<16}{'batch':>6}{'PyTorch':>10}{engine.name:>17}{'ratio':>8}")
    for name in GRAPHS:
        for batch in (1, 8):
            feeds = {
                k: v[:1].expand(batch, *v.shape[1:]).contiguous() for k, v in specs[name].example.items()
            }
            arrays = {k: np.ascontiguousarray(v.numpy()) for k, v in feeds.items()}
            with torch.inference_mode():
                eager = milliseconds(lambda name=name, feeds=feeds: specs[name].module(**feeds))
            here = milliseconds(lambda name=name, arrays=arrays: engine.run(name, arrays, OUTPUTS[name]))
            print(f"{name:<16}{batch:>6}{eager:>10.1f}{here:>17.1f}{here / eager:>8.2f}")
            assert here > 0
