"""Where a score comes from: what each position of the maps adds to it, and these numbers add up.

Both poolings of a level are weighted sums over the positions p of its map X (Eq. 6-8), divided by a length:

    g = sum_p X(p) / (h w |mean X|)        e = sum_p sum_j c_j alpha_j(p) X(p)

with c_j from the way in which the k regions are aggregated. So cos(g_q, g_t) is the sum over the positions of
the query of X_q(p) . g_t / (h w |mean X_q|), and again a sum over the positions of the case.

A trait is read off the six vectors by logits z = W d + b and a softmax, and z too is a sum over positions.
Its agreement f(z) = softmax(z) . p_t is split along the straight path from z = b, where nothing is seen, to
where all is (Aumann & Shapley 1974): each position gets its share of z times the mean gradient on the path.
The shares sum to f(z) - f(b), and f(b) is the base: what any picture would add.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .bundle import Manifest
from .descriptor import COSINES, Vector, products

Map = npt.NDArray[np.float64]
_EPS = 1e-6  # as the model has it: no norm is divided by less


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The evidence on one picture, the query's or the case's: all maps and bases sum to the score.

    maps : what each position adds, [h, w], by the six cosines, such as "local_low", and by the traits, such
        as "group". A position has seen its surroundings too, not only its pixels.
    base : what a trait adds whatever the picture shows; of a bundle without traits.npy, all that it adds.
    box : the part of the picture that the maps lie on: left, top, right, bottom in pixels.
    """

    maps: Mapping[str, Map]
    base: Mapping[str, float]
    box: tuple[float, float, float, float]

    @property
    def total(self) -> Map:
        """All maps together, on the finest grid among them."""
        return add_up(self.maps.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a hit's score is made of: `parts` sum to it, and so does each side.

    parts : what each of the six cosines adds, such as {"local_low": 0.081, ...}, its weight times itself, and
        what the agreement of each trait does, such as "group".
    query, case : the parts, split over the positions of the pictures; case is None if it was not asked for.
    rounding : by how much the positions missed a product at most, for runtimes compute in few digits; what a
        map missed is spread evenly over its positions.
    shared : the criteria in which the case is as the words state, with its value, such as {"streaks":
        "irregular"}; of "no streaks", a case whose value is "absent".
    differing : those in which it is not. What words or case leave open is in neither.
    """

    case_id: str
    score: float
    parts: Mapping[str, float]
    query: Side
    case: Side | None
    rounding: float
    shared: Mapping[str, str]
    differing: Mapping[str, str]


class Maps(NamedTuple):
    """What a descriptor is pooled from: of each level the map [h, w, d] and its masks [k, h, w]."""

    maps: list[Map]
    masks: list[Map]


def split_score(
    maps: Maps,
    own: Vector,
    other: Vector,
    *,
    manifest: Manifest,
    reading: Vector | None,
    weights: Map,
    box: tuple[float, float, float, float],
) -> tuple[Side, float]:
    """Split a score over the positions of one picture; return that, and by how much they missed a product.

    own, other : the descriptors [D] of the picture and of what it was compared with.
    reading : [W b] of the traits (Bundle.traits); without, a trait is all base.
    weights : what each product counts in the score, [6 + C].
    box : the part of the picture that the maps lie on.
    """
    layout = manifest.layout
    whole = products(own, other[None], layout)[0]
    split, base = _split(maps, other, manifest), dict.fromkeys(manifest.traits, 0.0)
    six, ends = layout.looks, np.cumsum(layout.traits)
    for name, product, end, length in zip(base, whole[6:], ends, layout.traits, strict=True):
        base[name] = float(product)
        if reading is not None:
            w = reading[end - length : end].astype(np.float64)
            theirs = other[six + end - length : six + end].astype(np.float64)
            gradient, base[name] = path_of(w[:, :six] @ own[:six], w[:, six], theirs)
            split[name] = add_up(_split(maps, gradient @ w[:, :six], manifest).values())
    missed = 0.0
    for (name, part), weight, product in zip(split.items(), weights, whole, strict=False):
        rest = float(product - base.get(name, 0.0) - part.sum())
        missed = max(missed, abs(rest))
        split[name] = weight * (part + rest / part.size)
    weighted = zip(base.items(), weights[6:], strict=True)
    return Side(maps=split, base={n: float(w * value) for (n, value), w in weighted}, box=box), missed


def _split(maps: Maps, other: npt.NDArray[Any], manifest: Manifest) -> dict[str, Map]:
    """Split the products of six vectors, pooled from maps, with those of `other` over the positions."""
    parts = np.split(other.astype(np.float64), manifest.layout.starts[1:])
    local = [
        local_map(x, alpha, manifest.aggregation, e) for x, alpha, e in zip(*maps, parts[:3], strict=True)
    ]
    global_ = [global_map(x, g) for x, g in zip(maps.maps, parts[3:6], strict=True)]
    return dict(zip(COSINES, local + global_, strict=True))


def global_map(x: Map, other: Map) -> Map:
    """Split g . other over the positions of x [h, w, d], of which g [d] is the unit mean."""
    mean = x.mean((0, 1))
    split: Map = x @ other / (x.shape[0] * x.shape[1] * max(_length(mean), _EPS))
    return split


def local_map(x: Map, alpha: Map, aggregation: str, other: Map) -> Map:
    """Split e . other over the positions of x [h, w, d], which the masks alpha [k, h, w] made e of.

    other : [d], or [k d] where the regions are concatenated.
    """
    regions = np.tensordot(alpha, x, 2)  # (k, d): rho(X * alpha_j)
    seen: Map
    match aggregation:
        case "max":  # of each channel that region alone counts which has the most of it
            e = regions.max(0)
            seen = np.einsum("dhw,hwd,d->hw", alpha[regions.argmax(0)], x, other)
        case "concat":
            e = regions
            seen = np.einsum("khw,hwd,kd->hw", alpha, x, other.reshape(regions.shape))
        case _:
            share = np.full(len(alpha), 1 / len(alpha))
            if aggregation == "normalized":
                share /= np.maximum(np.linalg.norm(regions, axis=1), _EPS)
            e = share @ regions
            seen = np.tensordot(share, alpha, 1) * (x @ other)
    return seen / max(_length(e), _EPS)


def on_grid(contribution: Map, height: int, width: int) -> Map:
    """Spread a map [h, w] over another grid; each cell gives its number by area, so that the sum stays."""
    rows, columns = _overlap(contribution.shape[0], height), _overlap(contribution.shape[1], width)
    spread: Map = rows @ contribution @ columns.T
    return spread


def add_up(maps: Iterable[Map]) -> Map:
    """Add maps up on the finest grid among them; the sum stays."""
    given = list(maps)
    height, width = (max(m.shape[axis] for m in given) for axis in (0, 1))
    return sum((on_grid(m, height, width) for m in given), np.zeros((height, width)))


def path_of(change: Map, base: Map, other: Map) -> tuple[Map, float]:
    """Return the mean gradient of softmax(z) . other on the way from z = base to base + change, and f(base).

    All are [values]. The gradient's product with `change` is f(base + change) - f(base).
    """
    nodes, shares = _quadrature()
    z = base + nodes[:, None] * change  # (nodes, values)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = p * (other - (p @ other)[:, None])
    start = np.exp(base - base.max())
    return shares @ gradient, float(start @ other / start.sum())


@functools.cache
def _quadrature() -> tuple[Map, Map]:
    """Return the nodes and shares of an integral over [0, 1], exact to 1e-9 for logits that move by 50."""
    nodes, shares = np.polynomial.legendre.leggauss(128)
    return (nodes + 1) / 2, shares / 2


def _overlap(cells: int, onto: int) -> Map:
    """Return which part of each of the cells of a line lies in each of others on it, [onto, cells]."""
    ends, others = np.arange(1, cells + 1) / cells, np.arange(1, onto + 1)[:, None] / onto
    both = np.minimum(ends, others) - np.maximum(ends - 1 / cells, others - 1 / onto)
    overlap: Map = np.maximum(both, 0) * cells
    return overlap


def _length(x: Map) -> float:
    return float(np.sqrt((x * x).sum()))
