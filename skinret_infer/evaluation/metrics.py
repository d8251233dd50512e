"""Retrieval metrics: mAP and Acc@K as the paper counts them, and how similar hits are within their group.

No figure depends on the order of equal scores. A search breaks ties by case id, and ids can reveal the label:
those of Derm7pt are sorted by diagnosis. So a figure is the mean over all orders of the tied cases, in closed
form (McSherry & Najork 2008). That is exact; random orders would need a seed and many draws.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..cases import Case
from ..errors import InputError
from ..results import Hit

Indices = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.float64]]  # a figure's name -> its value for each query; NaN: none

ACC_AT = (1, 2, 4, 5, 10)
NDCG, NDCG_AT = "nDCG@10", 10
SHARED, SHARED_AT = "shared@5", 5
BALANCED = ("mAP", "Acc@1")  # a table begins with the balanced values of these
LESION = "lesion_id"  # the attribute with the name of a case's lesion
_NOTHING = 1e-9  # a standard error below it is rounding


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of N cases.

    criteria : for each case, the criteria in which cases may agree, with their values.
    pictures : for each case, a hash of its picture; empty if the hashes are not known.
    lesions : for each case, the name of its lesion, "" if it is not known; empty if none is.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    criteria: Sequence[Mapping[str, str]]
    pictures: Sequence[str] = ()
    lesions: Sequence[str] = ()

    @classmethod
    def of(cls, cases: Iterable[Case | Hit], criteria: Sequence[str], pictures: Sequence[str] = ()) -> Self:
        """Return the labels of cases, or of hits; `criteria` are the attributes in which cases may agree."""
        cases = list(cases)
        return cls(
            [case.case_id for case in cases],
            [case.group for case in cases],
            [
                {n: str(v) for n in criteria if (v := case.attributes.get(n)) not in (None, "")}
                for case in cases
            ],
            pictures,
            [str(case.attributes.get(LESION, "")) for case in cases],
        )

    def identities(self) -> list[dict[str, str]]:
        """Return the id, the picture and the lesion of each case: a query's own case shares one of them."""
        unknown = [""] * len(self.ids)
        facts = zip(self.ids, self.pictures or unknown, self.lesions or unknown, strict=True)
        return [
            {name: value for name, value in (("id", i), ("picture", p), ("lesion", n)) if value}
            for i, p, n in facts
        ]


@dataclass(frozen=True, slots=True)
class Ranking:
    """An archive as one query ranks it, the best case first.

    cases : indices of cases, int64 [n].
    scores : their scores, [n]. Scores that are equal bit for bit are ties: their order means nothing.

    Raises InputError for scores that are not finite, or do not fall.
    """

    cases: Indices
    scores: npt.NDArray[Any]

    def __post_init__(self) -> None:
        if len(self.cases) != len(self.scores):
            raise _no_ranking("a score for each case", f"{len(self.scores)} for {len(self.cases)}")
        if not np.isfinite(self.scores).all():
            first = int(np.argmin(np.isfinite(self.scores)))
            raise _no_ranking("finite numbers", str(self.scores[first]))
        if (self.scores[1:] > self.scores[:-1]).any():
            raise _no_ranking("the best score first", "a better one after a worse one")

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def ties(self) -> Indices:
        """For each case, the number of its group of equal scores: 0, 0, 1, 2, 2 and so on; int64 [n]."""
        return np.cumsum(np.append(0, self.scores[1:] != self.scores[:-1]))[: len(self)]


def average_precision(relevant: npt.NDArray[np.bool_], ties: Indices | None = None) -> float:
    """Return the mean, over the relevant cases of a full ranking, of the precision at their ranks.

    ties : as in `Ranking.ties`; the value is the mean over all orders of equal scores. None: no ties.
    """
    if not relevant.any():
        return 0.0
    ties = np.arange(len(relevant)) if ties is None else ties
    size, right = np.bincount(ties), np.bincount(ties, relevant)
    size_before, right_before = np.cumsum(size) - size, np.cumsum(right) - right
    # If one place of a group holds a relevant case, this is the probability that another place does so too.
    density = (right - 1) / np.maximum(size - 1, 1)
    place = np.arange(1, len(ties) + 1)
    place_in_group = place - size_before[ties]
    precision = (right_before[ties] + 1 + (place_in_group - 1) * density[ties]) / place
    return float(((right / size)[ties] * precision).sum() / right.sum())


