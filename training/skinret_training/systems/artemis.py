"""ARTEMIS: words say which channels count, in the case and in the query (Delmas et al., ICLR 2022).

s = <unit(T m), unit(a(m) * x)> + <unit(b(m) * r), unit(b(m) * x)>, where a and b are linear, ReLU, linear and
a softmax over the channels. The score depends on the pair, so a case has no vector of its own.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ..model import unit
from .base import HEAD, System, Uses
from .heads import WIDTH, Composed, composed

_CHUNK = 16  # queries at once


class _Artemis(Composed):
    def __init__(self, image: int, text: int) -> None:
        super().__init__(image, text)
        self.target = nn.Linear(WIDTH, WIDTH)  # T
        self.explicit, self.implicit = (
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Softmax(1))
            for _ in range(2)
        )  # a, b

    def similarity(self, r: Tensor, m: Tensor, cases: Tensor) -> Tensor:
        r, m, x = unit(r), unit(m), unit(cases)
        rows = []
        for part in range(0, len(m), _CHUNK):
            of_query, words = r[part : part + _CHUNK], m[part : part + _CHUNK]
            a, b = self.explicit(words), self.implicit(words)
            explicit = _pairs(unit(self.target(words)), a, x)
            implicit = _pairs(unit(b * of_query), b, x)
            rows.append(explicit + implicit)
        return torch.cat(rows)


def _pairs(queries: Tensor, weights: Tensor, cases: Tensor) -> Tensor:
    """Return <q, unit(w * x)> for queries and weights (Q, d), and cases (N, d): (Q, N)."""
    weighted = unit(weights[:, None] * cases)  # (Q, N, d)
    return (queries[:, None] * weighted).sum(-1)


ARTEMIS = System(
    name="artemis",
    source="Delmas et al., ARTEMIS: attention-based retrieval with text-explicit matching, ICLR 2022",
    fidelity=HEAD,
    deviations=(
        "Pooled features of frozen backbones, not a tuned ResNet and a GRU.",
        "The contrastive loss of skinret.",
        "A query without words is its image.",
    ),
    uses=Uses(labels=True),
    needs_words=True,
    fit=partial(composed, _Artemis),
)
