"""Evaluation through the product: its figures are those of the ranks of single queries."""

from pathlib import Path

import numpy as np
import pytest

from skinret_infer import Case, InputError, Searcher
from skinret_infer.evaluation.evaluate import evaluate, evaluate_parts, table
from skinret_infer.evaluation.metrics import Labels, Ranking, retrieval_metrics
from skinret_infer.words.checklist import Checklist

CRITERIA = Checklist.seven_point().from_image


def test_figures_are_those_of_single_queries(searcher: Searcher, cases: list[Case]) -> None:
    queries, archive = cases[34:46], cases[:40]  # six of the queries are in the archive
    ids = [case.case_id for case in archive]
    report = evaluate(searcher, queries)
    assert (report["queries"], report["archive"]) == (12, 40)
    for kind in ("image_words", "image_only"):
        rankings = []
        for case in queries:
            words = searcher.manifest.checklist.text_of(case.attributes) if kind == "image_words" else None
            hits = searcher.query(case.image, words, k=40, exclude=[case.case_id])
            order = np.array([ids.index(hit.case_id) for hit in hits])
            rankings.append(Ranking(order, np.array([hit.score for hit in hits])))
        assert {len(ranking) for ranking in rankings} == {39, 40}
        expected = retrieval_metrics(rankings, Labels.of(queries, CRITERIA), Labels.of(archive, CRITERIA))
        for name in ("mAP", "Acc@1", "nDCG@10", "shared@5"):  # a batch rounds differently
            assert report[kind][name] == pytest.approx(expected[name], abs=0.2)


def test_cases_without_criteria_are_measured_by_group_only(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    plain = [
        Case(c.case_id, c.image, diagnosis=c.diagnosis, attributes={"camera": "X"}, group=c.group)
        for c in cases[:9]
    ]
    with Searcher(bundle, tmp_path / "cases.skinret") as searcher:
        searcher.add(plain)
        report = evaluate(searcher, plain)
    assert "mAP" in report["image_only"] and "nDCG@10" not in report["image_only"]
    assert "beyond_group" not in report["image_words"]


def test_a_part_of_an_archive_is_measured_like_a_separate_archive(
    bundle: Path, searcher: Searcher, cases: list[Case], tmp_path: Path
) -> None:
    queries = cases[26:38]
    parts = {"first": {c.case_id for c in cases[:30]}, "last": {c.case_id for c in cases[30:40]}, "all": None}
    reports = evaluate_parts(searcher, queries, parts)
    assert {name: report["archive"] for name, report in reports.items()} == {
        "first": 30,
        "last": 10,
        "all": 40,
    }
    assert reports["all"] == evaluate(searcher, queries)
    with Searcher(bundle, tmp_path / "cases.skinret") as alone:
        alone.add(cases[:30])
        expected = evaluate(alone, queries)
    for kind in ("image_words", "image_only"):
        for name in ("mAP", "Acc@1", "nDCG@10", "shared@5"):
            assert reports["first"][kind][name] == pytest.approx(expected[kind][name], abs=0.2)


def test_cases_with_equal_scores_have_the_figures_of_a_random_order(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    """Ten cases have the same picture, and ids sorted by group."""
    groups = ["mel"] * 3 + ["nevus"] * 7
    equal = [
        Case(f"{n}", cases[0].image, diagnosis="", attributes=cases[0].attributes, group=group)
        for n, group in enumerate(groups)
    ]
    queries = [
        Case(f"q{n}", c.image, diagnosis="", attributes=c.attributes, group="nevus")
        for n, c in enumerate(cases[1:5])
    ]
    with Searcher(bundle, tmp_path / "cases.skinret") as searcher:
        searcher.add(equal)
        report = evaluate(searcher, queries)
    for kind in ("image_words", "image_only"):
        figures = report[kind]
        assert (figures["tied"], figures["Acc@1"], figures["Acc@2"]) == (4, 70.0, 93.333)
        assert all(figures[name] == value for name, value in figures["random_order"].items())
    assert "random order" in table(report)


def test_the_parts_of_the_score_rank_alone_as_they_do_with_gamma_0_and_1(
    searcher: Searcher, cases: list[Case]
) -> None:
    queries = cases[30:42]
    report = evaluate(searcher, queries)
    for part, gamma in (("visual_alone", 0.0), ("concepts_alone", 1.0)):
        expected = evaluate(searcher, queries, gamma=gamma)
        for kind in ("image_words", "image_only"):
            assert report[kind][part]["mAP"] != report[kind]["mAP"]
            for name in ("mAP", "Acc@1", "nDCG@10", "shared@5"):  # sums in another order round differently
                assert report[kind][part][name] == pytest.approx(expected[kind][name], abs=0.2)
            assert report[kind][part]["balanced"]["mAP"] == pytest.approx(
                expected[kind]["balanced"]["mAP"], abs=0.2
            )
    shown = table(report)
    assert shown.count("S alone, balanced") == shown.count("concepts alone, balanced") == 2


def test_a_model_without_concepts_has_no_parts(
    bundle_without_concepts: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle_without_concepts, tmp_path / "cases.skinret") as searcher:
        searcher.add(cases[:9])
        report = evaluate(searcher, cases[:4])
    assert "visual_alone" not in report["image_only"] and "S alone" not in table(report)


def test_a_query_does_not_find_its_own_picture_under_another_id(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    twin = Case(
        "twin",
        cases[0].image,
        diagnosis=cases[0].diagnosis,
        attributes=cases[0].attributes,
        group=cases[0].group,
    )
    with Searcher(bundle, tmp_path / "cases.skinret") as searcher:
        searcher.add(cases[:20])
        alone = evaluate(searcher, cases[:1])
        by_twin = evaluate(searcher, [twin])
        searcher.add([twin])
        both = evaluate(searcher, cases[:1])
    assert [report["same_picture"] for report in (alone, by_twin, both)] == [0, 1, 1]
    for kind in ("image_words", "image_only"):
        assert alone[kind] == by_twin[kind] == both[kind]


def test_an_evaluation_without_cases_is_refused(searcher: Searcher) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(searcher, [])