def found_by(relevant: npt.NDArray[np.bool_], ties: Indices, k: int) -> float:
    """Return the probability of a relevant case among the first k: 0 or 1, unless equal scores decide."""
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

    scores : of each query with each case of the archive, finite, [Q, A]. Equal scores are listed by case id,
        as a search lists them; no figure depends on that order. Make them with np.einsum, not BLAS: BLAS may
        round the last columns differently, so that the scores of two equal descriptors differ.

    Raises InputError for scores of another shape, or that are not finite.
    """
    expected = len(queries.ids), len(archive.ids)
    if scores.shape != expected:
        raise _no_ranking(f"one of each query with each case, {expected}", f"the shape {scores.shape}")
    # Sorted ascending and then reversed, because unsigned integers cannot be negated.
    by_id = np.array(sorted(range(len(archive.ids)), key=archive.ids.__getitem__), np.int64)[::-1]
    orders = by_id[np.argsort(scores[:, by_id], axis=1, kind="stable")][:, ::-1]
    rankings = [Ranking(order, row[order]) for order, row in zip(orders, scores, strict=True)]
    return without_own(rankings, queries, archive)


def without_own(rankings: Sequence[Ranking], queries: Labels, archive: Labels) -> list[Ranking]:
    """Leave the query's own case out of each ranking: its id, its picture, or its lesion."""
    query_codes, archive_codes = _encode(queries.identities(), archive.identities())
    remaining = []
    for ranking, query_code in zip(rankings, query_codes, strict=True):
        different = ~(archive_codes[ranking.cases] == query_code).any(axis=1)
        remaining.append(Ranking(ranking.cases[different], ranking.scores[different]))
    return remaining


def own_cases(queries: Labels, archive: Labels) -> dict[str, int]:
    """Return how often the archive has a query's picture under another id, and its lesion in another picture.

    The keys are same_picture and same_lesion.
    """
    own = {"same_picture": 0, "same_lesion": 0}
    by_fact: dict[tuple[str, str], list[dict[str, str]]] = {}
    for case in archive.identities():
        for fact in case.items():
            by_fact.setdefault(fact, []).append(case)
    for query in queries.identities():
        for name, already in (("picture", ("id",)), ("lesion", ("id", "picture"))):
            others = by_fact.get((name, query[name]), []) if name in query else []
            own[f"same_{name}"] += sum(all(o.get(f) != query.get(f, "") for f in already) for o in others)
    return own


def _no_ranking(expected: str, found: str) -> InputError:
    return InputError(
        "the scores are no ranking",
        code="scores",
        expected=expected,
        found=found,
        cure="correct what computes the scores, such as a model whose training diverged",
    )


def retrieval_metrics(rankings: Sequence[Ranking], queries: Labels, archive: Labels) -> dict[str, Any]:
    """Return how good and how alike the hits are: means over all queries, rounded to 3 digits.

    rankings : for each query the whole archive without the query's own case. Where scores are equal, each
        figure is the mean over all orders of the tied cases: a constant score has the figures of a random
        order.

    mAP, Acc@K : per cent. A hit is right if its group is the query's; Acc@K asks for one among the first K.
    nDCG@10 : per cent. The gain of a hit is 1 if it is right, plus the share of the query's criteria in which
        the hit agrees: 0 to 2. It is discounted by log2(rank + 1), and the best order of the same archive is
        100. Like mAP it is 0 if there is nothing to find.
    shared@5 : the number of criteria in which the query and a hit agree: 0 to 7, the mean of the first five
        hits.
    queries : the number of queries.
    tied : the number of queries for which a right and a wrong hit have equal scores.
    by_group : the same figures for the queries of each group.
    balanced : the mean of each figure over the groups, unweighted.
    beyond_group : nDCG@10 and shared@5 as they are ("measured"), and their exact expectation if each hit is
        exchanged for a random case of the same group in the archive, never the query itself ("shuffled").
        "standard_error" is that of the mean of the paired differences, and "z" is the difference divided by
        it; both are None if the differences do not vary.
    random_order : the same figures for a random order of the archive.

    A query without criteria has no nDCG@10 and shared@5 and is left out of their means. If no query or no
    case has criteria, these figures are missing.
    """
    cases, ties = [r.cases for r in rankings], [r.ties for r in rankings]
    columns, shuffled = _columns(cases, ties, queries, archive)
    at_random, _ = _columns(cases, [np.zeros_like(t) for t in ties], queries, archive)
    figures = _figures(columns, queries.groups)
    figures["tied"] = _tied(rankings, queries, archive)
    if shuffled:
        figures["beyond_group"] = {name: _paired(columns[name], column) for name, column in shuffled.items()}
    return figures | {"random_order": _figures(at_random, queries.groups)}


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


def _encode(
    queries: Sequence[Mapping[str, str]], archive: Sequence[Mapping[str, str]]
) -> tuple[Indices, Indices]:
    """Return values as numbers, [Q, C] and [A, C]: equal numbers for equal values.

    A missing value is -1 in a query and -2 in the archive, and so equals no other.
    """
    names = sorted({name for side in (queries, archive) for case in side for name in case})
    numbers: dict[tuple[str, str], int] = {}

    def encode(side: Sequence[Mapping[str, str]], missing: int) -> Indices:
        rows = [
            [numbers.setdefault((n, case[n]), len(numbers)) if n in case else missing for n in names]
            for case in side
        ]
        return np.array(rows, np.int64).reshape(len(side), len(names))

    return encode(queries, -1), encode(archive, -2)


