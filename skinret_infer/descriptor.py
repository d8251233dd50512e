"""The algebra of the score: a case is one vector, of six unit vectors and the predicted concepts.

    S(q,t) = beta * sum_i cos(e_q^i, e_t^i) + (1-beta) * sum_i cos(g_q^i, g_t^i),   i in {L, M, H}
    A(q,t) = sum_c w_c * p_q^c . p_t^c
    score  = (1-gamma) * S/3 + gamma * A

e^i is the aggregated region descriptor and g^i the spatial mean of level i, each of unit length (Wang et al.
2026, Eq. 6-9). p^c is a distribution over the values of concept c, the group first and then the criteria of
the checklist, predicted from the means of the three maps by a linear layer and a softmax. A is the concept
similarity: the probability that the concepts of q and t coincide, and to rank by it is the probability
ranking principle (Robertson 1977). A model without concepts has gamma = 0 and scores S/3, as the paper does.

The score is one dot product, for a descriptor is d = [e^L e^M e^H g^L g^M g^H p^1 ... p^C].
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

Vector = npt.NDArray[np.float32]
LEVELS = ("low", "mid", "high")
# The outputs of the composer: in ONNX an output may not have the name of an input.
COMPOSED = ("composed_low", "composed_mid", "composed_high")
MASKS = tuple(f"masks_{level}" for level in LEVELS)
GROUP_WEIGHT = 0.5  # of the group among the concepts, unless the model has another
COSINES = tuple(f"{term}_{level}" for term in ("local", "global") for level in LEVELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The lengths of the parts of a descriptor: e^L, e^M, e^H, then g^L, g^M, g^H, then each p^c."""

    local: tuple[int, int, int]
    global_: tuple[int, int, int]
    concepts: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """The length of each part: six unit vectors, then the concepts."""
        return self.local + self.global_ + self.concepts

    @property
    def length(self) -> int:
        """D, the length of a descriptor."""
        return sum(self.lengths)

    @property
    def visual_length(self) -> int:
        """The length of the six unit vectors together, which come first."""
        return sum(self.local + self.global_)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The index at which each part begins."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    def check(self, descriptors: Vector, count: int) -> None:
        """Raise InputError unless these are `count` descriptors of this layout, float32 [count, D]."""
        fits = descriptors.shape == (count, self.length) and descriptors.dtype == np.float32
        if not fits or not self.well_formed(descriptors).all():
            raise InputError(
                "the descriptors cannot be stored",
                code="descriptor-shape",
                found=f"{descriptors.dtype} {descriptors.shape}, or parts of other norms or sums",
                expected=f"{count} x {self.length} finite float32: six unit vectors, then distributions",
            )

    def well_formed(self, descriptors: Vector) -> npt.NDArray[np.bool_]:
        """Return [N], whether each descriptor [N, D] is finite, with six unit vectors and C distributions."""
        result = np.empty(len(descriptors), bool)
        for start in range(0, len(descriptors), 4096):
            batch = descriptors[start : start + 4096]
            visual, concepts = batch[:, : self.visual_length], batch[:, self.visual_length :]
            with np.errstate(over="ignore", invalid="ignore"):  # a sum that overflows is not 1
                sums = np.add.reduceat(np.concatenate([visual**2, concepts], axis=1), self.starts, axis=1)
                positive = (concepts >= 0).all(axis=1)
            result[start : start + 4096] = (np.abs(sums - 1) < 1e-3).all(axis=1) & positive
        return result


def state(
    descriptor: Vector,
    allowed: Mapping[str, Collection[str]],
    concepts: Mapping[str, Sequence[str]],
    layout: Layout,
) -> Vector:
    """Return a descriptor [D] in which the distributions of some criteria are restricted to allowed values.

    A stated criterion need not be guessed from the picture (an intervention on a concept bottleneck, Koh et
    al. 2020): p^c keeps its ratios among the allowed values, and the others become 0.

    allowed : by the name of a criterion; criteria that are no concepts of the model make no difference, nor
        do values that it does not know.
    concepts : the values of every concept, in the order of the layout (Manifest.concepts).
    """
    result = descriptor.copy()
    starts = layout.starts[6:]
    for (name, values), start in zip(concepts.items(), starts, strict=True):
        kept = [value in allowed.get(name, ()) for value in values]
        if not any(kept) or all(kept):
            continue
        p = np.where(kept, result[start : start + len(values)].astype(np.float64), 0.0)
        result[start : start + len(values)] = p / p.sum() if p.any() else np.array(kept) / sum(kept)
    return result


def check_weight(name: str, value: float, low: str, high: str) -> float:
    """Return beta or gamma as a float, or raise InputError if it is not a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise InputError(
            f"{name} cannot be used",
            code=f"{name}-range",
            expected=f"a number from 0 ({low}) to 1 ({high})",
            found=repr(value),
        )
    return float(value)


def check_levels(levels: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weight of each level, by default 1. Raises InputError."""
    changes = dict(levels) if isinstance(levels, Mapping) else {}
    names_fit = (levels is None or isinstance(levels, Mapping)) and set(changes) <= set(LEVELS)
    are_numbers = all(
        isinstance(v, int | float | np.number) and not isinstance(v, bool) and v >= 0 and math.isfinite(v)
        for v in changes.values()
    )
    weights = dict.fromkeys(LEVELS, 1.0) | changes
    if not names_fit or not are_numbers or not any(weights.values()):
        raise InputError(
            "levels cannot be used",
            code="levels-range",
            expected=f"numbers of at least 0, not all 0, by {', '.join(LEVELS)}",
            found=repr(levels),
        )
    return {name: float(weight) for name, weight in weights.items()}


def part_weights(
    layout: Layout,
    beta: float,
    gamma: float,
    levels: Mapping[str, float] | None = None,
    group: float = GROUP_WEIGHT,
) -> npt.NDArray[np.float64]:
    """Return the weight of each product in the score, float64 [6 + C].

    levels : the weights of the levels among the cosines, in the order of LEVELS; None: all equal.

    group : the weight of the group among the concepts; the criteria share the rest.
    """
    share = np.array([*(levels or dict.fromkeys(LEVELS, 1.0)).values()])
    share /= share.sum()
    criteria = len(layout.concepts) - 1
    concepts = [gamma] * len(layout.concepts)
    if criteria > 0:
        concepts = [gamma * group, *[gamma * (1 - group) / criteria] * criteria]
    return np.concatenate([(1 - gamma) * beta * share, (1 - gamma) * (1 - beta) * share, concepts])


def score_weights(
    layout: Layout, beta: float, gamma: float, group: float = GROUP_WEIGHT
) -> npt.NDArray[np.float64]:
    """Return w with (w * d_q) . d_t = the score of t for q, float64 [D]."""
    return np.repeat(part_weights(layout, beta, gamma, group=group), layout.lengths)


def weigh(
    descriptor: Vector, layout: Layout, beta: float, gamma: float, group: float = GROUP_WEIGHT
) -> Vector:
    """Return the vector whose dot product with a case's descriptor is the score; float32 [D]."""
    return descriptor * score_weights(layout, beta, gamma, group).astype(np.float32)


def products(query: Vector, cases: Vector, layout: Layout) -> npt.NDArray[np.float64]:
    """Return the products of a query [D] with each case [N, D]: six cosines, C concepts; float64 [N, 6 + C].

    They are summed row by row in float64, so that the same two vectors give the same bits, whatever the other
    rows are and however many threads run.
    """
    terms: npt.NDArray[Any] = cases.astype(np.float64) * query.astype(np.float64)
    return np.add.reduceat(terms, layout.starts, axis=1)
