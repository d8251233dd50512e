"""The loss: multi-positive contrastive learning on S, and cross-entropy on the concepts.

The paper names no loss. Positives are those of its Eq. 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

UNKNOWN = -1  # marks an unknown label, which the loss leaves out


def multi_positive_contrastive(similarity: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over queries and their positives of -log softmax (Khosla et al. 2020, L_out).

    similarity : (B, B) logits of query i against case j. A query's own case is neither positive nor negative,
        because it is not in the archive at search time.
    labels : (B,) int64; j is a positive of i if it has the same label. Queries without one do not count.
    """
    own_case = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~own_case
    log_p = similarity.masked_fill(own_case, float("-inf")).log_softmax(1).masked_fill(~positive, 0.0)
    counts = positive.sum(1)
    per_query = -log_p.sum(1) / counts.clamp_min(1)
    return per_query.sum() / (counts > 0).sum().clamp_min(1)


def concept_loss(
    logits: list[Tensor], labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of the concepts, of logits (B, values) each and labels (B, concepts).

    weights : of the values, (values,); None: all equal.
    """
    losses = [
        F.cross_entropy(
            scores,
            targets,
            weight=weights,
            ignore_index=UNKNOWN,
            label_smoothing=smoothing,
            reduction="sum",
        )
        / (targets != UNKNOWN).sum().clamp_min(1)
        for scores, targets in zip(logits, labels.T, strict=True)
    ]
    return torch.stack(losses).mean()


def balancing_weights(labels: Tensor, values: int, power: float) -> Tensor:
    """Return weights (values,) by 1 / count^power, whose mean over the labels (N,) is 1.

    power : 0 counts every case alike, 1 every value alike.
    """
    counts = torch.bincount(labels[labels != UNKNOWN], minlength=values).clamp_min(1).float()
    weights = counts**-power
    return weights * counts.sum() / (weights * counts).sum()
