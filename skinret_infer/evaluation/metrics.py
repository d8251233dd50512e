"""Retrieval metrics: mAP and Acc@K as the paper counts them, and how alike hits are beyond their group.

No figure depends on the order of equal scores. A search breaks ties by case id, and ids may know the label:
those of Derm7pt are sorted by diagnosis. So a figure is the mean over all orders of the equals, in closed
form (McSherry & Najork 2008): exact, where a random order of the equals would need a seed and many draws.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..cases import Case
from ..checklist import CRITERIA
from ..errors import InputError
from ..results import Hit

Indices = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.float64]]  # a figure's name -> its value for each query; NaN: it has none

ACC_AT = (1, 2, 4, 5, 10)
NDCG, NDCG_AT = "nDCG@10", 10
SHARED, SHARED_AT = "shared@5", 5
_NOTHING = 1e-9  # a standard error below it is rounding


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of N cases.

    criteria : of each case, those of the seven-point checklist's criteria that it has, and their values.
    pictures : of each case, a hash of its picture; none where they are not known.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    criteria: Sequence[Mapping[str, str]]
    pictures: Sequence[str] = ()

    @classmethod
    def of(cls, cases: Iterable[Case | Hit], pictures: Sequence[str] = ()) -> Self:
        """Return the labels of cases, or of hits."""
        cases = list(cases)
        return cls(
            [case.case_id for case in cases],
            [case.group for case in cases],
            [
                {n: str(v) for n in CRITERIA if (v := case.attributes.get(n)) not in (None, "")}
                for case in cases
            ],
            pictures,
        )

    def identities(self) -> list[dict[str, str]]:
        """Return what tells that a case of the archive is the query's own: its id and its picture."""
        pictures = self.pictures or [""] * len(self.ids)
        return [{"id": i, **({"picture": p} if p else {})} for i, p in zip(self.ids, pictures, strict=True)]


@dataclass(frozen=True, slots=True)
class Ranking:
    """An archive as one query ranks it, the best first.

    cases : indices of cases, int64 [n].
    scores : theirs, [n]. Those that are equal, bit for bit in their own type, are ties: which of them stands
        first tells nothing.

    Raises InputError for scores that are not finite, or not the best first.
    """

    cases: Indices
    scores: npt.NDArray[Any]

    def __post_init__(self) -> None:
        if len(self.cases) != len(self.scores):
            raise _not_ranked("a score for each case", f"{len(self.scores)} for {len(self.cases)}")
        if not np.isfinite(self.scores).all():
            first = int(np.argmin(np.isfinite(self.scores)))
            raise _not_ranked("finite numbers", str(self.scores[first]))
        if (self.scores[1:] > self.scores[:-1]).any():
            raise _not_ranked("the best score first", "a better one after a worse one")

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def ties(self) -> Indices:
        """Of each case, the number of its group of equal scores: 0, 0, 1, 2, 2 and so on; int64 [n]."""
        return np.cumsum(np.append(0, self.scores[1:] != self.scores[:-1]))[: len(self)]


def average_precision(relevant: npt.NDArray[np.bool_], ties: Indices | None = None) -> float:
    """Return the mean, over the relevant cases of a full ranking, of the precision at their ranks.

    ties : as `Ranking` has them; the value is the mean over all orders of the equals. None: no two are equal.
    """
    if not relevant.any():
        return 0.0
    ties = np.arange(len(relevant)) if ties is None else ties
    size, right = np.bincount(ties), np.bincount(ties, relevant)
    size_before, right_before = np.cumsum(size) - size, np.cumsum(right) - right
    # If a place holds a relevant case, each of the other places of its group does so with this probability.
    density = (right - 1) / np.maximum(size - 1, 1)
    place = np.arange(1, len(ties) + 1)
    among = place - size_before[ties]
    precision = (right_before[ties] + 1 + (among - 1) * density[ties]) / place
    return float(((right / size)[ties] * precision).sum() / right.sum())


def found_by(relevant: npt.NDArray[np.bool_], ties: Indices, k: int) -> float:
    """Return how likely a relevant case is among the first k: 0 or 1, unless equal scores leave it open."""
    k = min(k, len(relevant))
    if not k:
        return 0.0
    start, end = (int(np.searchsorted(ties, ties[k - 1], side)) for side in ("left", "right"))
    if relevant[:start].any():
        return 1.0
    wrong = end - start - int(relevant[start:end].sum())
    return 1 - math.comb(wrong, k - start) / math.comb(end - start, k - start)


