"""The door of the package: what it exports, and what an integrator expects of its objects."""

import inspect
import io
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skinret_infer
from skinret_infer import (
    ArchiveError,
    AuditLog,
    Case,
    EvidenceMap,
    InputError,
    Range,
    Searcher,
    SkinretError,
)
from skinret_infer.imaging.decode import decode

WORDS = "atypical pigment network, irregular streaks"


@pytest.fixture
def own(bundle: Path, tmp_path: Path, cases: list[Case]) -> Iterator[Searcher]:
    """A searcher over an archive of its own, of ten cases with an age."""
    with Searcher(bundle, tmp_path / "cases.skinret", runtime="onnxruntime-cpu") as searcher:
        searcher.add(
            [
                Case(c.case_id, c.image, diagnosis=c.diagnosis, attributes={"age": 30 + n})
                for n, c in enumerate(cases[:10])
            ]
        )
        yield searcher


def _named(annotation: object) -> Iterator[type]:
    """Yield the classes of this package in a type, also within unions and generics."""
    plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    if plain and annotation.__module__.startswith("skinret_infer"):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _named(inner)


def test_every_type_in_a_public_signature_is_exported() -> None:
    exported = {getattr(skinret_infer, name) for name in skinret_infer.__all__}
    for public in exported:
        members = [public, *(m for n, m in vars(public).items() if not n.startswith("_"))]
        for member in members:
            function = member.fget if isinstance(member, property) else member
            if not callable(function):
                continue
            try:
                hints = typing.get_type_hints(function)
            except (TypeError, NameError):
                continue
            for hint in hints.values():
                hidden = {t for t in _named(hint) if t not in exported and not t.__name__.startswith("_")}
                internal = {"HitExplainer", "ImageRecipe", "TextRecipe", "Level", "Calibration"}
                assert not {t.__name__ for t in hidden} - internal, (public, member, hidden)


def test_a_searcher_is_true_though_it_is_empty_and_knows_its_cases(
    bundle: Path, tmp_path: Path, own: Searcher, cases: list[Case]
) -> None:
    with Searcher(bundle, tmp_path / "none.skinret") as empty:
        assert empty and len(empty) == 0 and empty.case_ids() == [] and empty.get("1") is None
    assert own.case_ids() == sorted(case.case_id for case in cases[:10])
    assert cases[0].case_id in own and "none such" not in own and 7 not in own
    record = own.get(cases[3].case_id)
    assert record is not None and record.attributes == {"age": 33} and len(record.image_sha256) == 64


def test_facts_change_without_the_picture(own: Searcher, cases: list[Case]) -> None:
    """As when pathology arrives: the descriptor stays, the filters follow."""
    case_id = cases[2].case_id
    before = next(hit for hit in own.query(cases[2].image) if hit.case_id == case_id)
    record = own.update(case_id, diagnosis="melanoma", confirmed_by="histopathology")
    assert (record.diagnosis, record.group, record.confirmed_by) == ("melanoma", "melanoma", "histopathology")
    after = own.query(cases[2].image, k=1, where={"confirmed_by": "histopathology"})[0]
    assert (after.case_id, after.score) == (case_id, before.score)
    assert after.attributes == before.attributes and after.image_sha256 == before.image_sha256
    assert own.update(case_id, attributes={"age": 99}).attributes == {"age": 99}
    assert own.query(cases[2].image, where={"age": Range(90, None)}).searched == 1
    with pytest.raises(InputError, match="none such") as caught:
        own.update("none such", diagnosis="x")
    assert (caught.value.code, caught.value.case_id) == ("case-unknown", "none such")
    with pytest.raises(InputError):
        own.update(case_id, attributes={"age": float("nan")})
    assert len(own) == 10


def test_the_filter_that_a_result_reports_is_accepted_again(own: Searcher, cases: list[Case]) -> None:
    first = own.query(cases[0].image, where={"age": Range(31, 34), "diagnosis": {cases[1].diagnosis}})
    again = own.query(cases[0].image, where=first.where)
    as_json = json.loads(json.dumps(first.to_dict()))["where"]
    assert as_json["age"] == {"from": 31, "to": 34}
    third = own.query(cases[0].image, where=as_json)
    assert [h.case_id for h in first] == [h.case_id for h in again] == [h.case_id for h in third]
    assert first.where == again.where == third.where
    with pytest.raises(InputError):
        Range(2, 1)


