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
_HIDDEN = 256  # of a head that predicts other features
_TEMPERATURE = 0.1  # of the contrastive loss


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, d_i, h, w) -> (B, sum of d_i): the mean over positions of maps normed over their channels."""
    return torch.cat([Typicality.pool(m.float().permute(0, 2, 3, 1)) for m in maps], 1)


class Heads(nn.Module):
    """Heads on standardised features (B, d).

    concepts : the labels and their values; a label without values has no head.
    weights : of each label's values, in the loss.
    teacher_channels : of the teacher's features; 0 if there is no teacher.
    """

    def __init__(
        self,
        channels: int,
        concepts: Mapping[str, Sequence[str]],
        weights: Mapping[str, Tensor],
        teacher_channels: int = 0,
    ) -> None:
        super().__init__()
        self.names = list(concepts)
        self.weights = weights
        self.standardise = nn.BatchNorm1d(channels, affine=False)
        self.labels = nn.ModuleDict({n: nn.Linear(channels, len(v)) for n, v in concepts.items() if v})
        self.contrast = nn.Linear(channels, _CONTRAST)
        self.predict = nn.Sequential(nn.Linear(channels, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, channels))
        self.imitate = nn.Linear(channels, teacher_channels) if teacher_channels else None
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

    def agreement_loss(self, features: Tensor, other_view: Tensor) -> Tensor:
        """Return 1 - cosine between the prediction for views (B, d) and features of other views (B, d)."""
        return _distance(self.predict(features), other_view)

    def imitation_loss(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Return 1 - cosine between the prediction for views (B, d) and the teacher's features (B, d')."""
        assert self.imitate is not None
        return _distance(self.imitate(features), wanted)


def _distance(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of 1 - cosine with `wanted`, each channel of which is standardised over the batch."""
    return (1 - F.cosine_similarity(predicted, F.batch_norm(wanted, None, None, training=True))).mean()
