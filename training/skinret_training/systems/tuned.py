"""The cosine of pooled features of a backbone whose last stage is tuned to tell the groups apart.

With a ResNet-50 as the backbone this is ResNet50-CosSim (Tschandl et al., British Journal of Dermatology 181,
2019): a network that is trained to classify, and the cosine of its deep features.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data import Split
from ..train import TrainConfig
from .base import AS_PUBLISHED, IMAGE_ONLY, Ranker, System, Uses, fixed
from .heads import by_cosine
from .inputs import Inputs, in_batches

_EPOCHS, _BATCH, _LR = 8, 32, 1e-4


def _fit(inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    stage, labels = inputs.last_stage(), torch.from_numpy(inputs.labels).to(inputs.device)
    views = len(inputs.images)
    model = stage.copy()
    head = nn.Linear(inputs.channels[2], int(labels.max()) + 1).to(inputs.device)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=_LR)
    for _ in range(_EPOCHS):
        order = rng.permutation(subsets.archive)
        for batch in in_batches(order, _BATCH):
            x = model(stage.state(batch, rng.integers(views, size=len(batch)))).mean((1, 2))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(head(x), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    everything, features = np.arange(len(labels)), []
    with torch.inference_mode():
        for batch in in_batches(everything, _BATCH):
            features.append(model(stage.state(batch, np.zeros(len(batch), np.int64))).mean((1, 2)))
    cases = torch.cat(features).cpu()
    return fixed({IMAGE_ONLY: by_cosine(cases[subsets.test], cases)})


TUNED_COSSIM = System(
    name="tuned-cossim",
    source="Tschandl et al., content-based dermatoscopic image retrieval, BJD 181, 2019",
    fidelity=AS_PUBLISHED,
    deviations=(
        "As published with a ResNet-50 as --vision; else the same training of another backbone's last stage.",
        f"Only the last stage is tuned, for {_EPOCHS} epochs: the publication's are not known.",
    ),
    uses=Uses(labels=True),
    fit=_fit,
)
