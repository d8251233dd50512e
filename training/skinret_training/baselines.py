"""Plain methods on frozen features, to be measured beside the model under the same protocol.

Each gives for every kind of query that it can answer the scores of the held-out queries with all cases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from skinret_infer.evaluation.metrics import Labels, rank, retrieval_metrics, same_picture
from skinret_infer.tables import CaseTable
from skinret_infer.text import TextEncoderInput, TextRecipe

from .data import Dataset, FrozenMaps, Indices, Split, Words
from .loss import multi_positive_contrastive
from .model import load_pretrained, mean_token, unit
from .train import TrainConfig

Array = npt.NDArray[np.float32]
Scores = dict[str, Array]  # kind of query -> scores [Q, N]

_WORD = 3.0  # the weight of a word beside features of unit variance
_WIDTH = 256  # of a learned projection
_ALONE = 0.2  # how often a query is the image alone in training
_TEMPERATURE = 0.1  # of the cosine at the start; it is learned
# Of its training with AdamW; steps and decay were chosen on validation parts of the training folds.
_STEPS, _BATCH, _LR, _DECAY = 1000, 128, 1e-3, 3.0


@dataclass(frozen=True, slots=True)
class Features:
    """The features of N cases from frozen encoders, and their words. The same for all folds and seeds."""

    labels: Indices  # [N], the index of the group
    images: Array  # [V, N, d], the mean over positions of the maps of three levels, in each symmetry
    last: int  # how many of the d are the last level's
    said: Array  # [N, W], one where a case has that value of an attribute that has a phrase
    tokens: Array  # [N, d_T], the mean token vector of a case's words; zero where it has none

    def standardised(self, archive: Indices, columns: slice = slice(None)) -> Array:
        """Return the images with zero mean and unit variance over the cases of the training folds."""
        images = self.images[..., columns]
        seen = images[:, archive]
        scaled: Array = (images - seen.mean((0, 1))) / (seen.std((0, 1)) + np.float32(1e-6))
        return scaled


def features(
    table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, *, quiet: bool = False
) -> Features:
    """Compute the features of all cases, or take the maps from the cache."""
    model, tokenizer = load_pretrained(
        config.vision, config.text, image_size=config.image_size, max_map_size=config.max_map_size, width=1
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    frozen = FrozenMaps(model, dataset, config.augment_dihedral, cache, quiet=quiet)
    text = TextRecipe(length=config.tokens)
    words = Words(model, dataset, TextEncoderInput(tokenizer, text), 1, 0, frozen=True, quiet=quiet)
    everything = np.arange(len(dataset.labels))
    batches = np.array_split(everything, max(1, len(everything) // 64))

    def pooled(batch: Indices, view: int) -> Tensor:
        return torch.cat([x.mean((1, 2)) for x in frozen.get(batch, np.full(len(batch), view))], 1)

    def said(batch: Indices) -> Tensor:
        tokens, mask = words.get(model, batch, np.zeros(len(batch), np.int64))
        return mean_token(tokens, mask).cpu() * torch.from_numpy(~words.blank[batch])[:, None]

    views = range(config.augment_dihedral)
    with torch.inference_mode():
        images = torch.stack([torch.cat([pooled(batch, view) for batch in batches]) for view in views])
        tokens = torch.cat([said(batch) for batch in batches])
        last = frozen.get(everything[:1], everything[:1] * 0)[2].shape[-1]
    return Features(dataset.labels, images.numpy(), last, one_hot(table, text), tokens.numpy())


def one_hot(table: CaseTable, text: TextRecipe) -> Array:
    """Return [N, W]: one where a case has this value of this attribute, of those that have a phrase."""
    pairs = [
        {(name, str(v)) for name in text.phrases if (v := case.attributes.get(name)) not in (None, "")}
        for case in table.cases
    ]
    columns = sorted(set().union(*pairs))
    return np.array([[column in has for column in columns] for has in pairs], np.float32)


def linear_probe(features: Features, parts: Split, config: TrainConfig) -> Scores:
    """Score with the product of class posteriors of logistic regressions; a case has its image alone."""

    def posteriors(x: Array) -> Array:
        probe = LogisticRegression(C=0.01, max_iter=5000)
        probe.fit(x[parts.archive], features.labels[parts.archive])
        return cast(Array, probe.predict_proba(x).astype(np.float32))

    one_view = Features(
        features.labels, features.images.mean(0, keepdims=True), features.last, features.said, features.tokens
    )
    image = one_view.standardised(parts.archive)[0]
    words = _WORD * features.said
    case = posteriors(image)
    asked = {"image_words": np.hstack([image, words]), "image_only": image}
    if words.shape[1]:
        asked["words_alone"] = words
    return {kind: _products(posteriors(x)[parts.test], case) for kind, x in asked.items()}


def resnet50_cossim(features: Features, parts: Split, config: TrainConfig) -> Scores:
    """Score with the cosine of a learned projection of the backbone's last map: the paper's baseline.

    It is ResNet50-CosSim where the backbone is a ResNet-50.
    """
    images = torch.from_numpy(features.standardised(parts.archive, slice(-features.last, None)))
    model = _fit(images, None, features.labels, parts.archive, config)
    cases = model(images[0])
    return {"image_only": _products(cases[parts.test].numpy(), cases.numpy())}


def late_fusion(features: Features, parts: Split, config: TrainConfig) -> Scores:
    """Score with the cosine of W_g g + W_t t for a query and W_g g for a case."""
    images = torch.from_numpy(features.standardised(parts.archive))
    tokens = torch.from_numpy(features.tokens)
    model = _fit(images, tokens, features.labels, parts.archive, config)
    cases = model(images[0])
    asked = {"image_words": model(images[0], tokens), "image_only": cases}
    return {kind: _products(d[parts.test].numpy(), cases.numpy()) for kind, d in asked.items()}


def _products(queries: Array, cases: Array) -> Array:
    """Return the product of each query [Q, d] with each case [N, d]: for equal cases the same bits."""
    return cast(Array, np.einsum("qd,nd->qn", queries, cases))


class _Projection(nn.Module):
    """unit(W_g g + W_t t), and without words unit(W_g g)."""

    def __init__(self, image: int, text: int | None) -> None:
        super().__init__()
        self.image = nn.Linear(image, _WIDTH, bias=False)
        self.text = nn.Linear(text, _WIDTH, bias=False) if text else None

    def forward(self, g: Tensor, t: Tensor | None = None) -> Tensor:
        x = self.image(g)
        return unit(x if t is None or self.text is None else x + self.text(t))


def _fit(
    images: Tensor, tokens: Tensor | None, labels: Indices, archive: Indices, config: TrainConfig
) -> Callable[..., Tensor]:
    """Train a projection on the training folds with the model's own loss; return it without gradients."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = _Projection(images.shape[2], None if tokens is None else tokens.shape[1])
    log_scale = nn.Parameter(torch.tensor(1 / _TEMPERATURE).log())
    optimizer = torch.optim.AdamW([*model.parameters(), log_scale], lr=_LR, weight_decay=_DECAY)
    for _ in range(_STEPS):
        batch = rng.choice(archive, min(_BATCH, len(archive)), replace=False)
        g = images[rng.integers(len(images), size=len(batch)), batch]
        said = torch.from_numpy(rng.random((len(batch), 1)) >= _ALONE)
        asked = model(g, None if tokens is None else tokens[batch] * said)
        scores = asked @ model(g).T * log_scale.exp().clamp(max=100.0)
        loss = multi_positive_contrastive(scores, torch.from_numpy(labels[batch]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.inference_mode()(model)


BASELINES: Mapping[str, Callable[[Features, Split, TrainConfig], Scores]] = {
    "linear-probe": linear_probe,
    "resnet50-cossim": resnet50_cossim,
    "late-fusion": late_fusion,
}


def judge(
    scores: Scores, table: CaseTable, queries: Indices, archive: Indices, pictures: Sequence[str] = ()
) -> dict[str, Any]:
    """Rank the cases of an archive by their scores and measure it, each kind of query.

    pictures : as `Dataset` has them; without, a picture that two cases have is not noticed.
    """
    asked, there = (
        Labels.of([table.cases[n] for n in indices], [pictures[n] for n in indices] if pictures else ())
        for indices in (queries, archive)
    )
    figures = {
        kind: retrieval_metrics(rank(s[:, archive], asked, there), asked, there) for kind, s in scores.items()
    }
    return {
        "queries": len(queries),
        "archive": len(archive),
        "same_picture": same_picture(asked, there),
        **figures,
    }
