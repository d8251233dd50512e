"""The door of the package: one query, its answer, and what it promises."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import GUARD, WORDS
from PIL import Image

from skinret_infer import Case, InputError, RuntimeUnavailable, Searcher, encoder
from skinret_infer.engines.registry import RUNTIMES
from skinret_infer.imaging.decode import decode
from skinret_infer.text import TextEncoderInput, TextRecipe

LONG = "atypical pigment network, irregular streaks, no vascular structures, nodular lesion, female patient"


@pytest.fixture
def short(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the searcher's text encoder take eight tokens, as if the findings were that many."""
    tokenizer = searcher._encoder._bundle.tokenizer()
    monkeypatch.setattr(searcher._encoder, "_tokenize", TextEncoderInput(tokenizer, TextRecipe(length=8)))


def test_a_query_names_the_hits_and_what_ran(searcher: Searcher, cases: list[Case]) -> None:
    results = searcher.query(cases[50].image, WORDS, k=7)
    assert [hit.rank for hit in results] == [1, 2, 3, 4, 5, 6, 7]
    assert results.runtime == searcher.runtime in RUNTIMES
    assert results.precision == searcher.precision == "fp32"
    assert results.runtime in str(results) and results.precision in str(results)
    assert results.searched == 40 == len(searcher)
    assert set(results.timings_ms) == {"image", "text", "encode", "search", "total"}
    assert all(0 <= spent <= results.timings_ms["total"] for spent in results.timings_ms.values())
    assert json.loads(json.dumps(results.to_dict()))["hits"][0]["case_id"] == results[0].case_id
    assert "similarity, not probability" in str(results)
    by_id = {case.case_id: case for case in cases}
    for hit in results:
        case = by_id[hit.case_id]
        assert (hit.diagnosis, hit.group, dict(hit.attributes)) == (
            case.diagnosis,
            case.group,
            dict(case.attributes),
        )
        assert hit.confirmed_by == "unknown"


def test_the_score_is_its_parts(searcher: Searcher, cases: list[Case]) -> None:
    for beta, gamma in ((0.0, 0.0), (0.3, 1.0), (1.0, 0.4), (None, None)):
        results = searcher.query(cases[50].image, WORDS, beta=beta, gamma=gamma)
        b, g = results.beta, results.gamma
        for hit in results:
            assert -1 <= hit.score <= 1
            looks = b * hit.local_similarity + (1 - b) * hit.global_similarity
            assert hit.score == pytest.approx((1 - g) * looks + g * hit.concept_similarity, abs=1e-9)
            assert list(hit.concepts) == ["group", "streaks"]
            assert hit.concept_similarity == pytest.approx(
                0.6 * hit.concepts["group"] + 0.4 * hit.concepts["streaks"], abs=1e-9
            )
            local = [hit.cosines[f"local_{level}"] for level in ("low", "mid", "high")]
            assert hit.local_similarity == pytest.approx(np.mean(local), abs=1e-9)
        assert [h.score for h in results] == sorted((h.score for h in results), reverse=True)
    assert results.beta == searcher.manifest.beta == 0.6
    assert results.gamma == searcher.manifest.gamma == 0.5
    assert searcher.manifest.group_weight == 0.6
    assert str(results).split()[:6] == ["rank", "case", "score", "local", "global", "concepts"]


def test_by_its_looks_a_case_finds_itself_with_score_one(searcher: Searcher, cases: list[Case]) -> None:
    hit = searcher.query(cases[3].image, k=1, gamma=0)[0]
    assert hit.case_id == cases[3].case_id
    assert hit.score == pytest.approx(1, abs=1e-5)


def test_words_change_the_answer_and_missing_words_do_not_matter(
    searcher: Searcher, cases: list[Case]
) -> None:
    image = cases[50].image
    alone = searcher.query(image)
    assert searcher.query(image, "").to_dict()["hits"] == alone.to_dict()["hits"]
    assert searcher.query(image, "  \n ").text == ""
    assert set(alone.timings_ms) == {"image", "encode", "search", "total"}
    assert [h.score for h in searcher.query(image, WORDS)] != [h.score for h in alone]


