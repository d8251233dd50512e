"""Unsupervised metric learning on frozen features: a stand-in for the two stages of DEML (Weng et al., 2025).

STML (Kim et al., CVPR 2022): a slow teacher says how alike two pictures are,

    w_ij = (exp(-|z_i - z_j|^2 / sigma) + context_ij) / 2,

where context compares their k-reciprocal neighbours. A head learns the relaxed contrastive loss

    mean_i sum_j  w_ij d_ij^2 + (1 - w_ij) max(0, delta - d_ij)^2,   d_ij = |f_i - f_j| / mean_j |f_i - f_j|,

and, through a second head, to agree with the teacher's distances. `deml-labels` sets w_ij = 1 for cases of
one group and 0 for others.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Indices, Split
from ..model import unit
from ..train import TrainConfig
from .base import IMAGE_ONLY, RECONSTRUCTION, Ranker, System, Uses, fixed
from .heads import by_cosine
from .inputs import Inputs

_WIDTH, _NEIGHBOURS, _SIGMA, _DELTA, _MOMENTUM = 512, 5, 3.0, 1.0, 0.999
_SEEDS, _EPOCHS, _LR = 24, 30, 1e-4  # a batch: 24 cases and the nearest of each


def _fit(labelled: bool, inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    images = torch.from_numpy(inputs.standardised(subsets.archive))
    labels = torch.from_numpy(inputs.labels)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    near = _nearest(unit(images[0, subsets.archive]), _NEIGHBOURS)
    main, second, teacher = (nn.Linear(images.shape[2], _WIDTH) for _ in range(3))
    teacher.load_state_dict(second.state_dict())
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW([*main.parameters(), *second.parameters()], lr=_LR)
    steps = _EPOCHS * len(subsets.archive) // (_SEEDS * _NEIGHBOURS)
    for _ in range(steps):
        seeds = rng.choice(len(subsets.archive), min(_SEEDS, len(subsets.archive)), replace=False)
        batch = subsets.archive[near[seeds].ravel()]
        first_view, other_view = rng.choice(len(images), 2, replace=len(images) < 2)
        x = torch.cat([images[first_view, batch], images[other_view, batch]])
        with torch.no_grad():
            z = unit(teacher(x))
            twice = labels[batch].repeat(2)
            w = (twice[:, None] == twice).float() if labelled else relation(z)
        f, g = unit(main(x)), unit(second(x))
        loss = relaxed_contrastive(f, w) + relaxed_contrastive(g, w) + _agreement(f, g.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), second.parameters(), strict=True):
                slow.lerp_(fast, 1 - _MOMENTUM)
    with torch.inference_mode():
        cases = main(images[0])
    return fixed({IMAGE_ONLY: by_cosine(cases[subsets.test], cases)})


def _nearest(x: Tensor, k: int) -> Indices:
    """Return for each row of unit length its k nearest, itself first, [N, k]."""
    return np.asarray((x @ x.T).fill_diagonal_(2.0).topk(k).indices.numpy())


def relation(z: Tensor, k: int = _NEIGHBOURS) -> Tensor:
    """Return how alike the rows of z (B, d) are, w (B, B) in [0, 1], by distance and by their neighbours."""
    distance = torch.cdist(z, z).square()
    near = torch.zeros_like(distance).scatter_(1, distance.topk(k, largest=False).indices, 1.0)
    reciprocal = near * near.T  # R(i)
    shared = reciprocal @ reciprocal / reciprocal.sum(1, keepdim=True).clamp_min(1)
    context = reciprocal * shared
    nearest = distance.topk(max(1, k // 2), largest=False).indices
    context = context[nearest].mean(1)  # averaged over the nearest of i
    return ((-distance / _SIGMA).exp() + (context + context.T) / 2) / 2


def relaxed_contrastive(f: Tensor, w: Tensor) -> Tensor:
    """Return the relaxed contrastive loss of embeddings (B, d) with weights (B, B)."""
    d = torch.cdist(f, f)
    d = d / d.mean(1, keepdim=True).clamp_min(1e-6)
    others = 1 - torch.eye(len(f))
    pull, push = w * d.square(), (1 - w) * F.relu(_DELTA - d).square()
    return ((pull + push) * others).sum(1).mean() / len(f)


def _agreement(f: Tensor, g: Tensor) -> Tensor:
    """Return the divergence of the relations of one head (B, d) from those of the other."""
    ours, theirs = (-torch.cdist(x, x).square().fill_diagonal_(1e4) for x in (f, g))
    return F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")


_DEVIATIONS = (
    "Encoders and losses of the publication are not known: here one frozen self-distilled encoder, and STML.",
    "A linear head on pooled features.",
)
_SOURCE = "Weng et al., unsupervised dual-encoder metric learning, Neurocomputing 634, 2025"
DEML = System(
    name="deml",
    source=_SOURCE,
    fidelity=RECONSTRUCTION,
    deviations=_DEVIATIONS,
    uses=Uses(),
    least_archive=_NEIGHBOURS + 1,
    fit=partial(_fit, False),
)
DEML_LABELS = System(
    name="deml-labels",
    source=_SOURCE,
    fidelity=RECONSTRUCTION,
    deviations=("Not the published method: the groups say which pictures are alike.", *_DEVIATIONS),
    uses=Uses(labels=True),
    least_archive=_NEIGHBOURS + 1,
    fit=partial(_fit, True),
)