def rank(scores: npt.NDArray[Any], queries: Labels, archive: Labels) -> list[Ranking]:
    """Return for each query the whole archive, best first, without the query's own case.

    scores : of each query with each case of the archive, finite, [Q, A]. Equal ones are listed by case id, as
        a search lists them; no figure depends on that order. Make them with np.einsum, not BLAS, which may
        round the last columns in another way: two equal descriptors then differ by their place in the table.

    Raises InputError for scores of another shape, or that are not finite.
    """
    expected = len(queries.ids), len(archive.ids)
    if scores.shape != expected:
        raise _not_ranked(f"one of each query with each case, {expected}", f"the shape {scores.shape}")
    # Ascending and then reversed: unsigned integers have no negative.
    by_id = np.array(sorted(range(len(archive.ids)), key=archive.ids.__getitem__), np.int64)[::-1]
    orders = by_id[np.argsort(scores[:, by_id], axis=1, kind="stable")][:, ::-1]
    rankings = [Ranking(order, row[order]) for order, row in zip(orders, scores, strict=True)]
    return without_own(rankings, queries, archive)


def without_own(rankings: Sequence[Ranking], queries: Labels, archive: Labels) -> list[Ranking]:
    """Leave the query's own case out of each ranking: its id, or its very picture under another id."""
    asked, there = _coded(queries.identities(), archive.identities())
    left = []
    for ranking, own in zip(rankings, asked, strict=True):
        other = ~(there[ranking.cases] == own).any(axis=1)
        left.append(Ranking(ranking.cases[other], ranking.scores[other]))
    return left


def same_picture(queries: Labels, archive: Labels) -> int:
    """Return how often a query's very picture is in the archive under another id."""
    if not queries.pictures or not archive.pictures:
        return 0
    pictures = Counter(archive.pictures)
    own = Counter(zip(archive.ids, archive.pictures, strict=True))
    asked = zip(queries.ids, queries.pictures, strict=True)
    return sum(pictures[picture] - own[i, picture] for i, picture in asked if picture)


def _not_ranked(expected: str, found: str) -> InputError:
    return InputError(
        "the scores are no ranking",
        code="scores",
        expected=expected,
        found=found,
        cure="mend what gives them, such as a model whose training diverged",
    )


def retrieval_metrics(rankings: Sequence[Ranking], queries: Labels, archive: Labels) -> dict[str, Any]:
    """Return how good and how alike the hits are: means over all queries, rounded to 3 digits.

    rankings : for each query the whole archive without the query's own case. Where scores are equal, each
        figure is the mean over all orders of the equals: a score that is always the same measures what a
        random order does.

    mAP, Acc@K : per cent. A hit is right if its group is the query's; Acc@K asks for one among the first K.
    nDCG@10 : per cent. The gain of a hit is 1 if it is right, plus the part of the query's criteria that the
        hit agrees on: 0 to 2. It counts 1 / log2(rank + 1), and the best order of the same archive is 100.
        Like mAP it is 0 where there is nothing to find.
    shared@5 : on how many of the criteria that both have, the query and a hit agree: 0 to 7, the mean of the
        first five hits.
    queries : how many there are.
    tied : of how many of them equal scores leave open which of a right and a wrong hit is first.
    by_group : the same for the queries of each group.
    balanced : the plain mean over the groups, each figure.
    beyond_group : nDCG@10 and shared@5 as they are ("measured"), and as they would be with each hit exchanged
        for one of its own group in the archive, any but the query itself: the exact expectation ("shuffled").
        "standard_error" is that of the mean of the paired differences, and "z" the difference in such errors;
        both None where the differences do not vary.
    random_order : the same figures of a random order of the archive: what knowing nothing gives.

    A query without criteria has no nDCG@10 and shared@5 and is left out of their means. Where no query or no
    case has any, these figures are not there.
    """
    cases, ties = [r.cases for r in rankings], [r.ties for r in rankings]
    columns, shuffled = _columns(cases, ties, queries, archive)
    by_chance, _ = _columns(cases, [np.zeros_like(t) for t in ties], queries, archive)
    figures = _figures(columns, queries.groups)
    figures["tied"] = _tied(rankings, queries, archive)
    if shuffled:
        figures["beyond_group"] = {name: _paired(columns[name], column) for name, column in shuffled.items()}
    return figures | {"random_order": _figures(by_chance, queries.groups)}


def _figures(columns: Columns, groups: Sequence[str]) -> dict[str, Any]:
    """Return the means over all queries, over those of each group, and over the groups."""
    label = np.array(groups)
    by_group = {g: _means(columns, label == g) for g in sorted(set(groups))}
    balanced = {
        name: float(np.mean([means[name] for means in by_group.values() if name in means]))
        for name in columns
        if any(name in means for means in by_group.values())
    }
    return _rounded(_means(columns, np.ones(len(label), bool))) | {
        "queries": len(label),
        "by_group": {g: _rounded(m) | {"queries": int((label == g).sum())} for g, m in by_group.items()},
        "balanced": _rounded(balanced),
    }


