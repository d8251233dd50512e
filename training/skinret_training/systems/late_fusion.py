"""Late fusion: the cosine of W_g g + W_t t for a query and W_g g for a case, the simplest composed head.

ARTEMIS (Delmas et al., ICLR 2022) has it as an ablation under this name.
"""

from functools import partial

from torch import Tensor

from ..model import unit
from .base import OWN, System, Uses
from .heads import Composed, composed


class _LateFusion(Composed):
    def query(self, r: Tensor, m: Tensor) -> Tensor:
        return unit(r + m)


LATE_FUSION = System(
    name="late-fusion",
    source="our own baseline; an ablation of Delmas et al., ICLR 2022, has the same form",
    fidelity=OWN,
    uses=Uses(labels=True),
    needs_words=True,
    fit=partial(composed, _LateFusion),
)
