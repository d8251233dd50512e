"""Retrieval metrics: mAP and Acc@K as the paper counts them, and how alike hits are beyond their group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .cases import Case
from .results import Hit
from .text import CRITERIA

Ranking = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.float64]]  # a figure's name -> its value for each query; NaN: it has none

ACC_AT = (1, 2, 4, 5, 10)
NDCG, NDCG_AT = "nDCG@10", 10
SHARED, SHARED_AT = "shared@5", 5
_NOTHING = 1e-9  # a standard error below it is rounding


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of N cases.

    criteria : of each case, those of the seven-point checklist's criteria that it has, and their values.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    criteria: Sequence[Mapping[str, str]]

    @classmethod
    def of(cls, cases: Iterable[Case | Hit]) -> Self:
        """Return the labels of cases, or of hits."""
        cases = list(cases)
        return cls(
            [case.case_id for case in cases],
            [case.group for case in cases],
            [
                {n: str(v) for n in CRITERIA if (v := case.attributes.get(n)) not in (None, "")}
                for case in cases
            ],
        )


def average_precision(relevant: npt.NDArray[np.bool_]) -> float:
    """Return the mean, over the relevant cases of a full ranking, of the precision at their ranks."""
    ranks = np.flatnonzero(relevant) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0


def rank(scores: npt.NDArray[np.float32], queries: Labels, archive: Labels) -> list[Ranking]:
    """Return for each query the whole archive, best first, ties by case id, the query's own id left out.

    scores : of each query with each case of the archive, float32 [Q, A].
    """
    by_id = np.array(sorted(range(len(archive.ids)), key=archive.ids.__getitem__), np.int64)
    ids = np.array(archive.ids)
    orders = by_id[np.argsort(-scores[:, by_id], axis=1, kind="stable")]
    return [order[ids[order] != own] for order, own in zip(orders, queries.ids, strict=True)]


def retrieval_metrics(
    rankings: Sequence[Sequence[int] | Ranking], queries: Labels, archive: Labels
) -> dict[str, Any]:
    """Return how good and how alike the hits are: means over all queries, rounded to 3 digits.

    rankings : for each query, indices of the whole archive without the query's own case, best first.

    mAP, Acc@K : per cent. A hit is right if its group is the query's; Acc@K asks for one among the first K.
    nDCG@10 : per cent. The gain of a hit is 1 if it is right, plus the part of the query's criteria that the
        hit agrees on: 0 to 2. It counts 1 / log2(rank + 1), and the best order of the same archive is 100.
        Like mAP it is 0 where there is nothing to find.
    shared@5 : on how many of the criteria that both have, the query and a hit agree: 0 to 7, the mean of the
        first five hits.
    queries : how many there are.
    by_group : the same for the queries of each group.
    balanced : the plain mean over the groups, each figure.
    beyond_group : nDCG@10 and shared@5 as they are ("measured"), and as they would be with each hit exchanged
        for one of its own group in the archive, any but the query itself: the exact expectation ("shuffled").
        "standard_error" is that of the mean of the paired differences, and "z" the difference in such errors;
        both None where the differences do not vary.

    A query without criteria has no nDCG@10 and shared@5 and is left out of their means. Where no query or no
    case has any, these figures are not there.
    """
    ranked = [np.asarray(ranking, np.int64) for ranking in rankings]
    groups, found = _coded([{"group": g} for g in queries.groups], [{"group": g} for g in archive.groups])
    columns = _rightness(ranked, groups[:, 0], found[:, 0])
    shuffled: Columns = {}
    if any(queries.criteria) and any(archive.criteria):
        alike, shuffled = _likeness(ranked, queries, archive, groups[:, 0], found[:, 0])
        columns |= alike
    label = np.array(queries.groups)
    by_group = {g: _means(columns, label == g) for g in sorted(set(queries.groups))}
    balanced = {
        name: float(np.mean([means[name] for means in by_group.values() if name in means]))
        for name in columns
        if any(name in means for means in by_group.values())
    }
    figures = _rounded(_means(columns, np.ones(len(label), bool))) | {
        "queries": len(label),
        "by_group": {g: _rounded(m) | {"queries": int((label == g).sum())} for g, m in by_group.items()},
        "balanced": _rounded(balanced),
    }
    if shuffled:
        figures["beyond_group"] = {
            name: _paired(columns[name], by_chance) for name, by_chance in shuffled.items()
        }
    return figures


def _coded(
    queries: Sequence[Mapping[str, str]], archive: Sequence[Mapping[str, str]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return values as numbers, [Q, C] and [A, C], equal where they agree.

    What is missing agrees with nothing: it is -1 in a query and -2 in the archive.
    """
    names = sorted({name for side in (queries, archive) for case in side for name in case})
    numbers: dict[tuple[str, str], int] = {}

    def coded(side: Sequence[Mapping[str, str]], missing: int) -> npt.NDArray[np.int64]:
        rows = [
            [numbers.setdefault((n, case[n]), len(numbers)) if n in case else missing for n in names]
            for case in side
        ]
        return np.array(rows, np.int64).reshape(len(side), len(names))

    return coded(queries, -1), coded(archive, -2)


def _rightness(
    rankings: Sequence[Ranking], groups: npt.NDArray[np.int64], found: npt.NDArray[np.int64]
) -> Columns:
    """Return mAP and Acc@K of each query, in per cent. groups, found : of the queries and of the archive."""
    right = [found[ranking] == group for ranking, group in zip(rankings, groups, strict=True)]
    return {
        "mAP": np.array([100 * average_precision(r) for r in right]),
        **{f"Acc@{k}": np.array([100 * float(r[:k].any()) for r in right]) for k in ACC_AT},
    }


def _likeness(
    rankings: Sequence[Ranking],
    queries: Labels,
    archive: Labels,
    groups: npt.NDArray[np.int64],
    found: npt.NDArray[np.int64],
) -> tuple[Columns, Columns]:
    """Return nDCG@10 and shared@5 of each query, measured and as expected of a shuffle within groups."""
    asked, there = _coded(queries.criteria, archive.criteria)
    measured, shuffled = ({name: np.full(len(rankings), np.nan) for name in (NDCG, SHARED)} for _ in range(2))
    for q, ranking in enumerate(rankings):
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
            columns[NDCG][q] = 100 * _dcg(gains) / ideal if ideal else 0.0
            columns[SHARED][q] = agreed[:SHARED_AT].mean() if len(agreed) else 0.0
    return measured, shuffled


def _dcg(gains: npt.NDArray[Any]) -> float:
    first = gains[:NDCG_AT]
    return float((first / np.log2(np.arange(2, len(first) + 2))).sum())


def _group_means(values: npt.NDArray[Any], group: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
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
