"""The figures of a ranking against scikit-learn's, and against a count of every order of equal scores.

scikit-learn's average precision takes equal scores as one threshold; this package takes the mean over all
their orders. So these tests separate equal scores by tiny offsets, in every order, and average
scikit-learn's figure. Its nDCG is already the mean over the orders.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations, product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from skinret_infer.evaluation.metrics import (
    ACC_AT,
    Labels,
    average_precision,
    found_by,
    rank,
    retrieval_metrics,
)

STEADY = settings(max_examples=50, deadline=None, derandomize=True, database=None)
ROUNDED = 6e-4  # figures have three digits
EXACT = 1e-12

GROUP = st.sampled_from(["mel", "nevus", "bkl"])
CRITERION = st.sampled_from(["absent", "regular", "irregular"])
FINDINGS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["streaks", "pigmentation", "dots_and_globules"], CRITERION)
)
Order = tuple[int, ...]
Search = tuple[Labels, Labels, list[list[int]]]  # queries, archive, the scores of each query


# -- the oracle --


@cache
def precision_by_scikit_learn(relevant: tuple[bool, ...]) -> float:
    """Return the average precision of a list without ties, best first; 0 if no case is right."""
    return average_precision_score(relevant, range(len(relevant), 0, -1)) if any(relevant) else 0.0


@cache
def orders(scores: Sequence[int]) -> list[Order]:
    """Return every order, best first, that tiny offsets can give; all are equally likely."""
    cases = range(len(scores))
    return sorted(
        {
            tuple(sorted(cases, key=lambda n: scores[n] + offsets[n] / 1000, reverse=True))
            for offsets in permutations(cases)
        }
    )


def every_list(count: int) -> Iterator[tuple[list[Order], np.ndarray, np.ndarray]]:
    """Yield every list of `count` cases: the orders of equal scores, which cases are right, their ties."""
    for steps in product([0, 1], repeat=count - 1):
        ties = np.cumsum((0, *steps))
        tie_orders = orders(tuple((-ties).tolist()))
        for relevant in product([False, True], repeat=count):
            yield tie_orders, np.array(relevant), ties


def gains(queries: Labels, archive: Labels, q: int) -> list[float]:
    """Return 1 for each case of the query's group, plus the share of the query's findings that it has."""
    findings = queries.criteria[q]
    return [
        (group == queries.groups[q]) + fmean(case.get(name) == value for name, value in findings.items())
        for group, case in zip(archive.groups, archive.criteria, strict=True)
    ]


@st.composite
def searches(draw: st.DrawFn, *, most: int, scores: int | None = None) -> Search:
    """Draw queries, an archive of at most `most` cases, and scores of `scores` different values.

    scores : None draws no two equal scores for a query.

    Some queries have the id of a case of the archive, which is then no hit.
    """

    def side(ids: list[str]) -> Labels:
        size = {"min_size": len(ids), "max_size": len(ids)}
        return Labels(ids, draw(st.lists(GROUP, **size)), draw(st.lists(FINDINGS, **size)))

    count = draw(st.integers(4, most))
    archive = side([f"c{n:02}" for n in range(count)])
    queries = side([f"{draw(st.sampled_from('cq'))}{n:02}" for n in range(draw(st.integers(1, 3)))])
    row = (
        st.permutations(range(count))
        if scores is None
        else st.lists(st.integers(0, scores - 1), min_size=count, max_size=count)
    )
    return queries, archive, [draw(row) for _ in queries.ids]


def others(queries: Labels, archive: Labels, q: int) -> list[int]:
    return [n for n, case_id in enumerate(archive.ids) if case_id != queries.ids[q]]


def compare(metrics: dict, name: str, values: Sequence[float | None], groups: Sequence[str]) -> None:
    """Compare a figure's mean over all queries, over those of each group, and over the groups."""
    known = [(value, group) for value, group in zip(values, groups, strict=True) if value is not None]
    by_group = {g: fmean(v for v, h in known if h == g) for g in sorted({group for _, group in known})}
    assert {g: f[name] for g, f in metrics["by_group"].items() if name in f} == pytest.approx(
        by_group, abs=ROUNDED
    )
    assert metrics[name] == pytest.approx(fmean(value for value, _ in known), abs=ROUNDED)
    assert metrics["balanced"][name] == pytest.approx(fmean(by_group.values()), abs=ROUNDED)


