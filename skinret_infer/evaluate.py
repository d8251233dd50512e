"""Measure retrieval through the product: every figure comes from Searcher."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .cases import Case
from .errors import InputError
from .gate import KINDS
from .metrics import ACC_AT, retrieval_metrics
from .searcher import BATCH, Searcher
from .text import describe


def evaluate(
    searcher: Searcher,
    cases: Sequence[Case],
    *,
    beta: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Query with each case, with its words and by its image alone, and return mAP and Acc@K in per cent.

    The whole archive is ranked, the query's own case id left out; a hit is relevant if its group is the
    query's. The words are the case's attributes, said by the bundle's text recipe.
    """
    if not cases:
        raise InputError(
            "there is nothing to evaluate", code="table-empty", expected="cases to query with", found="none"
        )
    relevance: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    size = len(searcher)
    for start in range(0, len(cases), BATCH):
        chunk = cases[start : start + BATCH]
        for kind in KINDS:
            worded = kind == "image_words"
            queries = [
                (c.image, describe(c.attributes, searcher.manifest.text.phrases) if worded else None)
                for c in chunk
            ]
            for case, results in zip(
                chunk, searcher.query_batch(queries, k=max(size, 1), beta=beta), strict=True
            ):
                relevance[kind].append(
                    np.array([hit.group == case.group for hit in results if hit.case_id != case.case_id])
                )
        if progress:
            progress(start + len(chunk), len(cases))
    groups = [case.group for case in cases]
    return {
        "queries": len(cases),
        "archive": size,
        "beta": searcher.manifest.beta if beta is None else beta,
        "runtime": searcher.runtime,
        "precision": searcher.precision,
        "model": f"{searcher.manifest.model} {searcher.manifest.version}",
        **{kind: retrieval_metrics(found, groups) for kind, found in relevance.items()},
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as lines for a person."""
    names = ["mAP", *(f"Acc@{k}" for k in ACC_AT)]
    lines = [
        f"{report['queries']} queries, archive of {report['archive']} cases, "
        f"{report['runtime']} in {report['precision']}",
        " " * 22 + "".join(f"{n:>8}" for n in names),
    ]
    for kind in KINDS:
        rows = {
            kind.replace("_", " "): report[kind],
            **{f"  {g} ({f['queries']})": f for g, f in report[kind]["by_group"].items()},
        }
        lines += [
            f"{label:<22}" + "".join(f"{figures[n]:8.1f}" for n in names) for label, figures in rows.items()
        ]
    return "\n".join(lines)
