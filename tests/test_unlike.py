"""Warnings: of a picture that is no dermoscopy, and of an archive without anything alike."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from skinret_export.fp16 import write_fp16
from skinret_infer import BundleError, Case, Results, Searcher
from skinret_infer.bundle import QUERY_KINDS, Bundle
from skinret_infer.engines.onnxruntime import OnnxRuntimeCuda
from skinret_infer.engines.registry import open_engine
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess

NOISE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
WORDS = "irregular streaks"
LIMIT = 0.999999  # no first hit reaches it, as queries and cases differ


@pytest.fixture(scope="module")
def filled(calibrated: Path, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unlike") / "cases.skinret"
    with Searcher(calibrated, path) as searcher:
        searcher.add(cases[:40])
    return path


@pytest.fixture
def opened(calibrated: Path, filled: Path) -> Iterator[Searcher]:
    with Searcher(calibrated, filled) as searcher:
        yield searcher


def codes(results: Results) -> list[str]:
    return [warning.code for warning in results.warnings]


def edited(bundle: Path, to: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Return a copy of a bundle with a changed manifest."""
    shutil.copytree(bundle, to)
    manifest = json.loads((to / "manifest.json").read_text("utf-8"))
    edit(manifest)
    (to / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return to


# -- the picture --


@pytest.mark.parametrize("text", [None, WORDS])
def test_a_picture_unlike_those_of_the_training_gets_a_warning_and_a_lesion_none(
    opened: Searcher, cases: list[Case], text: str | None
) -> None:
    assert codes(opened.query(NOISE, text)) == ["image-unlike"]
    for case in cases[40:50]:
        assert codes(opened.query(case.image, text)) == []


def test_in_a_batch_only_the_unlike_picture_gets_the_warning(opened: Searcher, cases: list[Case]) -> None:
    queries = [
        (cases[40].image, None),
        (NOISE, WORDS),
        (None, WORDS),
        (NOISE, None),
        (cases[41].image, WORDS),
    ]
    found = [codes(results) for results in opened.query_batch(queries)]
    assert found == [[], ["image-unlike"], [], ["image-unlike"], []]


def test_the_hits_are_those_without_the_warning(
    opened: Searcher, bundle: Path, archive: Path, cases: list[Case]
) -> None:
    with Searcher(bundle, archive) as plain:
        for image in (NOISE, cases[45].image):
            expected = plain.query(image, WORDS)
            assert codes(expected) == []
            found = opened.query(image, WORDS)
            assert [hit.case_id for hit in found] == [hit.case_id for hit in expected]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_the_warning_is_in_text_json_page_and_audit(
    calibrated: Path, filled: Path, data: Path, tmp_path: Path
) -> None:
    log, page = tmp_path / "audit.jsonl", tmp_path / "page.html"
    with Searcher(calibrated, filled, audit=log) as searcher:
        results = searcher.query(NOISE, k=1)
        results.to_html(page, image=NOISE, image_folder=data / "images")
    [warning] = results.warnings
    assert f"warning: {warning}" in str(results)
    assert json.loads(json.dumps(results.to_dict()))["warnings"] == [warning]
    assert warning in page.read_text("utf-8")
    assert json.loads(log.read_text("ascii"))["warnings"] == ["image-unlike"]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime-cuda"])
def test_each_runtime_gives_the_distances_of_the_reference(
    calibrated: Path, runtime: str, tmp_path: Path
) -> None:
    loaded = Bundle.load(calibrated)
    if runtime == "openvino":
        pytest.importorskip("openvino")
        engine: Any = open_engine(loaded, runtime, precision="fp32", cache=tmp_path)
    else:
        engine = OnnxRuntimeCuda(loaded, "fp32", 1, device="cpu")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    expected = open_engine(loaded, "onnxruntime-cpu").embed(pixels, None)
    found = engine.embed(pixels, None)
    assert expected.distances is not None and expected.distances.shape == (3,)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-3)


def test_in_fp16_the_verdicts_stay(calibrated: Path, cases: list[Case], tmp_path: Path) -> None:
    folder = shutil.copytree(calibrated, tmp_path / "bundle")
    write_fp16(folder)
    recipe = Bundle.load(calibrated).manifest.image
    pixels = np.stack([preprocess(decode(image), recipe) for image in (cases[50].image, NOISE)])
    session = onnxruntime.InferenceSession(folder / "visual_encoder.fp16.onnx")
    [found] = session.run(["distance"], {"pixels": pixels})
    expected = open_engine(Bundle.load(calibrated), "onnxruntime-cpu").embed(pixels, None).distances
    np.testing.assert_allclose(found, expected, rtol=0.05)
    assert [*(found > 1)] == [False, True]