def measure(queries: Labels, archive: Labels, scores: list[list[int]]) -> dict:
    return retrieval_metrics(rank(np.array(scores), queries, archive), queries, archive)


# -- every list of at most six cases --


@pytest.mark.parametrize("count", range(1, 7))
def test_average_precision_is_the_mean_of_scikit_learns_over_every_order_of_equal_scores(count: int) -> None:
    for tie_orders, relevant, ties in every_list(count):
        right = relevant.tolist()
        expected = fmean(precision_by_scikit_learn(tuple(right[n] for n in order)) for order in tie_orders)
        assert average_precision(relevant, ties) == pytest.approx(expected, abs=EXACT), (right, ties)


@pytest.mark.parametrize("count", range(1, 7))
def test_found_by_is_the_share_of_orders_with_a_right_case_among_the_first_k(count: int) -> None:
    for tie_orders, relevant, ties in every_list(count):
        right = relevant.tolist()
        first = [next((p for p, n in enumerate(order, 1) if right[n]), count + 2) for order in tie_orders]
        for k in range(1, count + 2):
            expected = sum(place <= k for place in first) / len(first)
            assert found_by(relevant, ties, k) == pytest.approx(expected, abs=EXACT), (right, ties, k)


# -- searches --


@STEADY
@given(searches(most=25))
def test_without_equal_scores_map_is_scikit_learns_and_accuracy_is_a_count(search: Search) -> None:
    queries, archive, scores = search
    metrics = measure(*search)
    precision, lists = [], []
    for q, group in enumerate(queries.groups):
        candidates = others(queries, archive, q)
        relevant, row = [archive.groups[n] == group for n in candidates], [scores[q][n] for n in candidates]
        precision.append(100 * average_precision_score(relevant, row) if any(relevant) else 0.0)
        lists.append([relevant[n] for n in np.argsort(row)[::-1]])
    compare(metrics, "mAP", precision, queries.groups)
    for k in ACC_AT:
        compare(metrics, f"Acc@{k}", [100.0 * any(right[:k]) for right in lists], queries.groups)
    assert metrics["tied"] == 0


@STEADY
@given(searches(most=6, scores=3))
def test_with_equal_scores_map_and_accuracy_are_means_over_every_order(search: Search) -> None:
    queries, archive, scores = search
    metrics = measure(*search)
    lists = []
    for q, group in enumerate(queries.groups):
        candidates = others(queries, archive, q)
        row = tuple(scores[q][n] for n in candidates)
        lists.append([tuple(archive.groups[candidates[n]] == group for n in order) for order in orders(row)])
    precision = [100 * fmean(map(precision_by_scikit_learn, of_query)) for of_query in lists]
    compare(metrics, "mAP", precision, queries.groups)
    for k in ACC_AT:
        accuracy = [100 * fmean(any(right[:k]) for right in of_query) for of_query in lists]
        compare(metrics, f"Acc@{k}", accuracy, queries.groups)
    assert metrics["tied"] == sum(len(set(of_query)) > 1 for of_query in lists)


@settings(STEADY, max_examples=120)
@given(st.one_of(searches(most=25), searches(most=25, scores=2), searches(most=25, scores=6)))
def test_ndcg_is_scikit_learns_with_and_without_equal_scores(search: Search) -> None:
    queries, archive, scores = search
    assume(any(queries.criteria) and any(archive.criteria))
    expected: list[float | None] = []
    for q, findings in enumerate(queries.criteria):
        if findings:
            candidates = others(queries, archive, q)
            gain, row = gains(queries, archive, q), scores[q]
            expected.append(
                100 * ndcg_score([[gain[n] for n in candidates]], [[row[n] for n in candidates]], k=10)
            )
        else:
            expected.append(None)
    compare(measure(*search), "nDCG@10", expected, queries.groups)
