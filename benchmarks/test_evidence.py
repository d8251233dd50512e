"""Does the evidence add up, and do the maps mean something? On a trained model, which `skinret demo` makes.

    skinret demo --out demo
    python -m pytest benchmarks/test_evidence.py -s --product demo

With SKINRET_DERM7PT and a folder that has no data of its own, the pictures are the real ones.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from fixtures import Product

from skinret_infer import Case, Searcher
from skinret_infer.descriptor import Vector, part_weights, products
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import Pixels, preprocess
from skinret_infer.text import attributes_to_text

Cells = npt.NDArray[np.int64]
QUERIES, HITS, DRAWS = 100, 5, 8
MASKED = 0.2  # of the positions


@pytest.fixture(scope="module")
def asked(product: Product) -> list[Case]:
    some = np.random.default_rng(0).permutation(len(product.cases))[:QUERIES]
    return [product.cases[n] for n in some]


def test_the_evidence_of_every_hit_adds_up_to_its_score(product: Product, asked: list[Case]) -> None:
    off, rounding = [], []
    with Searcher(product.bundle, product.archive) as searcher:
        for case in asked:
            words = attributes_to_text(case.attributes, searcher.manifest.text.phrases)
            for hit in searcher.query(case.image, words, k=HITS, exclude=[case.case_id]):
                evidence = hit.evidence(image_folder=product.images)
                rounding.append(evidence.residual)
                for side in (evidence.query, evidence.case):
                    assert side is not None
                    whole = sum(float(m.sum()) for m in side.maps.values()) + sum(side.baseline.values())
                    off.append(abs(whole - hit.score))
        runtime, precision = searcher.runtime, searcher.precision
    print(f"\n{len(rounding)} hits, {runtime} {precision}: a sum was off by {max(off):.1e} at most;")
    print(f"before what the positions missed was spread, a product was off by {max(rounding):.1e} at most")
    assert max(off) <= 1e-5
    assert max(rounding) <= (1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(("worded", "goal"), [(True, 0.9), (False, 0.85)], ids=["words too", "image alone"])
def test_masking_what_contributes_most_lowers_the_score_more_than_masking_at_random(
    product: Product, asked: list[Case], worded: bool, goal: float
) -> None:
    """Of the best hit of each query; what is masked gets the picture's mean colour."""
    rng = np.random.default_rng(1)
    lower: list[bool] = []
    lost: dict[str, list[float]] = {"most": [], "random": [], "least": []}
    with Searcher(product.bundle, product.archive) as searcher:
        manifest = searcher.manifest
        weights = part_weights(manifest.layout, manifest.beta, manifest.gamma)

        def score(square: Pixels, cells: Cells, side: int, words: str | None, there: Vector) -> float:
            grid = np.zeros((side, side), bool)
            grid.flat[cells] = True
            scale = len(square) // side
            hidden = square.copy()
            hidden[np.kron(grid, np.ones((scale, scale), bool))] = square.mean((0, 1))
            return float(products(searcher.embed(hidden, words), there[None], manifest.layout)[0] @ weights)

        for case in asked:
            words = attributes_to_text(case.attributes, manifest.text.phrases) if worded else None
            [hit] = searcher.query(case.image, words, k=1, exclude=[case.case_id])
            whole = hit.evidence(with_case=False).query.total
            there = searcher.embed(product.images / hit.image_ref)
            square = preprocess(decode(case.image), manifest.image)
            order, count = np.argsort(-whole.ravel()), round(MASKED * whole.size)
            at_random = [rng.permutation(whole.size)[:count] for _ in range(DRAWS)]
            most, least, *drawn = (
                hit.score - score(square, cells, len(whole), words, there)
                for cells in (order[:count], order[-count:], *at_random)
            )
            lower.append(most > float(np.mean(drawn)))
            for name, loss in (("most", most), ("random", float(np.mean(drawn))), ("least", least)):
                lost[name].append(loss)
    print(
        f"\nmasking {MASKED:.0%}, {'image and words' if worded else 'image alone'}, {_means(lost)}: ", end=""
    )
    print(f"what adds most costs more than a random part in {np.mean(lower):.0%} of {len(lower)} queries")
    assert np.mean(lower) >= goal


def _means(lost: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} costs {np.mean(losses):.3f}" for name, losses in lost.items())
