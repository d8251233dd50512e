"""What is learned above a backbone that is adapted, and its losses; the heads are thrown away at the end."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..loss import UNKNOWN, multi_positive_contrastive
from ..model import unit
from ..typicality import Typicality

_CONTRAST = 128  # channels in which lesions are compared
_HIDDEN = 256  # of the head that predicts the teacher
_TEMPERATURE = 0.1  # of the contrastive loss


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, d_i, h, w) -> (B, sum of d_i): the mean over positions of maps normed over their channels."""
    return torch.cat([Typicality.pool(m.float().permute(0, 2, 3, 1)) for m in maps], 1)


class Heads(nn.Module):
    """Heads on standardised features (B, d).

    concepts : the labels and their values; a label without values has no head.
    weights : of each label's values, in the loss.
    """

    def __init__(
        self, channels: int, concepts: Mapping[str, Sequence[str]], weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.names = list(concepts)
        self.weights = weights
        self.standardise = nn.BatchNorm1d(channels, affine=False)
        self.labels = nn.ModuleDict({n: nn.Linear(channels, len(v)) for n, v in concepts.items() if v})
        self.contrast = nn.Linear(channels, _CONTRAST)
        self.predict = nn.Sequential(nn.Linear(channels, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, channels))
        for parameter in self.labels.parameters():
            nn.init.zeros_(parameter)

    def label_losses(self, features: Tensor, targets: Tensor, smoothing: float) -> dict[str, Tensor]:
        """Return each label's cross-entropy: its mean over the pictures that have it.

        targets : (B, labels), UNKNOWN where a picture has none.
        """
        losses = {}
        for name, wanted in zip(self.names, targets.T, strict=True):
            if name in self.labels:
                total = F.cross_entropy(
                    cast(Tensor, self.labels[name](features)),
                    wanted,
                    self.weights[name],
                    ignore_index=UNKNOWN,
                    reduction="sum",
                    label_smoothing=smoothing,
                )
                losses[name] = total / (wanted != UNKNOWN).sum().clamp_min(1)
        return losses

    def contrastive_loss(self, features: Tensor, lesions: Tensor) -> Tensor:
        """Return the supervised contrastive loss, where two views of one lesion (B,) are positives."""
        z = unit(self.contrast(features))
        return multi_positive_contrastive(z @ z.T / _TEMPERATURE, lesions)

    def distillation_loss(self, features: Tensor, teacher: Tensor) -> Tensor:
        """Return 1 - cosine between the prediction for a view and the teacher's features of the other view.

        features, teacher : (B, d); rows n and n + B / 2 are the two views of a lesion.
        """
        wanted = F.batch_norm(teacher, None, None, training=True).roll(len(teacher) // 2, 0)
        return (1 - F.cosine_similarity(self.predict(features), wanted)).mean()
