"""DAHNet: codes from a global branch and three local ones that see different parts (Jiang et al., TKDE 2024).

Feature enhancement and suppression (FESM) cuts a map F into 2 x 2 parts, and P says how much each counts. It
gives the boosted map F + F P / 2, and F with the strongest parts halved, from which the next boosted map is
made, three in all. Between neighbouring branches (MCM), positions that look alike exchange features. Each
branch ends in a coordinate gate and convolutions (CFM). The code is u = tanh[W_G f_G; W_1 f_1; W_2 f_2; W_3
f_3], of q bits, half of them global.

    L = 12/q mean_ij (q S_ij - u_i . b_j)^2 + 12 gamma/q sum_i |u_i - b_i|^2 / (B N)
        + CE(f_G) / 2 + sum_l CE(f_l) / 6

S_ij is 1 for cases of one group, else -1. The free codes b_j of the training cases are learned beside the
network, bit by bit (ADSH, Jiang and Li, AAAI 2018): B_k = sign(Q_k - B_-k U_-k^T u_k), Q = q S^T U + gamma U.
"""

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Indices, Split
from ..train import TrainConfig
from .base import HEAD, IMAGE_ONLY, Ranker, Scores, System, Uses, products
from .inputs import Inputs, in_batches

BITS, _GAMMA = 48, 200.0
_CHANNELS, _INSIDE = 256, 64  # of a bottleneck
_ROUNDS, _EPOCHS, _BATCH = 16, 2, 64  # chosen, as the rate, on validation parts of the training folds
_LR, _MOMENTUM, _DECAY = 1e-3, 0.91, 1e-4
_STRONG = 0.95  # of the largest part: such parts are suppressed
_LOCAL = 3


