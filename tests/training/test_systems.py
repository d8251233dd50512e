"""The compared systems: what each may look at, and the formulas of its source."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from skinret_infer import InputError, MissingExtra
from skinret_training.data import Split
from skinret_training.model import Maps
from skinret_training.systems import SYSTEMS, combiner, comquery, dahnet, deml, heads, snf, texture, walsh
from skinret_training.systems.base import BOTH_SIDES, Scores, System
from skinret_training.systems.inputs import Inputs, LastStage, join
from skinret_training.train import TrainConfig

N, CHANNELS = 60, (4, 6, 8)
CACHE = Path()
TRAINING, QUERIES = np.arange(40), np.arange(40, N)
SPLIT = Split(TRAINING, TRAINING[:0], QUERIES)


def make_inputs(seed: int = 0) -> Inputs:
    """Three groups that pictures and words tell apart, not surely."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 3
    maps = [rng.standard_normal((2, N, 8, 8, c)).astype(np.float32) for c in CHANNELS]
    for level in maps:
        level[..., :3] += np.eye(3, dtype=np.float32)[labels][None, :, None, None] * 0.7
    said = np.where(rng.random(N) < 0.7, labels, rng.integers(3, size=N))
    words = np.eye(3, dtype=np.float32)[said]
    words[5] = 0  # a case without words

    def get(cases: np.ndarray, views: np.ndarray) -> Maps:
        low, mid, high = (torch.from_numpy(level[views, cases]) for level in maps)
        return low, mid, high

    tokens = rng.standard_normal((N, 4, 5)).astype(np.float32) + said[:, None, None].astype(np.float32)
    return Inputs(
        labels=labels,
        targets=np.stack([labels, said], 1),
        images=np.concatenate([level.mean((2, 3)) for level in maps], -1),
        channels=CHANNELS,
        words=words,
        tokens=words @ rng.standard_normal((3, 5)).astype(np.float32),
        text=lambda cases: (torch.from_numpy(tokens[cases]), torch.ones(len(cases), 4, dtype=torch.int64)),
        maps=get,
        last_stage=lambda: LastStage(lambda cases, views: get(cases, views)[1], copy_of_stage),
        pixels=drawn(labels, rng),
        cache=CACHE,
    )


def copy_of_stage() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Linear(CHANNELS[1], CHANNELS[2])


def drawn(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return dark discs on light skin, with noise, [N, 64, 64, 3]."""
    y, x = np.mgrid[:64, :64] - 31.5
    far = np.hypot(y, x)[None]
    skin = np.where(far < (12 + 3 * labels)[:, None, None], 90, 200)[..., None] * np.ones(3)
    return np.clip(skin + rng.normal(0, 6, skin.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is computed once is stored for all tests here."""
    global CACHE
    CACHE = tmp_path_factory.mktemp("cache")
    yield


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "STEPS", 40)
    monkeypatch.setattr(combiner, "_PROJECTION", 32)
    monkeypatch.setattr(combiner, "_HIDDEN", 32)
    monkeypatch.setattr(dahnet, "_ROUNDS", 1)
    monkeypatch.setattr(deml, "_EPOCHS", 5)
    monkeypatch.setattr(comquery, "_EPOCHS", 1)
    monkeypatch.setattr(snf, "NEIGHBOURS", 8)


def scores_of(system: System, inputs: Inputs, split: Split = SPLIT, archive: np.ndarray = TRAINING) -> Scores:
    return system.fit(inputs, split, TrainConfig(seed=1))(archive)


each_system = pytest.mark.parametrize("name", SYSTEMS)


@each_system
def test_a_system_scores_every_query_with_every_case_of_an_archive(name: str) -> None:
    found = scores_of(SYSTEMS[name], make_inputs())
    assert found
    for kind, scores in found.items():
        assert scores.shape == (len(QUERIES), len(TRAINING)) and np.isfinite(scores).all(), kind
    assert (BOTH_SIDES in found) == SYSTEMS[name].uses.archive_words


@each_system
def test_the_labels_of_the_queries_change_no_score(name: str) -> None:
    inputs = make_inputs()
    labels, targets = inputs.labels.copy(), inputs.targets.copy()
    labels[QUERIES] = np.roll(labels[QUERIES], 1)
    targets[QUERIES, 0] = labels[QUERIES]
    changed = replace(inputs, labels=labels, targets=targets)
    expect_equal(scores_of(SYSTEMS[name], inputs), scores_of(SYSTEMS[name], changed))


