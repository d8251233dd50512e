"""The archive keeps its cases, leaves no trace of removed ones, survives kills, and searches exactly."""

import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from helpers import (
    GAMMA,
    LAYOUT,
    ODD_IDS,
    QUERY,
    QUICK,
    make_archive,
    make_record,
    open_archive,
    random_descriptors,
    refusal_of,
    search_archive,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from skinret_infer import ArchiveError, Case, InputError, Searcher, SkinretError
from skinret_infer.archive import database
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.database import sqlite_uri
from skinret_infer.archive.store import Match, Record
from skinret_infer.descriptor import Layout, Vector


def _descriptor_bytes(path: Path, case_id: str) -> bytes:
    """Return the bytes of a case's descriptor."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        [[blob]] = db.execute("SELECT descriptor FROM cases WHERE case_id = ?", [case_id])
    return bytes(blob)


def _ids(matches: tuple[list[Match], int]) -> list[str]:
    return [match.record.case_id for match in matches[0]]


def _all_ids(archive: Archive, **options: Any) -> list[str]:
    return sorted(_ids(search_archive(archive, QUERY, 10**6, 0.6, GAMMA, **options)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cases.skinret"


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)


# -- opening --


def test_opening_querying_and_removing_create_no_file(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "cases.skinret"
    with Searcher(bundle, path) as searcher:
        assert len(searcher) == 0
        with refusal_of("archive-empty", path):
            searcher.query(cases[0].image)
        with refusal_of("archive-empty", path):
            searcher.remove(["1"])
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_cases_is_empty_and_says_how_to_fill_it(
    bundle: Path, cases: list[Case], path: Path
) -> None:
    with Searcher(bundle, path) as searcher:
        searcher.add(cases[:2])
        assert searcher.remove([case.case_id for case in cases[:2]]) == 2
        assert len(searcher) == 0
        with refusal_of("archive-empty", path, "Searcher.add"):
            searcher.query(cases[0].image)


def test_an_empty_file_counts_as_none(path: Path) -> None:
    path.write_bytes(b"")
    with contextlib.closing(open_archive(path)) as archive:
        assert len(archive) == 0
        archive.write([make_record("1")], random_descriptors(1))
        assert len(archive) == 1


def test_the_archive_of_another_model_is_refused_with_both_names(path: Path) -> None:
    make_archive(path)
    with refusal_of("archive-model", path, "m 1", "other 2", "bundle that wrote it"):
        open_archive(path, fingerprint="e" * 64, model="other 2")
    with contextlib.closing(open_archive(path, model="the same weights in fp16")) as archive:
        assert len(archive) == 12


def test_an_archive_that_another_model_makes_meanwhile_is_refused(path: Path) -> None:
    early = open_archive(path, fingerprint="e" * 64)
    make_archive(path)
    for use in (lambda: len(early), lambda: early.write([make_record("1")], random_descriptors(1))):
        with refusal_of("archive-model"):
            use()
    with contextlib.closing(open_archive(path)) as archive:
        assert len(archive) == 12


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"case_id,image,diagnosis\n1,a.jpg,nevus\n" * 100, id="text"),
        pytest.param(b"x", id="one byte"),
        pytest.param(np.random.default_rng(0).bytes(9000), id="random bytes"),
        pytest.param(bytes(8192), id="zeros"),
        pytest.param(b"SQLite format 3\0" + b"\xff" * 5000, id="a header alone"),
    ],
)
def test_a_file_that_is_not_sqlite_is_refused_by_name_and_unchanged(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with refusal_of(None, path), contextlib.closing(open_archive(path)) as archive:
        archive.write([make_record("1")], random_descriptors(1))
    assert path.read_bytes() == content


@pytest.mark.parametrize("tables", ["CREATE TABLE photos (id)", "CREATE TABLE cases (case_id)", ""])
def test_another_sqlite_database_is_refused_by_name_and_unchanged(tables: str, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA user_version = 1; {tables}")
    before = path.read_bytes()
    with refusal_of("archive-foreign", path):
        open_archive(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [(3, 25, 3), (3, 7, 17)])
def test_a_sqlite_that_is_too_old_is_named(
    version: tuple[int, int, int], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ".".join(map(str, version))
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(sqlite3, "sqlite_version", name)
    with (
        refusal_of("archive-sqlite", f"SQLite {name}", "3.26.0"),
        contextlib.closing(open_archive(path)) as archive,
    ):
        archive.write([make_record("1")], random_descriptors(1))
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        (PureWindowsPath(r"\\server\share\cases.skinret"), "file:////server/share/cases.skinret"),
        (PureWindowsPath(r"C:\data\50 % ä?#.skinret"), "file:///C:/data/50%20%25%20%C3%A4%3F%23.skinret"),
        (PurePosixPath("/data/a b.skinret"), "file:///data/a%20b.skinret"),
        (PurePosixPath("//data/a.skinret"), "file:////data/a.skinret"),
    ],
)
def test_the_uri_of_a_windows_share_has_no_authority(name: PurePath, uri: str) -> None:
    """SQLite refuses file://server/share: "invalid uri authority"."""
    assert sqlite_uri(name) == uri
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        sqlite3.connect(f"{uri}?mode=ro", uri=True).execute("SELECT 1 FROM sqlite_master")


def test_a_name_with_every_odd_character_is_opened(tmp_path: Path) -> None:
    path = Path(f"/{tmp_path}") / "50 % ä?#&=;'\"\\.skinret"  # and with two slashes before it, as of a share
    with contextlib.closing(open_archive(path)) as archive:
        archive.write([make_record("1")], random_descriptors(1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_schema_is_refused_with_both_numbers(path: Path) -> None:
    make_archive(path)
    for schema in (0, 2):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {schema}")
        with refusal_of("archive-schema", path, "schema 1", f"schema {schema}"):
            open_archive(path)


def test_a_folder_in_the_place_of_the_archive_is_refused(tmp_path: Path) -> None:
    with refusal_of(None, tmp_path), contextlib.closing(open_archive(tmp_path)) as archive:
        search_archive(archive, QUERY, 1, 0.6, GAMMA)
    with refusal_of(None, tmp_path), contextlib.closing(open_archive(tmp_path)) as archive:
        archive.write([make_record("1")], random_descriptors(1))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["too long", "nul"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with refusal_of(), contextlib.closing(open_archive(tmp_path / name)) as archive:
        archive.write([make_record("1")], random_descriptors(1))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        refusal_of("archive-io", tmp_path),
        contextlib.closing(open_archive(tmp_path / "file" / "cases.skinret")) as archive,
    ):
        archive.write([make_record("1")], random_descriptors(1))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o500)
    with (
        refusal_of("archive-io", folder),
        contextlib.closing(open_archive(folder / "cases.skinret")) as archive,
    ):
        archive.write([make_record("1")], random_descriptors(1))


def test_a_closed_archive_says_so_and_closes_again(path: Path) -> None:
    archive = open_archive(make_archive(path))
    archive.close()
    archive.close()
    for use in (
        lambda: len(archive),
        lambda: archive.get(["c01"]),
        lambda: archive.remove(["c01"]),
        lambda: archive.write([make_record("1")], random_descriptors(1)),
        lambda: search_archive(archive, QUERY, 1, 0.6, GAMMA),
    ):
        with refusal_of("archive-closed", path):
            use()


def test_a_closed_searcher_says_so(bundle: Path, cases: list[Case], path: Path) -> None:
    with Searcher(bundle, path) as searcher:
        searcher.add(cases[:1])
    for use in (
        lambda: len(searcher),
        lambda: searcher.add(cases[:1]),
        lambda: searcher.query(cases[0].image),
        lambda: searcher.query(cases[0].image, "irregular streaks"),
        lambda: searcher.remove([cases[0].case_id]),
    ):
        with refusal_of("archive-closed", path):
            use()


# -- adding --


def test_added_cases_are_found_after_reopening(bundle: Path, cases: list[Case], path: Path) -> None:
    calls = []
    with Searcher(bundle, path) as searcher:
        report = searcher.add(cases[:20], progress=lambda done, total: calls.append((done, total)))
    assert calls == [(8, 20), (16, 20), (20, 20)]
    assert report.added == [case.case_id for case in cases[:20]]
    assert not report.replaced and not report.unchanged
    with Searcher(bundle, path) as searcher:
        assert len(searcher) == 20
        for case in cases[:20]:
            [hit] = searcher.query(case.image, k=1, gamma=0)
            assert hit.case_id == case.case_id and hit.score == pytest.approx(1, abs=1e-6)
            assert (hit.diagnosis, hit.group, hit.confirmed_by) == (case.diagnosis, case.group, "unknown")
            assert hit.attributes == case.attributes and hit.image_ref == case.image_ref


def test_adding_the_same_cases_again_changes_and_encodes_nothing(
    bundle: Path, cases: list[Case], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Case(
        "odd",
        cases[0].image,
        diagnosis="x",
        attributes={"n": 3, "f": 0.1, "t": True, "s": "ä😀", "big": 2**62},
    )
    with Searcher(bundle, path) as searcher:
        searcher.add([*cases[:10], odd])
    before = path.read_bytes()
    with Searcher(bundle, path) as searcher:
        monkeypatch.setattr(searcher._encoder.engine, "run", lambda *_: pytest.fail("a graph ran"))
        for on_duplicate in ("error", "skip", "replace"):
            report = searcher.add([*cases[:10], odd], on_duplicate=on_duplicate)
            assert report.unchanged == [*(case.case_id for case in cases[:10]), "odd"]
            assert not report.added and not report.replaced
    assert path.read_bytes() == before


def test_only_new_cases_are_encoded(
    bundle: Path, cases: list[Case], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Searcher(bundle, path) as searcher:
        searcher.add(cases[:10])
        run, encoded = searcher._encoder.engine.run, []

        def count_and_run(graph: str, feeds: Any, outputs: Any) -> Any:
            encoded.append(len(feeds["pixels"]) if graph == "visual_encoder" else 0)
            return run(graph, feeds, outputs)

        monkeypatch.setattr(searcher._encoder.engine, "run", count_and_run)
        report = searcher.add(cases[:13])
        assert sum(encoded) == 3 and len(report.added) == 3 and len(report.unchanged) == 10


CHANGES: dict[str, Callable[[Case, Case], Case]] = {
    "picture": lambda case, other: Case(
        case.case_id, other.image, diagnosis=case.diagnosis, image_ref=case.image_ref
    ),
    "diagnosis": lambda case, _: Case(case.case_id, case.image, diagnosis="melanosis"),
    "attributes": lambda case, _: Case(
        case.case_id, case.image, diagnosis=case.diagnosis, attributes={"sex": "unknown"}
    ),
    "confirmed_by": lambda case, _: Case(
        case.case_id, case.image, diagnosis=case.diagnosis, confirmed_by="histopathology"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_same_id_with_other_facts_is_refused_skipped_or_replaced(
    what: str, bundle: Path, cases: list[Case], path: Path
) -> None:
    old = Case(cases[0].case_id, cases[0].image, diagnosis=cases[0].diagnosis)
    new = CHANGES[what](old, cases[1])
    with Searcher(bundle, path) as searcher:
        searcher.add([old])
        before = searcher.query(cases[0].image, k=1).hits
        with refusal_of("case-duplicate", repr(old.case_id), "replace", "skip"):
            searcher.add([new])
        assert searcher.query(cases[0].image, k=1).hits == before
        assert searcher.add([new], on_duplicate="skip").unchanged == [old.case_id]
        assert searcher.query(cases[0].image, k=1).hits == before
        report = searcher.add([new], on_duplicate="replace")
        assert report.replaced == [old.case_id] and not report.added
        assert len(searcher) == 1
        [hit] = searcher.query(new.image, k=1, gamma=0)
        assert hit.score == pytest.approx(1, abs=1e-6)
        assert (hit.diagnosis, hit.confirmed_by) == (new.diagnosis, new.confirmed_by)
        assert hit.attributes == new.attributes


def test_no_old_bytes_of_a_replaced_case_stay_in_the_file(
    bundle: Path, cases: list[Case], path: Path
) -> None:
    with Searcher(bundle, path) as searcher:
        searcher.add([Case("1", cases[0].image, diagnosis="an-old-diagnosis", image_ref="an-old-place")])
        old = _descriptor_bytes(path, "1")
        assert old in path.read_bytes()
        searcher.add([Case("1", cases[1].image, diagnosis="a-new-diagnosis")], on_duplicate="replace")
    content = path.read_bytes()
    assert b"a-new-diagnosis" in content
    assert b"an-old-diagnosis" not in content and b"an-old-place" not in content and old not in content


@pytest.mark.parametrize("option", ["Replace", "", None, True, "ignore"])
def test_an_unknown_on_duplicate_is_refused(option: Any, bundle: Path, cases: list[Case], path: Path) -> None:
    with Searcher(bundle, path) as searcher, refusal_of("option", "skip", kind=InputError):
        searcher.add(cases[:1], on_duplicate=option)
    assert not path.exists()


def test_the_same_id_twice_in_a_call_adds_nothing(bundle: Path, cases: list[Case], path: Path) -> None:
    with Searcher(bundle, path) as searcher:
        for on_duplicate in ("error", "skip", "replace"):
            with refusal_of("case-duplicate", repr(cases[3].case_id), kind=InputError):
                searcher.add([*cases[:20], cases[3]], on_duplicate=on_duplicate)
        assert len(searcher) == 0
    assert not path.exists()


def test_a_bad_image_is_named_and_earlier_batches_stay(bundle: Path, cases: list[Case], path: Path) -> None:
    good = cases[:20]
    bad = [*good[:12], Case(good[12].case_id, b"not a picture", diagnosis=good[12].diagnosis), *good[13:]]
    with Searcher(bundle, path) as searcher:
        with pytest.raises(InputError) as caught:
            searcher.add(bad)
        assert caught.value.code == "image-unreadable"
        notes = " ".join(caught.value.__notes__)
        assert repr(good[12].case_id) in notes and "8 cases" in notes
        assert len(searcher) == 8
        report = searcher.add(good)
        assert len(report.unchanged) == 8 and len(report.added) == 12
        assert len(searcher) == 20


def test_a_progress_that_raises_ends_the_call_after_its_batch(
    bundle: Path, cases: list[Case], path: Path
) -> None:
    def cancel(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with Searcher(bundle, path) as searcher:
        with pytest.raises(KeyboardInterrupt):
            searcher.add(cases[:30], progress=cancel)
        assert len(searcher) == 16
        assert len(searcher.add(cases[:30]).added) == 14


@pytest.mark.parametrize("values", [["1.jpg"], [None], "abc", None, 7, [("1", "a.jpg")]], ids=repr)
def test_objects_that_are_not_cases_are_refused(values: Any, bundle: Path, path: Path) -> None:
    with Searcher(bundle, path) as searcher, refusal_of(kind=InputError):
        searcher.add(values)
    assert not path.exists()


def test_cases_may_come_from_a_generator(bundle: Path, cases: list[Case], path: Path) -> None:
    with Searcher(bundle, path) as searcher:
        assert len(searcher.add(case for case in cases[:9]).added) == 9
        assert not searcher.add([]).added and len(searcher) == 9


def test_an_image_whose_name_is_not_utf8_is_added(bundle: Path, cases: list[Case], tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"l\xe4sion.jpg")
    try:
        shutil.copy(str(cases[0].image), image)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    with Searcher(bundle, tmp_path / "cases.skinret") as searcher:
        searcher.add([Case("1", image, diagnosis="clark nevus")])
        results = searcher.query(image, k=1)
        assert results[0].case_id == "1"
        json.dumps(results.to_dict(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "facts", [{"diagnosis": None}, {"diagnosis": ["x"]}, {"image_ref": "\udcff"}, {"attributes": {"a": b""}}]
)
def test_a_record_that_cannot_be_written_takes_its_whole_batch_with_it(
    facts: dict[str, Any], path: Path
) -> None:
    make_archive(path)
    with contextlib.closing(open_archive(path)) as archive:
        with pytest.raises(Exception) as caught:
            archive.write([make_record("new"), make_record("bad", **facts)], random_descriptors(2))
        assert len(archive) == 12 and not archive.get(["new", "bad"])
        archive.write([make_record("new")], random_descriptors(1))
    if isinstance(caught.value, SkinretError):
        assert caught.value.code != "archive-damaged", "the archive is blamed for the value of the caller"


@pytest.mark.parametrize(
    "descriptors",
    [
        pytest.param(np.full((2, 41), np.nan, np.float32), id="NaN"),
        pytest.param(np.where(np.eye(2, 41) == 1, np.inf, 0.1).astype(np.float32), id="infinity"),
        pytest.param(np.where(np.eye(2, 41) == 1, np.nan, 0.1).astype(np.float32), id="one NaN"),
        pytest.param(random_descriptors(2)[:, :-1], id="too short"),
        pytest.param(np.zeros((2, 42), np.float32), id="too long"),
        pytest.param(random_descriptors(1), id="too few"),
        pytest.param(random_descriptors(3), id="too many"),
        pytest.param(random_descriptors(2)[0], id="flat"),
    ],
)
def test_descriptors_that_cannot_be_scored_are_refused_and_nothing_is_written(
    descriptors: Vector, path: Path
) -> None:
    with contextlib.closing(open_archive(path)) as archive:
        with refusal_of("descriptor-shape", "41", kind=InputError):
            archive.write([make_record("1"), make_record("2")], descriptors)
        assert not path.exists()
        archive.write([make_record("0")], random_descriptors(1))
        before = path.read_bytes()
        with refusal_of("descriptor-shape", kind=InputError):
            archive.write([make_record("1"), make_record("2")], descriptors)
        assert len(archive) == 1
    assert path.read_bytes() == before


# -- removing --


def test_a_removed_case_leaves_no_trace_in_the_file(bundle: Path, cases: list[Case], path: Path) -> None:
    secret = Case(
        "patient-4711",
        cases[0].image,
        diagnosis="a-rare-nevus",
        attributes={"remark": "a-telling-remark"},
        image_ref="pacs:0815",
    )
    with Searcher(bundle, path) as searcher:
        searcher.add([*cases[1:12], secret, *cases[12:20]])
        descriptor = _descriptor_bytes(path, "patient-4711")
        traces = [b"patient-4711", b"a-rare-nevus", b"a-telling-remark", b"pacs:0815", descriptor]
        assert all(trace in path.read_bytes() for trace in traces)
        assert searcher.remove(["patient-4711", "no such case"]) == 1
        assert [trace for trace in traces if trace in path.read_bytes()] == []
        assert len(searcher) == 19
        assert "patient-4711" not in {hit.case_id for hit in searcher.query(secret.image, k=100)}
        assert searcher.remove(["patient-4711"]) == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("width", [4, 300], ids=["in a page", "over many pages"])
def test_many_removed_cases_leave_no_trace_in_a_file_that_grew_by_batches(width: int, path: Path) -> None:
    layout = Layout(local=(width,) * 3, global_=(width,) * 3)
    chance = random.Random(0)
    ids = [f"patient-{chance.getrandbits(64):016x}" for _ in range(240)]
    descriptors = random_descriptors(len(ids), layout=layout)
    removed = chance.sample(range(len(ids)), 110)
    with contextlib.closing(open_archive(path, layout=layout)) as archive:
        for start in range(0, len(ids), 16):
            batch = [
                make_record(i, diagnosis=f"of-{i}", image_ref=f"at-{i}") for i in ids[start : start + 16]
            ]
            archive.write(batch, descriptors[start : start + 16])
        for start in range(0, len(removed), 11):
            assert archive.remove([ids[n] for n in removed[start : start + 11]]) == 11
        assert _all_ids_wide(archive, layout) == sorted(set(ids) - {ids[n] for n in removed})
    content = path.read_bytes()
    assert [ids[n] for n in removed if ids[n].encode() in content] == []
    assert [ids[n] for n in removed if descriptors[n].tobytes()[-64:] in content] == []


def _all_ids_wide(archive: Archive, layout: Layout) -> list[str]:
    return sorted(_ids(search_archive(archive, random_descriptors(1, 1, layout)[0], 10**6, 0.6, GAMMA)))


def test_removing_nothing_removes_nothing(path: Path) -> None:
    with contextlib.closing(open_archive(make_archive(path))) as archive:
        assert archive.remove([]) == 0 and archive.remove(["zz"]) == 0 and len(archive) == 12


def test_a_single_str_is_not_taken_for_a_list_of_ids(bundle: Path, cases: list[Case], path: Path) -> None:
    with Searcher(bundle, path) as searcher:
        searcher.add(cases[:12])
        with refusal_of("option", kind=InputError):
            searcher.remove("12")
        with refusal_of("option", kind=InputError):
            searcher.query(cases[0].image, exclude="12")
        assert len(searcher) == 12


@pytest.mark.parametrize("ids", [[b"1"], [None], [1.5], None, 1], ids=repr)
def test_ids_that_are_not_text_are_refused(ids: Any, searcher: Searcher, cases: list[Case]) -> None:
    before = len(searcher)
    with refusal_of(kind=InputError):
        searcher.remove(ids)
    assert len(searcher) == before


def test_an_int_in_exclude_is_refused_or_heeded_but_not_ignored(
    searcher: Searcher, cases: list[Case]
) -> None:
    """The patient's own case must not come back because its number was not written as text."""
    try:
        found = [hit.case_id for hit in searcher.query(cases[0].image, k=100, exclude=[1])]  # type: ignore[list-item]
    except InputError:
        return
    assert "1" not in found


# -- other readers and writers --


def test_a_second_searcher_sees_what_the_first_adds_and_removes(
    bundle: Path, cases: list[Case], path: Path
) -> None:
    with Searcher(bundle, path) as writer, Searcher(bundle, path) as reader:
        assert len(reader) == 0
        writer.add(cases[:9])
        assert len(reader) == 9
        assert reader.query(cases[4].image, k=1)[0].case_id == cases[4].case_id
        writer.remove([cases[4].case_id])
        assert len(reader) == 8
        assert cases[4].case_id not in {hit.case_id for hit in reader.query(cases[4].image, k=100)}
        reader.add(cases[9:10])
        assert writer.query(cases[9].image, k=1)[0].case_id == cases[9].case_id


_READER = """
import sys
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
import numpy as np
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.database import sqlite_uri
from skinret_infer.descriptor import Layout, part_weights
layout = Layout(local=(4, 6, 8), global_=(4, 6, 8), concepts=(3, 2))
archive = Archive(Path(sys.argv[1]), "f" * 64, layout, "m 1")
query, weights = np.ones(41, np.float32) / 3, part_weights(layout, 0.6, 0.5)
for line in sys.stdin:
    matches = archive.search(query[None], weights, 100)[0][0] if len(archive) else []
    print(*sorted(m.record.case_id for m in matches), flush=True)
"""


def test_another_process_sees_what_is_added_and_removed(path: Path) -> None:
    archive = open_archive(path)
    command = [sys.executable, "-c", _READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin and reader.stdout

        def case_ids() -> list[str]:
            assert reader.stdin and reader.stdout
            print("?", file=reader.stdin, flush=True)
            return reader.stdout.readline().split()

        assert case_ids() == []
        archive.write([make_record("a"), make_record("b")], random_descriptors(2))
        assert case_ids() == ["a", "b"]
        archive.write([make_record("c")], random_descriptors(1))
        assert case_ids() == ["a", "b", "c"]
        archive.remove(["a", "c"])
        assert case_ids() == ["b"]
        reader.stdin.close()
        assert reader.wait(10) == 0
    archive.close()


@pytest.mark.usefixtures("short_wait")
def test_an_archive_locked_by_another_writer_can_be_read_but_not_written(path: Path) -> None:
    make_archive(path)
    with (
        contextlib.closing(open_archive(path)) as archive,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        assert len(archive) == 12 and len(_all_ids(archive)) == 12
        with refusal_of("archive-locked", path, "0.05 s"):
            archive.write([make_record("new")], random_descriptors(1))
        with refusal_of("archive-locked", path):
            archive.remove(["c01"])
        other.execute("ROLLBACK")
        archive.write([make_record("new")], random_descriptors(1))
        assert archive.remove(["c01"]) == 1 and len(archive) == 12


@pytest.mark.usefixtures("short_wait")
def test_every_call_reports_an_archive_that_is_locked_for_all(path: Path) -> None:
    make_archive(path)
    with (
        contextlib.closing(open_archive(path)) as archive,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        for use in (
            lambda: open_archive(path),
            lambda: len(archive),
            lambda: search_archive(archive, QUERY, 1, 0.6, GAMMA),
        ):
            with refusal_of("archive-locked", path):
                use()
        other.execute("ROLLBACK")
        assert len(_all_ids(archive)) == 12


def test_an_error_in_the_middle_of_a_read_leaves_no_lock(path: Path) -> None:
    """Its traceback may keep the cursor, for as long as the caller keeps the exception."""
    make_archive(path, 60)
    with contextlib.closing(open_archive(path)) as archive:
        with pytest.raises(ZeroDivisionError), archive.database.reading() as db:
            cursor = db.execute("SELECT * FROM cases")
            cursor.fetchone()
            1 / 0  # noqa: B018
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
            other.execute("BEGIN EXCLUSIVE")


@pytest.mark.usefixtures("short_wait")
def test_a_writer_blocked_by_a_reader_writes_nothing_and_can_try_again(path: Path) -> None:
    make_archive(path)
    with (
        contextlib.closing(open_archive(path)) as archive,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN")
        other.execute("SELECT * FROM cases").fetchone()
        with refusal_of("archive-locked", path):
            archive.write([make_record("new")], random_descriptors(1))
        assert len(archive) == 12
        other.execute("ROLLBACK")
        archive.write([make_record("new")], random_descriptors(1))
        assert len(archive) == 13


def _together(jobs: list[Callable[[], None]]) -> list[BaseException]:
    """Run jobs in threads that start at once, and return what they raised."""
    start, raised = threading.Barrier(len(jobs)), []

    def run(job: Callable[[], None]) -> None:
        start.wait()
        try:
            job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_writers_that_make_an_archive_at_once_all_succeed(tmp_path: Path) -> None:
    for turn in range(4):
        path = tmp_path / f"{turn}.skinret"
        archives = [open_archive(path) for _ in range(4)]
        jobs = [
            lambda a=archive, n=n: a.write([make_record(f"w{n}")], random_descriptors(1, n))
            for n, archive in enumerate(archives)
        ]
        assert _together(jobs) == []
        assert _all_ids(archives[0]) == ["w0", "w1", "w2", "w3"]
        for archive in archives:
            archive.close()


def test_one_archive_serves_writers_and_readers_in_threads(path: Path) -> None:
    archive = open_archive(make_archive(path))
    counts: list[int] = []

    def write(name: str) -> Callable[[], None]:
        def job() -> None:
            for n in range(6):
                archive.write([make_record(f"{name}{n}")], random_descriptors(1, n))
            archive.remove([f"{name}{n}" for n in range(3)])

        return job

    def read() -> None:
        for _ in range(30):
            assert len(_ids(search_archive(archive, QUERY, 5, 0.6, GAMMA))) == 5
            counts.append(len(archive))

    assert _together([write("x"), write("y"), read, read]) == []
    assert len(archive) == 12 + 6 and len(counts) == 60
    archive.close()


def test_an_archive_whose_file_was_deleted_loses_no_new_case(path: Path) -> None:
    with contextlib.closing(open_archive(make_archive(path))) as archive:
        path.unlink()
        try:
            archive.write([make_record("new")], random_descriptors(1))
        except ArchiveError:
            return
    with contextlib.closing(open_archive(path)) as archive:
        assert archive.get(["new"])


# -- kills --

_ADDER = """
import sys
from skinret_infer import Case, Searcher
from skinret_infer.tables import read_cases
bundle, archive, data = sys.argv[1:]
table = read_cases(data).cases
cases = [Case(f"{n}-{c.case_id}", c.image, diagnosis=c.diagnosis) for n in range(6) for c in table]
with Searcher(bundle, archive, threads=1) as searcher:
    searcher.add(cases, progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize(("batches", "seed"), [(1, 1), (2, 2), (7, 3), (15, 4)])
def test_a_killed_add_loses_no_finished_batch_and_can_be_made_again(
    batches: int, seed: int, bundle: Path, data: Path, cases: list[Case], path: Path
) -> None:
    command = [sys.executable, "-c", _ADDER, str(bundle), str(path), str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as adder:
        assert adder.stdout
        reported = [int(adder.stdout.readline()) for _ in range(batches)]
        pause = random.Random(seed).uniform(0, 0.03)
        threading.Event().wait(pause)
        adder.send_signal(signal.SIGKILL)
        reported += [int(line) for line in adder.stdout.read().splitlines(keepends=True) if line[-1] == "\n"]
    assert adder.returncode == -signal.SIGKILL
    new = [
        Case(f"{n}-{case.case_id}", case.image, diagnosis=case.diagnosis) for n in range(6) for case in cases
    ]
    with Searcher(bundle, path) as searcher:
        count = len(searcher)
        assert count in (reported[-1], reported[-1] + 8)
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            ids = {row[0] for row in db.execute("SELECT case_id FROM cases")}
        assert ids == {case.case_id for case in new[:count]}
        report = searcher.add(new)
        assert report.unchanged == [case.case_id for case in new[:count]]
        assert report.added == [case.case_id for case in new[count:]]
        assert len(searcher) == len(new)
        assert searcher.query(new[-1].image, k=1, gamma=0)[0].score == pytest.approx(1, abs=1e-6)


_KILLED_IN_FIRST_TRANSACTION = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")  # pages reach the file before the commit, as they do within it
db.execute("BEGIN IMMEDIATE")
db.execute("CREATE TABLE cases (x)")
db.execute("INSERT INTO cases VALUES (zeroblob(100000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_the_archive_is_made_leaves_none(path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED_IN_FIRST_TRANSACTION, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.stat().st_size > 0 and path.with_name(path.name + "-journal").exists()
    with contextlib.closing(open_archive(path)) as archive:
        assert len(archive) == 0
        archive.write([make_record("1")], random_descriptors(1))
        assert _all_ids(archive) == ["1"]


# -- damage --


def _answers(path: Path, layout: Layout = LAYOUT) -> list[tuple[Record, float]]:
    query = random_descriptors(1, 99, layout)[0]
    with contextlib.closing(open_archive(path, layout=layout)) as archive:
        assert len(archive) > 0
        return [(match.record, match.score) for match in search_archive(archive, query, 12, 0.6, GAMMA)[0]]


@pytest.mark.parametrize("part", [0.02, 0.2, 0.45, 0.7, 0.9, 0.999])
def test_a_truncated_archive_is_refused_as_damaged(part: float, path: Path) -> None:
    make_archive(path, count=200)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with refusal_of("archive-damaged", path, "backup"):
        _answers(path)
    path.write_bytes(content[: int(part * len(content)) // 4096 * 4096 or 4096])
    with refusal_of("archive-damaged", path, "backup"):
        _answers(path)


_WIDE = Layout(local=(200,) * 3, global_=(200,) * 3)  # a descriptor of more than one page


@pytest.mark.parametrize("filling", [b"\0", b"\xff", None], ids=["zeros", "ones", "random"])
def test_no_answer_comes_from_an_overwritten_page(filling: bytes | None, path: Path) -> None:
    make_archive(path, layout=_WIDE)
    expected, content = _answers(path, _WIDE), path.read_bytes()
    wrong = []
    for start in range(0, len(content), 4096):
        page = filling * 4096 if filling else random.Random(start).randbytes(4096)
        path.write_bytes(content[:start] + page + content[start + 4096 :])
        try:
            if _answers(path, _WIDE) != expected:
                wrong.append(start // 4096 + 1)
        except ArchiveError:
            pass
    assert wrong == [], "pages"


@pytest.mark.parametrize(
    "filling", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\x80\x7f"], ids=["NaN", "0", "inf"]
)
def test_a_damaged_descriptor_is_found_before_it_is_scored(filling: bytes, path: Path) -> None:
    make_archive(path)
    blob = random_descriptors(12)[5].tobytes()
    content = path.read_bytes()
    assert content.count(blob) == 1
    path.write_bytes(content.replace(blob, filling * (len(blob) // 4)))
    with refusal_of("archive-damaged", path):
        _answers(path)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE cases SET attributes = '{' WHERE id = 3",
        "UPDATE cases SET attributes = '[1]' WHERE id = 3",
        "UPDATE cases SET diagnosis = CAST(x'ff' AS TEXT) WHERE id = 3",
        "UPDATE cases SET case_id = x'ff' WHERE id = 3",
        "UPDATE cases SET descriptor = x'00' WHERE id = 3",
        "UPDATE cases SET descriptor = 7 WHERE id = 3",
        "UPDATE cases SET descriptor = 'abc' WHERE id = 3",
        "DELETE FROM meta WHERE name = 'revision'",
        "DROP TABLE cases",
        "DROP TABLE meta",
        "ALTER TABLE cases RENAME COLUMN image_ref TO image_place",
    ],
)
def test_an_archive_that_another_program_changed_is_refused_as_damaged(change: str, path: Path) -> None:
    make_archive(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(change)
    with refusal_of("archive-damaged", path):
        _answers(path)


@settings(QUICK, max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), max_size=12),
    cut=st.none() | st.none() | st.integers(0, 2**20),
)
def test_flipped_bytes_give_an_archive_error_or_an_answer(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    whole, path = folder / "whole.skinret", folder / "cases.skinret"
    content = bytearray((whole if whole.exists() else make_archive(whole, 60)).read_bytes())
    for place, flip in flips:
        content[place % len(content)] ^= flip
    if cut is not None:
        del content[cut % len(content) :]
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    path.write_bytes(content)
    uses: list[Callable[[Archive], object]] = [
        lambda archive: search_archive(archive, QUERY, 60, 0.6, GAMMA),
        lambda archive: search_archive(archive, QUERY, 5, 0.6, GAMMA, {"sex": "male"}, ["c07"]),
        lambda archive: archive.get([f"c{n:02d}" for n in range(60)]),
        lambda archive: archive.write([make_record("new")], random_descriptors(1)),
        lambda archive: archive.remove(["c03", "new"]),
    ]
    with contextlib.suppress(ArchiveError), contextlib.closing(open_archive(path)) as archive:
        for use in uses:
            with contextlib.suppress(ArchiveError, InputError):  # the attribute may have another name now
                use(archive)


# -- search --


def _brute(query: Vector, cases: Vector, layout: Layout, beta: float, gamma: float) -> np.ndarray:
    """Return the scores in float64, as a sum over the parts."""
    total, start = np.zeros(len(cases)), 0
    concepts = len(layout.concepts)
    for n, width in enumerate(layout.local + layout.global_ + layout.concepts):
        part = slice(start, start + width)
        products = np.array([math.fsum(q * c) for c in cases[:, part].astype(float) for q in [query[part]]])
        if n < 6:
            weight = (1 - gamma) / 3 * (beta if n < 3 else 1 - beta)
        else:
            weight = gamma if concepts == 1 else gamma / 2 if n == 6 else gamma / 2 / (concepts - 1)
        total += weight * products
        start += width
    return total


def _check_exact(
    matches: list[Match],
    ids: list[str],
    query: Vector,
    cases: Vector,
    layout: Layout,
    weights: tuple[float, float],
    k: int,
) -> None:
    """Check that the matches are the k best of the cases in order, equal descriptors by case id."""
    brute = dict(zip(ids, _brute(query, cases, layout, *weights), strict=True))
    blob = dict(zip(ids, (c.tobytes() for c in cases), strict=True))
    found = [match.record.case_id for match in matches]
    assert len(found) == len(set(found)) == min(k, len(ids))
    for match in matches:
        assert match.score == pytest.approx(brute[match.record.case_id], abs=1e-12)
        assert abs(match.score) <= 1 + 1e-6
        assert match.products.shape == (6 + len(layout.concepts),)
    for before, after in itertools.pairwise(matches):
        one, two = before.record.case_id, after.record.case_id
        assert before.score >= after.score
        assert brute[one] >= brute[two] - 1e-12
        assert blob[one] != blob[two] or (one < two and before.score == after.score)
    if len(found) < len(ids):
        last = found[-1]
        others = [i for i in ids if i not in set(found)]
        assert max(brute[i] for i in others) <= brute[last] + 1e-12
        assert all(last < i for i in others if blob[i] == blob[last])


@st.composite
def _searches(draw: st.DrawFn) -> tuple[Layout, Vector, Vector, list[str], tuple[float, float], int]:
    width = st.integers(1, 12)
    widths = [draw(width) for _ in range(6)]
    concepts = draw(st.lists(st.integers(2, 5), max_size=4))
    layout = Layout(local=tuple(widths[:3]), global_=tuple(widths[3:]), concepts=tuple(concepts))
    count, seed = draw(st.integers(1, 60)), draw(st.integers(0, 2**16))
    distinct = random_descriptors(draw(st.integers(1, count)), seed, layout)
    rng = np.random.default_rng(seed)
    cases = distinct[rng.integers(0, len(distinct), count)]  # some are equal
    if draw(st.booleans()):  # and one differs in a last bit
        row, column = rng.integers(0, count), rng.integers(0, layout.length)
        cases[row, column] = np.nextafter(cases[row, column], np.float32(2), dtype=np.float32)
    query = draw(st.sampled_from([cases[0], random_descriptors(1, seed + 1, layout)[0]]))
    ids = [f"{n:03d}" for n in rng.permutation(count)]
    beta = draw(st.sampled_from([0.0, 1.0, 0.6]) | st.floats(0, 1))
    gamma = draw(st.sampled_from([0.0, 1.0, 0.7]) | st.floats(0, 1)) if concepts else 0.0
    return layout, query, cases, ids, (beta, gamma), draw(st.integers(1, count + 3))


@settings(QUICK)
@given(_searches())
def test_search_finds_exactly_the_best_with_ties_by_case_id(
    tmp_path_factory: pytest.TempPathFactory,
    search: tuple[Layout, Vector, Vector, list[str], tuple[float, float], int],
) -> None:
    layout, query, cases, ids, weights, k = search
    path = tmp_path_factory.getbasetemp() / "exact.skinret"
    path.unlink(missing_ok=True)
    with contextlib.closing(open_archive(path, layout=layout)) as archive:
        archive.write([make_record(i) for i in ids], cases)
        matches, searched = search_archive(archive, query, k, *weights)
    assert searched == len(ids)
    _check_exact(matches, ids, query, cases, layout, weights, k)


def test_search_is_exact_if_thousands_of_scores_differ_by_rounding(path: Path) -> None:
    layout = Layout(local=(32, 64, 128), global_=(32, 64, 128), concepts=(3, 2, 3))
    rng = np.random.default_rng(0)
    near = np.repeat(random_descriptors(3, layout=layout), 500, axis=0)
    steps = rng.integers(-1, 2, near.shape)
    near = np.where(steps == 0, near, np.nextafter(near, np.float32(2) * steps, dtype=np.float32))
    cases = np.concatenate([near, near[:100], random_descriptors(400, 7, layout)])
    ids = [f"{n:05d}" for n in rng.permutation(len(cases))]
    with contextlib.closing(open_archive(path, layout=layout)) as archive:
        archive.write([make_record(i) for i in ids], cases)
        for k in (1, 10, 100, 700):
            query = random_descriptors(3, layout=layout)[k % 3]
            matches, _ = search_archive(archive, query, k, 0.6, GAMMA)
            _check_exact(matches, ids, query, cases, layout, (0.6, GAMMA), k)


def test_a_score_has_the_same_bits_whatever_other_cases_there_are(path: Path) -> None:
    descriptors = random_descriptors(60)
    with contextlib.closing(open_archive(path)) as archive:
        archive.write([make_record("00")], descriptors[:1])
        [alone] = search_archive(archive, QUERY, 1, 0.37, GAMMA)[0]
        for n in range(1, 60):
            archive.write([make_record(f"{n:02d}")], descriptors[n : n + 1])
            for k in (1, 3, n, 100):
                for match in search_archive(archive, QUERY, k, 0.37, GAMMA)[0]:
                    if match.record.case_id == "00":
                        assert match.score == alone.score
                        assert (match.products == alone.products).all()


def test_beta_weighs_the_local_against_the_global_cosines(path: Path) -> None:
    with contextlib.closing(open_archive(make_archive(path))) as archive:
        for beta in (0.0, 0.25, 1.0):
            for match in search_archive(archive, QUERY, 12, beta, 0.0)[0]:
                local, global_ = match.products[:3].mean(), match.products[3:6].mean()
                assert match.score == pytest.approx(beta * local + (1 - beta) * global_, abs=1e-12)


def test_a_k_beyond_the_number_of_cases_returns_all(path: Path) -> None:
    with contextlib.closing(open_archive(make_archive(path))) as archive:
        for k in (12, 13, 10**6, 10**30):
            matches, searched = search_archive(archive, QUERY, k, 0.6, GAMMA)
            assert len(matches) == searched == 12


@pytest.fixture
def mixed(path: Path) -> Iterator[Archive]:
    """Six cases of different facts; e has none."""
    facts: list[dict[str, Any]] = [
        {"diagnosis": "melanoma", "group": "mel", "attributes": {"sex": "female", "age": 63, "t": True}},
        {"diagnosis": "melanoma (in situ)", "group": "mel", "attributes": {"sex": "male", "age": 63.0}},
        {"diagnosis": "clark nevus", "attributes": {"sex": "female", "age": 40, "size": 4.5}},
        {"diagnosis": "blue nevus", "confirmed_by": "histopathology", "attributes": {"age": "63"}},
        {"diagnosis": "", "group": ""},
        {"diagnosis": "Melanoma", "attributes": {'o"d\\d\n$.[0] %é😀': "it's", "t": False, "age": -1}},
    ]
    with contextlib.closing(open_archive(path)) as archive:
        records = [make_record(i, **f) for i, f in zip("abcdef", facts, strict=True)]
        archive.write(records, random_descriptors(6))
        yield archive


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, "abcdef"),
        ({}, "abcdef"),
        ({"diagnosis": "melanoma"}, "a"),
        ({"diagnosis": ["melanoma", "clark nevus", "none such"]}, "ac"),
        ({"diagnosis": ("melanoma",)}, "a"),
        ({"diagnosis": {"melanoma"}}, "a"),
        ({"diagnosis": ""}, "e"),
        ({"diagnosis": []}, ""),
        ({"diagnosis": "melanoma' OR '1'='1"}, ""),
        ({"diagnosis": "%"}, ""),
        ({"age": 63}, "abd"),
        ({"age": ["63"]}, "d"),
        ({"age": "63"}, "d"),
        ({"age": ["63", 63]}, "abd"),
        ({"age": "063"}, ""),
        ({"age": "+63"}, ""),
        ({"group": "mel"}, "ab"),
        ({"confirmed_by": "histopathology"}, "d"),
        ({"sex": "female"}, "ac"),
        ({"sex": ["female", "male"]}, "abc"),
        ({"sex": "female", "group": "mel"}, "a"),
        ({"sex": "male", "diagnosis": "clark nevus"}, ""),
        ({"age": 40}, "c"),
        ({"age": [40, -1]}, "cf"),
        ({"size": 4.5}, "c"),
        ({"size": [4, 5]}, ""),
        ({"t": True}, "a"),
        ({"t": [True, False]}, "af"),
        ({'o"d\\d\n$.[0] %é😀': "it's"}, "f"),
    ],
    ids=repr,
)
def test_where_matches_its_values(where: Any, expected: str, mixed: Archive) -> None:
    matches, searched = search_archive(mixed, QUERY, 10, 0.6, GAMMA, where)
    assert sorted(m.record.case_id for m in matches) == list(expected)
    assert searched == len(expected)


def test_a_whole_number_is_the_same_with_and_without_a_point(mixed: Archive) -> None:
    assert _all_ids(mixed, where={"age": 63})[:2] == ["a", "b"]
    assert _all_ids(mixed, where={"age": 63.0})[:2] == ["a", "b"]


@pytest.mark.parametrize("name", ["Sex", "case_id", "", "diagnosis'", "image_ref", 7, None], ids=repr)
def test_an_attribute_that_no_case_has_is_refused_with_the_known_names(name: Any, mixed: Archive) -> None:
    with refusal_of("filter-unknown", repr(name), "diagnosis", "age", "sex", "size", kind=InputError):
        search_archive(mixed, QUERY, 10, 0.6, GAMMA, {name: "x"})


@pytest.mark.parametrize(
    "value", [None, b"x", {"a": 1}, ["x", None], [["x"]], float("nan"), [float("inf")], ...], ids=repr
)
@pytest.mark.parametrize("name", ["diagnosis", "sex"])
def test_a_filter_by_a_value_that_no_case_can_have_is_refused(name: str, value: Any, mixed: Archive) -> None:
    with refusal_of("filter-type", repr(name), kind=InputError):
        search_archive(mixed, QUERY, 10, 0.6, GAMMA, {name: value})


@pytest.mark.parametrize("where", [["diagnosis"], "diagnosis", 7, ("sex", "male")], ids=repr)
def test_a_filter_that_is_no_mapping_is_refused(where: Any, searcher: Searcher, cases: list[Case]) -> None:
    with refusal_of(kind=InputError):
        searcher.query(cases[0].image, where=where)


def test_excluded_cases_do_not_come_back(mixed: Archive) -> None:
    for exclude in (["a", "d"], ("a", "d"), {"a", "d"}, {"a": 1, "d": 2}, frozenset("ad"), ["a", "d", "zz"]):
        assert _all_ids(mixed, exclude=exclude) == ["b", "c", "e", "f"]
    assert _all_ids(mixed, exclude=[]) == list("abcdef") == _all_ids(mixed, exclude=["aa", "A", " a", "a "])
    assert _all_ids(mixed, exclude=list("abcdef")) == []
    assert search_archive(mixed, QUERY, 1, 0.6, GAMMA, {"sex": "female"}, ["a"])[1] == 1


@settings(QUICK, max_examples=60)
@given(
    k=st.integers(1, 15),
    sexes=st.lists(st.sampled_from(["male", "female", "x"])),
    exclude=st.lists(st.integers(0, 14)),
)
def test_a_filtered_search_is_the_whole_search_filtered(
    tmp_path_factory: pytest.TempPathFactory, k: int, sexes: list[str], exclude: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "filtered.skinret"
    if not path.exists():
        make_archive(path)
    with contextlib.closing(open_archive(path)) as archive:
        excluded = [f"c{n:02d}" for n in exclude]
        whole = search_archive(archive, QUERY, 12, 0.6, GAMMA)[0]
        expected = [
            (m.record, m.score)
            for m in whole
            if m.record.attributes["sex"] in sexes and m.record.case_id not in excluded
        ]
        matches, searched = search_archive(archive, QUERY, k, 0.6, GAMMA, {"sex": sexes}, excluded)
        assert [(m.record, m.score) for m in matches] == expected[:k] and searched == len(expected)


def test_odd_case_ids_are_kept_apart(path: Path) -> None:
    with contextlib.closing(open_archive(path)) as archive:
        archive.write([make_record(i) for i in ODD_IDS], random_descriptors(len(ODD_IDS)))
        assert _all_ids(archive) == sorted(ODD_IDS)
        for n, odd in enumerate(ODD_IDS):
            assert list(archive.get([odd])) == [odd]
            assert _all_ids(archive, exclude=[odd]) == sorted(set(ODD_IDS[n:]) - {odd})
            assert archive.remove([odd]) == 1
            assert not archive.get([odd]) and len(archive) == len(ODD_IDS) - n - 1


def test_a_nul_in_a_case_id_does_not_make_it_another_case(
    bundle: Path, cases: list[Case], path: Path
) -> None:
    with Searcher(bundle, path) as searcher:
        searcher.add([Case("1", cases[0].image, diagnosis="a")])
        try:
            searcher.add([Case("1\x002", cases[1].image, diagnosis="b")])
        except InputError:
            assert len(searcher) == 1
            return
        assert len(searcher) == 2
        assert searcher.remove(["1\x002"]) == 1
        assert searcher.query(cases[0].image, k=5)[0].case_id == "1"


def test_odd_facts_come_back_unchanged(path: Path) -> None:
    attributes = {
        "": "",
        "a\nb": "c\td",
        "ü😀": '"',
        "n": 0,
        "f": 1e-300,
        "neg": -0.5,
        "t": False,
        "big": 2**62,
    }
    record = make_record(
        "1",
        diagnosis="né\nvus; DROP",
        group=" ",
        confirmed_by="'",
        attributes=attributes,
        image_ref="\\\\a\\b",
    )
    with contextlib.closing(open_archive(path)) as archive:
        archive.write([record], random_descriptors(1))
        assert archive.get(["1"]) == {"1": record}
        assert search_archive(archive, QUERY, 1, 0.6, GAMMA)[0][0].record == record


def test_an_attribute_that_is_not_a_number_does_not_break_the_filters(
    bundle: Path, cases: list[Case], path: Path
) -> None:
    """A missing cell of a data frame is NaN, and JSON has no NaN."""
    with Searcher(bundle, path) as searcher:
        searcher.add(cases[:5])
        with contextlib.suppress(InputError):
            searcher.add([Case("nan", cases[5].image, diagnosis="x", attributes={"age": float("nan")})])
        results = searcher.query(cases[0].image, where={"sex": ["female", "male"]})
        assert results.searched == 5
