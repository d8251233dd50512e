"""Evidence: what a score is made of adds up, on the query and on the case, for every way of pooling."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config
from PIL import Image

from skinret_infer import ArchiveError, BundleError, Case, InputError, Searcher
from skinret_infer.descriptor import COSINES
from skinret_infer.evidence import Evidence, add_up, global_map, integrated_gradient, local_map, on_grid
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import compare, reader_of
from skinret_training.model import AGGREGATIONS, SimilarityHead

SEVEN_POINT = Checklist.seven_point()

WORDS = "atypical pigment network, irregular streaks"


def adds_up(evidence: Evidence, within: float = 1e-12) -> None:
    assert sum(evidence.parts.values()) == pytest.approx(evidence.score, abs=within)
    for side in (evidence.query, evidence.case):
        assert side is not None
        for name, part in evidence.parts.items():
            found = side.maps[name].sum() + side.baseline.get(name, 0.0)
            assert found == pytest.approx(part, abs=within), name
        whole = side.total.sum() + sum(side.baseline.values())
        assert whole == pytest.approx(evidence.score, abs=within)


def test_every_hit_of_a_query_is_explained_to_the_last_digit(
    searcher: Searcher, cases: list[Case], data: Path
) -> None:
    for words in (WORDS, None):
        for beta, gamma, levels in ((None, None, None), (0.0, 0.0, {"low": 2}), (1.0, 1.0, None)):
            results = searcher.query(cases[50].image, words, k=5, beta=beta, gamma=gamma, levels=levels)
            for hit in results:
                evidence = hit.evidence(image_folder=data / "images")
                adds_up(evidence)
                assert evidence.residual < 1e-5  # the positions alone, before what is missing is spread
                assert evidence.score == hit.score and evidence.case_id == hit.case_id
                assert list(evidence.parts) == [*COSINES, *searcher.manifest.concepts]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_way_of_pooling_splits_over_the_positions(aggregation: str) -> None:
    torch.manual_seed(0)
    head = SimilarityHead(tiny_config(aggregation=aggregation, concepts={}), [8, 8, 8])
    maps = [torch.randn(2, side, side, 8) for side in (8, 4, 2)]
    with torch.no_grad():
        descriptor, *masks = (x.double().numpy() for x in head(*maps))
    query, case = (np.split(d, head.layout.starts[1:]) for d in descriptor)
    for level in range(3):
        x, alpha = maps[level][0].double().numpy(), masks[level][0]
        local = local_map(x, alpha, aggregation, case[level])
        assert local.sum() == pytest.approx(query[level] @ case[level], abs=1e-6)
        assert global_map(x, case[3 + level]).sum() == pytest.approx(
            query[3 + level] @ case[3 + level], abs=1e-6
        )


def test_it_adds_up_for_a_model_without_concepts_that_averages_orientations(
    bundle_without_concepts: Path, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    assert not (bundle_without_concepts / "concept_head.npy").exists()
    with Searcher(bundle_without_concepts, tmp_path / "cases.skinret") as searcher:
        searcher.add(cases[:6])
        for hit in searcher.query(cases[50].image, WORDS, k=3):
            evidence = hit.evidence(image_folder=data / "images")
            adds_up(evidence)
            assert evidence.residual < 1e-5 and list(evidence.parts) == list(COSINES)


def test_a_bundle_without_its_concept_head_is_refused(bundle: Path, archive: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    del manifest["files"]["concept_head.npy"]
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (copy / "concept_head.npy").unlink()
    with pytest.raises(BundleError, match=r"concept_head\.npy") as caught:
        Searcher(copy, archive)
    assert caught.value.code == "bundle-concepts"


def test_the_map_changes_most_where_the_picture_changes(searcher: Searcher, cases: list[Case]) -> None:
    changed = np.zeros((8, 8))
    for case in cases[:8]:
        picture = np.asarray(Image.open(case.image).convert("RGB")).copy()
        before = searcher.query(picture, k=1, gamma=0)[0]
        assert before.case_id == case.case_id
        side = min(picture.shape[:2])
        left = (picture.shape[1] - side) // 2
        picture[: side // 2, left : left + side // 2] = 255  # the upper left quarter of what the model sees
        hits = searcher.query(picture, k=40, gamma=0)
        after = next(hit for hit in hits if hit.case_id == before.case_id)
        before_map, after_map = (hit.evidence(with_case=False).query.total for hit in (before, after))
        changed += np.abs(on_grid(before_map - after_map, 8, 8))
    painted, *others = (part.sum() for rows in np.split(changed, 2) for part in np.split(rows, 2, axis=1))
    assert painted > max(others)


def test_the_box_is_the_part_that_the_model_sees(searcher: Searcher, cases: list[Case], data: Path) -> None:
    picture = Image.open(cases[50].image)
    evidence = searcher.query(cases[50].image, k=1)[0].evidence(image_folder=data / "images")
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    assert evidence.query.box == (left, top, left + side, top + side)
    assert evidence.case is not None and evidence.case.box[2] - evidence.case.box[0] == 80


def test_words_and_case_share_what_both_say(searcher: Searcher, cases: list[Case]) -> None:
    words = searcher.manifest.checklist.text_of(cases[3].attributes)
    hits = searcher.query(cases[50].image, words, k=40)
    evidence = next(hit for hit in hits if hit.case_id == cases[3].case_id).evidence(with_case=False)
    assert evidence.matching_criteria == dict(cases[3].attributes) and not evidence.conflicting_criteria
    assert evidence.case is None


@pytest.mark.parametrize(
    ("said", "has", "shared", "differing"),
    [
        ("irregular streaks", {"streaks": "irregular"}, {"streaks": "irregular"}, {}),
        ("regular streaks", {"streaks": "irregular"}, {}, {"streaks": "irregular"}),
        ("Irregular  STREAKS!", {"streaks": "irregular"}, {"streaks": "irregular"}, {}),
        ("irregular streaks", {}, {}, {}),
        ("typical pigment network", {"pigment_network": "atypical"}, {}, {"pigment_network": "atypical"}),
        ("a blue-whitish veil", {"blue_whitish_veil": "present"}, {"blue_whitish_veil": "present"}, {}),
        ("a blue-whitish veil", {"blue_whitish_veil": "absent"}, {}, {"blue_whitish_veil": "absent"}),
        ("no blue-whitish veil", {"blue_whitish_veil": "present"}, {}, {"blue_whitish_veil": "present"}),
        ("no blue-whitish veil", {"blue_whitish_veil": "absent"}, {"blue_whitish_veil": "absent"}, {}),
        ("absent streaks", {"streaks": "absent"}, {"streaks": "absent"}, {}),
        ("an ulcer", {"streaks": "absent"}, {}, {}),
    ],
)
def test_a_criterion_is_shared_by_its_value(
    said: str, has: dict[str, str], shared: dict[str, str], differing: dict[str, str]
) -> None:
    assert compare(reader_of(SEVEN_POINT).read(said).allowed, has, SEVEN_POINT) == (shared, differing)


def test_a_picture_that_is_missing_or_another_is_refused_with_the_cure(
    searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    hit = searcher.query(cases[50].image, WORDS, k=1)[0]
    with pytest.raises(InputError) as missing:
        hit.evidence(image_folder=tmp_path)
    assert missing.value.code == "image-missing" and "image_folder=" in "".join(missing.value.__notes__)
    with pytest.raises(InputError) as another:
        hit.evidence(cases[51].image)
    assert another.value.code == "evidence-image"
    with pytest.raises(InputError) as outside:
        replace(hit, image_ref="../secret.png").evidence(image_folder=data / "images")
    assert outside.value.code == "image-outside"


def test_a_case_that_was_removed_or_replaced_since_is_told(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle, tmp_path / "cases.skinret") as searcher:
        searcher.add(cases[:5])
        first, second = searcher.query(cases[50].image, WORDS, k=2)
        other = Case(first.case_id, cases[20].image, diagnosis=first.diagnosis)
        searcher.add([other], on_duplicate="replace")
        searcher.remove([second.case_id])
        for hit in (first, second):
            with pytest.raises(ArchiveError) as changed:
                hit.evidence(with_case=False)
            assert changed.value.code == "evidence-changed"
        [hit] = searcher.query(cases[50].image, k=1)
    with pytest.raises(ArchiveError) as closed:
        hit.evidence(with_case=False)
    assert closed.value.code == "archive-closed"


def test_results_can_be_copied_but_their_evidence_stays_with_the_searcher(
    searcher: Searcher, cases: list[Case]
) -> None:
    results = searcher.query(cases[50].image, WORDS, k=2)
    copy = pickle.loads(pickle.dumps(results))  # noqa: S301 - our own
    assert copy == results and copy.to_dict() == results.to_dict()
    with pytest.raises(InputError) as gone:
        copy[0].evidence()
    assert gone.value.code == "evidence-gone"


def test_another_grid_keeps_the_sum() -> None:
    rng = np.random.default_rng(0)
    for sides in ((7, 14), (7, 16), (12, 5), (1, 9)):
        given = rng.normal(size=(sides[0], sides[0] + 1))
        onto = on_grid(given, sides[1], sides[1] + 3)
        assert onto.sum() == pytest.approx(given.sum(), abs=1e-12)
    coarse = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert np.array_equal(on_grid(coarse, 4, 4), np.kron(coarse, np.full((2, 2), 0.25)))
    assert add_up([coarse, np.zeros((4, 4))]).shape == (4, 4)


def test_the_integrated_gradient_a_softmax_ends_where_it_should() -> None:
    rng = np.random.default_rng(1)
    for scale in (0.1, 3.0, 20.0):
        change, base = scale * rng.normal(size=5), rng.normal(size=5)
        other = rng.dirichlet(np.ones(5))
        gradient, start = integrated_gradient(change, base, other)

        def f(z: np.ndarray, other: np.ndarray = other) -> float:
            e = np.exp(z - z.max())
            return float(e @ other / e.sum())

        assert start == pytest.approx(f(base), abs=1e-12)
        assert gradient @ change == pytest.approx(
            f(base + change) - f(base), abs=1e-4 if scale > 10 else 1e-9
        )
