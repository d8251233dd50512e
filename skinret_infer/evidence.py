"""Where a score comes from: what each position of the maps adds to it. These numbers add up to the score.

Both poolings of a level are weighted sums over the positions p of its map X (Eq. 6-8), divided by a length:

    g = sum_p X(p) / (h w |mean X|)        e = sum_p sum_j c_j alpha_j(p) X(p)

where c_j depends on how the k regions are aggregated. So cos(g_q, g_t) is the sum over the positions of the
query of X_q(p) . g_t / (h w |mean X_q|), and also a sum over the positions of the case.

The logits of a concept are z = W m + b, where m is the means of the three maps, so z is a sum over positions
too. The concept similarity f(z) = softmax(z) . p_t is attributed by integrated gradients along the straight
path from z = b, the prediction without any image, to z (Aumann & Shapley 1974; Sundararajan et al. 2017).
Each position gets its share of z times the mean gradient on the path. The shares sum to f(z) - f(b). The
baseline f(b) is the same for every image.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from .bundle import Manifest
from .descriptor import COSINES, Vector, products
from .imaging.recipe import Pixels

Map = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
ADDS, TAKES_AWAY = (0, 114, 178), (230, 159, 0)  # Okabe and Ito's blue and orange
OPACITY = 0.75  # of the strongest cell: the lesion stays visible below it
_EPS = 1e-6  # as in the model: the smallest divisor


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceMap:
    """The evidence on one picture, the query's or the case's: all maps and baselines sum to the score.

    Attributes
    ----------
    maps :
        what each position adds, [h, w], by the six cosines, such as "local_low", and by the concepts, such
        as "group". A position depends on its surroundings too, not only on its pixels.
    baseline :
        what a concept adds for any picture.
    box :
        the area of the picture under the maps: left, top, right, bottom in pixels.
    """

    maps: Mapping[str, Map]
    baseline: Mapping[str, float]
    box: Box

    @property
    def total(self) -> Map:
        """All maps together, on the finest grid among them."""
        return add_up(self.maps.values())

    def overlay(self, picture: Pixels, name: str | None = None) -> Image.Image:
        """Draw one map, or all together, over its picture: blue adds to the score, orange takes away.

        Parameters
        ----------
        picture :
            H x W x 3 uint8, upright, as `decode` returns it.
        """
        contribution = self.total if name is None else self.maps[name]
        strongest = float(np.abs(contribution).max())
        left, top, right, bottom = (round(edge) for edge in self.box)
        layer = Image.fromarray(tint(contribution, strongest)).resize(
            (right - left, bottom - top), Image.Resampling.BICUBIC
        )
        canvas = Image.fromarray(picture).convert("RGBA")
        canvas.alpha_composite(layer, (left, top))
        return canvas.convert("RGB")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        return {
            "maps": {name: contribution.tolist() for name, contribution in self.maps.items()},
            "baseline": dict(self.baseline),
            "box": list(self.box),
        }

    def __repr__(self) -> str:
        return f"EvidenceMap({len(self.maps)} maps)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The terms of a hit's score: `parts` sum to it, and so does the evidence on each picture.

    Attributes
    ----------
    parts :
        what each of the six cosines adds (weight times cosine), such as {"local_low": 0.081, ...}, and
        what the similarity of each concept adds, such as "group".
    query, case :
        the parts, split over the positions of the pictures; case is None if it was not requested.
    residual :
        the largest difference between a product and the sum of its map, an error of the runtime's
        precision; it is spread evenly over the positions.
    matching_criteria :
        the criteria in which the case agrees with the text, with the case's values, such as
        {"streaks": "irregular"}. The text "no streaks" matches a case with the value "absent".
    conflicting_criteria :
        the criteria in which it disagrees. A criterion that the text or the case leaves open is in neither.
    """

    case_id: str
    score: float
    parts: Mapping[str, float]
    query: EvidenceMap | None
    case: EvidenceMap | None
    residual: float
    matching_criteria: Mapping[str, str]
    conflicting_criteria: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        return {
            "case_id": self.case_id,
            "score": self.score,
            "parts": dict(self.parts),
            "query": self.query.to_dict() if self.query else None,
            "case": self.case.to_dict() if self.case else None,
            "residual": self.residual,
            "matching_criteria": dict(self.matching_criteria),
            "conflicting_criteria": dict(self.conflicting_criteria),
        }

    def __repr__(self) -> str:
        return f"Evidence(case {self.case_id!r}, score {self.score:.4f}, {len(self.parts)} parts)"


def tint(contribution: Map, strongest: float) -> npt.NDArray[np.uint8]:
    """Return a map as RGBA [h, w, 4], one pixel a cell: colour by the sign, opacity by the size."""
    cells = np.empty((*contribution.shape, 4), np.uint8)
    cells[..., :3] = np.where(contribution[..., None] < 0, TAKES_AWAY, ADDS)
    cells[..., 3] = np.rint(np.abs(contribution) * (255 * OPACITY / strongest)) if strongest else 0
    return cells


class Maps(NamedTuple):
    """The source of a descriptor: for each level the feature map [h, w, d] and its masks [k, h, w].

    words : the weight of the words that the maps were composed with; 0 for a picture alone.
    """

    maps: list[Map]
    masks: list[Map]
    words: float = 0.0


