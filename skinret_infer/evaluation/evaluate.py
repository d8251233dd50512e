"""Measure retrieval through the product: every figure comes from a Searcher's rankings."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cases import Case
from ..encoder import BATCH
from ..errors import InputError, printable
from ..results import Hit
from ..searcher import Searcher
from ..text import attributes_to_text
from .metrics import (
    ACC_AT,
    NDCG,
    SHARED,
    Indices,
    Labels,
    Ranking,
    retrieval_metrics,
    same_picture,
    without_own,
)
from .precision import KINDS


def evaluate(
    searcher: Searcher,
    cases: Sequence[Case],
    *,
    beta: float | None = None,
    gamma: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Query with each case, with its words and by its image alone; return how good the hits are.

    Each query ranks the whole archive. The query's own case is left out: the case with its id, and any case
    with the same picture under another id ("same_picture" counts the latter). A hit is right if its group is
    the query's. The words are the case's attributes in the phrases of the bundle's text recipe. For the
    figures of each kind of query, and for equal scores, see `retrieval_metrics`.
    """
    return evaluate_parts(searcher, cases, {"": None}, beta=beta, gamma=gamma, progress=progress)[""]


def evaluate_parts(
    searcher: Searcher,
    cases: Sequence[Case],
    parts: Mapping[str, Collection[str] | None],
    *,
    beta: float | None = None,
    gamma: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate several parts of an archive, each as if it were a separate archive; query only once.

    The search is exact, so the ranking of a part is the full ranking without the other cases.

    parts : for the name of each part, its case ids; None is the whole archive.
    """
    if not cases:
        raise InputError(
            "there is nothing to evaluate", code="table-empty", expected="cases to query with", found="none"
        )
    ranked = _rank_archive(searcher, cases, beta, gamma, progress)
    queries = Labels.of(cases, ranked.pictures)
    reports = {}
    for name, ids in parts.items():
        members = [n for n, hit in enumerate(ranked.archive) if ids is None or hit.case_id in ids]
        index = np.full(len(ranked.archive), -1)
        index[members] = np.arange(len(members))
        hits = [ranked.archive[n] for n in members]
        labels = Labels.of(hits, [hit.image_sha256 for hit in hits])
        figures = {
            kind: retrieval_metrics(
                without_own(_restrict(ranked.rankings[kind], index), queries, labels), queries, labels
            )
            for kind in KINDS
        }
        reports[name] = {
            "queries": len(cases),
            "archive": len(searcher) if ids is None else len(members),
            "same_picture": same_picture(queries, labels),
            "beta": searcher.manifest.beta if beta is None else beta,
            "gamma": searcher.manifest.gamma if gamma is None else gamma,
            "runtime": searcher.runtime,
            "precision": searcher.precision,
            "model": f"{searcher.manifest.model} {searcher.manifest.version}",
            **figures,
        }
    return reports


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The whole archive as every query ranks it.

    pictures : the SHA-256 of each query's picture.
    archive : each case once, as a hit.
    rankings : for each kind of query, one ranking per query. Its indices are those of `archive`.
    """

    pictures: list[str]
    archive: list[Hit]
    rankings: dict[str, list[Ranking]]


def _rank_archive(
    searcher: Searcher,
    cases: Sequence[Case],
    beta: float | None,
    gamma: float | None,
    progress: Callable[[int, int], None] | None,
) -> _Ranked:
    """Query with every case, with its words and by its image alone."""
    ranked = _Ranked([], [], {kind: [] for kind in KINDS})
    numbers: dict[str, int] = {}  # case id -> index in the archive
    size, phrases = len(searcher), searcher.manifest.text.phrases
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        for kind in KINDS:
            texts = [
                attributes_to_text(case.attributes, phrases) if kind == KINDS[0] else "" for case in batch
            ]
            queries = [(case.image, text) for case, text in zip(batch, texts, strict=True)]
            for results in searcher.query_batch(queries, k=max(size, 1), beta=beta, gamma=gamma):
                for hit in results:
                    if hit.case_id not in numbers:
                        numbers[hit.case_id] = len(ranked.archive)
                        ranked.archive.append(hit)
                order = np.array([numbers[hit.case_id] for hit in results], np.int64)
                ranked.rankings[kind].append(Ranking(order, np.array([hit.score for hit in results])))
                if kind == KINDS[0]:
                    ranked.pictures.append(results.hashes["image"])
        if progress:
            progress(start + len(batch), len(cases))
    return ranked


def _restrict(rankings: Sequence[Ranking], index: Indices) -> list[Ranking]:
    """Restrict rankings to a part: `index` holds each case's number in the part, -1 if it has none."""
    numbered = [(index[ranking.cases], ranking.scores) for ranking in rankings]
    return [Ranking(cases[cases >= 0], scores[cases >= 0]) for cases, scores in numbered]


def table(report: dict[str, Any]) -> str:
    """Return the report as text for a person."""
    columns = [n for n in ("mAP", *(f"Acc@{k}" for k in ACC_AT), NDCG, SHARED) if n in report[KINDS[0]]]
    # A random order ignores the query: it is the same for every kind.
    blocks = {kind: report[kind] for kind in KINDS} | {"random_order": report[KINDS[0]]["random_order"]}
    rows = {kind: _rows(kind, figures) for kind, figures in blocks.items()}
    width = max(len(label) for block in rows.values() for label, _ in block) + 2
    lines = [
        f"{report['queries']} queries, archive of {report['archive']} cases, "
        f"{report['runtime']} in {report['precision']}",
        " " * width + "".join(f"{name:>9}" for name in columns),
    ]
    for kind, block in rows.items():
        for label, figures in block:
            lines.append(f"{label:<{width}}" + "".join(f"{_cell(name, figures):>9}" for name in columns))
        if SHARED in (beyond := blocks[kind].get("beyond_group", {})):
            lines.append("  " + _chance_line(beyond[SHARED]))
        if tied := blocks[kind].get("tied"):
            lines.append(
                f"  in {tied} queries a right and a wrong hit have equal scores: means over their orders"
            )
    if twins := report.get("same_picture"):
        lines.append(f"left out: {twins} hits with the query's own picture under another case id")
    return "\n".join(lines)


def _rows(kind: str, figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a kind of query: all queries, those of each group, and the mean over the groups."""
    return [
        (kind.replace("_", " "), figures),
        *((f"  {printable(group)} ({f['queries']})", f) for group, f in figures["by_group"].items()),
        ("  balanced", figures["balanced"]),
    ]


def _cell(name: str, figures: dict[str, Any]) -> str:
    if name not in figures:
        return "-"
    return f"{figures[name]:.2f}" if name == SHARED else f"{figures[name]:.1f}"


def _chance_line(shared: dict[str, Any]) -> str:
    line = (
        f"shared criteria of the first five: {shared['measured']:.2f}, "
        f"by chance within the groups {shared['shuffled']:.2f}"
    )
    return line if shared["z"] is None else f"{line} ({shared['z']:.1f} standard errors)"
