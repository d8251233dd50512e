"""CLIP4Cir's Combiner: a mixture of a joint projection, the words and the image (Baldrati et al., CVPR 2022).

p = ReLU(A m), v = ReLU(B r), h = ReLU(C[p; v]), lambda = sigmoid(MLP[p; v]), f = unit(D h + lambda m + (1 -
lambda) r).
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import unit
from .base import HEAD, System, Uses
from .heads import WIDTH, Composed, composed

_PROJECTION, _HIDDEN = 4 * WIDTH, 8 * WIDTH  # the ratios of the publication
_DROPOUT = 0.5


class _Combiner(Composed):
    def __init__(self, image: int, text: int) -> None:
        super().__init__(image, text)
        self.a, self.b = nn.Linear(WIDTH, _PROJECTION), nn.Linear(WIDTH, _PROJECTION)
        self.c, self.d = nn.Linear(2 * _PROJECTION, _HIDDEN), nn.Linear(_HIDDEN, WIDTH)
        self.dropout = nn.Dropout(_DROPOUT)
        self.mix = nn.Sequential(
            nn.Linear(2 * _PROJECTION, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(_HIDDEN, 1),
            nn.Sigmoid(),
        )

    def query(self, r: Tensor, m: Tensor) -> Tensor:
        r, m = unit(r), unit(m)
        both = torch.cat([self.dropout(F.relu(self.a(m))), self.dropout(F.relu(self.b(r)))], 1)
        share = self.mix(both)
        joint = self.d(self.dropout(F.relu(self.c(both))))
        return unit(joint + share * m + (1 - share) * r)


COMBINER = System(
    name="combiner",
    source="Baldrati et al., Effective conditioned and composed image retrieval, CVPR 2022",
    fidelity=HEAD,
    deviations=(
        "Projected features of frozen encoders that were never trained together, not CLIP's.",
        "The contrastive loss of skinret, with a learned temperature.",
        "A query without words is its image.",
    ),
    uses=Uses(labels=True),
    needs_words=True,
    fit=partial(composed, _Combiner),
)
