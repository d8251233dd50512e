"""The figures of a system's scores."""

from collections.abc import Sequence
from typing import Any

from skinret_infer.evaluation.metrics import Labels, own_cases, rank, retrieval_metrics
from skinret_infer.tables import CaseTable
from skinret_infer.words.checklist import Checklist

from ..data import Indices
from .base import WORDS_ALONE, Scores


def evaluate_scores(
    scores: Scores,
    table: CaseTable,
    checklist: Checklist,
    queries: Indices,
    archive: Indices,
    pictures: Sequence[str] = (),
) -> dict[str, Any]:
    """Rank the cases of an archive by their scores and return the metrics of each kind of query.

    scores : of each query with each case of the archive. A query without words is no query by words alone.
    pictures : `Dataset.pictures`; if empty, two cases with the same picture are not noticed.
    """

    def labels(indices: Indices) -> Labels:
        cases = [table.cases[n] for n in indices]
        return Labels.of(cases, checklist.from_image, [pictures[n] for n in indices] if pictures else ())

    query_labels, case_labels = labels(queries), labels(archive)
    worded = [q for q, n in enumerate(queries) if checklist.values_of(table.cases[n].attributes)]
    figures = {}
    for kind, of_kind in scores.items():
        asked, of_asked = query_labels, of_kind
        if kind == WORDS_ALONE:
            asked, of_asked = labels(queries[worded]), of_asked[worded]
        figures[kind] = retrieval_metrics(rank(of_asked, asked, case_labels), asked, case_labels)
    return {
        "queries": len(queries),
        "archive": len(archive),
        **own_cases(query_labels, case_labels),
        **figures,
    }