@each_system
def test_a_query_does_not_depend_on_other_queries(name: str) -> None:
    inputs, few = make_inputs(), Split(TRAINING, TRAINING[:0], QUERIES[3:6])
    alone = scores_of(SYSTEMS[name], inputs, few)
    expect_equal({k: s[3:6] for k, s in scores_of(SYSTEMS[name], inputs).items()}, alone)


@pytest.mark.parametrize(
    ("name", "archive", "has_words", "message"),
    [
        ("tirg", 100, False, "the system tirg compares words.*found none"),
        ("snf-dca", 20, True, "at least 21 cases.*found 20"),
        ("deml", 4, True, "at least 6 cases.*found 4"),
    ],
)
def test_data_without_what_a_system_needs_are_refused(
    name: str, archive: int, has_words: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SYSTEMS[name].check(archive, has_words)
    assert caught.value.code == "system-data"
    SYSTEMS[name].check(100, True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mahotas", None)
    with pytest.raises(MissingExtra, match=r"skinret-infer\[compare\]"):
        SYSTEMS["texture"].check(100, True)


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if not system.uses.labels])
def test_a_system_without_labels_ignores_them(name: str) -> None:
    inputs = make_inputs()
    shuffled = replace(inputs, labels=np.roll(inputs.labels, 1), targets=np.roll(inputs.targets, 1, axis=0))
    expect_equal(scores_of(SYSTEMS[name], inputs), scores_of(SYSTEMS[name], shuffled))


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.uses.labels])
def test_a_system_with_labels_learns_from_them(name: str) -> None:
    inputs = make_inputs()
    shuffled = replace(
        inputs,
        labels=np.random.default_rng(3).permutation(inputs.labels),
        targets=inputs.targets[::-1].copy(),
    )
    first, second = (scores_of(SYSTEMS[name], x) for x in (inputs, shuffled))
    assert any(not np.allclose(first[kind], second[kind]) for kind in first)


def expect_equal(found: Scores, expected: Scores) -> None:
    assert found.keys() == expected.keys()
    for kind in found:
        np.testing.assert_allclose(found[kind], expected[kind], atol=1e-5, err_msg=kind)


def test_only_training_cases_have_learned_codes() -> None:
    inputs = make_inputs()
    assert not scores_of(SYSTEMS["dahnet-b"], inputs, archive=QUERIES)
    assert scores_of(SYSTEMS["dahnet"], inputs, archive=QUERIES)


def test_a_joined_case_has_its_own_maps() -> None:
    first, second = make_inputs(0), make_inputs(1)

    class Words:
        def values_of(self, attributes: Any) -> dict[str, str]:
            return {}

    class Table:
        cases = [type("Case", (), {"attributes": {}})] * (2 * N)

    both = join(first, second, second.labels, Table(), Words())  # type: ignore[arg-type]
    cases, views = np.array([N + 3, 3, 7, N]), np.array([0, 1, 0, 1])
    for level, (one, two) in enumerate(
        zip(first.maps(cases % N, views), second.maps(cases % N, views), strict=True)
    ):
        expected = torch.where(torch.from_numpy(cases >= N)[:, None, None, None], two, one)
        assert torch.equal(both.maps(cases, views)[level], expected)
    assert np.array_equal(both.images[:, N:], second.images) and len(both.labels) == 2 * N


# -- mask and texture --


def test_the_mask_is_the_dark_part_in_the_middle() -> None:
    picture = drawn(np.array([1]), np.random.default_rng(0))[0]
    picture[2:8, 2:8] = 10  # a dark corner outside the disc, as of a lens
    mask = texture.lesion_mask(picture)
    y, x = np.mgrid[:64, :64] - 31.5
    lesion = np.hypot(y, x) < 15
    assert (mask & lesion).sum() / (mask | lesion).sum() > 0.85
    plain = texture.lesion_mask(np.full((64, 64, 3), 200, np.uint8))
    assert plain.sum() > 0.7 * 64 * 64  # nothing is dark: the whole disc


def test_a_texture_turns_with_the_picture() -> None:
    picture = drawn(np.array([1]), np.random.default_rng(0))[0]
    picture[24:34, 28:44] = 30
    turned = np.ascontiguousarray(np.rot90(picture))
    first, second = (texture.textures(p, texture.lesion_mask(p)) for p in (picture, turned))
    assert [len(block) for block in first] == [13, 25, 540]
    np.testing.assert_allclose(first[0], second[0], rtol=1e-3)
    np.testing.assert_allclose(first[1], second[1], atol=0.01)


# -- Walsh-Hadamard codes --


