"""Ways of writing, on the held-out folds of a cross-validation: what do a clinician's own words keep or lose?

    skinret-train release_v0 --folds 5 --seeds 0 --out results --keep-artifacts ...
    SKINRET_DERM7PT=release_v0 .venv/bin/python -m pytest benchmarks/test_words.py -s --crossval results

The ways are those of ways.toml and ways_unseen.toml. The table is also written to --out, as words.json.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skinret_infer import Searcher
from skinret_infer.evaluation.evaluate import evaluate_parts
from skinret_infer.evaluation.ways import Way, read_ways
from skinret_infer.tables import read_cases

ARCHIVES = {"training folds": "archive_ids", "held-out fold": "query_ids"}
WITHOUT_FINDINGS = ("chatter alone", "nonsense alone")
FEWER_FINDINGS = ("only what is present", "half of the findings")  # they keep less because they say less
FIGURES = ("mAP", "Acc@1", "shared@5")
MAX_CHANGE = 0.3  # of mAP, by words that carry nothing

pytestmark = [
    pytest.mark.derm7pt,
    pytest.mark.skipif("SKINRET_DERM7PT" not in os.environ, reason="SKINRET_DERM7PT is not set"),
]
Table = dict[str, dict[str, dict[str, float]]]  # archive, kind of query or way, figure -> mean over the folds


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Table:
    """Measure every fold with every way; print and return the means over the folds."""
    folder = request.config.getoption("--crossval")
    if folder is None:
        pytest.skip("runs only with --crossval DIR, the folder of a cross-validation with --keep-artifacts")
    cases = {case.case_id: case for case in read_cases(os.environ["SKINRET_DERM7PT"]).cases}
    reports: dict[str, list[Mapping[str, Any]]] = {archive: [] for archive in ARCHIVES}
    runs = sorted(Path(folder).glob(".work/*/seed*-fold*/run.json"))
    assert runs, f"no run in {folder}"
    for path in runs:
        run = json.loads(path.read_text("utf-8"))
        with Searcher(
            path.parent / "product" / "bundle", path.parent / "product" / "cases.skinret"
        ) as searcher:
            ways = _ways(searcher)
            parts = {archive: set(run[ids]) for archive, ids in ARCHIVES.items()}
            queries = [cases[case_id] for case_id in run["query_ids"]]
            of_run = evaluate_parts(searcher, queries, parts, ways=ways)
        for archive, report in of_run.items():
            reports[archive].append(report)
    means = {archive: _means(of_archive) for archive, of_archive in reports.items()}
    _print(means, len(runs))
    out = request.config.getoption("--out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "words.json").write_text(json.dumps(means, indent=1) + "\n", "utf-8")
    return means


def _ways(searcher: Searcher) -> list[Way]:
    folder = Path(__file__).parent
    files = (folder / "ways.toml", folder / "ways_unseen.toml")
    return [way for file in files for way in read_ways(file, searcher.manifest.checklist)]


def _means(reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    kinds = ("image_words", "image_only", "words_alone")
    rows = {kind: [report[kind] for report in reports] for kind in kinds}
    rows |= {name: [report["ways"][name] for report in reports] for name in reports[0]["ways"]}
    names = (*FIGURES, "read_precision", "read_recall", "agree", "agree_image")
    means = {
        kind: {n: float(np.mean([row[n] for row in of_kind])) for n in names if of_kind[0].get(n) is not None}
        for kind, of_kind in rows.items()
    }
    gain = means["image_words"]["shared@5"] - means["image_only"]["shared@5"]
    for figures in means.values():
        figures["gain_kept"] = 100 * (figures["shared@5"] - means["image_only"]["shared@5"]) / gain
    return means


def _print(means: Table, folds: int) -> None:
    for archive, rows in means.items():
        print(
            f"\narchive: {archive}, {folds} folds\n{'':36}"
            + "".join(f"{n:>10}" for n in (*FIGURES, "kept %", "read %", "agree"))
        )
        for kind, figures in rows.items():
            agree = f"{figures['agree']:.2f} ({figures['agree_image']:.2f})" if "agree" in figures else ""
            cells = [f"{figures[n]:10.2f}" for n in FIGURES]
            cells += [
                f"{figures['gain_kept']:10.0f}",
                f"{figures.get('read_recall', 100):10.1f}",
                f"{agree:>14}",
            ]
            print(f"{kind:36}" + "".join(cells))


@pytest.mark.parametrize("archive", ARCHIVES)
def test_every_way_of_writing_keeps_nine_tenths_of_what_the_canonical_words_gain(
    table: Table, archive: str
) -> None:
    others = {"image_words", "image_only", "words_alone", "contradicted", *WITHOUT_FINDINGS, *FEWER_FINDINGS}
    kept = {kind: figures["gain_kept"] for kind, figures in table[archive].items() if kind not in others}
    assert min(kept.values()) >= 90, kept


@pytest.mark.parametrize("archive", ARCHIVES)
def test_no_way_of_writing_is_worse_than_the_image_alone(table: Table, archive: str) -> None:
    image = table[archive]["image_only"]
    for kind, figures in table[archive].items():
        if kind not in ("words_alone", "contradicted"):
            slack = MAX_CHANGE if kind in WITHOUT_FINDINGS else 0.0
            assert figures["mAP"] >= image["mAP"] - slack, kind
            assert figures["shared@5"] >= image["shared@5"] - slack / 10, kind


@pytest.mark.parametrize("archive", ARCHIVES)
def test_words_that_carry_nothing_change_nothing(table: Table, archive: str) -> None:
    for kind in WITHOUT_FINDINGS:
        assert abs(table[archive][kind]["mAP"] - table[archive]["image_only"]["mAP"]) <= MAX_CHANGE


@pytest.mark.parametrize("archive", ARCHIVES)
def test_contradicting_words_move_the_hits_towards_what_they_say(table: Table, archive: str) -> None:
    figures = table[archive]["contradicted"]
    assert figures["agree"] > figures["agree_image"]
