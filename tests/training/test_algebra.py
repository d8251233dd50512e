"""S as a dot product of weighted descriptors is Eq. 9, computed literally from the maps."""

import numpy as np
import pytest
import torch
from helpers import CONCEPTS, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from skinret_infer.descriptor import Layout, part_weights, products, score_weights, weigh
from skinret_training.loss import concept_loss, multi_positive_contrastive
from skinret_training.model import AGGREGATIONS, SimilarityHead, unit

CHANNELS = [12, 24, 48]
SIDES = (6, 3, 2)


def maps(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, s, s, d, generator=generator) for s, d in zip(SIDES, CHANNELS, strict=True)]


def head(aggregation: str = "normalized", concepts: dict[str, list[str]] = CONCEPTS) -> SimilarityHead:
    torch.manual_seed(7)
    part = SimilarityHead(tiny_config(aggregation=aggregation, regions=4, concepts=concepts), CHANNELS).eval()
    for reader in part.concepts:
        torch.nn.init.normal_(reader.weight, std=0.3)
    return part


def literal_score(
    part: SimilarityHead,
    x_q: list[torch.Tensor],
    x_t: list[torch.Tensor],
    beta: float,
    gamma: float,
    group: float,
) -> float:
    """Eq. 6-9 and the agreement in float64, position by position, with no descriptor in sight."""

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    total = 0.0
    means: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # of the maps of q and of t
    for level in range(3):
        weight = part.masks[level].weight.detach().numpy().astype(np.float64)
        bias = part.masks[level].bias.detach().numpy().astype(np.float64)
        e, g = [], []
        for x in (x_q[level], x_t[level]):
            positions = x[0].numpy().astype(np.float64).reshape(-1, CHANNELS[level])
            regions = []
            for j in range(len(weight)):
                logits = positions @ weight[j] + bias[j]
                alpha = np.exp(logits - logits.max())
                alpha /= alpha.sum()
                regions.append(sum(a * p for a, p in zip(alpha, positions, strict=True)))
            match part.aggregation:
                case "normalized":
                    e.append(np.mean([r / np.linalg.norm(r) for r in regions], axis=0))
                case "mean":
                    e.append(np.mean(regions, axis=0))
                case "max":
                    e.append(np.max(regions, axis=0))
                case "concat":
                    e.append(np.concatenate(regions))
            g.append(positions.mean(0))
        total += beta * cos(*e) + (1 - beta) * cos(*g)
        for side, mean in zip(means, g, strict=True):
            side.append(mean)
    agreed = []
    for reader in part.concepts:
        p = []
        for side in means:
            logits = 3 * reader.weight.detach().numpy().astype(np.float64) @ np.concatenate(side)
            p.append(np.exp(logits) / np.exp(logits).sum())
        agreed.append(p[0] @ p[1])
    agreement = sum(agreed)
    if len(agreed) > 1:
        agreement = group * agreed[0] + (1 - group) * np.mean(agreed[1:])
    return (1 - gamma) * total / 3 + gamma * agreement


CRITERIA = {"streaks": ["absent", "irregular"], "vessels": ["absent", "comma", "dotted", "hairpin"]}


@pytest.mark.parametrize("concepts", [{}, {"group": ["a", "b"]}, CONCEPTS, {**CONCEPTS, **CRITERIA}])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=10, deadline=None)
@given(beta=st.floats(0, 1), gamma=st.floats(0, 1), group=st.floats(0, 1), seed=st.integers(0, 1000))
def test_the_weighted_dot_product_is_the_score_for_any_weights(
    aggregation: str, concepts: dict[str, list[str]], beta: float, gamma: float, group: float, seed: int
) -> None:
    part = head(aggregation, concepts)
    gamma = gamma if concepts else 0.0
    x_q, x_t = maps(seed), maps(seed + 5000)
    with torch.no_grad():
        d_q, d_t = part(*x_q)[0][0].numpy(), part(*x_t)[0][0].numpy()
    expected = literal_score(part, x_q, x_t, beta, gamma, group)
    assert -1 - 1e-9 <= expected <= 1 + 1e-9
    assert float(weigh(d_q, part.layout, beta, gamma, group) @ d_t) == pytest.approx(expected, abs=1e-5)
    parts = products(d_q, d_t[None], part.layout)[0]
    weights = part_weights(part.layout, beta, gamma, group=group)
    assert float(parts @ weights) == pytest.approx(expected, abs=1e-5)
    by_number = score_weights(part.layout, beta, gamma, group)
    assert float((d_q * by_number) @ d_t) == pytest.approx(expected, abs=1e-5)


