"""Similarity network fusion of pictures and words, and communities in the fused network.

Similarity network fusion: Wang B. et al., Nature Methods 11, 2014. Of each view v, with distances d,

    W_ij = exp(-d_ij^2 / 2 s^2) / s, with s = mu (mean_i + mean_j + d_ij) / 3,
    P_v  = W with rows of sum 1, symmetrised;  S_v = W restricted to the K nearest, rows of sum 1,
    t times: P_v <- S_v mean of the other views' P S_v^T, symmetrised, + I,

where mean_i is the mean distance of i to its K nearest. The fused network is the mean of the P_v. SNF-DCA
(Wang Y. et al., Biomedical Signal Processing and Control 78, 2022) then looks for communities in it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import networkx
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist

from ..data import Indices, Split
from ..train import TrainConfig
from .base import BOTH_SIDES, RECONSTRUCTION, Ranker, Scores, System, Uses
from .heads import classifier
from .inputs import Inputs

NEIGHBOURS, SPREAD, ROUNDS = 20, 0.5, 20  # K, mu, t: the usual values of the publication
_WITHIN = 0.01  # of the fused similarity beside the share of communities, so that it only orders within them
Matrix = npt.NDArray[np.float64]


def affinity(distances: Matrix, neighbours: int = NEIGHBOURS, spread: float = SPREAD) -> Matrix:
    """Return the similarities W of N cases from their distances [N, N]."""
    k = min(neighbours, len(distances) - 1)
    nearest = np.partition(distances, k, 1)[:, : k + 1].sum(1) / k  # the case itself adds 0
    sigma = (nearest[:, None] + nearest[None] + distances) / 3
    deviation = spread * np.maximum(sigma, np.finfo(float).eps)
    return np.asarray(np.exp(-((distances / deviation) ** 2) / 2) / deviation)


def fuse(views: Sequence[Matrix], neighbours: int = NEIGHBOURS, rounds: int = ROUNDS) -> Matrix:
    """Return the fused network [N, N] of the similarities of two or more views."""
    spread = [_symmetric(_rows_to_one(w)) for w in views]  # P
    local = [csr_array(_rows_to_one(_nearest(w, neighbours))) for w in spread]  # S
    for _ in range(rounds):
        means = [np.mean(spread[:v] + spread[v + 1 :], 0) for v in range(len(views))]
        spread = [s @ (s @ mean).T for s, mean in zip(local, means, strict=True)]  # P is symmetric
        for p in spread:
            p[np.diag_indices_from(p)] += 1
    fused = _rows_to_one(np.mean(spread, 0))
    return np.asarray((fused + fused.T + np.eye(len(fused))) / 2)


def _rows_to_one(w: Matrix) -> Matrix:
    return np.asarray(w / w.sum(1, keepdims=True))


def _symmetric(w: Matrix) -> Matrix:
    return (w + w.T) / 2


def _nearest(w: Matrix, neighbours: int) -> Matrix:
    """Keep the largest similarities of each row, the case's own among them."""
    k = min(neighbours, len(w))
    kept = np.zeros_like(w)
    columns = np.argpartition(-w, k - 1, axis=1)[:, :k]
    np.put_along_axis(kept, columns, np.take_along_axis(w, columns, 1), 1)
    return kept


def community_share(network: Matrix, case: int, neighbours: int, seed: int) -> Matrix:
    """Return for each case the share of Louvain's levels at which it is in one community with `case`, [N]."""
    off = network * (1 - np.eye(len(network)))
    kept = _nearest(off, neighbours)
    graph = networkx.from_numpy_array(np.maximum(kept, kept.T))
    share, levels = np.zeros(len(network)), 0
    for partition in networkx.community.louvain_partitions(graph, seed=seed):
        levels += 1
        share[sorted(next(c for c in partition if case in c))] += 1
    return share / levels


def _fit(labelled: bool, inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    x = inputs.averaged(subsets.archive)
    if labelled:  # the logits of a classifier, of equal variance
        logits = classifier(x, inputs, subsets.archive).decision_function(x).reshape(len(x), -1)
        x = (logits - logits[subsets.archive].mean(0)) / logits[subsets.archive].std(0)
    views = [np.asarray(x, np.float64), np.asarray(inputs.words, np.float64)]

    def ranker(archive: Indices) -> Scores:
        distances = [cdist(v[archive], v[archive]) for v in views]
        rows = [_score(query, archive, views, distances, config.seed) for query in subsets.test]
        return {BOTH_SIDES: np.array(rows, np.float32)}

    return ranker


def _score(
    query: int, archive: Indices, views: Sequence[Matrix], distances: Sequence[Matrix], seed: int
) -> npt.NDArray[Any]:
    """Score an archive by the network of its cases and of one query, without the query's own case."""
    others = np.flatnonzero(archive != query)
    networks = []
    for view, between in zip(views, distances, strict=True):
        n = len(others)
        d = np.zeros((n + 1, n + 1))
        d[:n, :n] = between[np.ix_(others, others)]
        d[n, :n] = d[:n, n] = cdist(view[query][None], view[archive[others]])[0]
        networks.append(affinity(d))
    fused = fuse(networks)
    last = fused[-1, :-1]
    scores = np.full(len(archive), -1.0)  # the query's own case, which no figure counts
    scores[others] = community_share(fused, len(others), NEIGHBOURS, seed)[:-1] + _WITHIN * last / last.max()
    return scores


_OURS = (
    "The publication's image features, metadata, communities and order of hits are not known: here one-hot "
    "findings, Louvain's levels on the graph of the 20 nearest, and within them the fused similarity.",
    "A network is built for each query alone, so that no query depends on another.",
)
_SOURCE = "Wang Y. et al., Deep community analysis of similarity networks for skin images, BSPC 78, 2022"
SNF_DCA = System(
    name="snf-dca",
    source=_SOURCE,
    fidelity=RECONSTRUCTION,
    deviations=("The image features are frozen: no label is used.", *_OURS),
    uses=Uses(archive_words=True),
    needs_words=True,
    least_archive=NEIGHBOURS + 1,
    fit=partial(_fit, False),
)
SNF_DCA_LABELS = System(
    name="snf-dca-labels",
    source=_SOURCE,
    fidelity=RECONSTRUCTION,
    deviations=("The image features are the logits of a logistic regression on the training folds.", *_OURS),
    uses=Uses(labels=True, archive_words=True),
    needs_words=True,
    least_archive=NEIGHBOURS + 1,
    fit=partial(_fit, True),
)