def _columns(
    rankings: Sequence[Indices], ties: Sequence[Indices], queries: Labels, archive: Labels
) -> tuple[Columns, Columns]:
    """Return all figures of each query, and the expectation of nDCG@10 and shared@5 after a shuffle."""
    query_groups, archive_groups = _groups(queries, archive)
    columns: Columns = {name: np.empty(len(rankings)) for name in ("mAP", *(f"Acc@{k}" for k in ACC_AT))}
    for q, (ranking, tied) in enumerate(zip(rankings, ties, strict=True)):
        right = archive_groups[ranking] == query_groups[q]
        columns["mAP"][q] = 100 * average_precision(right, tied)
        for k in ACC_AT:
            columns[f"Acc@{k}"][q] = 100 * found_by(right, tied, k)
    if not any(queries.criteria) or not any(archive.criteria):
        return columns, {}
    measured, shuffled = _similarity_columns(rankings, ties, queries, archive)
    return columns | measured, shuffled


def _similarity_columns(
    rankings: Sequence[Indices], ties: Sequence[Indices], queries: Labels, archive: Labels
) -> tuple[Columns, Columns]:
    """Return nDCG@10 and shared@5 of each query, and their expectation after a shuffle within groups."""
    query_groups, archive_groups = _groups(queries, archive)
    query_criteria, archive_criteria = _encode(queries.criteria, archive.criteria)
    measured, shuffled = ({name: np.full(len(rankings), np.nan) for name in (NDCG, SHARED)} for _ in range(2))
    for q, (ranking, tied) in enumerate(zip(rankings, ties, strict=True)):
        criteria = int((query_criteria[q] >= 0).sum())
        if not criteria:
            continue
        group = archive_groups[ranking]
        shared = (archive_criteria[ranking] == query_criteria[q]).sum(axis=1)
        gain = (group == query_groups[q]) + shared / criteria
        ideal = _dcg(np.sort(gain)[::-1])
        for columns, gains, counts in (
            (measured, gain, shared),
            (shuffled, _group_means(gain, group), _group_means(shared, group)),
        ):
            gains, counts = _group_means(gains, tied), _group_means(counts, tied)
            columns[NDCG][q] = 100 * _dcg(gains) / ideal if ideal else 0.0
            columns[SHARED][q] = counts[:SHARED_AT].mean() if len(counts) else 0.0
    return measured, shuffled


def _tied(rankings: Sequence[Ranking], queries: Labels, archive: Labels) -> int:
    """Return the number of queries for which a right and a wrong hit have equal scores."""
    query_groups, archive_groups = _groups(queries, archive)
    tied = 0
    for ranking, group in zip(rankings, query_groups, strict=True):
        right = _group_means(archive_groups[ranking.cases] == group, ranking.ties)
        if ((right > 0) & (right < 1)).any():
            tied += 1
    return tied


def _groups(queries: Labels, archive: Labels) -> tuple[Indices, Indices]:
    """Return the groups as numbers, [Q] and [A]."""
    codes = _encode([{"group": g} for g in queries.groups], [{"group": g} for g in archive.groups])
    return codes[0][:, 0], codes[1][:, 0]


def _dcg(gains: npt.NDArray[Any]) -> float:
    first = gains[:NDCG_AT]
    return float((first / np.log2(np.arange(2, len(first) + 2))).sum())


def _group_means(values: npt.NDArray[Any], group: Indices) -> npt.NDArray[np.float64]:
    """Return for each case the mean value over its group, the case included."""
    cases = np.bincount(group)
    means: npt.NDArray[np.float64] = (np.bincount(group, values) / np.maximum(cases, 1))[group]
    return means


def _means(columns: Columns, chosen: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the mean of each figure over the chosen queries that have it."""
    values = {name: column[chosen & ~np.isnan(column)] for name, column in columns.items()}
    return {name: float(v.mean()) for name, v in values.items() if len(v)}


def _rounded(figures: Mapping[str, float]) -> dict[str, Any]:
    return {name: round(value, 3) for name, value in figures.items()}


def _paired(measured: npt.NDArray[np.float64], shuffled: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Compare two values of each query. Both are NaN for a query without criteria."""
    valid = ~np.isnan(measured)
    measured, shuffled = measured[valid], shuffled[valid]
    difference = measured - shuffled
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    varies = error > _NOTHING
    return {
        "measured": round(float(measured.mean()), 3),
        "shuffled": round(float(shuffled.mean()), 3),
        "standard_error": round(error, 3) if varies else None,
        "z": round(float(difference.mean()) / error, 3) if varies else None,
    }
