"""Does the evidence add up, and do the maps show what matters? With the trained model of `skinret demo`.

    skinret demo --out demo
    python -m pytest benchmarks/test_evidence.py -s --product demo

If the folder has no data, the pictures are those of the folder that SKINRET_DERM7PT names.
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

Cells = npt.NDArray[np.int64]
QUERIES, HITS, DRAWS = 100, 5, 8
MASKED = 0.2  # of the positions


@pytest.fixture(scope="module")
def queries(product: Product) -> list[Case]:
    some = np.random.default_rng(0).permutation(len(product.cases))[:QUERIES]
    return [product.cases[n] for n in some]


def test_the_evidence_of_every_hit_adds_up_to_its_score(product: Product, queries: list[Case]) -> None:
    errors, residuals = [], []
    with Searcher(product.bundle, product.archive) as searcher:
        for case in queries:
            words = searcher.manifest.checklist.text_of(case.attributes)
            for hit in searcher.query(case.image, words, k=HITS, exclude=[case.case_id]):
                evidence = hit.evidence(image_folder=product.images)
                residuals.append(evidence.residual)
                for side in (evidence.query, evidence.case):
                    assert side is not None
                    total = sum(float(m.sum()) for m in side.maps.values()) + sum(side.baseline.values())
                    errors.append(abs(total - hit.score))
        runtime, precision = searcher.runtime, searcher.precision
    print(f"\n{len(residuals)} hits, {runtime} {precision}: the error of a sum is {max(errors):.1e} at most;")
    print(f"the residual of a product, which is spread over the positions, is {max(residuals):.1e} at most")
    assert max(errors) <= 1e-5
    assert max(residuals) <= (1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(
    ("with_words", "goal"), [(True, 0.9), (False, 0.85)], ids=["words too", "image alone"]
)
def test_masking_the_highest_contributions_lowers_the_score_more_than_random_masking(
    product: Product, queries: list[Case], with_words: bool, goal: float
) -> None:
    """Score each query's best hit again, with a part of the query's picture in its mean colour."""
    rng = np.random.default_rng(1)
    is_larger: list[bool] = []
    losses: dict[str, list[float]] = {"most": [], "random": [], "least": []}
    with Searcher(product.bundle, product.archive) as searcher:
        manifest = searcher.manifest
        weights = part_weights(manifest.layout, manifest.beta, manifest.gamma, group=manifest.group_weight)

        def score(square: Pixels, cells: Cells, side: int, words: str | None, case: Vector) -> float:
            grid = np.zeros((side, side), bool)
            grid.flat[cells] = True
            scale = len(square) // side
            masked = square.copy()
            masked[np.kron(grid, np.ones((scale, scale), bool))] = square.mean((0, 1))
            return float(products(searcher.embed(masked, words), case[None], manifest.layout)[0] @ weights)

        for case in queries:
            words = manifest.checklist.text_of(case.attributes) if with_words else None
            [hit] = searcher.query(case.image, words, k=1, exclude=[case.case_id])
            contributions = hit.evidence(with_case=False).query.total
            descriptor = searcher.embed(product.images / hit.image_ref)
            square = preprocess(decode(case.image), manifest.image)
            order, count = np.argsort(-contributions.ravel()), round(MASKED * contributions.size)
            at_random = [rng.permutation(contributions.size)[:count] for _ in range(DRAWS)]
            most, least, *random_losses = (
                hit.score - score(square, cells, len(contributions), words, descriptor)
                for cells in (order[:count], order[-count:], *at_random)
            )
            random = float(np.mean(random_losses))
            is_larger.append(most > random)
            for name, loss in (("most", most), ("random", random), ("least", least)):
                losses[name].append(loss)
    print(
        f"\nmasking {MASKED:.0%}, {'image and words' if with_words else 'image alone'}, {_means(losses)}: ",
        end="",
    )
    print(f"most costs more than random in {np.mean(is_larger):.0%} of {len(is_larger)} queries")
    assert np.mean(is_larger) >= goal


def _means(losses: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} costs {np.mean(values):.3f}" for name, values in losses.items())