def split_score(
    maps: Maps,
    descriptor: Vector,
    compared: Vector,
    *,
    manifest: Manifest,
    concept_head: Vector | None,
    weights: Map,
    box: Box,
) -> tuple[EvidenceMap, float]:
    """Split a score over the positions of one picture; return the maps, and the largest error of a product.

    descriptor, compared : the descriptors [D] of this picture and of the other picture.
    concept_head : [W b] of the concepts, without words and with words (Bundle.concept_head); None for a model
        without concepts.
    weights : the weight of each product in the score, [6 + C].
    box : the area of the picture under the maps.
    """
    layout = manifest.layout
    terms = products(descriptor, compared[None], layout)[0]
    split, baseline = _split_cosines(maps, compared, manifest), dict.fromkeys(manifest.concepts, 0.0)
    six, ends = layout.visual_length, np.cumsum(layout.concepts)
    means = np.concatenate([x.mean((0, 1)) for x in maps.maps])
    if concept_head is not None:
        concept_head = (1 - maps.words) * concept_head[0] + maps.words * concept_head[1]
        for name, end, length in zip(baseline, ends, layout.concepts, strict=True):
            # Where words or a record state values, the others are 0, and p^c is the softmax of the stated.
            stated = descriptor[six + end - length : six + end] > 0
            w = concept_head[end - length : end][stated].astype(np.float64)
            p = compared[six + end - length : six + end][stated].astype(np.float64)
            gradient, baseline[name] = integrated_gradient(w[:, :-1] @ means, w[:, -1], p)
            split[name] = mean_map(maps.maps, gradient @ w[:, :-1])
    residual = 0.0
    for (name, term_map), weight, product in zip(split.items(), weights, terms, strict=True):
        error = float(product - baseline.get(name, 0.0) - term_map.sum())
        residual = max(residual, abs(error))
        split[name] = weight * (term_map + error / term_map.size)
    weighted = {
        name: float(weight * value)
        for (name, value), weight in zip(baseline.items(), weights[6:], strict=True)
    }
    return EvidenceMap(maps=split, baseline=weighted, box=box), residual


def _split_cosines(maps: Maps, compared: npt.NDArray[Any], manifest: Manifest) -> dict[str, Map]:
    """Split the six products of the vectors that are pooled from maps with `compared` over the positions."""
    vectors = np.split(compared.astype(np.float64), manifest.layout.starts[1:])
    local = [
        local_map(x, alpha, manifest.aggregation, e)
        for x, alpha, e in zip(maps.maps, maps.masks, vectors[:3], strict=True)
    ]
    global_ = [global_map(x, g) for x, g in zip(maps.maps, vectors[3:6], strict=True)]
    return dict(zip(COSINES, local + global_, strict=True))


def mean_map(maps: Sequence[Map], other: Map) -> Map:
    """Split m . other over the positions; m is the means of maps [h, w, d], side by side."""
    vectors = np.split(other, np.cumsum([x.shape[2] for x in maps[:-1]]))
    return add_up(x @ v / (x.shape[0] * x.shape[1]) for x, v in zip(maps, vectors, strict=True))


def global_map(x: Map, other: Map) -> Map:
    """Split g . other over the positions of x [h, w, d]; g [d] is the mean of x, scaled to length one."""
    mean = x.mean((0, 1))
    split: Map = x @ other / (x.shape[0] * x.shape[1] * max(_length(mean), _EPS))
    return split


def local_map(x: Map, alpha: Map, aggregation: str, other: Map) -> Map:
    """Split e . other over the positions of x [h, w, d]; e is pooled from x by the masks alpha [k, h, w].

    other : [d], or [k d] if the regions are concatenated.
    """
    regions = np.tensordot(alpha, x, 2)  # (k, d): rho(X * alpha_j)
    split: Map
    match aggregation:
        case "max":  # in each channel only the region with the largest value counts
            e = regions.max(0)
            split = np.einsum("dhw,hwd,d->hw", alpha[regions.argmax(0)], x, other)
        case "concat":
            e = regions
            split = np.einsum("khw,hwd,kd->hw", alpha, x, other.reshape(regions.shape))
        case _:
            share = np.full(len(alpha), 1 / len(alpha))
            if aggregation == "normalized":
                share /= np.maximum(np.linalg.norm(regions, axis=1), _EPS)
            e = share @ regions
            split = np.tensordot(share, alpha, 1) * (x @ other)
    return split / max(_length(e), _EPS)


def on_grid(contribution: Map, height: int, width: int) -> Map:
    """Spread a map [h, w] over another grid, each cell in proportion to the area, so that the sum stays."""
    rows, columns = _overlap(contribution.shape[0], height), _overlap(contribution.shape[1], width)
    spread: Map = rows @ contribution @ columns.T
    return spread


def add_up(maps: Iterable[Map]) -> Map:
    """Add maps up on the finest grid among them; the sum stays."""
    maps = list(maps)
    height, width = (max(m.shape[axis] for m in maps) for axis in (0, 1))
    return sum((on_grid(m, height, width) for m in maps), np.zeros((height, width)))


def integrated_gradient(change: Map, base: Map, other: Map) -> tuple[Map, float]:
    """Return the mean gradient of f(z) = softmax(z) . other from z = base to base + change, and f(base).

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
    """Return the nodes and shares of an integral over [0, 1], exact to 1e-9 for logits that change by 50."""
    nodes, shares = np.polynomial.legendre.leggauss(128)
    return (nodes + 1) / 2, shares / 2


def _overlap(cells: int, new_cells: int) -> Map:
    """Cut a line into equal cells and into new ones; return how much of each cell each new one covers."""
    ends, new_ends = np.arange(1, cells + 1) / cells, np.arange(1, new_cells + 1)[:, None] / new_cells
    common = np.minimum(ends, new_ends) - np.maximum(ends - 1 / cells, new_ends - 1 / new_cells)
    overlap: Map = np.maximum(common, 0) * cells
    return overlap


def _length(x: Map) -> float:
    return float(np.sqrt((x * x).sum()))
