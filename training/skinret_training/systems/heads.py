"""Training that several systems share: heads on pooled features, in the same number of steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ..data import Indices, Split
from ..loss import multi_positive_contrastive
from ..model import unit
from ..train import TrainConfig
from .base import IMAGE_ONLY, IMAGE_WORDS, Array, Ranker, fixed, products
from .inputs import Inputs

WIDTH = 256  # of a learned projection
STEPS, BATCH, LR = 1000, 128, 1e-3
DECAY = 3.0  # of AdamW; chosen, as the steps, on validation parts of the training folds
ALONE = 0.2  # the share of training queries that are the image alone
TEMPERATURE = 0.1  # of the cosine at the start; training changes it

Loss = Callable[[Indices, np.random.Generator], Tensor]  # of a batch of cases


def train_head(
    module: nn.Module,
    loss: Loss,
    archive: Indices,
    *,
    seed: int,
    lr: float = LR,
    decay: float = DECAY,
) -> None:
    """Minimise the loss over random batches of the training folds. The module ends in evaluation mode."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay)
    module.train()
    for _ in range(STEPS):
        batch = rng.choice(archive, min(BATCH, len(archive)), replace=False)
        optimizer.zero_grad(set_to_none=True)
        loss(batch, rng).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    module.eval()


class Composed(nn.Module):
    """A query of image and words, against cases by their image: r = W_g g, m = W_t t, x = unit(W_g g).

    A subclass defines `query`. A query without words is unit(r).
    """

    def __init__(self, image: int, text: int) -> None:
        super().__init__()
        self.image = nn.Linear(image, WIDTH, bias=False)
        self.text = nn.Linear(text, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / TEMPERATURE).log())

    def query(self, r: Tensor, m: Tensor) -> Tensor:
        """r, m (Q, d) -> vectors of unit length (Q, d)."""
        raise NotImplementedError

    def similarity(self, r: Tensor, m: Tensor, cases: Tensor) -> Tensor:
        """Return the similarity of queries (Q, d) with cases (N, d), which are W_g g: (Q, N)."""
        return self.query(r, m) @ unit(cases).T

    def forward(self, g: Tensor, t: Tensor, with_words: Tensor, cases: Tensor) -> Tensor:
        """Return the similarity of queries with cases, (Q, N).

        g, t : image and text features of the queries (Q, ...); with_words (Q,) bool.
        cases : image features of the cases (N, ...).
        """
        r, x = self.image(g), self.image(cases)
        return torch.where(with_words[:, None], self.similarity(r, self.text(t), x), unit(r) @ unit(x).T)


def composed(
    model: Callable[[int, int], Composed], inputs: Inputs, subsets: Split, config: TrainConfig
) -> Ranker:
    """Train a composed head with the contrastive loss of the model, and return its ranker."""
    images = torch.from_numpy(inputs.standardised(subsets.archive))
    tokens = torch.from_numpy(inputs.tokens)
    labels, worded = torch.from_numpy(inputs.labels), torch.from_numpy(inputs.words.any(1))
    torch.manual_seed(config.seed)
    head = model(images.shape[2], tokens.shape[1])

    def loss(batch: Indices, rng: np.random.Generator) -> Tensor:
        g = images[rng.integers(len(images), size=len(batch)), batch]
        with_words = torch.from_numpy(rng.random(len(batch)) >= ALONE) & worded[batch]
        scores = head(g, tokens[batch], with_words, g) * head.log_scale.exp().clamp(max=100.0)
        return multi_positive_contrastive(scores, labels[batch])

    train_head(head, loss, subsets.archive, seed=config.seed)
    with torch.inference_mode():
        g, t = images[0], tokens[subsets.test]
        by_kind = {
            kind: head(g[subsets.test], t, worded[subsets.test] & with_words, g).numpy()
            for kind, with_words in ((IMAGE_WORDS, True), (IMAGE_ONLY, False))
        }
    return fixed(by_kind)


def classifier(x: npt.NDArray[Any], inputs: Inputs, archive: Indices) -> LogisticRegression:
    """Return a logistic regression of the group on features x [N, d], fitted on the training folds."""
    return LogisticRegression(C=0.01, max_iter=5000).fit(x[archive], inputs.labels[archive])


def by_cosine(queries: Tensor | Array, cases: Tensor | Array) -> Array:
    """Return the cosine of each query [Q, d] with each case [N, d]."""
    return products(*(unit(torch.as_tensor(x)).numpy() for x in (queries, cases)))