def test_a_descriptor_is_six_unit_vectors_and_a_distribution_of_each_trait() -> None:
    part = head()
    d = part(*maps(0))[0].detach().numpy()
    parts = np.split(d[0], part.layout.starts[1:])
    assert [len(b) for b in parts] == [*CHANNELS * 2, 3, 3]
    np.testing.assert_allclose([np.linalg.norm(b) for b in parts[:6]], 1, atol=1e-6)
    np.testing.assert_allclose([p.sum() for p in parts[6:]], 1, atol=1e-6)
    assert part.layout.well_formed(d).all()
    for at, value in ((0, d[0, 0] + 0.1), (-1, -d[0, -1]), (-1, d[0, -1] + 0.1), (-3, np.nan), (5, np.inf)):
        damaged = np.repeat(d, 3, axis=0)
        damaged[1, at] = value
        assert part.layout.well_formed(damaged).tolist() == [True, False, True], (at, value)


def test_cases_that_are_read_alike_agree() -> None:
    part = head()
    labels = torch.tensor([[0, 1], [1, 2], [2, 0]])
    batch = [torch.cat(level) for level in zip(*(maps(n) for n in range(3)), strict=True)]
    optimizer = torch.optim.Adam(part.concepts.parameters(), lr=0.1)
    before = concept_loss(part.concept_logits(*batch), labels)
    for _ in range(30):
        optimizer.zero_grad()
        concept_loss(part.concept_logits(*batch), labels).backward()
        optimizer.step()
    assert concept_loss(part.concept_logits(*batch), labels) < before / 10
    learned = torch.cat([part(*maps(n))[0].detach() for n in range(3)]).numpy()
    agreed = np.stack([products(row, learned, part.layout)[:, 6] for row in learned])
    assert (np.diag(agreed) > 0.8).all() and (agreed[~np.eye(3, dtype=bool)] < 0.2).all()


def test_beside_words_the_group_has_another_head_and_half_a_weight_is_half_way() -> None:
    part, x = head(), maps(0)
    for parameter in part.group_with_words.parameters():
        torch.nn.init.normal_(parameter)
    alone, none, half, full = (
        part.concept_logits(*x, w if w is None else torch.tensor([w])) for w in (None, 0.0, 0.5, 1.0)
    )
    assert torch.equal(alone[0], none[0]) and not torch.allclose(alone[0], full[0])
    assert torch.allclose(half[0], (alone[0] + full[0]) / 2)
    assert all(torch.equal(logits[1], alone[1]) for logits in (none, half, full))
    means = torch.cat([level.mean((1, 2)) for level in x], 1)
    for matrix, logits in zip(part.concept_heads(), (alone, full), strict=True):
        assert torch.allclose(means @ matrix[:, :-1].T + matrix[:, -1], torch.cat(logits, 1), atol=1e-5)
    head_alone, head_full = part(*x)[0], part(*x, torch.ones(1))[0]
    same = head_alone[0] == head_full[0]
    start = part.layout.visual_length
    assert same[:start].all() and not same[start : start + 3].any() and same[start + 3 :].all()


def test_masks_sum_to_one_over_space_so_none_is_empty() -> None:
    _, *masks = head()(*maps(3))
    for mask, side in zip(masks, SIDES, strict=True):
        assert mask.shape == (1, 4, side, side)
        np.testing.assert_allclose(mask.detach().sum((2, 3)).numpy(), 1, atol=1e-6)


def test_the_plain_mean_of_k_masks_is_one_mask_and_the_normalized_one_is_not() -> None:
    x = maps(4)[0].flatten(1, 2)
    for aggregation, same in (("mean", True), ("normalized", False)):
        part = head(aggregation)
        alpha = part.masks[0](x).transpose(1, 2).softmax(-1)
        one_mask = unit(alpha.mean(1, keepdim=True) @ x)[0, 0].detach()
        e_low = part(*maps(4))[0][0, : CHANNELS[0]].detach()
        assert torch.allclose(one_mask, e_low, atol=1e-6) is same


def test_maps_of_zeros_give_a_finite_descriptor() -> None:
    d = head()(*[torch.zeros_like(x) for x in maps(0)])[0]
    assert torch.isfinite(d).all()


def test_the_same_vectors_give_the_same_bits_whatever_stands_beside_them() -> None:
    layout = Layout(local=(12, 24, 48), global_=(12, 24, 48))
    cases = np.random.default_rng(0).standard_normal((500, layout.length)).astype(np.float32)
    alone = np.concatenate([products(cases[0], cases[n : n + 1], layout) for n in range(500)])
    assert (products(cases[0], cases, layout) == alone).all()


def test_the_loss_rewards_the_own_group_and_ignores_the_own_case() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    right = torch.tensor([[9.0, 5, 0, 0], [5, 9, 0, 0], [0, 0, 9, 5], [0, 0, 5, 9]])
    wrong = torch.tensor([[9.0, 0, 5, 5], [0, 9, 5, 5], [5, 5, 9, 0], [5, 5, 0, 9]])
    assert multi_positive_contrastive(right, labels) < 0.1 < multi_positive_contrastive(wrong, labels)
    louder = right + 50 * torch.eye(4)
    assert multi_positive_contrastive(louder, labels) == multi_positive_contrastive(right, labels)
    assert multi_positive_contrastive(right, torch.arange(4)) == 0  # nobody has a positive
