"""The figures of a ranking: each against a count by hand, and what must hold for any ranking."""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from skinret_infer import Case, InputError
from skinret_infer.evaluation.evaluate import table
from skinret_infer.evaluation.metrics import (
    Labels,
    Ranking,
    average_precision,
    own_cases,
    rank,
    retrieval_metrics,
)
from skinret_infer.words.checklist import Checklist

CRITERIA = Checklist.seven_point().from_image

IMAGE = b""  # never opened here


def labels(*cases: tuple[str, str, Mapping[str, str]]) -> Labels:
    ids, groups, criteria = zip(*cases, strict=True)
    return Labels(ids, groups, criteria)


def random_labels(count: int, prefix: str, seed: int, criteria: Sequence[str] = CRITERIA) -> Labels:
    """Cases of three groups of uneven size; three in ten of their criteria follow the group."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(["mel", "nevus", "bkl"], count, p=[0.3, 0.6, 0.1]).tolist()
    values = [
        {name: str(rng.integers(3)) if rng.random() < 0.7 else group for name in criteria} for group in groups
    ]
    return Labels([f"{prefix}{n:04}" for n in range(count)], groups, values)


def pick(cases: Labels, order: Sequence[int]) -> Labels:
    return Labels(*([column[n] for n in order] for column in (cases.ids, cases.groups, cases.criteria)))


def rankings(*orders: Sequence[int]) -> list[Ranking]:
    """Rankings in which no two scores are equal."""
    return [Ranking(np.array(order, np.int64), -np.arange(len(order))) for order in orders]


def gain_matrix(queries: Labels, archive: Labels) -> np.ndarray:
    """The gain of each case for each query, by its definition."""
    return np.array(
        [
            [
                (g == h) + sum(d.get(name) == value for name, value in c.items()) / len(c)
                for h, d in zip(archive.groups, archive.criteria, strict=True)
            ]
            for g, c in zip(queries.groups, queries.criteria, strict=True)
        ],
        np.float32,
    )


ARCHIVE = labels(
    ("a", "mel", {"streaks": "irregular", "blue_whitish_veil": "present"}),
    ("b", "nevus", {"streaks": "irregular", "blue_whitish_veil": "absent"}),
    ("c", "mel", {"streaks": "absent"}),
    ("d", "nevus", {}),
)
QUERY = labels(("q", "mel", {"streaks": "irregular", "blue_whitish_veil": "present"}))


# -- by hand --


def test_average_precision_is_the_mean_precision_at_the_relevant_ranks() -> None:
    assert average_precision(np.array([True, False, True])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([False, False])) == average_precision(np.array([], bool)) == 0


def test_every_figure_of_one_query_is_as_counted_by_hand() -> None:
    metrics = retrieval_metrics(rankings([1, 2, 0, 3]), QUERY, ARCHIVE)  # b, c, a, d
    # right: no, yes, yes, no; agreeing criteria: 1, 0, 2, 0 of 2; gains: 0.5, 1, 2, 0
    dcg = 0.5 / math.log2(2) + 1 / math.log2(3) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 0.5 / math.log2(4)
    # means within mel: gain 1.5, 1 criterion; within nevus: 0.25 and 0.5; the order is n, m, m, n
    by_chance = 0.25 / math.log2(2) + 1.5 / math.log2(3) + 1.5 / math.log2(4) + 0.25 / math.log2(5)
    figures = {
        "mAP": round(100 * (1 / 2 + 2 / 3) / 2, 3),
        "Acc@1": 0.0,
        "Acc@2": 100.0,
        "Acc@4": 100.0,
        "Acc@5": 100.0,
        "Acc@10": 100.0,
        "nDCG@10": round(100 * dcg / ideal, 3),
        "shared@5": 0.75,
    }
    assert metrics.pop("random_order").keys() == figures.keys() | {"queries", "by_group", "balanced"}
    assert metrics == figures | {
        "queries": 1,
        "tied": 0,
        "by_group": {"mel": figures | {"queries": 1}},
        "balanced": figures,
        "beyond_group": {
            "nDCG@10": {
                "measured": figures["nDCG@10"],
                "shuffled": round(100 * by_chance / ideal, 3),
                "standard_error": None,
                "z": None,
            },
            "shared@5": {"measured": 0.75, "shuffled": 0.75, "standard_error": None, "z": None},
        },
    }


def test_each_group_has_its_figures_and_balanced_counts_each_group_once() -> None:
    streaks = {"streaks": "irregular"}
    queries = labels(("p", "mel", streaks), ("q", "mel", streaks), ("r", "nevus", streaks))
    metrics = retrieval_metrics(rankings([0, 1, 2, 3], [1, 0, 2, 3], [0, 2, 1, 3]), queries, ARCHIVE)
    assert metrics["queries"] == 3
    assert {g: f["queries"] for g, f in metrics["by_group"].items()} == {"mel": 2, "nevus": 1}
    assert [metrics["by_group"][g]["Acc@1"] for g in ("mel", "nevus")] == [50.0, 0.0]
    assert (metrics["Acc@1"], metrics["balanced"]["Acc@1"]) == (33.333, 25.0)
    mel = 50 * ((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2)
    nevus = 100 * (1 / 3 + 2 / 4) / 2
    assert metrics["by_group"]["mel"]["mAP"] == pytest.approx(mel, abs=1e-3)
    assert metrics["mAP"] == pytest.approx((2 * mel + nevus) / 3, abs=1e-3)
    assert metrics["balanced"]["mAP"] == pytest.approx((mel + nevus) / 2, abs=1e-3)
    assert "queries" not in metrics["balanced"]


def test_the_differences_to_chance_are_paired() -> None:
    archive = labels(
        *((f"a{n}", "mel", {"streaks": "irregular"}) for n in range(5)),
        *((f"b{n}", "mel", {"streaks": "absent"}) for n in range(5)),
    )
    queries = labels(*((i, "mel", {"streaks": "irregular"}) for i in "pqr"))
    first, last = list(range(10)), list(range(9, -1, -1))
    metrics = retrieval_metrics(rankings(first, first, last), queries, archive)
    # measured 1, 1, 0; by chance 0.5 each: differences 0.5, 0.5, -0.5 with a standard deviation of 0.577
    error = math.sqrt(1 / 3) / math.sqrt(3)
    assert metrics["beyond_group"]["shared@5"] == {
        "measured": 0.667,
        "shuffled": 0.5,
        "standard_error": round(error, 3),
        "z": round(1 / 6 / error, 3),
    }


def test_chance_never_draws_the_query_itself() -> None:
    irregular = {"streaks": "irregular"}
    archive = labels(("q", "mel", irregular), ("a", "mel", {"streaks": "absent"}), ("b", "mel", irregular))
    queries = labels(("q", "mel", irregular), ("b", "mel", irregular))
    figure = retrieval_metrics(rankings([2, 1], [0, 1]), queries, archive)["beyond_group"]["shared@5"]
    assert (figure["measured"], figure["shuffled"]) == (0.5, 0.5)


def test_only_the_first_ten_and_the_first_five_count() -> None:
    archive = labels(*((f"{n:02}", "nevus", {"streaks": "absent"}) for n in range(20)), ("x", "mel", {}))
    query = labels(("q", "mel", {"streaks": "irregular"}))
    late = retrieval_metrics(rankings([*range(10), 20, *range(10, 20)]), query, archive)
    assert (late["nDCG@10"], late["Acc@10"], late["shared@5"]) == (0, 0, 0)
    tenth = retrieval_metrics(rankings([*range(9), 20, *range(9, 20)]), query, archive)
    assert tenth["nDCG@10"] == round(100 / math.log2(11), 3)
    assert (tenth["Acc@5"], tenth["Acc@10"]) == (0, 100)


# -- missing criteria --


def test_a_missing_criterion_agrees_with_nothing() -> None:
    query = labels(("q", "mel", {"streaks": "absent"}))
    archive = labels(
        ("a", "mel", {}), ("b", "mel", {"pigmentation": "absent"}), ("c", "mel", {"streaks": "absent"})
    )
    metrics = retrieval_metrics(rankings([0, 1, 2]), query, archive)
    assert metrics["shared@5"] == round(1 / 3, 3)


@pytest.mark.parametrize("without", ["queries", "archive", "both"])
def test_without_criteria_their_figures_are_missing(without: str) -> None:
    bare = [Labels(side.ids, side.groups, [{}] * len(side.ids)) for side in (QUERY, ARCHIVE)]
    queries = QUERY if without == "archive" else bare[0]
    archive = ARCHIVE if without == "queries" else bare[1]
    metrics = retrieval_metrics(rankings([0, 1, 2, 3]), queries, archive)
    accuracies = [f"Acc@{k}" for k in (1, 2, 4, 5, 10)]
    assert set(metrics) == {"mAP", *accuracies, "queries", "tied", "by_group", "balanced", "random_order"}
    assert not {"nDCG@10", "shared@5"} & (metrics["balanced"].keys() | metrics["by_group"]["mel"].keys())


def test_a_query_without_criteria_is_left_out_of_their_figures_only() -> None:
    queries = labels(("q", "mel", QUERY.criteria[0]), ("r", "nevus", {}))
    metrics = retrieval_metrics(rankings([1, 2, 0, 3], [1, 3, 0, 2]), queries, ARCHIVE)
    alone = retrieval_metrics(rankings([1, 2, 0, 3]), QUERY, ARCHIVE)
    for name in ("nDCG@10", "shared@5"):
        assert metrics[name] == alone[name] == metrics["balanced"][name]
        assert name not in metrics["by_group"]["nevus"]
    assert metrics["beyond_group"] == alone["beyond_group"]
    assert metrics["queries"] == 2 and metrics["by_group"]["nevus"]["mAP"] == 100


def test_a_query_finds_nothing_in_an_archive_of_itself_alone() -> None:
    archive = labels(("q", "mel", QUERY.criteria[0]))
    metrics = retrieval_metrics(rankings([]), QUERY, archive)
    assert metrics["mAP"] == metrics["Acc@10"] == metrics["nDCG@10"] == metrics["shared@5"] == 0


def test_labels_hold_the_seven_criteria_of_a_case_and_no_other_attribute() -> None:
    attributes = {"streaks": "irregular", "pigmentation": "", "elevation": "flat", "sex": "male", "age": 40}
    result = Labels.of(
        [
            Case("1", IMAGE, diagnosis="melanoma", attributes=attributes, group="mel"),
            Case("2", IMAGE, diagnosis="nevus"),
        ],
        CRITERIA,
    )
    assert (result.ids, result.groups) == (["1", "2"], ["mel", "nevus"])
    assert result.criteria == [{"streaks": "irregular"}, {}]
    assert len(CRITERIA) == 7 and CRITERIA[-1] == "vascular_structures"


# -- ranks --


def test_ties_are_ranked_by_case_id_and_a_query_never_finds_itself() -> None:
    archive = labels(("b", "mel", {}), ("10", "mel", {}), ("a", "mel", {}), ("9", "mel", {}))
    queries = labels(("x", "mel", {}), ("a", "mel", {}))
    scores = np.array([[1, 1, 1, 2], [1, 1, 3, 1]], np.float32)
    assert [r.cases.tolist() for r in rank(scores, queries, archive)] == [[3, 1, 2, 0], [1, 3, 0]]
    many = Labels([f"{n * 37 % 100:03}" for n in range(100)], ["mel"] * 100, [{}] * 100)
    tied = np.tile(np.repeat([1, 0], 50).astype(np.float32), (2, 1))
    for order in rank(tied, queries, many):
        assert order.cases.tolist() == sorted(range(100), key=lambda n: (n >= 50, many.ids[n]))


# -- equal scores --


def by_diagnosis(**sizes: int) -> Labels:
    """Cases whose ids are sorted by their group."""
    groups = [group for group, size in sizes.items() for _ in range(size)]
    return Labels([f"{n:04}" for n in range(len(groups))], groups, [{}] * len(groups))


DERM7PT = {"nevus": 575, "mel": 252, "bkl": 61}


def test_a_constant_score_has_the_figures_of_chance_though_ids_are_sorted_by_diagnosis() -> None:
    archive = by_diagnosis(**DERM7PT)
    metrics = retrieval_metrics(rank(np.zeros((888, 888), np.float32), archive, archive), archive, archive)
    harmonic, expected = sum(1 / i for i in range(1, 888)), dict[str, dict[str, float]]()
    for group, size in DERM7PT.items():
        right, n = size - 1, 887  # without the query itself
        share = (right - 1) / (n - 1)
        expected[group] = {"mAP": 100 * (share + (1 - share) * harmonic / n)} | {
            f"Acc@{k}": 100 * (1 - math.comb(n - right, k) / math.comb(n, k)) for k in (1, 2, 4, 5, 10)
        }
    for name in expected["mel"]:
        mean = sum(size * expected[group][name] for group, size in DERM7PT.items()) / 888
        assert metrics[name] == pytest.approx(mean, abs=1e-3)
        for group in DERM7PT:
            assert metrics["by_group"][group][name] == pytest.approx(expected[group][name], abs=1e-3)
    assert [round(metrics[name], 1) for name in ("mAP", "Acc@1", "Acc@2", "Acc@4")] == [
        50.8,
        50.4,
        71.4,
        86.3,
    ]
    assert [round(metrics["balanced"][name], 1) for name in ("mAP", "Acc@1")] == [33.7, 33.3]
    assert metrics["tied"] == 888
    # the figures of the order of ids:
    by_id = retrieval_metrics(rankings(*(np.delete(np.arange(888), n) for n in range(888))), archive, archive)
    assert by_id["mAP"] > 65 and by_id["tied"] == 0


@settings(deadline=None, max_examples=40)
@given(
    scores=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    groups=st.lists(st.sampled_from(["mel", "nevus"]), min_size=6, max_size=6),
    streaks=st.lists(st.sampled_from(["absent", "regular", None]), min_size=6, max_size=6),
)
def test_a_figure_is_its_mean_over_all_orders_of_equal_scores(
    scores: list[int], groups: list[str], streaks: list[str | None]
) -> None:
    archive = labels(
        *(
            (str(n), group, {"streaks": value} if value else {})
            for n, (_, group, value) in enumerate(zip(scores, groups, streaks, strict=False))
        )
    )
    query = labels(("q", "mel", {"streaks": "regular"}))
    metrics = retrieval_metrics(rank(np.array([scores]), query, archive), query, archive)
    orders = [
        order
        for order in permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    results = [retrieval_metrics(rankings(order), query, archive) for order in orders]

    def figures(result: dict[str, Any]) -> dict[str, float]:
        beyond = {f"{n} beyond": f["shuffled"] for n, f in result.get("beyond_group", {}).items()}
        return {name: value for name, value in (result | beyond).items() if isinstance(value, float)}

    for name, value in figures(metrics).items():
        assert value == pytest.approx(np.mean([figures(result)[name] for result in results]), abs=2e-3), name
    rightness = [[archive.groups[n] == "mel" for n in order] for order in orders]
    assert metrics["tied"] == int(any(row != rightness[0] for row in rightness))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(4, 40), scores=st.integers(1, 5))
def test_no_figure_depends_on_the_case_ids(seed: int, count: int, scores: int) -> None:
    rng = np.random.default_rng(seed)
    archive, queries = random_labels(count, "c", seed), random_labels(4, "q", seed + 1)
    values = rng.integers(scores, size=(4, count)).astype(np.float32)
    by_label = np.argsort(np.array(archive.groups), kind="stable")
    names = np.empty(count, object)
    names[by_label] = [f"{n:04}" for n in range(count)]
    renamed = Labels(names.tolist(), archive.groups, archive.criteria)
    metrics, again = (
        retrieval_metrics(rank(values, queries, side), queries, side) for side in (archive, renamed)
    )
    for before, after in ((metrics, again), (metrics["balanced"], again["balanced"])):
        assert before.keys() == after.keys()
        for name, value in before.items():
            if isinstance(value, float):
                assert after[name] == pytest.approx(value, abs=2e-3)
    assert metrics["tied"] == again["tied"]


def test_the_figures_of_random_order_are_those_of_a_constant_score() -> None:
    queries, archive = random_labels(20, "q", 1), random_labels(60, "c", 2)
    constant = retrieval_metrics(rank(np.ones((20, 60)), queries, archive), queries, archive)
    metrics = retrieval_metrics(rank(gain_matrix(queries, archive), queries, archive), queries, archive)
    random = metrics["random_order"]
    assert all(constant[name] == value for name, value in random.items())
    assert random["mAP"] < metrics["mAP"] and random["shared@5"] < metrics["shared@5"]


def test_figures_of_distinct_scores_are_those_of_scikit_learn() -> None:
    queries, archive = random_labels(12, "q", 1), random_labels(80, "c", 2)
    scores = np.random.default_rng(3).random((12, 80))
    metrics = retrieval_metrics(rank(scores, queries, archive), queries, archive)
    right = np.array(queries.groups)[:, None] == np.array(archive.groups)
    precision = [average_precision_score(r, s) for r, s in zip(right, scores, strict=True)]
    assert metrics["mAP"] == pytest.approx(100 * np.mean(precision), abs=1e-3)
    assert metrics["nDCG@10"] == pytest.approx(
        100 * ndcg_score(gain_matrix(queries, archive), scores, k=10), abs=1e-3
    )


def test_ndcg_of_equal_scores_is_that_of_scikit_learn() -> None:
    queries, archive = random_labels(12, "q", 1), random_labels(80, "c", 2)
    scores = np.random.default_rng(3).integers(6, size=(12, 80))
    metrics = retrieval_metrics(rank(scores, queries, archive), queries, archive)
    expected = ndcg_score(gain_matrix(queries, archive), scores, k=10)  # averages over ties too
    assert metrics["nDCG@10"] == pytest.approx(100 * expected, abs=1e-3)


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "float16", "float64"])
def test_scores_of_any_type_rank_the_greatest_first(kind: str) -> None:
    archive = labels(("a", "mel", {}), ("b", "nevus", {}), ("c", "mel", {}))
    query = labels(("q", "mel", {}))
    (ranking,) = rank(np.array([[0, 1, 0]]).astype(kind), query, archive)
    assert ranking.cases.tolist() == [1, 0, 2] and ranking.ties.tolist() == [0, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = np.array([[0.5, bad, 0.1, 0.2]], np.float32)
    with pytest.raises(InputError, match=f"no ranking; expected finite numbers; found {bad}") as caught:
        rank(scores, QUERY, ARCHIVE)
    assert caught.value.code == "scores"


def test_scores_of_another_shape_or_order_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected one of each query with each case, \(1, 4\); found"):
        rank(np.zeros((1, 3)), QUERY, ARCHIVE)
    with pytest.raises(InputError, match="the best score first"):
        Ranking(np.arange(3), np.array([1.0, 0.0, 2.0]))
    with pytest.raises(InputError, match="a score for each case; found 2 for 3"):
        Ranking(np.arange(3), np.array([1.0, 0.0]))


def test_a_querys_own_picture_under_another_id_is_no_hit() -> None:
    archive = Labels(["q", "twin", "a", "b"], ["mel", "mel", "mel", "nevus"], [{}] * 4, ["p", "p", "r", ""])
    queries = Labels(["q", "x"], ["mel", "mel"], [{}] * 2, ["p", ""])
    first, second = rank(np.array([[4, 3, 2, 1], [4, 3, 2, 1]]), queries, archive)
    assert first.cases.tolist() == [2, 3] and second.cases.tolist() == [0, 1, 2, 3]
    assert own_cases(queries, archive) == {"same_picture": 1, "same_lesion": 0}
    assert own_cases(QUERY, ARCHIVE) == {"same_picture": 0, "same_lesion": 0}  # nothing is known


def test_another_picture_of_the_querys_lesion_is_no_hit() -> None:
    cases = [
        Case(i, IMAGE, diagnosis="nevus", attributes={"lesion_id": n} if n else {})
        for i, n in (("q", "A"), ("again", "A"), ("twin", "A"), ("other", "B"), ("unknown", ""))
    ]
    archive = Labels.of(cases, (), ["p", "r", "p", "s", "t"])
    queries = Labels.of([cases[0], cases[4]], (), ["p", "t"])
    first, second = rank(np.array([[5, 4, 3, 2, 1]] * 2), queries, archive)
    assert first.cases.tolist() == [3, 4] and second.cases.tolist() == [0, 1, 2, 3]
    assert own_cases(queries, archive) == {"same_picture": 1, "same_lesion": 1}  # twin, again


# -- any ranking --


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(4, 40))
def test_the_order_of_the_archive_changes_nothing(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    archive = random_labels(count, "c", seed)
    queries = pick(archive, range(0, count, 2))
    scores = rng.integers(4, size=(len(queries.ids), count)).astype(np.float32)  # full of ties
    order = rng.permutation(count)
    moved = pick(archive, order)
    expected = retrieval_metrics(rank(scores, queries, archive), queries, archive)
    assert retrieval_metrics(rank(scores[:, order], queries, moved), queries, moved) == expected


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(4, 40))
def test_figures_stay_within_their_bounds_and_the_best_order_has_the_best_ndcg(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    queries, archive = random_labels(6, "q", seed + 1), random_labels(count, "c", seed)
    gains = gain_matrix(queries, archive)
    any_order = retrieval_metrics(
        rank(rng.random(gains.shape, np.float32), queries, archive), queries, archive
    )
    for figures in (any_order, any_order["balanced"], *any_order["by_group"].values()):
        assert all(0 <= figures[k] <= 100 for k in ("mAP", "Acc@1", "Acc@10", "nDCG@10"))
        assert 0 <= figures["shared@5"] <= 7
        assert figures["Acc@1"] <= figures["Acc@2"] <= figures["Acc@5"] <= figures["Acc@10"]
    best = retrieval_metrics(rank(gains, queries, archive), queries, archive)
    findable = gains.any(axis=1)  # if no case has a gain, the figure is 0
    assert best["nDCG@10"] == best["beyond_group"]["nDCG@10"]["measured"] == round(100 * findable.mean(), 3)


def test_every_figure_of_a_perfect_ranking_is_100() -> None:
    archive = random_labels(90, "c", 3)
    gains = gain_matrix(archive, archive)
    right = np.array(archive.groups)[:, None] == np.array(archive.groups)
    metrics = retrieval_metrics(rank(gains + 2 * right, archive, archive), archive, archive)
    assert all(metrics[name] == 100 for name in ("mAP", "Acc@1", "Acc@2", "Acc@4", "Acc@5", "Acc@10"))
    best = retrieval_metrics(rank(gains, archive, archive), archive, archive)
    assert best["nDCG@10"] == best["balanced"]["nDCG@10"] == 100
    assert best["beyond_group"]["shared@5"]["z"] > 10


def test_a_ranking_by_group_alone_is_no_better_than_chance_within_groups() -> None:
    rng = np.random.default_rng(5)
    queries, archive = random_labels(300, "q", 1), random_labels(300, "c", 2)
    right = np.array(queries.groups)[:, None] == np.array(archive.groups)
    by_group = rank((right + 0.9 * rng.random(right.shape)).astype(np.float32), queries, archive)
    metrics = retrieval_metrics(by_group, queries, archive)
    assert metrics["mAP"] == 100
    for name in ("nDCG@10", "shared@5"):
        assert abs(metrics["beyond_group"][name]["z"]) < 2.5


def test_chance_is_the_mean_of_many_shuffles_within_the_groups() -> None:
    rng = np.random.default_rng(7)
    queries, archive = random_labels(20, "q", 1), random_labels(60, "c", 2)
    scores = gain_matrix(queries, archive) + 1e-3 * rng.random((20, 60), np.float32)  # no two are equal
    ranking = rank(scores, queries, archive)
    groups = np.array(archive.groups)

    def shuffle(order: Any) -> Any:
        mixed = order.copy()
        for group in set(archive.groups):
            members = groups[order] == group
            mixed[members] = rng.permutation(order[members])
        return mixed

    by_chance = [
        retrieval_metrics(rankings(*(shuffle(r.cases) for r in ranking)), queries, archive)
        for _ in range(200)
    ]
    expected = retrieval_metrics(ranking, queries, archive)["beyond_group"]
    for name, tolerance in (("nDCG@10", 0.4), ("shared@5", 0.03)):
        assert np.mean([f[name] for f in by_chance]) == pytest.approx(
            expected[name]["shuffled"], abs=tolerance
        )


def test_with_one_group_every_hit_is_right_and_balanced_is_the_mean() -> None:
    cases = random_labels(30, "c", 4)
    archive = Labels(cases.ids, ["nevus"] * 30, cases.criteria)
    metrics = retrieval_metrics(rank(gain_matrix(archive, archive), archive, archive), archive, archive)
    figures = {k: v for k, v in metrics.items() if isinstance(v, float)}
    assert metrics["mAP"] == metrics["Acc@1"] == 100
    assert metrics["balanced"] == figures
    assert metrics["by_group"] == {"nevus": figures | {"queries": 30}}


def test_metrics_of_all_of_derm7pt_take_less_than_three_seconds() -> None:
    archive = random_labels(888, "c", 0)
    scores = np.random.default_rng(0).random((888, 888), np.float32)
    began = time.process_time()
    retrieval_metrics(rank(scores, archive, archive), archive, archive)
    assert time.process_time() - began < 3  # a fraction of a second on a quiet machine


# -- the table --


def test_the_table_shows_the_figures_of_the_report_and_no_others() -> None:
    def report(figures: dict[str, Any]) -> str:
        facts = {"queries": 1, "archive": 4, "runtime": "openvino", "precision": "bf16"}
        return table(facts | {"image_words": figures, "image_only": figures})

    archive = random_labels(90, "c", 3)
    lines = report(
        retrieval_metrics(rank(gain_matrix(archive, archive), archive, archive), archive, archive)
    ).splitlines()
    assert all(len(line) <= 110 for line in lines)
    assert lines[1].split() == ["mAP", "Acc@1", "Acc@2", "Acc@4", "Acc@5", "Acc@10", "nDCG@10", "shared@5"]
    assert len({len(line) for line in lines[1:7]}) == 1  # the columns are aligned
    assert lines[2].startswith("image words, balanced ") and lines[2].split()[-2] == "100.0"
    assert lines[3].startswith("  all (90) ") and lines[4].startswith("  bkl (")
    assert lines[7].startswith("  shared criteria of the first five: ")
    assert lines[7].endswith(" standard errors)")
    bare = Labels(archive.ids, archive.groups, [{}] * 90)
    without = report(
        retrieval_metrics(rankings(*(np.delete(np.arange(90), n) for n in range(90))), bare, bare)
    )
    assert "shared" not in without and "nDCG" not in without and "balanced" in without
    partly = labels(("q", "mel", QUERY.criteria[0]), ("r", "nevus", {}))
    shown = report(retrieval_metrics(rankings([1, 2, 0, 3], [1, 3, 0, 2]), partly, ARCHIVE)).splitlines()
    assert shown[5].split()[-2:] == ["-", "-"]


def test_the_table_shows_a_random_order_and_counts_queries_with_equal_scores() -> None:
    archive = by_diagnosis(**DERM7PT)
    metrics = retrieval_metrics(rank(np.zeros((888, 888)), archive, archive), archive, archive)
    facts = {"queries": 888, "archive": 888, "runtime": "openvino", "precision": "bf16", "same_picture": 3}
    lines = table(facts | {"image_words": metrics, "image_only": metrics}).splitlines()
    (at_random,) = (n for n, line in enumerate(lines) if line.startswith("random order, balanced "))
    assert lines[at_random].split()[3:5] == ["33.7", "33.3"]
    assert lines[at_random + 1].split() == ["all", "(888)", "50.8", "50.4", "71.4", "86.3", "89.5", "95.6"]
    assert "  in 888 queries a right and a wrong hit have equal scores: means over their orders" in lines
    assert lines[-1] == "left out: 3 hits with the query's own picture under another case id"
