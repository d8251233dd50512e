"""Benchmarks print what they measure; ratios are to PyTorch in the same run."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


@pytest.fixture(scope="session", autouse=True)
def threads() -> int:
    """Both sides use the CPUs that this process may use."""
    from skinret_infer.engines import usable_cpus

    torch.set_num_threads(usable_cpus())
    return usable_cpus()
