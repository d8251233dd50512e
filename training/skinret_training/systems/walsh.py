"""Walsh-Hadamard codes: pictures shall have rows of a Hadamard matrix as codes (CSQ, Yuan et al., CVPR 2020).

u = tanh(H W g / 8), 64 numbers; loss = BCE((1 + u) / 2, (1 + c) / 2) + 1e-4 mean((|u| - 1)^2). The score is
the Hamming similarity of the signs. Equal scores are many: the evaluation averages over their orders.

`walsh-codes` stands in for Chen et al., Deep hashing with Walsh domain for multi-label image retrieval, IEEE
SPL 2025, whose text was not available: c is the majority of the rows of the group and of the criteria that
are present. `csq` has a row for each group alone.
"""

from functools import partial

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Indices, Split
from ..train import TrainConfig
from .base import HEAD, IMAGE_ONLY, STAND_IN, Array, Ranker, System, Uses, fixed, products
from .heads import train_head
from .inputs import Inputs

BITS = 64
_BINARY = 1e-4  # weight of |u| = 1
_WEIGHT_DECAY = 0.01  # AdamW's default; a larger one shrinks u


def centres(inputs: Inputs, archive: Indices, multi_label: bool, seed: int) -> Array:
    """Return the code of each case, -1 or 1, [N, BITS].

    Every group owns a row of the Hadamard matrix, and with `multi_label` so does every value of a criterion
    but the most common one of the training folds, which is what a criterion is by default. The group counts
    as often as all criteria of a case together. Ties of the majority get a random code, the same for all.
    """
    rows = hadamard(BITS).astype(np.float32)[1:]  # row 0 is constant
    groups = int(inputs.labels.max()) + 1
    codes = rows[inputs.labels].copy()
    if multi_label:
        owned = dict[tuple[int, int], Array]()
        total, count = np.zeros_like(codes), np.zeros((len(codes), 1), np.float32)
        for c, column in enumerate(inputs.targets.T[1:]):
            usual = np.bincount(column[archive][column[archive] >= 0]).argmax()
            for value in sorted(set(column.tolist()) - {-1, int(usual)}):
                owned[c, value] = rows[groups + len(owned)]
                total[column == value] += owned[c, value]
                count[column == value] += 1
        codes = np.maximum(count, 1) * codes + total
    tie = np.random.default_rng(seed).choice([-1.0, 1.0], BITS)
    return np.asarray(np.where(codes == 0, tie, np.sign(codes)), np.float32)


def _fit(multi_label: bool, inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    images = torch.from_numpy(inputs.standardised(subsets.archive))
    wanted = torch.from_numpy(centres(inputs, subsets.archive, multi_label, config.seed))
    torch.manual_seed(config.seed)
    head = nn.Linear(images.shape[2], BITS, bias=False)
    walsh = torch.from_numpy(hadamard(BITS).astype(np.float32)) / BITS**0.5

    def code(g: Tensor) -> Tensor:
        return torch.tanh(head(g) @ walsh)

    def loss(batch: Indices, rng: np.random.Generator) -> Tensor:
        u = code(images[rng.integers(len(images), size=len(batch)), batch])
        fit = F.binary_cross_entropy((1 + u) / 2, (1 + wanted[batch]) / 2)
        return fit + _BINARY * (u.abs() - 1).square().mean()

    train_head(head, loss, subsets.archive, seed=config.seed, decay=_WEIGHT_DECAY)
    with torch.inference_mode():
        bits = torch.where(code(images[0]) >= 0, 1.0, -1.0).numpy()
    return fixed({IMAGE_ONLY: products(bits[subsets.test], bits)})


_FROZEN = "Linear code on pooled features of a frozen backbone, not a tuned network."
CSQ = System(
    name="csq",
    source="Yuan et al., Central similarity quantization for efficient image and video retrieval, CVPR 2020",
    fidelity=HEAD,
    deviations=(_FROZEN, "AdamW in place of RMSprop; no pairwise likelihood."),
    uses=Uses(labels=True),
    fit=partial(_fit, False),
)
WALSH_CODES = System(
    name="walsh-codes",
    source="stands in for Chen et al., Deep hashing with Walsh domain, IEEE SPL 32, 2025",
    fidelity=STAND_IN,
    deviations=(
        "The letter's text was not available: these are CSQ's loss and centres with several labels.",
        _FROZEN,
        "It learns from the recorded criteria too, which are labels beyond the diagnosis.",
    ),
    uses=Uses(labels=True),
    fit=partial(_fit, True),
)