def test_one_bad_image_of_a_batch_fails_alone_if_that_is_wanted(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    queries = [(cases[50].image, WORDS), (tmp_path / "none.jpg", None), (cases[51].image, None), (b"x", "y")]
    queries.append((cases[52].image, "мама"))
    with Searcher(bundle, archive, audit=log) as searcher:
        with pytest.raises(InputError):
            searcher.query_batch(queries)
        answers = searcher.query_batch(queries, on_error="return", k=3)
        codes = [getattr(answer, "code", None) for answer in answers]
        assert codes == [None, "image-missing", None, "image-unreadable", "text-script"]
        single = searcher.query(cases[51].image, k=3)
        assert [h.case_id for h in answers[2]] == [h.case_id for h in single]
        with pytest.raises(InputError):
            searcher.query_batch(queries, on_error="ignore")  # type: ignore[call-overload]
    records = [json.loads(line) for line in log.path.read_text("ascii").splitlines()]
    assert [record["error"] for record in records[5:10]] == codes
    assert [len(record["hits"]) for record in records[5:10]] == [3, 0, 3, 0, 0]


def test_cases_are_taken_lazily_and_bad_ones_are_left_out_if_that_is_wanted(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    taken = []

    def given() -> Iterator[Case]:
        for n, case in enumerate(cases[:20]):
            taken.append(n)
            yield Case(case.case_id, tmp_path / "none.jpg" if n == 3 else case.image)

    with Searcher(bundle, tmp_path / "new.skinret") as searcher:
        with pytest.raises(InputError) as caught:
            searcher.add(given())
        assert caught.value.case_id == cases[3].case_id and len(taken) <= 16
        done: list[tuple[int, int | None]] = []
        report = searcher.add(given(), on_error="skip", progress=lambda *now: done.append(now))
        assert done == [(8, None), (16, None), (20, None)]
        assert len(report.added) == 19 and list(report.failed) == [cases[3].case_id]
        assert report.to_dict()["failed"][cases[3].case_id]["code"] == "image-missing"
        assert "1 failed" in str(report)
        for bad in (3, "cases", [3], [cases[0], 3]):
            with pytest.raises(InputError):
                searcher.add(bad)  # type: ignore[arg-type]
        with pytest.raises(InputError):
            searcher.add(cases, on_error="return")


def test_results_are_short_in_a_console_and_a_table_in_a_notebook(
    searcher: Searcher, cases: list[Case]
) -> None:
    results = searcher.query(cases[50].image, f"{WORDS}, zyzzyva", k=5)
    assert len(repr(results)) < 80 and len(repr(results[0])) < 80 and len(repr(results[:2])) < 80
    assert [hit.rank for hit in results[1:3]] == [2, 3] and results[1:3].text == results.text
    table = results._repr_html_()
    assert table.count("<tr>") == 6 and "zyzzyva" in table and "<script" not in table
    flat = results.to_records()
    assert len(flat) == 5 and all(not isinstance(v, dict | list) for row in flat for v in row.values())
    assert flat[0]["concept_group"] == results[0].concepts["group"]


def test_evidence_is_plain_short_and_can_be_drawn(searcher: Searcher, cases: list[Case], data: Path) -> None:
    hit = searcher.query(cases[50].image, WORDS, k=1)[0]
    evidence = hit.evidence(image_folder=data / "images")
    assert len(repr(evidence)) < 100 and len(repr(evidence.query)) < 100
    plain = json.loads(json.dumps(evidence.to_dict()))
    assert sum(plain["parts"].values()) == pytest.approx(hit.score, abs=1e-9)
    assert np.array_equal(plain["query"]["maps"]["local_low"], evidence.query.maps["local_low"])
    picture = decode(cases[50].image)
    drawn = evidence.query.overlay(picture)
    assert drawn.size == (picture.shape[1], picture.shape[0]) and drawn.mode == "RGB"
    assert np.abs(np.asarray(drawn).astype(int) - picture).max() > 20
    flat = EvidenceMap(maps={"a": np.zeros((2, 2))}, baseline={}, box=(0, 0, *drawn.size))
    assert np.array_equal(np.asarray(flat.overlay(picture, "a")), picture)


def test_an_error_has_its_parts_and_the_case_that_it_is_about(own: Searcher, cases: list[Case]) -> None:
    with pytest.raises(ArchiveError) as caught:
        own.add([Case(cases[0].case_id, cases[0].image, diagnosis="another")])
    error = caught.value
    assert error.case_id == cases[0].case_id and error.to_dict()["code"] == "case-duplicate"
    assert all(part in str(error) for part in (error.wrong, error.expected, error.found, error.cure))
    with pytest.raises(InputError, match="no image, and no finding") as required:
        own.query(None, "growing for six months")
    assert required.value.code == "query-empty"
    with pytest.raises(InputError, match="not a str"):
        Case(1017, "a.jpg")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Case("1", "a.jpg", "melanoma")  # type: ignore[misc]


def test_k_is_one_default_and_every_option_has_its_help() -> None:
    from skinret_infer.cli.main import query as command

    default = inspect.signature(Searcher.query).parameters["k"].default
    assert next(p.default for p in command.params if p.name == "k") == default == 10


def test_an_image_that_is_open_is_read_where_it_stands(searcher: Searcher, cases: list[Case]) -> None:
    data = Path(cases[50].image).read_bytes()  # type: ignore[arg-type]
    by_path = searcher.query(cases[50].image, k=2)
    for image in (data, io.BytesIO(data), Image.open(cases[50].image), decode(data)):
        assert [h.score for h in searcher.query(image, k=2)] == [h.score for h in by_path]


def test_skinret_error_is_the_base_of_all() -> None:
    errors = [getattr(skinret_infer, name) for name in skinret_infer.__all__ if name.endswith("Error")]
    assert all(issubclass(error, SkinretError) for error in errors) and len(errors) == 6
