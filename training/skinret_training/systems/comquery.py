"""ComqueryFormer: words and maps attend to each other at three depths (Xu et al., ACM TOMM 2023).

Each level's map and the words pass the same layers, in which both attend to themselves and to each other. A
level gives a global vector, unit(tanh(W mean)), and k local ones: masks from a 3 x 3 convolution, with no
softmax, weigh the positions, and their unit means stand side by side. Queries and cases have masks of their
own. The score is the sum of the six dot products; the loss is the sum of a contrastive loss of each.
"""

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Indices, Split
from ..loss import multi_positive_contrastive
from ..model import Maps, unit
from ..train import TrainConfig
from .base import HEAD, IMAGE_ONLY, IMAGE_WORDS, Ranker, System, Uses, fixed, products
from .heads import ALONE
from .inputs import Inputs, in_batches

_WIDTH, _LAYERS, _HEADS, _MASKS, _DROPOUT = 128, 4, 4, 8, 0.1
_SIDE = 4  # of the maps, which are averaged to it: attention is what costs
_EPOCHS, _BATCH, _LR, _WARM_UP = 12, 32, 1e-3, 0.1  # the rate was chosen on validation parts
_SCALE = 16.0  # of a cosine: the published length 4, twice


class _Attention(nn.Module):
    """x + attention of x to `other`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.attend = nn.MultiheadAttention(_WIDTH, _HEADS, _DROPOUT, batch_first=True)

    def forward(self, x: Tensor, other: Tensor, ignored: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        source = y if other is x else other
        attended, _ = self.attend(y, source, source, key_padding_mask=ignored, need_weights=False)
        return x + cast(Tensor, attended)


class _Layer(nn.Module):
    """Both streams attend to themselves and to each other, and pass a feed-forward network each."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = (nn.ModuleList(_Attention() for _ in range(2)) for _ in range(2))
        self.forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Dropout(_DROPOUT),
                nn.Linear(4 * _WIDTH, _WIDTH),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(
        self, x: Tensor, words: Tensor | None, ignored: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x = self.own[0](x, x)
        if words is not None:
            words = self.own[1](words, words, ignored)
            x, words = self.cross[0](x, words, ignored), self.cross[1](words, x)
            words = words + self.forwards[1](words)
        return x + self.forwards[0](x), words


class ComQuery(nn.Module):
    """Six vectors of queries and of cases."""

    def __init__(self, channels: tuple[int, ...], text: int) -> None:
        super().__init__()
        self.image = nn.ModuleList(nn.Linear(d, _WIDTH) for d in channels)
        self.text = nn.ModuleList(nn.Linear(text, _WIDTH) for _ in channels)
        self.types = nn.Parameter(torch.zeros(2, _WIDTH))
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))  # shared by the levels
        self.global_ = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in channels)
        self.masks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(_WIDTH, _MASKS, 3, padding=1) for _ in channels) for _ in range(2)
        )  # of queries, of cases

    def forward(
        self, maps: Maps, tokens: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> list[Tensor]:
        """Return six vectors (B, D).

        maps : (B, h, w, d) of three levels.
        tokens, attention_mask : (B, n, d_T), (B, n) of queries with words.
        """
        ignored = None if attention_mask is None else attention_mask == 0
        result = []
        for level, x in enumerate(maps):
            side = x.shape[1]
            x = self.image[level](x.flatten(1, 2)) + self.types[0]
            words = None if tokens is None else self.text[level](tokens) + self.types[1]
            for layer in self.layers:
                x, words = layer(x, words, ignored)
            result.append(unit(torch.tanh(self.global_[level](x.mean(1)))))
            grid = x.transpose(1, 2).reshape(len(x), _WIDTH, side, side)
            of_side = cast(nn.ModuleList, self.masks[int(tokens is None)])
            masks = of_side[level](grid).flatten(2)  # (B, k, positions)
            result.append(unit(masks @ x / x.shape[1]).flatten(1) / _MASKS**0.5)
        return result


def _pooled(maps: Maps) -> Maps:
    """Average maps to a smaller side."""
    small = []
    for x in maps:
        factor = max(1, x.shape[1] // _SIDE)
        small.append(nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1))
    low, mid, high = small
    return low, mid, high


def _fit(inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    labels, views = torch.from_numpy(inputs.labels).to(inputs.device), len(inputs.images)
    worded = np.asarray(inputs.words.any(1))
    maps = inputs.standardised_maps(subsets.archive, _pooled)
    model = ComQuery(inputs.channels, inputs.tokens.shape[1]).to(inputs.device)
    log_scale = nn.Parameter(torch.tensor(_SCALE, device=inputs.device).log())
    optimizer = torch.optim.AdamW([*model.parameters(), log_scale], lr=_LR, weight_decay=0.01)
    steps = _EPOCHS * max(1, len(subsets.archive) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps))
    for _ in range(_EPOCHS):
        order = rng.permutation(subsets.archive)
        for batch in in_batches(order, _BATCH):
            x = maps(batch, rng.integers(views, size=len(batch)))
            cases = model(x)
            with_words = bool(rng.random() >= ALONE) and worded[batch].all()
            queries = model(x, *inputs.text(batch)) if with_words else cases
            loss = torch.stack(
                [
                    multi_positive_contrastive(q @ t.T * log_scale.exp().clamp(max=100.0), labels[batch])
                    for q, t in zip(queries, cases, strict=True)
                ]
            ).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()

    def embed(cases: Indices, with_words: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        rows = []
        for batch in in_batches(cases, _BATCH):
            x = maps(batch, np.zeros(len(batch), np.int64))
            out = model(x)
            if with_words:
                composed = model(x, *inputs.text(batch))
                said = torch.from_numpy(worded[batch])[:, None].to(inputs.device)
                out = [torch.where(said, c, o) for c, o in zip(composed, out, strict=True)]
            rows.append(torch.cat(out, 1))
        return torch.cat(rows).cpu().numpy()

    with torch.inference_mode():
        everything = embed(np.arange(len(labels)), False)
        by_kind = {IMAGE_WORDS: embed(subsets.test, True), IMAGE_ONLY: everything[subsets.test]}
    return fixed({kind: products(queries, everything) for kind, queries in by_kind.items()})


def _rate(steps: int, step: int) -> float:
    """Return the factor of the learning rate: a warm-up, then a straight line to zero."""
    warm = max(1, round(_WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


COMQUERY = System(
    name="comquery",
    source="Xu et al., ComqueryFormer: a transformer with global-local alignment, 2023, and its public code",
    fidelity=HEAD,
    deviations=(
        "Maps and words of frozen encoders, not a tuned Swin and BERT; one text for the three levels.",
        f"Width {_WIDTH}, maps averaged to {_SIDE} x {_SIDE}, {_EPOCHS} epochs.",
        "A contrastive loss with several positives: half of all other cases are true positives.",
        "A query without words is its image; the publication has none.",
    ),
    uses=Uses(labels=True),
    needs_words=True,
    fit=_fit,
)