def test_the_same_input_gives_the_same_answer_again_and_on_another_number_of_threads(
    bundle: Path, archive: Path, cases: list[Case]
) -> None:
    answers = []
    for threads in (1, 2, 2, 3):
        with Searcher(bundle, archive, threads=threads) as searcher:
            answers += [searcher.query(c.image, WORDS, k=40).to_dict()["hits"] for c in cases[50:53]]
    assert answers[:3] == answers[3:6] == answers[6:9] == answers[9:12]


def test_ties_break_by_case_id_whatever_the_order_of_adding(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    ids = ["b", "10", "a", "9", "é", "B"]
    with Searcher(bundle, tmp_path / "ties.skinret") as searcher:
        searcher.add([Case(i, cases[0].image, diagnosis="nevus") for i in ids])
        searcher.add([Case(f"other {n}", case.image) for n, case in enumerate(cases[1:20])])
        first = [hit.case_id for hit in searcher.query(cases[0].image, k=6)]
        assert first == sorted(ids)
        assert [hit.case_id for hit in searcher.query(cases[0].image, k=3)] == sorted(ids)[:3]


def test_a_batch_answers_as_single_queries_do(searcher: Searcher, cases: list[Case]) -> None:
    asked = [(c.image, WORDS if n % 3 else None) for n, c in enumerate(cases[40:60])]
    for one, (image, text) in zip(searcher.query_batch(asked, k=5), asked, strict=True):
        alone = searcher.query(image, text, k=5)
        assert [h.case_id for h in one] == [h.case_id for h in alone]
        np.testing.assert_allclose([h.score for h in one], [h.score for h in alone], atol=1e-5)
    assert searcher.query_batch([]) == []


def test_more_hits_than_cases_gives_the_cases_there_are(searcher: Searcher, cases: list[Case]) -> None:
    assert len(searcher.query(cases[50].image, k=10_000)) == 40


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", True, None])
def test_k_must_be_a_positive_int(searcher: Searcher, cases: list[Case], k: object) -> None:
    with pytest.raises(InputError, match="at least 1") as caught:
        searcher.query(cases[50].image, k=k)
    assert caught.value.code == "k-range"


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_weight_must_lie_between_0_and_1(
    searcher: Searcher, cases: list[Case], name: str, value: object
) -> None:
    with pytest.raises(InputError) as caught:
        searcher.query(cases[50].image, **{name: value})
    assert caught.value.code == f"{name}-range"


def test_a_model_without_concepts_scores_by_visual_similarity(
    bundle_without_concepts: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle_without_concepts, tmp_path / "cases.skinret") as searcher:
        searcher.add(cases[:5])
        results = searcher.query(cases[3].image, gamma=0)
        assert results[0].case_id == cases[3].case_id
        assert results[0].score == pytest.approx(1, abs=1e-5)
        for hit in results:
            assert hit.score == pytest.approx(
                0.6 * hit.local_similarity + 0.4 * hit.global_similarity, abs=1e-9
            )
            assert hit.concept_similarity is None and hit.concepts == {}
        assert "concepts" not in str(results)
        assert searcher.query(cases[3].image).gamma == 0
        with pytest.raises(InputError, match="predicts no concepts") as caught:
            searcher.query(cases[3].image, gamma=0.5)
        assert caught.value.code == "gamma-range"


def test_a_model_without_concepts_takes_recorded_findings_and_ranks_by_looks(
    bundle_without_concepts: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle_without_concepts, tmp_path / "cases", recorded_findings=True) as searcher:
        searcher.add(cases[:4])
        before = hits(searcher.query(cases[3].image, WORDS))
        searcher.update(cases[0].case_id, attributes={"streaks": "regular"})
        after = searcher.query(cases[3].image, WORDS)
    assert [hit["score"] for hit in before] == [hit.score for hit in after]


def test_filters_and_exclusions_apply_before_ranking(searcher: Searcher, cases: list[Case]) -> None:
    everyone = searcher.query(cases[50].image, k=40)
    female = [h.case_id for h in everyone if h.attributes["sex"] == "female"]
    found = searcher.query(cases[50].image, k=3, where={"sex": "female", "group": ["mel", "nevus", "bkl"]})
    assert [h.case_id for h in found] == female[:3]
    assert found.searched == len(female)
    best = everyone[0].case_id
    assert [h.case_id for h in searcher.query(cases[50].image, k=39, exclude=[best])] == [
        h.case_id for h in everyone
    ][1:]
    assert len(searcher.query(cases[50].image, where={"diagnosis": "no such"})) == 0


def test_a_filter_that_no_case_passes_gives_a_warning(searcher: Searcher, cases: list[Case]) -> None:
    everyone = searcher.case_ids()
    for options in ({"where": {"sex": "Female"}}, {"exclude": everyone}):
        results = searcher.query(cases[50].image, **options)
        assert len(results) == results.searched == 0
        assert results.warnings == ("no case passes the filter",)
        assert [warning.code for warning in results.warnings] == ["filter-empty"]
    assert searcher.query(cases[50].image, where={"sex": "female"}, exclude=everyone[:1]).warnings == ()


def test_warnings_say_what_was_not_read(searcher: Searcher, cases: list[Case], short: None) -> None:
    long = searcher.query(cases[50].image, LONG)
    assert [warning.code for warning in long.warnings] == ["words-cut"] and "8 tokens" in long.warnings[0]
    assert len(long.findings) == 5
    assert searcher.query(cases[50].image, "irregular streaks").warnings == ()


def test_an_explicit_runtime_is_used_or_refused(bundle: Path, archive: Path) -> None:
    with Searcher(bundle, archive, runtime="onnxruntime-cpu", precision="fp32") as searcher:
        assert searcher.runtime == "onnxruntime-cpu" and "onnxruntime-cpu fp32" in repr(searcher)
    with pytest.raises(RuntimeUnavailable, match="bf16") as caught:
        Searcher(bundle, archive, runtime="onnxruntime-cpu", precision="bf16")
    assert caught.value.exit_code == 4
    with pytest.raises(InputError, match="onnxruntime-cpu"):
        Searcher(bundle, archive, runtime="cuda")
    with pytest.raises(InputError):
        Searcher(bundle, archive, threads=0)


def test_many_threads_get_the_answers_that_one_would(searcher: Searcher, cases: list[Case]) -> None:
    asked = cases[40:56]
    expected = [searcher.query(c.image, WORDS).to_dict()["hits"] for c in asked]
    found: dict[int, object] = {}

    def ask(n: int) -> None:
        found[n] = searcher.query(asked[n].image, WORDS).to_dict()["hits"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(asked))] == expected


