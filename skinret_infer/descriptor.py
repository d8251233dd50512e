"""The algebra of the score: six unit vectors side by side make a case one vector (Wang et al. 2026, Eq. 6-9).

    S(q,t) = beta * sum_i cos(e_q^i, e_t^i) + (1-beta) * sum_i cos(g_q^i, g_t^i),   i in {L, M, H}
           = (w(beta) * d_q) . d_t,   d = [e^L e^M e^H g^L g^M g^H]

e^i is the aggregated region descriptor and g^i the spatial mean of level i, each of unit length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

Vector = npt.NDArray[np.float32]
LEVELS = ("low", "mid", "high")
# What the composer gives: in ONNX an output may not bear the name of an input.
COMPOSED = ("composed_low", "composed_mid", "composed_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the six blocks lie in a descriptor: the lengths of e^L, e^M, e^H, then of g^L, g^M, g^H."""

    local: tuple[int, int, int]
    global_: tuple[int, int, int]

    @property
    def length(self) -> int:
        """D, the length of a descriptor."""
        return sum(self.local) + sum(self.global_)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The index at which each of the six blocks begins."""
        return np.concatenate([[0], np.cumsum(self.local + self.global_)[:-1]]).astype(np.int64)


def check_beta(beta: float) -> float:
    """Return beta as a float, or raise InputError if it is not a number in [0, 1]."""
    if isinstance(beta, bool) or not isinstance(beta, int | float | np.number) or not 0 <= beta <= 1:
        raise InputError(
            "beta cannot be used",
            code="beta-range",
            expected="a number from 0 (global alone) to 1 (local alone)",
            found=repr(beta),
        )
    return float(beta)


def block_weights(beta: float) -> npt.NDArray[np.float64]:
    """Return the weight of each of the six cosines in S (Eq. 9), float64 [6]."""
    return np.array([beta] * 3 + [1 - beta] * 3)


def weigh(descriptor: Vector, layout: Layout, beta: float) -> Vector:
    """Return w(beta) * d_q, the vector whose dot product with a case's descriptor is S; float32 [D]."""
    return descriptor * np.repeat(block_weights(beta), layout.local + layout.global_).astype(np.float32)


def unit_blocks(descriptors: Vector, layout: Layout) -> npt.NDArray[np.bool_]:
    """Say for each descriptor [N, D] whether its six blocks are finite and of length one; bool [N]."""
    right = np.empty(len(descriptors), bool)
    for start in range(0, len(descriptors), 4096):
        part = descriptors[start : start + 4096]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not of length one
            lengths = np.add.reduceat(part * part, layout.starts, axis=1)
        right[start : start + 4096] = (np.abs(lengths - 1) < 1e-3).all(axis=1)
    return right


def cosines(query: Vector, cases: Vector, layout: Layout) -> npt.NDArray[np.float64]:
    """Return the six cosines of a query [D] with each case [N, D], float64 [N, 6].

    Summed row by row in float64, so that the same two vectors give the same bits whatever stands beside
    them and however many threads run.
    """
    products: npt.NDArray[Any] = cases.astype(np.float64) * query.astype(np.float64)
    return np.add.reduceat(products, layout.starts, axis=1)
