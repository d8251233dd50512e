"""The figures of a ranking against scikit-learn's, and against a count of every order of equal scores.

scikit-learn's average precision takes equal scores as one threshold, this package takes the mean over all
their orders. So the equals are set apart by tiny offsets, in every order, and scikit-learn's figure is taken
of each. Its nDCG is the mean over their orders already.
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
    """Return the orders, best first, that tiny offsets in every order give; each comes equally often."""
    cases = range(len(scores))
    return sorted(
        {
            tuple(sorted(cases, key=lambda n: scores[n] + offsets[n] / 1000, reverse=True))
            for offsets in permutations(cases)
        }
    )


def every_list(count: int) -> Iterator[tuple[list[Order], np.ndarray, np.ndarray]]:
    """Give all lists of so many cases: the orders of the equals, which cases are right, their ties."""
    for steps in product([0, 1], repeat=count - 1):
        ties = np.cumsum((0, *steps))
        of_ties = orders(tuple((-ties).tolist()))
        for relevant in product([False, True], repeat=count):
            yield of_ties, np.array(relevant), ties


def gains(queries: Labels, archive: Labels, q: int) -> list[float]:
    """Return 1 for each case of the query's group, plus the part of the query's findings that it shares."""
    asked = queries.criteria[q]
    return [
        (group == queries.groups[q]) + fmean(there.get(name) == value for name, value in asked.items())
        for group, there in zip(archive.groups, archive.criteria, strict=True)
    ]


@st.composite
def searches(draw: st.DrawFn, *, most: int, scores: int | None = None) -> Search:
    """Draw queries, an archive and their scores, from so many values; None: no two of a query are equal.

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


def compare(found: dict, name: str, values: Sequence[float | None], groups: Sequence[str]) -> None:
    """Compare a figure's mean over all queries, over those of each group, and over the groups."""
    has = [(value, group) for value, group in zip(values, groups, strict=True) if value is not None]
    by_group = {g: fmean(v for v, h in has if h == g) for g in sorted({group for _, group in has})}
    assert {g: f[name] for g, f in found["by_group"].items() if name in f} == pytest.approx(
        by_group, abs=ROUNDED
    )
    assert found[name] == pytest.approx(fmean(value for value, _ in has), abs=ROUNDED)
    assert found["balanced"][name] == pytest.approx(fmean(by_group.values()), abs=ROUNDED)


def measured(queries: Labels, archive: Labels, scores: list[list[int]]) -> dict:
    return retrieval_metrics(rank(np.array(scores), queries, archive), queries, archive)


# -- every list of at most six cases --


@pytest.mark.parametrize("count", range(1, 7))
def test_average_precision_is_the_mean_of_scikit_learns_over_every_order_of_equals(count: int) -> None:
    for of_ties, relevant, ties in every_list(count):
        right = relevant.tolist()
        expected = fmean(precision_by_scikit_learn(tuple(right[n] for n in order)) for order in of_ties)
        assert average_precision(relevant, ties) == pytest.approx(expected, abs=EXACT), (right, ties)


@pytest.mark.parametrize("count", range(1, 7))
def test_a_case_is_found_among_the_first_k_in_as_many_orders_as_counted(count: int) -> None:
    for of_ties, relevant, ties in every_list(count):
        right = relevant.tolist()
        first = [next((p for p, n in enumerate(order, 1) if right[n]), count + 2) for order in of_ties]
        for k in range(1, count + 2):
            expected = sum(place <= k for place in first) / len(first)
            assert found_by(relevant, ties, k) == pytest.approx(expected, abs=EXACT), (right, ties, k)


# -- whole searches --


@STEADY
@given(searches(most=25))
def test_without_equal_scores_map_and_accuracy_are_scikit_learns_and_a_count(
    drawn: Search,
) -> None:
    queries, archive, scores = drawn
    found = measured(*drawn)
    precision, listed = [], []
    for q, group in enumerate(queries.groups):
        left = others(queries, archive, q)
        relevant, row = [archive.groups[n] == group for n in left], [scores[q][n] for n in left]
        precision.append(100 * average_precision_score(relevant, row) if any(relevant) else 0.0)
        listed.append([relevant[n] for n in np.argsort(row)[::-1]])
    compare(found, "mAP", precision, queries.groups)
    for k in ACC_AT:
        compare(found, f"Acc@{k}", [100.0 * any(right[:k]) for right in listed], queries.groups)
    assert found["tied"] == 0


@STEADY
@given(searches(most=6, scores=3))
def test_with_equal_scores_map_and_accuracy_are_means_over_every_order(
    drawn: Search,
) -> None:
    queries, archive, scores = drawn
    found = measured(*drawn)
    lists = []
    for q, group in enumerate(queries.groups):
        left = others(queries, archive, q)
        row = tuple(scores[q][n] for n in left)
        lists.append([tuple(archive.groups[left[n]] == group for n in order) for order in orders(row)])
    precision = [100 * fmean(map(precision_by_scikit_learn, each)) for each in lists]
    compare(found, "mAP", precision, queries.groups)
    for k in ACC_AT:
        accuracy = [100 * fmean(any(right[:k]) for right in each) for each in lists]
        compare(found, f"Acc@{k}", accuracy, queries.groups)
    assert found["tied"] == sum(len(set(each)) > 1 for each in lists)


@settings(STEADY, max_examples=120)
@given(st.one_of(searches(most=25), searches(most=25, scores=2), searches(most=25, scores=6)))
def test_ndcg_is_scikit_learns_whether_scores_are_equal_or_not(
    drawn: Search,
) -> None:
    queries, archive, scores = drawn
    assume(any(queries.criteria) and any(archive.criteria))
    expected: list[float | None] = []
    for q, asked in enumerate(queries.criteria):
        if asked:
            left = others(queries, archive, q)
            gain = gains(queries, archive, q)
            expected.append(100 * ndcg_score([[gain[n] for n in left]], [[scores[q][n] for n in left]], k=10))
        else:
            expected.append(None)
    compare(measured(*drawn), "nDCG@10", expected, queries.groups)