# -- the archive --


def test_an_archive_without_a_near_case_gets_a_warning(
    calibrated: Path, filled: Path, cases: list[Case], tmp_path: Path
) -> None:
    queries = dict(
        zip(QUERY_KINDS, [(cases[50].image, WORDS), (cases[50].image, None), (None, WORDS)], strict=True)
    )
    for kind in QUERY_KINDS:
        strict = edited(
            calibrated,
            tmp_path / kind,
            lambda m: m["calibration"]["first_hits"].update({kind: LIMIT}),  # noqa: B023
        )
        with Searcher(strict, filled) as searcher:
            for asked, query in queries.items():
                expected = ["archive-unlike"] if asked == kind else []
                assert codes(searcher.query(*query)) == expected, (kind, asked)


def test_the_limit_holds_for_the_weights_of_the_model_only(
    calibrated: Path, filled: Path, cases: list[Case], tmp_path: Path
) -> None:
    strict = edited(
        calibrated, tmp_path / "strict", lambda m: m["calibration"].update(first_hits={"image_only": LIMIT})
    )
    image = cases[50].image
    with Searcher(strict, filled) as searcher:
        same = {"beta": searcher.manifest.beta, "gamma": searcher.manifest.gamma, "levels": {"low": 1}}
        assert codes(searcher.query(image, **same)) == ["archive-unlike"]  # type: ignore[arg-type]
        for other in ({"beta": 0.1}, {"gamma": 0.1}, {"levels": {"low": 2}}):
            assert codes(searcher.query(image, **other)) == []  # type: ignore[arg-type]
        assert codes(searcher.query(image, exclude=searcher.case_ids())) == ["filter-empty"]


def test_an_archive_with_recorded_findings_has_no_limit(
    calibrated: Path, cases: list[Case], tmp_path: Path
) -> None:
    strict = edited(
        calibrated, tmp_path / "strict", lambda m: m["calibration"].update(first_hits={"image_only": LIMIT})
    )
    with Searcher(strict, tmp_path / "recorded.skinret", recorded_findings=True) as searcher:
        searcher.add(cases[:5])
        assert codes(searcher.query(cases[50].image)) == []


# -- the bundle --


def test_the_manifest_says_what_the_limits_were_measured_on(calibrated: Path, bundle: Path) -> None:
    calibration = Bundle.load(calibrated).manifest.calibration
    assert calibration is not None and calibration.pictures == 60
    assert set(calibration.first_hits) == set(QUERY_KINDS)
    assert Bundle.load(bundle).manifest.calibration is None


def test_a_bundle_without_the_field_still_loads(bundle: Path, archive: Path, tmp_path: Path) -> None:
    old = edited(bundle, tmp_path / "old", lambda manifest: manifest.pop("calibration"))
    with Searcher(old, archive) as searcher:
        assert codes(searcher.query(NOISE)) == []


@pytest.mark.parametrize(
    "calibration",
    [
        {"pictures": 0, "first_hits": {}},
        {"first_hits": []},
        {"pictures": 9, "first_hits": []},
        {"pictures": 9, "first_hits": {"images": 0.1}},
        {"pictures": 9, "first_hits": {"image_only": 2.0}},
        {"pictures": 9, "first_hits": {"image_only": True}},
        {"pictures": 9, "first_hits": {"image_only": None}},
        "none",
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused(
    calibrated: Path, tmp_path: Path, calibration: Any
) -> None:
    broken = edited(calibrated, tmp_path / "broken", lambda m: m.update(calibration=calibration))
    with pytest.raises(BundleError, match="calibration") as caught:
        Bundle.load(broken)
    assert caught.value.code == "bundle-manifest"


def test_a_calibration_of_a_graph_without_distances_is_refused(bundle: Path, tmp_path: Path) -> None:
    broken = edited(
        bundle, tmp_path / "broken", lambda m: m.update(calibration={"pictures": 9, "first_hits": {}})
    )
    with pytest.raises(BundleError, match="distance") as caught:
        open_engine(Bundle.load(broken), "onnxruntime-cpu")
    assert caught.value.code == "bundle-graph"
