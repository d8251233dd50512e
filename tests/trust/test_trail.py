"""The trail of a Searcher: what ran and was found is recorded before it is told, and nothing of a person."""

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from skinret_infer import Case, InputError, Searcher, SkinretError
from skinret_infer.archive import maintenance
from skinret_infer.archive.archive import Archive
from skinret_infer.cli.main import main
from skinret_infer.errors import AuditError
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import pixel_sha256
from skinret_infer.trust.audit import AuditLog, verify

WORDS = "atypical pigment network, irregular streaks, zyzzyva"


def records(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text("ascii").splitlines()]


def test_a_query_leaves_a_record_of_what_ran_and_what_was_found(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    with Searcher(bundle, archive, audit=log) as searcher:
        results = searcher.query(
            cases[50].image,
            WORDS,
            k=3,
            where={"sex": ["female", "male"], "diagnosis": cases[3].diagnosis},
            exclude=["7"],
            beta=0.3,
            context={"user": "4711", "ward": None},
        )
    [record] = records(log)
    assert record["context"] == {"user": "4711", "ward": None}
    assert (record["time"], record["request_id"]) == (results.time, results.request_id)
    assert record["hashes"] == results.hashes
    assert results.hashes["image"] == pixel_sha256(decode(cases[50].image))
    assert set(results.hashes) == {"image", "text", "findings", "bundle", "archive"}
    assert record["package"].startswith("skinret-infer ") and record["model"] == results.model
    assert (record["runtime"], record["precision"]) == (results.runtime, results.precision)
    assert (record["k"], record["beta"], record["exclude"]) == (3, 0.3, ["7"])
    assert record["where"] == {"sex": ["female", "male"], "diagnosis": cases[3].diagnosis}
    assert record["hits"] == [[hit.case_id, hit.score] for hit in results]
    assert record["searched"] == results.searched and record["timings_ms"] == results.timings_ms
    assert record["warnings"] == ["words-unknown"] and "zyzzyva" in results.warnings[0]
    assert record["error"] is None
    said = log.read_text("ascii").casefold()
    assert not any(word in said for word in ("atypical", "zyzzyva", str(cases[50].image).casefold()))
    assert not verify(log).faults


def test_a_query_that_fails_is_recorded_too(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    with Searcher(bundle, archive, audit=log) as searcher:
        for arguments, options in (
            ((tmp_path / "Jane Doe.jpg", WORDS), {}),
            ((cases[50].image, "мама"), {}),
            ((cases[50].image, None), {"k": 0}),
            ((cases[50].image, None), {"where": {"sex": object()}}),
            ((cases[50].image, None), {"where": "sex"}),
        ):
            with pytest.raises(SkinretError) as told:
                searcher.query(*arguments, **options, context={"user": "4711"})
            last = records(log)[-1]
            assert last["error"] == told.value.code and last["hits"] == [] and last["searched"] is None
            assert last["context"] == {"user": "4711"}
        with pytest.raises(SkinretError):
            searcher.query_batch([(cases[50].image, WORDS), (tmp_path / "Jane Doe.jpg", WORDS)])
    assert len(records(log)) == 7 and "Jane" not in log.read_text("ascii")
    assert records(log)[-2]["hashes"]["image"] == pixel_sha256(decode(cases[50].image))
    assert not verify(log).faults


def test_no_answer_without_a_record(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AuditError):
        Searcher(bundle, archive, audit=tmp_path)  # a folder
    with Searcher(bundle, archive, audit=tmp_path / "audit.jsonl") as searcher:
        (tmp_path / "audit.jsonl").unlink(missing_ok=True)
        (tmp_path / "audit.jsonl").mkdir()
        with pytest.raises(AuditError):
            searcher.query(cases[50].image)
        with pytest.raises(AuditError):
            searcher.query(tmp_path / "none.jpg")


def test_the_context_is_plain_or_refused(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle, archive, audit=AuditLog(tmp_path / "audit.jsonl")) as searcher:
        for context in ({"user": ["4711"]}, {1: "user"}, "4711", {"user": float("nan")}, {"user": "\ud800"}):
            with pytest.raises(InputError) as told:
                searcher.query(cases[50].image, context=context)
            assert told.value.code == "context"


def test_many_threads_and_batches_make_one_chain(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    with Searcher(bundle, archive, audit=log) as one, Searcher(bundle, archive, audit=log) as two:

        def ask(searcher: Searcher) -> None:
            for n in range(3):
                searcher.query_batch([(cases[40 + n].image, WORDS), (cases[50].image, None)], k=2)

        threads = [threading.Thread(target=ask, args=(s,)) for s in (one, two, one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert verify(log).records == 24 and not verify(log).faults
    assert len({record["request_id"] for record in records(log)}) == 24


def test_the_state_of_an_archive_names_what_it_held(bundle: Path, cases: list[Case], tmp_path: Path) -> None:
    path = tmp_path / "cases.skinret"
    with Searcher(bundle, path) as searcher:
        seen = []
        for change in (
            lambda: searcher.add(cases[:3]),
            lambda: searcher.add([Case(cases[0].case_id, cases[9].image)], on_duplicate="replace"),
            lambda: searcher.remove([cases[1].case_id]),
        ):
            change()
            seen.append(searcher.query(cases[50].image).hashes["archive"])
        assert len(set(seen)) == 3
        searcher.add(cases[2:3])  # is there already
        searcher.remove(["none such"])
        assert searcher.query(cases[50].image).hashes["archive"] == seen[-1]
    with_copy = Archive.open(path)
    maintenance.backup(with_copy, tmp_path / "copy.skinret")
    maintenance.compact(with_copy)
    assert with_copy.state == seen[-1] == Archive.open(tmp_path / "copy.skinret").state
    with_copy.close()


def test_the_command_line_keeps_the_trail(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    asked = ["query", bundle, archive, "--image", cases[50].image, "--audit", log, "--context", "user=4711"]
    assert CliRunner().invoke(main, list(map(str, asked))).exit_code == 0
    [record] = records(log)
    assert record["context"] == {"user": "4711"}
    assert CliRunner().invoke(main, ["audit", "verify", str(log)]).exit_code == 0
    log.write_text(log.read_text("ascii").replace("4711", "4712"), "ascii")
    assert CliRunner().invoke(main, ["audit", "verify", str(log)]).exit_code == 1
