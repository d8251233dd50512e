"""Words in a query: what the Searcher understands, what it does with it, and what it says of the rest."""

import hashlib
import json
import pickle
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CHECKLIST, WORDS, refusal_of

from skinret_infer import Case, InputError, Searcher
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import reader_of

UNSURE = [  # each code, and a text that has it
    ("words-unsure", "irregular streaks, possible blue-whitish veil"),
    ("words-contradiction", "irregular streaks. Typical network. Atypical network"),
    ("words-diagnosis", "irregular streaks, melanoma?"),
    ("words-unknown", "irregular streaks. zyzzyva"),
    ("words-corrected", "irregular streeks"),
    ("words-none", "growing for six months"),
]
SAYS_NOTHING = [
    "growing for six months",
    "65 years, sunburns as a child",
    "melanoma?",
    "suspicious for melanoma, rule out BCC",
    "zyzzyva",
    "possible streaks?",
    "typical network, atypical network",
    "atypická pigmentová síť",
    "нетипичная сеть and more",
    "a" * 2000,
]


def hits(results: Any) -> Any:
    return results.to_dict()["hits"]


def codes(results: Any) -> list[str]:
    return [warning.code for warning in results.warnings]


# -- what is understood, and what is not used --


def test_the_findings_of_a_text_are_in_the_results_with_their_places(
    searcher: Searcher, cases: list[Case]
) -> None:
    text = "Atypical network, no streaks; blue-white veil."
    results = searcher.query(cases[50].image, f"  {text}\n", k=2)
    assert results.text == text and results.has_image and not results.recorded_findings
    assert [(f.criterion, f.values, f.words) for f in results.findings] == [
        ("pigment_network", ("atypical",), "Atypical network"),
        ("streaks", ("absent",), "no streaks"),
        ("blue_whitish_veil", ("present",), "blue-white veil"),
    ]
    assert all(text[f.start : f.end] == f.words for f in results.findings)
    assert results.findings == searcher.read(text).findings
    assert "understood: pigment network atypical ('Atypical network'); streaks absent" in str(results)
    assert "understood: pigment network atypical" in results._repr_html_()
    plain = json.loads(json.dumps(results.to_dict()))
    assert plain["findings"][1] == {
        "criterion": "streaks", "values": ["absent"], "start": 18, "end": 28, "words": "no streaks",
    }  # fmt: skip
    assert results.warnings == ()


def test_the_places_are_those_of_the_text_in_the_results_whatever_the_accents(
    searcher: Searcher, cases: list[Case]
) -> None:
    apart = unicodedata.normalize("NFD", "Café. Irregular streaks")
    results = searcher.query(cases[50].image, apart)
    [finding] = results.findings
    assert results.text == unicodedata.normalize("NFC", apart) != apart
    assert results.text[finding.start : finding.end] == finding.words == "Irregular streaks"


