"""Simple methods on frozen features, which are compared with the model under the same protocol.

For each kind of query that it supports, a method scores the held-out queries against all cases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from skinret_infer.evaluation.metrics import Labels, own_cases, rank, retrieval_metrics
from skinret_infer.tables import CaseTable
from skinret_infer.text import TextEncoderInput, TextRecipe
from skinret_infer.words.checklist import Checklist

from .data import CaseTexts, Dataset, FrozenMaps, Indices, Split
from .loss import multi_positive_contrastive
from .model import load_pretrained, mean_token, unit
from .train import TrainConfig

Array = npt.NDArray[np.float32]
Scores = dict[str, Array]  # kind of query -> scores [Q, N]

_WORD = 3.0  # the weight of a word, relative to image features of unit variance
_WIDTH = 256  # of a learned projection
_ALONE = 0.2  # the share of training queries that are the image alone
_TEMPERATURE = 0.1  # of the cosine at the start; training changes it
# Its training with AdamW. Steps and weight decay were chosen on validation parts of the training folds.
_STEPS, _BATCH, _LR, _DECAY = 1000, 128, 1e-3, 3.0


@dataclass(frozen=True, slots=True)
class Features:
    """The features of N cases from frozen encoders, and their words. The same for all folds and seeds."""

    labels: Indices  # [N], the index of the group
    images: Array  # [V, N, d], the mean over positions of the maps of three levels, in each symmetry
    last: int  # how many of the d features come from the last level
    words: Array  # [N, W], see one_hot
    tokens: Array  # [N, d_T], the mean token vector of a case's words; zero if it has no words

    def standardised(self, archive: Indices, columns: slice = slice(None)) -> Array:
        """Return the images with zero mean and unit variance over the cases of the training folds."""
        images = self.images[..., columns]
        training = images[:, archive]
        scaled: Array = (images - training.mean((0, 1))) / (training.std((0, 1)) + np.float32(1e-6))
        return scaled


Method = Callable[[Features, Split, TrainConfig], Scores]


def compute_features(
    table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, *, quiet: bool = False
) -> Features:
    """Compute the features of all cases, or take the maps from the cache."""
    model, tokenizer = load_pretrained(
        config.vision, config.text, image_size=config.image_size, max_map_size=config.max_map_size, width=1
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    frozen = FrozenMaps(model, dataset, config.augment_dihedral, cache, quiet=quiet)
    recipe = TextRecipe(length=config.tokens)
    tokenize = TextEncoderInput(tokenizer, recipe)
    texts = CaseTexts(model, dataset, tokenize, 1, 0, frozen=True, cache=cache, quiet=quiet)
    everything = np.arange(len(dataset.labels))
    batches = np.array_split(everything, max(1, len(everything) // 64))

    def image_features(batch: Indices, view: int) -> Tensor:
        return torch.cat([x.mean((1, 2)) for x in frozen.get(batch, np.full(len(batch), view))], 1)

    def text_features(batch: Indices) -> Tensor:
        tokens, mask = texts.get(model, batch, np.zeros(len(batch), np.int64))
        return mean_token(tokens, mask).cpu() * torch.from_numpy(~texts.blank[batch])[:, None]

    views = range(config.augment_dihedral)
    with torch.inference_mode():
        images = torch.stack(
            [torch.cat([image_features(batch, view) for batch in batches]) for view in views]
        )
        tokens = torch.cat([text_features(batch) for batch in batches])
        last = frozen.get(everything[:1], everything[:1] * 0)[2].shape[-1]
    return Features(dataset.labels, images.numpy(), last, one_hot(table, dataset.checklist), tokens.numpy())


def one_hot(table: CaseTable, checklist: Checklist) -> Array:
    """Return [N, W]: 1 if case n has value w of a criterion of the checklist."""
    facts = [set(checklist.values_of(case.attributes).items()) for case in table.cases]
    columns = sorted(set().union(*facts))
    return np.array([[column in of_case for column in columns] for of_case in facts], np.float32)


def join(
    features: Features, others: Features, labels: Indices, table: CaseTable, checklist: Checklist
) -> Features:
    """Return the features of two sets of cases as one set.

    labels : of the others, as the first set counts the groups.
    table : all cases, in the order of the two sets.
    """
    return Features(
        np.concatenate([features.labels, labels]),
        np.concatenate([features.images, others.images], 1),
        features.last,
        one_hot(table, checklist),
        np.concatenate([features.tokens, others.tokens]),
    )


def linear_probe(features: Features, subsets: Split, config: TrainConfig) -> Scores:
    """Score with the product of class posteriors of logistic regressions; a case is its image alone."""

    def posteriors(x: Array) -> Array:
        probe = LogisticRegression(C=0.01, max_iter=5000)
        probe.fit(x[subsets.archive], features.labels[subsets.archive])
        return cast(Array, probe.predict_proba(x).astype(np.float32))

    one_view = replace(features, images=features.images.mean(0, keepdims=True))
    image = one_view.standardised(subsets.archive)[0]
    words = _WORD * features.words
    cases = posteriors(image)
    queries = {"image_words": np.hstack([image, words]), "image_only": image}
    if words.shape[1]:
        queries["words_alone"] = words
    scores = {kind: _products(posteriors(x)[subsets.test], cases) for kind, x in queries.items()}
    worded = words[subsets.test].any(1, keepdims=True)  # a query without words is its image alone
    scores["image_words"] = np.where(worded, scores["image_words"], scores["image_only"])
    return scores


def resnet50_cossim(features: Features, subsets: Split, config: TrainConfig) -> Scores:
    """Score with the cosine of a learned projection of the backbone's last map.

    With a ResNet-50 as the backbone, this is the paper's baseline ResNet50-CosSim.
    """
    images = torch.from_numpy(features.standardised(subsets.archive, slice(-features.last, None)))
    model = _fit(images, None, features.labels, subsets.archive, config)
    cases = model(images[0])
    return {"image_only": _products(cases[subsets.test].numpy(), cases.numpy())}


def late_fusion(features: Features, subsets: Split, config: TrainConfig) -> Scores:
    """Score with the cosine of W_g g + W_t t for a query and W_g g for a case."""
    images = torch.from_numpy(features.standardised(subsets.archive))
    tokens = torch.from_numpy(features.tokens)
    model = _fit(images, tokens, features.labels, subsets.archive, config)
    cases = model(images[0])
    queries = {"image_words": model(images[0], tokens), "image_only": cases}
    return {kind: _products(d[subsets.test].numpy(), cases.numpy()) for kind, d in queries.items()}


def _products(queries: Array, cases: Array) -> Array:
    """Return the dot product of each query [Q, d] with each case [N, d]; equal cases get equal bits."""
    return cast(Array, np.einsum("qd,nd->qn", queries, cases))


class _Projection(nn.Module):
    """unit(W_g g + W_t t), or unit(W_g g) without words."""

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
    """Train a projection on the training folds with the loss of the model; return it without gradients."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = _Projection(images.shape[2], None if tokens is None else tokens.shape[1])
    log_scale = nn.Parameter(torch.tensor(1 / _TEMPERATURE).log())
    optimizer = torch.optim.AdamW([*model.parameters(), log_scale], lr=_LR, weight_decay=_DECAY)
    for _ in range(_STEPS):
        batch = rng.choice(archive, min(_BATCH, len(archive)), replace=False)
        g = images[rng.integers(len(images), size=len(batch)), batch]
        with_words = torch.from_numpy(rng.random((len(batch), 1)) >= _ALONE)
        queries = model(g, None if tokens is None else tokens[batch] * with_words)
        scores = queries @ model(g).T * log_scale.exp().clamp(max=100.0)
        loss = multi_positive_contrastive(scores, torch.from_numpy(labels[batch]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.inference_mode()(model)


BASELINES: Mapping[str, Method] = {
    "linear-probe": linear_probe,
    "resnet50-cossim": resnet50_cossim,
    "late-fusion": late_fusion,
}


def evaluate_scores(
    scores: Scores,
    table: CaseTable,
    checklist: Checklist,
    queries: Indices,
    archive: Indices,
    pictures: Sequence[str] = (),
) -> dict[str, Any]:
    """Rank the cases of an archive by their scores and return the metrics of each kind of query.

    scores : of each query with each case of the table. A query without words is no query by words alone.
    pictures : `Dataset.pictures`; if empty, two cases with the same picture are not noticed.
    """

    def labels(indices: Indices) -> Labels:
        cases = [table.cases[n] for n in indices]
        return Labels.of(cases, checklist.from_image, [pictures[n] for n in indices] if pictures else ())

    query_labels, case_labels = labels(queries), labels(archive)
    worded = [q for q, n in enumerate(queries) if checklist.values_of(table.cases[n].attributes)]
    figures = {}
    for kind, of_kind in scores.items():
        asked, of_asked = query_labels, of_kind[:, archive]
        if kind == "words_alone":
            asked, of_asked = labels(queries[worded]), of_asked[worded]
        figures[kind] = retrieval_metrics(rank(of_asked, asked, case_labels), asked, case_labels)
    return {
        "queries": len(queries),
        "archive": len(archive),
        **own_cases(query_labels, case_labels),
        **figures,
    }
