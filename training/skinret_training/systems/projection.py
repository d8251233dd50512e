"""The cosine of a projection of the backbone's last map, learned with a contrastive loss."""

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Indices, Split
from ..loss import multi_positive_contrastive
from ..model import unit
from ..train import TrainConfig
from .base import IMAGE_ONLY, OWN, Ranker, System, Uses, fixed
from .heads import TEMPERATURE, WIDTH, by_cosine, train_head
from .inputs import Inputs


def _fit(inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    images = torch.from_numpy(inputs.standardised(subsets.archive, inputs.last))
    labels = torch.from_numpy(inputs.labels)
    torch.manual_seed(config.seed)
    head = nn.Linear(images.shape[2], WIDTH, bias=False)
    scale = nn.ParameterList([torch.tensor(1 / TEMPERATURE).log()])

    def loss(batch: Indices, rng: np.random.Generator) -> Tensor:
        x = unit(head(images[rng.integers(len(images), size=len(batch)), batch]))
        return multi_positive_contrastive(x @ x.T * scale[0].exp().clamp(max=100.0), labels[batch])

    train_head(nn.ModuleList([head, scale]), loss, subsets.archive, seed=config.seed)
    with torch.inference_mode():
        cases = head(images[0])
    return fixed({IMAGE_ONLY: by_cosine(cases[subsets.test], cases)})


PROJECTION = System(
    name="contrastive-projection",
    source="our own baseline",
    fidelity=OWN,
    uses=Uses(labels=True),
    fit=_fit,
)
