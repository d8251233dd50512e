"""The precision check refuses a precision that loses hits, score or quality, and no other."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skinret_export import export
from skinret_infer import Case, InputError, RuntimeUnavailable
from skinret_infer.bundle import Bundle
from skinret_infer.engines.verdicts import read_record, refusal, save_record
from skinret_infer.evaluation import precision
from skinret_infer.evaluation.precision import ValidationSet

N = 200
ROWS = {
    "image_words, archive in bf16", "image_words, archive in fp32",
    "image_only, archive in bf16", "image_only, archive in fp32",
}  # fmt: skip


class Fake:
    """An engine that looks up the descriptors of images by number, with words and without."""

    def __init__(self, precision: str, words: np.ndarray, alone: np.ndarray) -> None:
        self.name, self.precision, self.facts = "openvino", precision, {"device": "a table"}
        self.words, self.alone = words, alone
        self.queries: list[tuple[int, bool]] = []

    def run(
        self, graph: str, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        if graph == "visual_encoder":
            pixels = feeds["pixels"].astype(int)
            return dict.fromkeys(outputs, pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1])
        if graph == "composer":
            assert len(feeds["tokens"]) == len(feeds["attention_mask"]) == len(feeds["low"])
            return dict.fromkeys(outputs, -1 - feeds["low"])
        numbers = feeds["low"]
        self.queries += [(int(max(n, -1 - n)), bool(n < 0)) for n in numbers]
        rows = [self.words[-1 - n] if n < 0 else self.alone[n] for n in numbers]
        return dict.fromkeys(outputs, np.stack(rows))

    def encode_text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.zeros((*ids.shape, 2), np.float32)

    def embed(self, pixels: np.ndarray, words: Any) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return Bundle.load(bundle)


def numbered_set(n: int = N, groups: tuple[str, ...] = ()) -> ValidationSet:
    pixels = np.zeros((n, 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    ids = np.ones((n, 4), np.int64)
    return ValidationSet(pixels=pixels, ids=ids, mask=ids, source="numbers", groups=groups)


def descriptors(loaded: Bundle, seed: int, n: int = N) -> np.ndarray:
    layout = loaded.manifest.layout
    return unit(np.random.default_rng(seed).normal(size=(n, layout.length)), loaded)


def unit(rows: np.ndarray, loaded: Bundle) -> np.ndarray:
    layout = loaded.manifest.layout
    vectors = np.split(rows, np.cumsum(layout.lengths)[:-1], axis=1)
    vectors = [vector / np.linalg.norm(vector, axis=1, keepdims=True) for vector in vectors]
    return np.concatenate(vectors, axis=1).astype(np.float32)


def add_noise(rows: np.ndarray, scale: float, loaded: Bundle) -> np.ndarray:
    return unit(rows + scale * np.random.default_rng(9).normal(size=rows.shape), loaded)


def measure(
    loaded: Bundle, true: tuple[np.ndarray, np.ndarray], candidate: tuple[np.ndarray, np.ndarray],
    groups: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    queries = numbered_set(len(true[0]), groups)
    return precision.validate_precision(loaded, Fake("fp32", *true), Fake("bf16", *candidate), queries)


def test_a_precision_that_finds_the_same_hits_passes(loaded: Bundle) -> None:
    true = descriptors(loaded, 1), descriptors(loaded, 2)
    record = measure(loaded, true, true, ("mel", "nevus") * (N // 2))
    assert record["passed"] is record["archive_passed"] is True
    assert record["faults"] == record["archive_faults"] == []
    assert set(record["rows"]) == ROWS
    for row in record["rows"].values():
        assert (row["score_regret"], row["top10_overlap"], row["top1_match"], row["largest_change"]) == (
            0,
            1,
            1,
            0,
        )
        assert row["mAP_change"] == row["Acc@1_change"] == 0
    assert "queries: passed" in precision.format_record(
        record
    ) and "archive: passed" in precision.format_record(record)


def test_both_engines_get_every_image_with_its_words_and_alone(loaded: Bundle) -> None:
    true = descriptors(loaded, 1), descriptors(loaded, 2)
    engines, steps = (Fake("fp32", *true), Fake("bf16", *true)), []
    precision.validate_precision(
        loaded, *engines, numbered_set(), progress=lambda done, total: steps.append((done, total))
    )
    for engine in engines:
        assert sorted(engine.queries) == [(n, with_words) for n in range(N) for with_words in (False, True)]
    assert steps[-1] == (2 * N, 2 * N) and steps == sorted(steps)


def test_a_change_of_scores_that_keeps_the_ranks_passes(loaded: Bundle) -> None:
    """The noise is smaller than the differences between the cases."""
    true = descriptors(loaded, 1), descriptors(loaded, 2)
    record = measure(loaded, true, tuple(add_noise(rows, 1e-6, loaded) for rows in true))
    assert record["passed"], record["faults"]
    assert 0 < record["rows"]["image_words, archive in bf16"]["largest_change"] < 1e-5


def test_equal_scores_have_the_quality_of_a_random_order() -> None:
    scores = np.zeros((10, 10))
    np.fill_diagonal(scores, -9.0)
    figures = {
        precision._quality(scores, groups) for groups in (("a",) * 4 + ("b",) * 6, ("b",) * 6 + ("a",) * 4)
    }
    ((mean_precision, first),) = {tuple(np.round(pair, 9)) for pair in figures}
    harmonic = sum(1 / i for i in range(1, 10))
    by_hand = [share + (1 - share) * harmonic / 9 for share in (2 / 8, 4 / 8)]
    assert mean_precision == pytest.approx(100 * (0.4 * by_hand[0] + 0.6 * by_hand[1]))
    assert first == pytest.approx(100 * (0.4 * 3 / 9 + 0.6 * 5 / 9))


def test_other_hits_are_refused_even_if_they_are_as_good(loaded: Bundle) -> None:
    alike = unit(descriptors(loaded, 1, 1) + 1e-4 * descriptors(loaded, 2), loaded)
    record = measure(loaded, (alike, alike), (add_noise(alike, 2e-5, loaded),) * 2)
    assert not record["passed"] and not record["archive_passed"]
    assert all("of the hits are the same; 0.97 is required" in fault for fault in record["archive_faults"])
    assert all(row["score_regret"] < 1e-6 for row in record["rows"].values())


def test_worse_hits_are_refused_even_if_they_are_few(loaded: Bundle) -> None:
    words, alone = descriptors(loaded, 1), descriptors(loaded, 2)
    wrong = words.copy()
    wrong[:4] = words[4:8]  # 2 % of the queries with words find the hits of other queries
    record = measure(loaded, (words, alone), (wrong, alone))
    assert not record["passed"]
    (fault,) = record["faults"]
    assert (
        fault.startswith("image_words, archive in fp32")
        and "less than those of fp32; 1e-04 is allowed" in fault
    )
    assert "queries: refused; image_words" in precision.format_record(record)


def test_a_precision_may_pass_for_queries_and_not_for_writing_an_archive(
    loaded: Bundle, tmp_path: Path
) -> None:
    words, alone = descriptors(loaded, 1), descriptors(loaded, 2)
    blurred = add_noise(alone, 0.03, loaded)
    record = measure(loaded, (words, words), (words, blurred))
    record = measure(loaded, (alone, alone), (alone, alone)) | {
        name: record[name] for name in ("archive_faults", "archive_passed")
    }
    assert record["passed"] and not record["archive_passed"]
    save_record(loaded, record, tmp_path)
    assert refusal(loaded, "openvino", "bf16", tmp_path) is None
    reason = refusal(loaded, "openvino", "bf16", tmp_path, for_archive=True)
    assert reason.startswith("it failed the precision check: ") and "archive in bf16" in reason


def test_a_loss_of_quality_is_refused_though_scores_and_lists_stay_the_same(loaded: Bundle) -> None:
    """The best two cases of a few queries have almost the same score; one of them has the right group."""
    cases, groups = descriptors(loaded, 1), ["a", "b"] * (N // 2)
    true, candidate = cases.copy(), cases.copy()
    for n in (0, 10, 20):
        base, neighbour, tilt = cases[n].copy(), cases[n + 9], np.zeros_like(cases[n])
        block = slice(0, loaded.manifest.layout.local[0])
        tilt[block] = cases[n + 8, block] - (cases[n + 8, block] @ base[block]) * base[block]
        near = base + 0.1 * neighbour
        cases[n + 1], cases[n + 2] = unit(np.stack([near + 1e-3 * tilt, near - 1e-3 * tilt]), loaded)
        true[n], candidate[n] = unit(np.stack([base + 1e-2 * tilt, base - 1e-2 * tilt]), loaded)
        groups[n : n + 3] = ["a", "a", "b"]
    record = measure(loaded, (true, cases), (candidate, cases), tuple(groups))
    row = record["rows"]["image_words, archive in fp32"]
    assert row["score_regret"] < 1e-4 and row["top10_overlap"] >= 0.97
    assert row["Acc@1_change"] == pytest.approx(-1.5)
    fault = "archive in fp32: Acc@1 changes by -0.75, the mean of both kinds of query; 0.2 is allowed"
    assert fault in record["faults"]
    assert not record["passed"]
    assert measure(loaded, (true, cases), (candidate, cases))["passed"], (
        "without groups quality is not measured"
    )


@pytest.mark.parametrize("figure", ["mAP", "Acc@1"])
@pytest.mark.parametrize(
    ("changes", "refused"),
    [((0.2, 0.2), False), ((-0.2, -0.2), False), ((0.4, -0.4), False), ((0.21, 0.21), True),
     ((-0.4, -0.1), True), ((float("nan"), 0.0), True)],
)  # fmt: skip
def test_the_mean_change_of_both_kinds_of_query_is_judged_up_and_down(
    figure: str, changes: tuple[float, float], refused: bool
) -> None:
    good = {"score_regret": 0.0, "top10_overlap": 1.0, figure: 80.0}
    rows = {
        f"{kind}, archive in fp32": good | {f"{figure}_change": change}
        for kind, change in zip(precision.KINDS, changes, strict=True)
    }
    faults = precision._faults(rows, "fp32")
    assert bool(faults) is refused and all(f"{figure} changes" in fault for fault in faults)


def test_too_few_queries_are_a_fault(loaded: Bundle) -> None:
    rows = descriptors(loaded, 1, N - 1)
    record = measure(loaded, (rows, rows), (rows, rows))
    assert record["faults"] == ["only 199 queries; at least 200 are needed"] and not record["passed"]


def test_descriptors_that_are_not_numbers_are_refused(loaded: Bundle) -> None:
    rows = descriptors(loaded, 1)
    record = measure(loaded, (rows, rows), (np.full_like(rows, np.nan), rows))
    assert not record["passed"] and any("image_words" in fault for fault in record["faults"])


def test_a_record_survives_json_and_the_disk_and_counts_for_its_bundle_only(
    loaded: Bundle, tmp_path: Path
) -> None:
    rows = descriptors(loaded, 1)
    record = measure(loaded, (rows, rows), (rows, rows), ("a",) * N)
    assert json.loads(json.dumps(record)) == record
    path = save_record(loaded, record, tmp_path)
    assert path.is_relative_to(tmp_path)
    stored = read_record(loaded, "openvino", "bf16", tmp_path)
    assert stored is not None and {**record, "bundle": dict(loaded.manifest.files)} == stored
    assert precision.format_record(stored) == precision.format_record(record)
    assert refusal(loaded, "openvino", "bf16", tmp_path) is None
    assert read_record(loaded, "openvino", "fp16", tmp_path) is None

    files = {**loaded.manifest.files, "composer.onnx": "0" * 64}
    other = dataclasses.replace(loaded, manifest=dataclasses.replace(loaded.manifest, files=files))
    assert read_record(other, "openvino", "bf16", tmp_path) is None
    for content in ("", "{", "[]", "null", '{"bundle": 1}'):
        path.write_text(content)
        assert read_record(loaded, "openvino", "bf16", tmp_path) is None


def test_a_record_that_cannot_be_saved_is_an_error_with_a_cure(loaded: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeUnavailable, match="SKINRET_CACHE") as caught:
        save_record(loaded, {"runtime": "openvino", "precision": "bf16"}, tmp_path / "file")
    assert caught.value.code == "engine-cache"


def test_precisions_are_measured_without_a_folder_for_temporary_files(
    bundle: Path, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    copy = Bundle.load(tmp_path / "bundle")
    monkeypatch.setattr(precision, "MIN_QUERIES", 9)
    queries = precision.make_validation_set(copy.manifest, copy.tokenizer(), cases[:9], "drawn")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    export.measure_precisions(copy, queries)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_validation_set_takes_cases_with_words_evenly_spaced(
    loaded: Bundle, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="at least 200") as caught:
        precision.make_validation_set(loaded.manifest, loaded.tokenizer(), cases, "drawn")
    assert caught.value.code == "precision-cases"
    monkeypatch.setattr(precision, "MIN_QUERIES", 10)
    mute = dataclasses.replace(cases[0], attributes={})
    queries = precision.make_validation_set(loaded.manifest, loaded.tokenizer(), [mute, *cases[:20]], "drawn")
    assert len(queries) == 20 == len(queries.ids) == len(queries.mask)
    assert queries.groups == tuple(case.group for case in cases[:20]) and queries.source == "drawn"
    assert queries.pixels.shape == (20, 64, 64, 3) and queries.pixels.dtype == np.uint8
    monkeypatch.setattr(precision, "MAX_QUERIES", 10)
    fewer = precision.make_validation_set(loaded.manifest, loaded.tokenizer(), cases[:20], "drawn")
    assert np.array_equal(fewer.ids, queries.ids[::2]) and np.array_equal(fewer.pixels, queries.pixels[::2])