@pytest.mark.parametrize(("code", "text"), UNSURE)
def test_what_is_not_used_is_said_in_results_json_page_and_audit(
    code: str, text: str, bundle: Path, archive: Path, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    log, page = tmp_path / "audit.jsonl", tmp_path / "page.html"
    with Searcher(bundle, archive, audit=log) as searcher:
        results = searcher.query(cases[50].image, text, k=1)
        results.to_html(page, image_folder=data / "images")
    assert code in codes(results)
    [warning] = [warning for warning in results.warnings if warning.code == code]
    assert f"warning: {warning}" in str(results)
    assert warning in json.loads(json.dumps(results.to_dict()))["warnings"]
    shown = page.read_text("utf-8").replace("&#39;", "'")
    assert warning in shown
    assert ("What was understood" in shown) == bool(results.findings) == (code != "words-none")
    record = json.loads(log.read_text("ascii"))
    assert record["warnings"] == codes(results)
    words = [word for word in text.casefold().split() if len(word) > 4]
    assert words and not any(word.strip(".,?") in log.read_text("ascii").casefold() for word in words)


def test_the_record_of_a_query_has_hashes_of_the_text_and_of_what_was_understood(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    asked = ["irregular streaks, age 65", "IRREGULAR STREAKS", "growing", None]
    with Searcher(bundle, archive, audit=log) as searcher:
        results = searcher.query_batch([(cases[50].image, text) for text in asked])
    records = [json.loads(line) for line in log.read_text("ascii").splitlines()]
    canonical = hashlib.sha256(b"irregular streaks").hexdigest()
    assert [record["hashes"]["findings"] for record in records] == [canonical, canonical, None, None]
    for record, result, text in zip(records, results, asked, strict=True):
        assert record["hashes"]["text"] == (hashlib.sha256(text.encode()).hexdigest() if text else None)
        assert {name: value for name, value in record["hashes"].items() if value} == result.hashes


def test_the_same_findings_in_other_words_are_the_same_query(searcher: Searcher, cases: list[Case]) -> None:
    first = searcher.embed(cases[50].image, "no streaks, irregular dots and globules")
    for text in (
        "globules: irregular; streaks absent",
        "DG IR, ST ABS",
        "Melanoma? No streaks. Irregular globules.",
    ):
        np.testing.assert_array_equal(searcher.embed(cases[50].image, text), first)


@pytest.mark.parametrize("text", SAYS_NOTHING)
def test_words_without_a_finding_leave_the_descriptor_of_the_image_bit_for_bit(
    searcher: Searcher, cases: list[Case], text: str
) -> None:
    image = cases[50].image
    np.testing.assert_array_equal(searcher.embed(image, text), searcher.embed(image))
    results = searcher.query(image, text)
    assert hits(results) == hits(searcher.query(image))
    assert results.findings == () and codes(results)[-1] == "words-none"
    assert "image alone" in results.warnings[-1]


@pytest.mark.parametrize("diagnosis", ["melanoma?", "suspicious for melanoma", "DD: compound nevus"])
def test_a_suspicion_beside_findings_changes_no_hit_and_is_reported(
    searcher: Searcher, cases: list[Case], diagnosis: str
) -> None:
    image = cases[50].image
    for text in (f"irregular streaks, {diagnosis}", f"{diagnosis}. Irregular streaks"):
        results = searcher.query(image, text)
        np.testing.assert_array_equal(searcher.embed(image, text), searcher.embed(image, "irregular streaks"))
        assert hits(results) == hits(searcher.query(image, "irregular streaks"))
        assert codes(results) == ["words-diagnosis"]


def test_chatter_in_a_batch_changes_nothing_either(searcher: Searcher, cases: list[Case]) -> None:
    images = [case.image for case in cases[40:44]]
    texts = ["growing for six months", None, "melanoma?", "65 years"]
    chatty = searcher.query_batch(list(zip(images, texts, strict=True)))
    silent = searcher.query_batch([(image, None) for image in images])
    assert [hits(results) for results in chatty] == [hits(results) for results in silent]


def test_a_text_of_signs_or_of_another_script_is_an_error(searcher: Searcher, cases: list[Case]) -> None:
    for text in ("...", "?!", "нетипичная сеть", "色素"):
        with refusal_of("text-script", kind=InputError):
            searcher.query(cases[50].image, text)
    with refusal_of("text-too-long", kind=InputError):
        searcher.query(cases[50].image, "streaks, " * 300)


# -- the score --


def test_a_stated_criterion_has_the_stated_value_in_the_score(searcher: Searcher, cases: list[Case]) -> None:
    """The query's distribution is 1 at the value, so a product with a case is the case's probability."""
    image = cases[50].image
    by_value = [
        {h.case_id: h.concepts["streaks"] for h in searcher.query(image, text, k=40)}
        for text in ("absent streaks", "regular streaks", "irregular streaks")
    ]
    for case_id in by_value[0]:
        assert sum(products[case_id] for products in by_value) == pytest.approx(1, abs=1e-5)
    alone = {h.case_id: h.concepts["group"] for h in searcher.query(None, "irregular streaks", k=40)}
    assert len(alone) == 40


def test_a_criterion_that_is_not_mentioned_stays_the_one_of_the_picture_and_words(
    searcher: Searcher, cases: list[Case]
) -> None:
    start = searcher.manifest.layout.visual_length
    groups, streaks = (searcher.manifest.layout.concepts[n] for n in (0, 1))
    stated = searcher.embed(cases[50].image, "irregular streaks")[start:]
    present = searcher.embed(cases[50].image, "streaks")[start:]
    image = searcher.embed(cases[50].image)[start:]
    assert stated[groups:].tolist() == [0, 1, 0] and len(stated) == groups + streaks
    assert present[groups] == 0 and present[groups:].sum() == pytest.approx(1)
    assert (image > 0).all() and (stated[:groups] > 0).all()


def test_contradicting_words_move_the_hits_to_what_they_say(searcher: Searcher, cases: list[Case]) -> None:
    image = cases[50].image
    means = []
    for text in ("irregular streaks", "absent streaks"):
        order = [hit.case_id for hit in searcher.query(image, "irregular streaks", k=40, gamma=1)]
        found = searcher.query(image, text, k=5, gamma=1)
        means.append(np.mean([order.index(hit.case_id) for hit in found]))
    assert means[0] < means[1]


def test_the_evidence_compares_the_findings_with_the_attributes(
    searcher: Searcher, cases: list[Case]
) -> None:
    text = "no streaks, female patient, melanoma?, possible veil"
    for hit in searcher.query(cases[50].image, text, k=6):
        evidence = hit.evidence(with_case=False)
        own = {name: hit.attributes[name] for name in ("streaks", "sex") if hit.attributes.get(name)}
        stated = {"streaks": "absent", "sex": "female"}
        assert evidence.matching_criteria == {n: v for n, v in own.items() if v == stated[n]}
        assert evidence.conflicting_criteria == {n: v for n, v in own.items() if v != stated[n]}
        assert sum(evidence.parts.values()) == pytest.approx(hit.score, abs=1e-6)
        assert evidence.query is not None
        total = evidence.query.total.sum() + sum(evidence.query.baseline.values())
        assert total == pytest.approx(hit.score, abs=1e-4)


# -- words alone --


def test_words_alone_are_a_query(searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path) -> None:
    results = searcher.query(None, WORDS, k=5)
    assert not results.has_image and "image" not in results.hashes
    assert len(results) == 5 and results.searched == 40
    assert [hit.score for hit in results] == sorted((hit.score for hit in results), reverse=True)
    assert hits(results) == hits(searcher.query(None, f"{WORDS}. Melanoma?", k=5))
    assert [h.case_id for h in results] == [h.case_id for h in searcher.query_batch([(None, WORDS)], k=5)[0]]
    by_id = {case.case_id: case for case in cases}
    evidence = results[0].evidence(by_id[results[0].case_id].image)
    assert evidence.query is None and evidence.case is not None
    total = evidence.case.total.sum() + sum(evidence.case.baseline.values())
    assert total == pytest.approx(results[0].score, abs=1e-4)
    page = tmp_path / "page.html"
    assert results.to_html(page, image_folder=data / "images") == []
    assert page.read_text("utf-8").count('<article class="hit"') == 5


def test_words_alone_have_the_descriptor_of_a_query_and_not_of_a_picture(searcher: Searcher) -> None:
    one, other = (searcher.embed(None, text) for text in ("irregular streaks", "no streaks"))
    assert searcher.manifest.layout.well_formed(np.stack([one, other])).all()
    assert not np.array_equal(one, other)


def test_images_words_and_both_are_answered_in_one_batch(searcher: Searcher, cases: list[Case]) -> None:
    image = cases[50].image
    asked = [
        (image, WORDS),
        (None, WORDS),
        (image, None),
        (None, "no streaks"),
        (image, "growing"),
        (None, WORDS),
    ]
    for results, query in zip(searcher.query_batch(asked, k=5), asked, strict=True):
        single = searcher.query(*query, k=5)
        assert results.has_image == (query[0] is not None)
        assert [h.case_id for h in results] == [h.case_id for h in single]
        np.testing.assert_allclose([h.score for h in results], [h.score for h in single], atol=1e-5)


@pytest.mark.parametrize("text", [None, "", "  ", "growing for six months", "melanoma?", "possible streaks"])
def test_neither_an_image_nor_a_finding_is_an_error(searcher: Searcher, cases: list[Case], text: Any) -> None:
    with refusal_of("query-empty", "atypical network", kind=InputError):
        searcher.query(None, text)
    with refusal_of("query-empty", kind=InputError):
        searcher.embed(None, text)
    good, bad = searcher.query_batch([(cases[50].image, text), (None, text)], on_error="return")
    assert len(good) == 10
    assert isinstance(bad, InputError) and bad.code == "query-empty"


# -- a checklist that lacks a criterion --


def test_a_finding_of_a_criterion_that_the_checklist_lacks_is_not_understood_and_said() -> None:
    data = CHECKLIST.to_dict()
    criteria = {name: c for name, c in data["criteria"].items() if name not in ("elevation", "streaks")}
    ways = {"en": [way for way in data["ways"]["en"] if way["criterion"] in criteria]}
    reader = reader_of(Checklist.from_dict({**data, "criteria": criteria, "ways": ways}))
    for word in ("pseudopods", "nodule"):
        reading = reader.read(f"Atypical network, no vessels. {word}")
        assert list(reading.allowed) == ["pigment_network", "vascular_structures"]
        [warning] = reading.warnings
        assert warning.code == "words-unknown" and word in warning


def test_a_way_of_a_criterion_that_the_checklist_lacks_is_refused() -> None:
    data = CHECKLIST.to_dict()
    criteria = {name: c for name, c in data["criteria"].items() if name != "streaks"}
    with refusal_of("checklist-field", "streaks", kind=InputError):
        Checklist.from_dict({**data, "criteria": criteria})


# -- results that travel --


def test_results_with_findings_survive_pickling_and_slicing(searcher: Searcher, cases: list[Case]) -> None:
    results = searcher.query(cases[50].image, "irregular streeks, melanoma?", k=3)
    again = pickle.loads(pickle.dumps(results))  # noqa: S301
    assert again == results and again.to_dict() == results.to_dict()
    assert again.findings == results.findings and codes(again) == codes(results)
    assert str(again) == str(results)
    assert results[:1].findings == results.findings
    reading = searcher.read("irregular streeks")
    assert pickle.loads(pickle.dumps(reading)) == reading  # noqa: S301


# -- recorded findings --


@pytest.fixture(scope="module")
def recorded(bundle: Path, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searcher]:
    """A searcher over 20 cases with recorded findings; no test changes the first 12."""
    path = tmp_path_factory.mktemp("recorded") / "cases.skinret"
    with Searcher(bundle, path, recorded_findings=True) as opened:
        opened.add(cases[:20])
        yield opened


def _descriptor(searcher: Searcher, case_id: str) -> Any:
    return searcher._store.get_with_descriptors([case_id])[case_id][1]


def _streaks(searcher: Searcher, case_id: str) -> list[float]:
    return _descriptor(searcher, case_id)[-3:].tolist()


def test_an_archive_with_recorded_findings_has_the_records_of_the_criteria_and_not_the_diagnosis(
    recorded: Searcher, searcher: Searcher, cases: list[Case]
) -> None:
    values = searcher.manifest.concepts["streaks"]
    for case in cases[:12]:
        stated, plain = (_descriptor(s, case.case_id) for s in (recorded, searcher))
        assert stated[-3:].tolist() == [float(value == case.attributes["streaks"]) for value in values]
        np.testing.assert_allclose(stated[:-3], plain[:-3], atol=1e-5)
        assert (stated[-6:-3] > 0).all(), "the group stays what the picture shows"
    results = recorded.query(cases[50].image, "irregular streaks", k=20)
    assert results.recorded_findings
    assert {hit.concepts["streaks"] for hit in results} <= {0.0, 1.0}
    for hit in results:
        assert hit.concepts["streaks"] == (hit.attributes["streaks"] == "irregular")


def test_the_evidence_of_recorded_findings_adds_up_to_the_score(
    recorded: Searcher, cases: list[Case]
) -> None:
    by_id = {case.case_id: case for case in cases}
    for text in (None, "irregular streaks"):
        hit = recorded.query(cases[50].image, text, k=1)[0]
        evidence = hit.evidence(by_id[hit.case_id].image)
        for side in (evidence.query, evidence.case):
            assert side is not None
            total = side.total.sum() + sum(side.baseline.values())
            assert total == pytest.approx(hit.score, abs=1e-4)


def test_an_archive_with_recorded_findings_is_refused_without_them_and_the_other_way_round(
    recorded: Searcher, bundle: Path, archive: Path, tmp_path: Path, cases: list[Case]
) -> None:
    path = tmp_path / "own.skinret"
    with Searcher(bundle, path, recorded_findings=True) as opened:
        opened.add(cases[:1])
    with refusal_of(None, "recorded findings"):
        Searcher(bundle, path)
    with refusal_of(None, "recorded findings"):
        Searcher(bundle, archive, recorded_findings=True)
    with Searcher(bundle, path, recorded_findings=True) as opened:
        assert len(opened) == 1


def test_an_update_of_the_attributes_changes_the_ranking_and_of_the_diagnosis_never(
    recorded: Searcher, cases: list[Case]
) -> None:
    case = cases[15]
    before = _descriptor(recorded, case.case_id)
    recorded.update(case.case_id, diagnosis="another", group="other", confirmed_by="histopathology")
    np.testing.assert_allclose(_descriptor(recorded, case.case_id), before, atol=1e-6)
    for value, expected in (("absent", [1, 0, 0]), ("irregular", [0, 1, 0]), ("regular", [0, 0, 1])):
        record = recorded.update(case.case_id, attributes={**case.attributes, "streaks": value})
        assert record.attributes["streaks"] == value == recorded.get(case.case_id).attributes["streaks"]
        assert _streaks(recorded, case.case_id) == expected
        found = recorded.query(cases[50].image, f"{value} streaks", k=20, gamma=1)
        assert next(h for h in found if h.case_id == case.case_id).concepts["streaks"] == 1
        assert recorded.get(case.case_id).diagnosis == "another"


@pytest.mark.parametrize("attributes", [{}, {"streaks": "branched"}, {"streaks": ""}, {"age": 3}])
def test_a_record_is_not_taken_back_without_the_picture(
    recorded: Searcher, cases: list[Case], attributes: dict[str, Any]
) -> None:
    case = cases[16]
    before = _descriptor(recorded, case.case_id)
    with pytest.raises(InputError, match="without its picture") as caught:
        recorded.update(case.case_id, attributes=attributes)
    assert caught.value.code == "recorded-open" and caught.value.case_id == case.case_id
    assert recorded.get(case.case_id).attributes["streaks"] == case.attributes["streaks"]
    np.testing.assert_array_equal(_descriptor(recorded, case.case_id), before)


def test_without_a_record_the_picture_decides_and_a_record_may_follow(
    recorded: Searcher, searcher: Searcher, cases: list[Case]
) -> None:
    case = replace(cases[17], attributes={"age": 3})
    recorded.add([case], on_duplicate="replace")
    stored = _descriptor(recorded, case.case_id)
    np.testing.assert_allclose(stored, _descriptor(searcher, case.case_id), atol=1e-5)
    recorded.update(case.case_id, attributes={"streaks": "regular"})
    assert _streaks(recorded, case.case_id) == [0, 0, 1]


def test_a_case_of_another_diagnosis_has_the_same_descriptor(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    case = cases[0]
    others = [
        replace(case, case_id=f"{n}", diagnosis=diagnosis, group=group)
        for n, (diagnosis, group) in enumerate([("melanoma", "mel"), ("nevus", "nevus"), ("unknown", "")])
    ]
    with Searcher(bundle, tmp_path / "same", recorded_findings=True) as searcher:
        searcher.add(others)
        first, *rest = (_descriptor(searcher, other.case_id) for other in others)
    assert all(np.array_equal(first, other) for other in rest)


def test_without_recorded_findings_the_attributes_change_no_score(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle, tmp_path / "plain") as searcher:
        searcher.add(cases[:6])
        before = {h.case_id: h.score for h in searcher.query(cases[50].image, WORDS)}
        searcher.update(cases[0].case_id, attributes={"streaks": "regular"})
        after = {h.case_id: h.score for h in searcher.query(cases[50].image, WORDS)}
    assert after == before
