"""Retrieval metrics, as the paper counts them: mAP over the whole ranking, Acc@K for the first K."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

ACC_AT = (1, 2, 4, 5, 10)


def average_precision(relevant: npt.NDArray[np.bool_]) -> float:
    """Return the mean, over the relevant cases of a full ranking, of the precision at their ranks."""
    ranks = np.flatnonzero(relevant) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0


def retrieval_metrics(relevance: Sequence[npt.NDArray[np.bool_]], groups: Sequence[str]) -> dict[str, Any]:
    """Return mAP and Acc@K in per cent, over all queries and by the query's group.

    relevance : for each query, whether each case of the full ranking, best first, has the query's group.
    groups : the group of each query.
    """
    columns: Mapping[str, npt.NDArray[np.float64]] = {
        "mAP": np.array([average_precision(r) for r in relevance]),
        **{f"Acc@{k}": np.array([float(r[:k].any()) for r in relevance]) for k in ACC_AT},
    }

    def percent(chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        return {name: round(100 * float(v[chosen].mean()), 3) for name, v in columns.items()} | {
            "queries": int(chosen.sum())
        }

    label = np.array(groups)
    return percent(np.ones(len(groups), bool)) | {
        "by_group": {g: percent(label == g) for g in sorted(set(groups))}
    }
