"""The loss: multi-positive contrastive learning on S, and what a descriptor must tell of its case.

The paper names none; positives are its Eq. 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNKNOWN = -1  # a label that is not known, and not asked


def multi_positive_contrastive(similarity: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over queries and their positives of -log softmax (Khosla et al. 2020, L_out).

    similarity : (B, B) logits of query i against case j. A query's own case is neither positive nor negative:
        at search time it is not in the archive.
    labels : (B,) int64; j is a positive of i if their labels agree. Queries without a positive do not count.
    """
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~own
    log_p = similarity.masked_fill(own, float("-inf")).log_softmax(1).masked_fill(~positive, 0.0)
    counts = positive.sum(1)
    per_query = -log_p.sum(1) / counts.clamp_min(1)
    return per_query.sum() / (counts > 0).sum().clamp_min(1)


class Telling(nn.Module):
    """Linear heads that read a case's labels off its descriptor. They serve training and are thrown away."""

    def __init__(self, width: int, classes: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, descriptor: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """descriptor (B, D) of unit blocks, labels (B, heads) int64 -> mean cross-entropy of the heads."""
        losses = [
            F.cross_entropy(
                head(6 * descriptor), target, ignore_index=UNKNOWN, label_smoothing=smoothing, reduction="sum"
            )  # six blocks of length one: a head's logits begin at the size of the descriptor's own
            / (target != UNKNOWN).sum().clamp_min(1)
            for head, target in zip(self.heads, labels.T, strict=True)
        ]
        return torch.stack(losses).mean()