def test_the_codes_of_two_groups_differ_in_half_of_the_bits() -> None:
    inputs = make_inputs()
    codes = walsh.centres(inputs, TRAINING, False, 0)
    assert np.array_equal(np.abs(codes), np.ones((N, walsh.BITS)))
    assert {int(a @ b) for a in codes[:3] for b in codes[:3]} == {walsh.BITS, 0}
    several = walsh.centres(inputs, TRAINING, True, 0)
    assert np.array_equal(np.abs(several), np.ones((N, walsh.BITS)))
    assert len(np.unique(several, axis=0)) > len(np.unique(codes, axis=0))
    assert not any((row == hadamard(walsh.BITS)[0]).all() for row in codes)


# -- DAHNet --


def test_the_parts_of_a_map_share_a_weight_of_one() -> None:
    fesm = dahnet.Fesm(5)
    x = torch.randn(3, 5, 8, 8)
    torch.testing.assert_close(fesm.weights(x).sum((1, 2)), torch.ones(3))
    boosted, suppressed = fesm(x)
    assert boosted.shape == suppressed.shape == x.shape
    halved = (suppressed == 0.5 * x).all(1)
    assert all(halved[n, :4, :4].any() or halved[n].any() for n in range(3)) and not halved.all()


def test_each_update_of_the_codes_lowers_what_they_minimise() -> None:
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    similarity = torch.where(labels[:, None] == labels, 1.0, -1.0)
    u = torch.tanh(torch.randn(30, 12))
    codes = torch.where(torch.randn(30, 12) > 0, 1.0, -1.0)
    values = [dahnet.objective(codes, u, similarity, 1.0)]
    for _ in range(3):
        codes = dahnet.update_codes(codes, u, similarity, 1.0)
        values.append(dahnet.objective(codes, u, similarity, 1.0))
    assert values[1] < values[0] and values[2] <= values[1] and values[3] <= values[2]


# -- similarity network fusion --


def fused_by_loops(views: list[np.ndarray], k: int, rounds: int) -> np.ndarray:
    """Return the fused network, from the formulas one number at a time."""
    n = len(views[0])
    networks = []
    for d in views:
        mean = [np.mean(sorted(d[i])[1 : k + 1]) for i in range(n)]
        w = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                deviation = 0.5 * (mean[i] + mean[j] + d[i, j]) / 3
                w[i, j] = np.exp(-(d[i, j] ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))
        networks.append((w + w.T) / 2)
    full, sparse = [], []
    for w in networks:
        p = w / w.sum(1, keepdims=True)
        p = (p + p.T) / 2
        s = np.zeros((n, n))
        for i in range(n):
            for j in sorted(range(n), key=lambda j, row=p[i]: -row[j])[:k]:
                s[i, j] = p[i, j]
        full.append(p)
        sparse.append(s / s.sum(1, keepdims=True))
    for _ in range(rounds):
        new = []
        for v in range(len(full)):
            other = np.mean([full[u] for u in range(len(full)) if u != v], 0)
            m = sparse[v] @ other @ sparse[v].T
            new.append((m + m.T) / 2 + np.eye(n))
        full = new
    mean = np.mean(full, 0)
    mean /= mean.sum(1, keepdims=True)
    return (mean + mean.T + np.eye(n)) / 2


def test_networks_are_fused_as_the_formulas_say() -> None:
    rng = np.random.default_rng(0)
    views = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in rng.standard_normal((3, 12, 4))]
    found = snf.fuse([snf.affinity(d, 4) for d in views], 4, 5)
    np.testing.assert_allclose(found, fused_by_loops(views, 4, 5), rtol=1e-10)


def test_a_community_is_those_who_hold_together() -> None:
    network = np.full((9, 9), 0.01)
    network[:5, :5] = network[5:, 5:] = 1.0
    share = snf.community_share(network, 8, 4, 0)
    assert share[5:].tolist() == [1.0] * 4 and share[:5].max() < 1


# -- metric learning without labels --


def test_the_nearest_are_the_most_alike() -> None:
    z = torch.nn.functional.normalize(torch.randn(6, 4), dim=1).repeat_interleave(5, 0)
    w = deml.relation(z + 0.001 * torch.randn_like(z))
    assert torch.allclose(w, w.T) and w.min() >= 0 and w.max() <= 1 + 1e-6
    same = torch.arange(30) // 5
    inside = same[:, None] == same
    assert w[inside].min() > w[~inside].max()


def test_what_is_alike_is_pulled_and_what_is_not_is_pushed() -> None:
    torch.manual_seed(0)
    w = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    f = torch.nn.Parameter(torch.randn(8, 3))
    optimizer = torch.optim.Adam([f], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        deml.relaxed_contrastive(f, w).backward()
        optimizer.step()
    d = torch.cdist(f.detach(), f.detach())
    assert d[:4, :4].max() < d[:4, 4:].min()