class Fesm(nn.Module):
    """Weigh the 2 x 2 parts of a map (B, C, H, W), and return it with the parts boosted, and suppressed."""

    def __init__(self, channels: int, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts
        self.score = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1), nn.ReLU())

    def weights(self, x: Tensor) -> Tensor:
        """Return the weight of each part (B, parts, parts); they sum to 1."""
        scores = F.adaptive_avg_pool2d(self.score(x), self.parts)[:, 0]
        rows, columns = scores.mean(2).softmax(1), scores.mean(1).softmax(1)
        return rows[:, :, None] * columns[:, None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.weights(x)[:, None]
        strong = p >= _STRONG * p.amax((2, 3), keepdim=True)
        spread = F.interpolate(p, x.shape[-2:], mode="nearest")
        mask = F.interpolate(torch.where(strong, 0.5, 1.0), x.shape[-2:], mode="nearest")
        return x + 0.5 * x * spread, x * mask


class _Block(nn.Module):
    """A bottleneck with a shortcut."""

    def __init__(self, inputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, _INSIDE, 1, bias=False), nn.BatchNorm2d(_INSIDE), nn.ReLU(),
            nn.Conv2d(_INSIDE, _INSIDE, 3, stride, 1, bias=False), nn.BatchNorm2d(_INSIDE), nn.ReLU(),
            nn.Conv2d(_INSIDE, _CHANNELS, 1, bias=False), nn.BatchNorm2d(_CHANNELS),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != _CHANNELS:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, _CHANNELS, 1, stride, bias=False), nn.BatchNorm2d(_CHANNELS)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class _Cfm(nn.Module):
    """A gate by row and column, then convolutions with a residual."""

    def __init__(self) -> None:
        super().__init__()
        c = _CHANNELS
        self.squeeze = nn.Sequential(nn.Conv1d(c, _INSIDE, 1), nn.BatchNorm1d(_INSIDE), nn.ReLU())
        self.rows, self.columns = nn.Conv1d(_INSIDE, c, 1), nn.Conv1d(_INSIDE, c, 1)
        self.widen = nn.Conv2d(c, 3 * c, 1)
        self.depthwise = nn.Conv2d(3 * c, 3 * c, 3, padding=1, groups=3 * c)
        self.narrow = nn.Conv2d(3 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        both = self.squeeze(torch.cat([x.mean(3), x.mean(2)], 2))
        gate = (
            self.rows(both[..., :height])[..., None].sigmoid()
            * self.columns(both[..., height:])[:, :, None].sigmoid()
        )
        x = x + x * gate
        wide = F.relu(self.widen(x))
        return cast(Tensor, self.narrow(F.relu(wide + self.depthwise(wide))))


def exchange(maps: list[Tensor]) -> list[Tensor]:
    """Let neighbouring maps (B, C, h, w) exchange features where they look alike (MCM)."""
    given: list[list[Tensor]] = [[] for _ in maps]
    for i in range(len(maps) - 1):
        first, second = maps[i], maps[i + 1]
        alike = F.cosine_similarity(first, second, 1).flatten(1).softmax(1)
        other = (1 - alike).softmax(1)
        shape = (len(first), 1, *first.shape[2:])
        given[i + 1].append(first * alike.reshape(shape))
        given[i].append(second * other.reshape(shape))
    return [x + torch.stack(g).mean(0) for x, g in zip(maps, given, strict=True)]


class DahNet(nn.Module):
    """Codes in [-1, 1], and the logits of the group from the global and from each local branch."""

    def __init__(self, mid: int, high: int, groups: int) -> None:
        super().__init__()
        self.fesm = Fesm(mid)
        self.first, self.second, self.third = _Block(mid, 2), _Block(_CHANNELS), _Block(_CHANNELS)
        self.cfm = _Cfm()
        self.global_code = nn.Linear(high, BITS // 2)
        self.local_codes = nn.ModuleList(nn.Linear(_CHANNELS, BITS // (2 * _LOCAL)) for _ in range(_LOCAL))
        self.global_group = nn.Linear(high, groups)
        self.local_groups = nn.ModuleList(nn.Linear(_CHANNELS, groups) for _ in range(_LOCAL))

    def forward(self, mid: Tensor, high: Tensor) -> tuple[Tensor, list[Tensor]]:
        """mid, high (B, h, w, C) -> u (B, BITS), and logits (B, groups) of the four branches."""
        x = mid.permute(0, 3, 1, 2)
        boosted = []
        for _ in range(_LOCAL):
            b, x = self.fesm(x)
            boosted.append(self.first(b))
        local = [self.third(self.cfm(self.second(x))).mean((2, 3)) for x in exchange(boosted)]
        whole = high.mean((1, 2))
        codes = [self.global_code(whole), *(w(f) for w, f in zip(self.local_codes, local, strict=True))]
        logits = [self.global_group(whole), *(w(f) for w, f in zip(self.local_groups, local, strict=True))]
        return torch.tanh(torch.cat(codes, 1)), logits


def update_codes(codes: Tensor, u: Tensor, similarity: Tensor, gamma: float = _GAMMA) -> Tensor:
    """Return better codes B (N, q) for the network's outputs u (N, q) and S (N, N), bit by bit (DCC)."""
    codes, q = codes.clone(), u.shape[1]
    wanted = q * similarity.T @ u + gamma * u
    for k in range(q):
        rest = [n for n in range(q) if n != k]
        value = wanted[:, k] - codes[:, rest] @ (u[:, rest].T @ u[:, k])
        codes[:, k] = _sign(value)
    return codes


def objective(codes: Tensor, u: Tensor, similarity: Tensor, gamma: float = _GAMMA) -> Tensor:
    """Return what `update_codes` lowers: sum (q S - U B^T)^2 + gamma sum |u - b|^2."""
    q = u.shape[1]
    return (q * similarity - u @ codes.T).square().sum() + gamma * (u - codes).square().sum()


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def _train(inputs: Inputs, subsets: Split, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Return the signs of the network's outputs (N, q), and the learned codes of the archive."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    archive, labels = subsets.archive, torch.from_numpy(inputs.labels).to(inputs.device)
    of_archive = labels[archive]
    similarity = torch.where(of_archive[:, None] == of_archive, 1.0, -1.0)
    _, mid, high = inputs.channels
    model = DahNet(mid, high, int(labels.max()) + 1).to(inputs.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY, nesterov=True
    )
    views, maps = len(inputs.images), inputs.standardised_maps(archive)
    u = torch.zeros(len(archive), BITS, device=inputs.device)
    codes = _sign(torch.randn(len(archive), BITS)).to(inputs.device)
    for _ in range(_ROUNDS):
        model.train()
        for _ in range(_EPOCHS):
            for part in in_batches(rng.permutation(len(archive)), _BATCH):
                _, x_mid, x_high = maps(archive[part], rng.integers(views, size=len(part)))
                out, logits = model(x_mid, x_high)
                u[part] = out.detach()
                loss = _loss(out, codes[part], codes, similarity[part], logits, of_archive[part])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        codes = update_codes(codes, u, similarity)
    model.eval()
    everything, signs = np.arange(len(labels)), []
    with torch.inference_mode():
        for part in in_batches(everything, _BATCH):
            _, x_mid, x_high = maps(part, np.zeros(len(part), np.int64))
            signs.append(_sign(model(x_mid, x_high)[0]))
    return torch.cat(signs).cpu(), codes.cpu()


def _loss(
    u: Tensor, own: Tensor, codes: Tensor, similarity: Tensor, logits: list[Tensor], labels: Tensor
) -> Tensor:
    pairs = (BITS * similarity - u @ codes.T).square().mean()
    quantisation = (u - own).square().sum() / (len(u) * len(codes))
    whole, *local = (F.cross_entropy(x, labels) for x in logits)
    return 12 / BITS * (pairs + _GAMMA * quantisation) + whole / 2 + torch.stack(local).sum() / 6


def _fit(learned: bool, inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    signs, codes = _train(inputs, subsets, config)
    queries = signs[subsets.test].numpy()
    row = {int(case): n for n, case in enumerate(subsets.archive)}

    def ranker(archive: Indices) -> Scores:
        if not learned:
            return {IMAGE_ONLY: products(queries, signs[archive].numpy())}
        if not all(int(case) in row for case in archive):
            return {}  # only training cases have learned codes
        return {IMAGE_ONLY: products(queries, codes[[row[int(case)] for case in archive]].numpy())}

    return ranker


_SOURCE = "Jiang, Tang and Li, Dual attention hashing network, TKDE 36(11), 2024, and its public code"
_DEVIATIONS = (
    "Maps of a frozen backbone in place of a tuned ResNet-50: the middle one for the local branches, the "
    "last one for the global branch.",
    "New bottlenecks of 256 channels on standardised maps, a learning rate of 1e-3, 16 rounds of 2 epochs "
    "over all training cases.",
    "S stays -1 and 1: the softening of the publication does nothing where half of all pairs agree.",
)
DAHNET = System(
    name="dahnet",
    source=_SOURCE,
    fidelity=HEAD,
    deviations=(*_DEVIATIONS, "Cases have the network's codes, as a case has that no training has seen."),
    uses=Uses(labels=True),
    fit=partial(_fit, False),
)
DAHNET_B = System(
    name="dahnet-b",
    source=_SOURCE,
    fidelity=HEAD,
    deviations=(
        *_DEVIATIONS,
        "Cases have the codes that were fitted to their labels, as published; a held-out archive has none.",
    ),
    uses=Uses(labels=True, archive_labels=True),
    fit=partial(_fit, True),
)