def test_any_kind_of_image_gives_the_same_hits(searcher: Searcher, cases: list[Case]) -> None:
    path = Path(str(cases[50].image))
    with path.open("rb") as file, Image.open(path) as picture:
        sources = [path, str(path), path.read_bytes(), file, picture, np.asarray(picture)]
        answers = [searcher.query(source, WORDS).to_dict()["hits"] for source in sources]
    assert all(answer == answers[0] for answer in answers)


def test_a_query_loads_no_torch_and_opens_no_socket(bundle: Path, archive: Path, cases: list[Case]) -> None:
    command = [sys.executable, "-c", GUARD, bundle, archive, str(cases[50].image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert json.loads(done.stdout) == {"hits": 5, "sockets": [], "open": [], "heavy": []}


def test_the_answer_does_not_depend_on_the_order_of_adding(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    answers = []
    for name, order in (("there", cases[:30]), ("back", cases[29::-1])):
        with Searcher(bundle, tmp_path / name) as searcher:
            searcher.add(order[:16])
            searcher.add(order)
            answers.append({h.case_id: h.score for h in searcher.query(cases[50].image, WORDS, k=12)})
    assert answers[0].keys() == answers[1].keys()
    assert list(answers[0].values()) == pytest.approx(list(answers[1].values()), abs=1e-6)


def test_cases_are_read_while_others_are_encoded(
    bundle: Path, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ninth, together = threading.Event(), []

    def reading(source: object, **options: object) -> np.ndarray:
        if source == cases[8].image:
            ninth.set()
        return decode(source, **options)

    monkeypatch.setattr("skinret_infer.indexing.decode", reading)
    with Searcher(bundle, tmp_path / "new") as searcher:
        engine = searcher._encoder.archive_engine
        embed = engine.embed

        def encoding(*given: object) -> np.ndarray:
            together.append(ninth.wait(30))
            return embed(*given)

        monkeypatch.setattr(engine, "embed", encoding)
        assert searcher.add(cases[:20]).added == [case.case_id for case in cases[:20]]
    assert together == [True, True, True]


def test_an_image_that_is_open_may_be_that_of_many_cases(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Image.open(cases[0].image) as opened, Searcher(bundle, tmp_path / "new") as searcher:
        searcher.add([Case(f"{n:02}", opened) for n in range(12)] + [Case("by path", cases[0].image)])
        stored = searcher._store.get_with_descriptors([f"{n:02}" for n in range(12)] + ["by path"])
    assert len({record.image_sha256 for record, _ in stored.values()}) == 1


# -- words: encoded beside the image, once --


@pytest.fixture
def encoded(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the text encoder was given, and how long they were padded."""
    calls: list[int] = []
    real = searcher._encoder.engine.encode_text

    def counting(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        calls.append(len(ids))
        assert ids.shape == mask.shape and ids.shape[1] % 4 == 0
        return real(ids, mask)

    monkeypatch.setattr(searcher._encoder.engine, "encode_text", counting)
    return calls


def hits(results: object) -> object:
    return results.to_dict()["hits"]  # type: ignore[attr-defined]


def test_words_seen_before_are_not_encoded_again(
    searcher: Searcher, cases: list[Case], encoded: list[int]
) -> None:
    first = searcher.query(cases[50].image, WORDS)
    assert encoded == [1]
    again = searcher.query(cases[50].image, f"  {WORDS} ")
    searcher.query(cases[51].image, WORDS)
    assert encoded == [1] and hits(again) == hits(first)
    searcher.query_batch([(case.image, WORDS) for case in cases[40:50]])
    assert encoded == [1]
    searcher.query_batch([(case.image, "irregular streaks") for case in cases[40:43]])
    assert encoded == [1, 1], "the same words three times are encoded once"
    searcher.query(cases[50].image)
    assert encoded == [1, 1]


def test_the_words_not_used_for_longest_are_forgotten_first(
    searcher: Searcher, cases: list[Case], encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_CACHED_TEXTS", 2)
    for value, calls in (("regular", 1), ("irregular", 2), ("regular", 2), ("absent", 3), ("regular", 3)):
        searcher.query(cases[50].image, f"{value} streaks")
        assert len(encoded) == calls, value
    searcher.query(cases[50].image, "irregular streaks")
    assert len(encoded) == 4 and len(searcher._encoder._texts) == 2


def test_warnings_come_again_for_words_seen_before(
    searcher: Searcher, cases: list[Case], short: None, encoded: list[int]
) -> None:
    first, again = (searcher.query(cases[50].image, LONG).warnings for _ in "ab")
    assert first == again and any("8 tokens" in warning for warning in again)
    batch = searcher.query_batch([(cases[50].image, text) for text in (None, LONG, "irregular streaks")])
    assert [results.warnings for results in batch] == [(), first, ()]
    assert encoded == [1, 1]


def test_a_batch_of_seen_new_long_and_no_words_answers_as_single_queries(
    bundle: Path, archive: Path, cases: list[Case]
) -> None:
    texts = [WORDS, None, "no streaks", "", LONG, WORDS, "typical pigment network", "no streaks"]
    asked = [(case.image, text) for case, text in zip(cases[40:50], [*texts, None, "veil"], strict=True)]
    with Searcher(bundle, archive) as one, Searcher(bundle, archive) as other:
        one.query(cases[0].image, WORDS)  # seen
        for batched, (image, text) in zip(one.query_batch(asked, k=5), asked, strict=True):
            single = other.query(image, text, k=5)
            assert batched.text == single.text and batched.warnings == single.warnings
            assert [h.case_id for h in batched] == [h.case_id for h in single]
            np.testing.assert_allclose([h.score for h in batched], [h.score for h in single], atol=1e-5)


def test_two_searchers_and_eight_threads_give_the_answers_of_one(
    bundle: Path, archive: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_CACHED_TEXTS", 3)  # words are forgotten all the while
    asked = [(case.image, text) for case in cases[40:46] for text in (WORDS, None, f"{case.group} streaks")]
    with Searcher(bundle, archive) as one:
        expected = [hits(one.query(*query)) for query in asked]
    with Searcher(bundle, archive) as one, Searcher(bundle, archive) as two, ThreadPoolExecutor(8) as pool:
        jobs = [
            (n, s, pool.submit(s.query, *asked[n]))
            for _ in "ab"
            for n in range(len(asked))
            for s in (one, two)
        ]
        for n, _, job in jobs:
            assert hits(job.result(60)) == expected[n]


@pytest.mark.parametrize(
    ("image", "text", "code"),
    [
        (None, "\u4e2d\u6587", "text-script"),
        (None, 7, "text-type"),
        (b"no picture", WORDS, "image"),
        (b"no picture", None, "image"),
    ],
)
def test_one_bad_query_of_a_batch_is_an_error_and_the_next_batch_is_answered(
    searcher: Searcher, cases: list[Case], image: object, text: object, code: str
) -> None:
    good = [(case.image, WORDS) for case in cases[40:43]]
    expected = [hits(results) for results in searcher.query_batch(good)]
    for _ in range(6):  # more than there are threads for words
        with pytest.raises(InputError) as caught:
            searcher.query_batch([good[0], (cases[41].image if image is None else image, text), good[2]])
        assert caught.value.code.startswith(code)
    assert [hits(results) for results in searcher.query_batch(good)] == expected


def test_a_text_encoder_that_fails_fails_the_query_and_is_asked_again(
    searcher: Searcher, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hits(searcher.query(cases[50].image, "absent streaks"))
    searcher._encoder._texts.clear()

    def fail(*_: object) -> None:
        raise RuntimeUnavailable("the card has no memory left", code="gpu-memory")

    with monkeypatch.context() as broken:
        broken.setattr(searcher._encoder.engine, "encode_text", fail)
        for _ in range(6):
            with pytest.raises(RuntimeUnavailable, match="no memory"):
                searcher.query(cases[50].image, "absent streaks")
        assert len(searcher.query(cases[50].image)) == 10
    assert hits(searcher.query(cases[50].image, "absent streaks")) == expected


def test_closing_twice_and_warming_up_do_no_harm(bundle: Path, archive: Path, cases: list[Case]) -> None:
    searcher = Searcher(bundle, archive)
    searcher.warmup()
    assert searcher.query(cases[50].image, WORDS)[0].rank == 1
    searcher.close()
    searcher.close()
    with pytest.raises(RuntimeUnavailable), Searcher(bundle, archive, precision="fp16"):
        pass
