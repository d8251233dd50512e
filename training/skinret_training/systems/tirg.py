"""TIRG: words gate the image's features and add a residual (Vo et al., CVPR 2019).

f = a_0 sigmoid(G[r; m]) * r + a_1 R[r; m], of unit length. G: batch norm, ReLU, linear. R: batch norm, ReLU,
linear, ReLU, linear. a_0 = 1 and a_1 = 10 at the start.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ..model import unit
from .base import HEAD, System, Uses
from .heads import WIDTH, Composed, composed


class _Tirg(Composed):
    def __init__(self, image: int, text: int) -> None:
        super().__init__(image, text)
        both = 2 * WIDTH
        self.gate = nn.Sequential(nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, WIDTH))
        self.residual = nn.Sequential(
            nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, both), nn.ReLU(), nn.Linear(both, WIDTH)
        )
        self.weights = nn.Parameter(torch.tensor([1.0, 10.0]))  # a_0, a_1

    def query(self, r: Tensor, m: Tensor) -> Tensor:
        both = torch.cat([r, m], 1)
        gated = self.gate(both).sigmoid() * r
        return unit(self.weights[0] * gated + self.weights[1] * self.residual(both))


TIRG = System(
    name="tirg",
    source="Vo et al., Composing text and image for image retrieval, CVPR 2019",
    fidelity=HEAD,
    deviations=(
        "Pooled features of frozen backbones, not a tuned ResNet-18 and an LSTM.",
        "The contrastive loss of skinret: with three groups, half of all other cases are true positives.",
        "The cosine has one learned temperature, not a learned length of each vector.",
        "A query without words is its image.",
    ),
    uses=Uses(labels=True),
    needs_words=True,
    fit=partial(composed, _Tirg),
)