def _coded(
    queries: Sequence[Mapping[str, str]], archive: Sequence[Mapping[str, str]]
) -> tuple[Indices, Indices]:
    """Return values as numbers, [Q, C] and [A, C], equal where they agree.

    What is missing agrees with nothing: it is -1 in a query and -2 in the archive.
    """
    names = sorted({name for side in (queries, archive) for case in side for name in case})
    numbers: dict[tuple[str, str], int] = {}

    def coded(side: Sequence[Mapping[str, str]], missing: int) -> Indices:
        rows = [
            [numbers.setdefault((n, case[n]), len(numbers)) if n in case else missing for n in names]
            for case in side
        ]
        return np.array(rows, np.int64).reshape(len(side), len(names))

    return coded(queries, -1), coded(archive, -2)


def _columns(
    rankings: Sequence[Indices], ties: Sequence[Indices], queries: Labels, archive: Labels
) -> tuple[Columns, Columns]:
    """Return the figures of each query, measured, and those of likeness as expected of a shuffle."""
    groups, found = _groups(queries, archive)
    columns: Columns = {name: np.empty(len(rankings)) for name in ("mAP", *(f"Acc@{k}" for k in ACC_AT))}
    for q, (ranking, tied) in enumerate(zip(rankings, ties, strict=True)):
        right = found[ranking] == groups[q]
        columns["mAP"][q] = 100 * average_precision(right, tied)
        for k in ACC_AT:
            columns[f"Acc@{k}"][q] = 100 * found_by(right, tied, k)
    if not any(queries.criteria) or not any(archive.criteria):
        return columns, {}
    alike, shuffled = _likeness(rankings, ties, queries, archive)
    return columns | alike, shuffled


def _likeness(
    rankings: Sequence[Indices], ties: Sequence[Indices], queries: Labels, archive: Labels
) -> tuple[Columns, Columns]:
    """Return nDCG@10 and shared@5 of each query, measured and as expected of a shuffle within groups."""
    groups, found = _groups(queries, archive)
    asked, there = _coded(queries.criteria, archive.criteria)
    measured, shuffled = ({name: np.full(len(rankings), np.nan) for name in (NDCG, SHARED)} for _ in range(2))
    for q, (ranking, tied) in enumerate(zip(rankings, ties, strict=True)):
        if not (known := int((asked[q] >= 0).sum())):
            continue
        group = found[ranking]
        shared = (there[ranking] == asked[q]).sum(axis=1)
        gain = (group == groups[q]) + shared / known
        ideal = _dcg(np.sort(gain)[::-1])
        for columns, gains, agreed in (
            (measured, gain, shared),
            (shuffled, _group_means(gain, group), _group_means(shared, group)),
        ):
            gains, agreed = _group_means(gains, tied), _group_means(agreed, tied)
            columns[NDCG][q] = 100 * _dcg(gains) / ideal if ideal else 0.0
            columns[SHARED][q] = agreed[:SHARED_AT].mean() if len(agreed) else 0.0
    return measured, shuffled


def _tied(rankings: Sequence[Ranking], queries: Labels, archive: Labels) -> int:
    """Return of how many queries equal scores leave open which of a right and a wrong hit is first."""
    groups, found = _groups(queries, archive)
    tied = 0
    for ranking, group in zip(rankings, groups, strict=True):
        right = _group_means(found[ranking.cases] == group, ranking.ties)
        tied += bool(((right > 0) & (right < 1)).any())
    return tied


def _groups(queries: Labels, archive: Labels) -> tuple[Indices, Indices]:
    """Return the groups as numbers, [Q] and [A]."""
    groups, found = _coded([{"group": g} for g in queries.groups], [{"group": g} for g in archive.groups])
    return groups[:, 0], found[:, 0]


def _dcg(gains: npt.NDArray[Any]) -> float:
    first = gains[:NDCG_AT]
    return float((first / np.log2(np.arange(2, len(first) + 2))).sum())


def _group_means(values: npt.NDArray[Any], group: Indices) -> npt.NDArray[np.float64]:
    """Return for each case the mean value of all the cases of its group, itself among them."""
    cases = np.bincount(group)
    means: npt.NDArray[np.float64] = (np.bincount(group, values) / np.maximum(cases, 1))[group]
    return means


def _means(columns: Columns, chosen: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the mean of each figure over those of the chosen queries that have it."""
    values = {name: column[chosen & ~np.isnan(column)] for name, column in columns.items()}
    return {name: float(v.mean()) for name, v in values.items() if len(v)}


def _rounded(figures: Mapping[str, float]) -> dict[str, Any]:
    return {name: round(value, 3) for name, value in figures.items()}


def _paired(measured: npt.NDArray[np.float64], shuffled: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Compare two values of each query. Where a query has neither, both are NaN."""
    known = ~np.isnan(measured)
    measured, shuffled = measured[known], shuffled[known]
    difference = measured - shuffled
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    varies = error > _NOTHING
    return {
        "measured": round(float(measured.mean()), 3),
        "shuffled": round(float(shuffled.mean()), 3),
        "standard_error": round(error, 3) if varies else None,
        "z": round(float(difference.mean()) / error, 3) if varies else None,
    }
