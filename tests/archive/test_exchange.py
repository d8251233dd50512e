"""An exported archive is imported unchanged; a damaged folder, or one of another model, is refused."""

import contextlib
import csv
import errno
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
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
from hypothesis import given
from hypothesis import strategies as st

from skinret_infer import ArchiveError, InputError
from skinret_infer.archive import exchange as exchange_module
from skinret_infer.archive import maintenance
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.exchange import archive_for, export_archive, import_archive
from skinret_infer.archive.store import Record
from skinret_infer.descriptor import Vector

COLUMNS = ["case_id", "diagnosis", "group", "confirmed_by", "attributes", "image_ref", "image_sha256"]
TYPED = {
    "": "", "a\nb": "c\td", "ü😀": '"', "whole": 3, "float": 3.0, "tiny": 1e-300, "minus": -0.0, "big": 2**62,
    "true": True, "false": False, "text": "3", "formula": "=1+1", "at": "@x", "plus": "+49",
    "long": "x,\r\n" * 50_000,
}  # fmt: skip
ARCHIVE_FILES = {"cases.csv", "descriptors.npy", "archive.json"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cases.skinret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The export of an archive of 12 cases."""
    with contextlib.closing(open_archive(make_archive(tmp_path / "first.skinret"))) as archive:
        export_archive(archive, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "BATCH", 5)


def _content(archive: Archive) -> dict[str, tuple[tuple[str, ...], bytes]]:
    """Return all that an archive holds, types included."""
    with archive.snapshot() as (count, batches):
        found = {
            record.case_id: (record.row(), descriptor.tobytes())
            for records, descriptors in batches
            for record, descriptor in zip(records, descriptors, strict=True)
        }
        assert len(found) == count
        return found


def _fill(path: Path, records: list[Record], seed: int = 0) -> Archive:
    archive = open_archive(path)
    archive.write(records, random_descriptors(len(records), seed))
    return archive


def _round_trip(records: list[Record], here: Path) -> None:
    """Export an archive of records, import it into a new one, and compare them."""
    with contextlib.closing(_fill(here / "a.skinret", records)) as archive:
        assert export_archive(archive, here / "out") == len(records)
        with contextlib.closing(archive_for(here / "out", here / "b.skinret")) as copy:
            report = import_archive(copy, here / "out")
            assert report.added == [record.case_id for record in records]
            assert _content(copy) == _content(archive)
            assert (copy.model, copy.fingerprint, copy.layout) == ("m 1", "f" * 64, LAYOUT)
            assert maintenance.check(copy) == []


def _update_hashes(folder: Path, **fields: Any) -> Path:
    """Write the present hashes of the files, and other fields, to archive.json."""
    info = json.loads((folder / "archive.json").read_text("utf-8"))
    for name in info["sha256"]:
        info["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "archive.json").write_text(json.dumps(info | fields), "utf-8")
    return folder


def _rows(folder: Path) -> list[list[str]]:
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _rewrite(folder: Path, rows: list[list[str]]) -> None:
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


# -- round trips --


def test_odd_ids_and_typed_attributes_come_back_as_they_were(tmp_path: Path) -> None:
    odd = [*ODD_IDS, "a\rb", "a\r\nb", "\n", ",", '""', "=1+1", "a\u2028b", "a\x0bb", "\ufeff"]
    odd = [case_id for case_id in odd if case_id.strip()]  # as Case has it
    records = [
        make_record(i, attributes=TYPED if n % 3 else {}, diagnosis="né\nvus; DROP", group=" ", image_ref=i)
        for n, i in enumerate(odd)
    ]
    _round_trip(records, tmp_path)


_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_VALUES = st.one_of(
    _TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
_FACTS = st.builds(
    dict,
    case_id=_TEXTS.filter(str.strip),
    attributes=st.dictionaries(_TEXTS, _VALUES, max_size=3),
    **dict.fromkeys(("diagnosis", "group", "confirmed_by", "image_ref", "image_sha256"), _TEXTS),
)


@QUICK
@given(facts=st.lists(_FACTS, min_size=1, max_size=4, unique_by=lambda facts: facts["case_id"]))
def test_any_case_comes_back_as_it_was(
    facts: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without archives, which would be slow."""
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    records, descriptors = [make_record(**f) for f in facts], random_descriptors(len(facts))
    exchange_module._write(folder, len(facts), LAYOUT, [(records, descriptors)], None)
    info = exchange_module.ExportInfo("m 1", "f" * 64, LAYOUT, len(facts), {})
    [(read, back)] = exchange_module._read(folder, info)
    assert [r.row() for r in read] == [r.row() for r in records]
    assert back.tobytes() == descriptors.tobytes()


def test_other_programs_can_read_the_folder(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == ARCHIVE_FILES
    header, *rows = _rows(folder)
    assert header == COLUMNS and [row[0] for row in rows] == [f"c{n:02d}" for n in range(12)]
    assert json.loads(rows[1][4]) == {"sex": "female"}
    stored = np.load(folder / "descriptors.npy")
    assert stored.dtype == np.float32 and (stored == random_descriptors(12)).all()
    info = json.loads((folder / "archive.json").read_text("utf-8"))
    sha256 = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in info["sha256"]}
    assert info == {
        "format": "skinret archive",
        "version": 1,
        "escape": "'",
        "model": "m 1",
        "fingerprint": "f" * 64,
        "layout": {"local": [4, 6, 8], "global_": [4, 6, 8], "concepts": [3, 2]},
        "cases": 12,
        "sha256": sha256,
    }
    assert sha256.keys() == {"cases.csv", "descriptors.npy"}


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "'", "''x"]


def test_no_cell_begins_like_a_formula_and_each_comes_back(tmp_path: Path) -> None:
    plain = ["a=1", "", "1-2", "é", " =1"]
    texts = [*FORMULAS, *plain]
    records = [Record(f"{t}{n}", t, t, t, {"note": t}, t, t) for n, t in enumerate(texts)]
    _round_trip(records, tmp_path)
    _, *rows = _rows(tmp_path / "out")
    for row, text in zip(rows, texts, strict=True):
        assert row[1:4] == ["'" + text if text in FORMULAS else text] * 3
        assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))]


def test_an_archive_json_of_absurd_size_is_refused_before_it_is_read(folder: Path, path: Path) -> None:
    (folder / "archive.json").write_text("[" + " " * 5_000_000 + "]")
    _check_refused(folder, path, "exchange-damaged", folder / "archive.json", "4,000,000 bytes")


@pytest.mark.parametrize(
    "header", [b"{[]: 1}", b'"""', b"(" * 400, b"{'descr': '<f4', 'shape': 9**9**9}", b"\0"]
)
def test_an_array_with_a_header_that_is_no_python_is_refused(header: bytes, folder: Path, path: Path) -> None:
    array = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(400)
    (folder / "descriptors.npy").write_bytes(array)
    _check_refused(_update_hashes(folder), path, "exchange-damaged", folder / "descriptors.npy")


def test_the_copy_answers_as_the_archive_does(folder: Path, path: Path) -> None:
    with (
        contextlib.closing(open_archive(folder.parent / "first.skinret")) as first,
        contextlib.closing(archive_for(folder, path)) as copy,
    ):
        import_archive(copy, folder)
        answers = [
            [(m.record, m.score) for m in search_archive(archive, QUERY, 5, 0.6, GAMMA, {"sex": "female"})[0]]
            for archive in (first, copy)
        ]
    assert answers[0] == answers[1] and len(answers[0]) == 5


def test_an_archive_without_cases_is_exported_too(path: Path, tmp_path: Path) -> None:
    with contextlib.closing(open_archive(make_archive(path, 2))) as archive:
        archive.remove(["c00", "c01"])
        assert export_archive(archive, tmp_path / "out") == 0
    assert np.load(tmp_path / "out" / "descriptors.npy").shape == (0, LAYOUT.length)
    with contextlib.closing(archive_for(tmp_path / "out", tmp_path / "new.skinret")) as copy:
        assert str(import_archive(copy, tmp_path / "out")).startswith("0 cases added, 0 replaced")


def test_many_cases_go_in_several_steps(tmp_path: Path) -> None:
    """2,048 are read and written at once; the rows follow the order in which cases were added."""
    count = 4_500
    descriptors = random_descriptors(count)
    with contextlib.closing(open_archive(tmp_path / "a.skinret")) as archive:
        archive.write([make_record(f"{n}") for n in range(count)], descriptors)
        archive.remove(["7"])
        archive.write([make_record("7")], descriptors[7:8])
        calls: list[tuple[int, int]] = []
        export_archive(archive, tmp_path / "out", lambda done, total: calls.append((done, total)))
        assert calls == [(2048, count), (4096, count), (count, count)]
        calls.clear()
        with contextlib.closing(archive_for(tmp_path / "out", tmp_path / "b.skinret")) as copy:
            import_archive(copy, tmp_path / "out", lambda done, total: calls.append((done, total)))
            assert calls == [(2048, count), (4096, count), (count, count)]
            assert _content(copy) == _content(archive)
    assert _rows(tmp_path / "out")[-1][0] == "7"


def test_an_export_is_of_one_moment(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skinret_infer.archive.table._BATCH", 5)
    monkeypatch.setattr("skinret_infer.archive.database.BUSY_SECONDS", 0.05)
    with (
        contextlib.closing(open_archive(make_archive(path))) as archive,
        contextlib.closing(open_archive(path)) as other,
    ):

        def disturb(done: int, total: int) -> None:
            with refusal_of("archive-locked"):
                other.write([make_record("new")], random_descriptors(1))

        assert export_archive(archive, tmp_path / "out", disturb) == 12
        other.write([make_record("new")], random_descriptors(1))
    assert len(_rows(tmp_path / "out")) == 13


# -- exports that fail --


def test_an_export_overwrites_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with contextlib.closing(open_archive(make_archive(path))) as archive:
        for name in ("folder", "file", "link"):
            with refusal_of("exchange-exists", tmp_path / name):
                export_archive(archive, tmp_path / name)
    assert (tmp_path / "file").read_text() == "years of work" and not list((tmp_path / "folder").iterdir())


def test_a_folder_that_appears_meanwhile_is_left(path: Path, tmp_path: Path) -> None:
    def appear(done: int, total: int) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()

    with contextlib.closing(open_archive(make_archive(path))) as archive, refusal_of("exchange-exists"):
        export_archive(archive, tmp_path / "out", appear)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
    assert {file.name for file in tmp_path.iterdir()} == {"out", path.name}


@pytest.mark.parametrize("name", ["file/out", "x" * 300, "a\0b"], ids=["below a file", "too long", "nul"])
def test_a_folder_that_cannot_be_made_is_refused(name: str, path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with contextlib.closing(open_archive(make_archive(path))) as archive, refusal_of("exchange-io"):
        export_archive(archive, tmp_path / name)
    assert {file.name for file in tmp_path.iterdir()} == {"file", path.name}


def test_an_interrupted_export_leaves_no_files(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with contextlib.closing(open_archive(make_archive(path))) as archive:
        with pytest.raises(KeyboardInterrupt):
            export_archive(archive, tmp_path / "out", cancel)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
        with refusal_of("exchange-io", tmp_path / "out", "No space left"):
            export_archive(archive, tmp_path / "out")
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        archive.write([make_record("new")], random_descriptors(1))  # the interrupted export holds no lock


def test_a_damaged_archive_is_not_exported(path: Path, tmp_path: Path) -> None:
    make_archive(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE cases SET descriptor = x'00' WHERE case_id = 'c03'")
    with contextlib.closing(open_archive(path)) as archive, refusal_of("archive-damaged", "c03"):
        export_archive(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- imports into an archive with cases --


def test_importing_again_changes_nothing(folder: Path, path: Path) -> None:
    with contextlib.closing(archive_for(folder, path)) as archive:
        import_archive(archive, folder)
        before = path.read_bytes()
        for on_duplicate in ("error", "skip", "replace"):
            report = import_archive(archive, folder, on_duplicate=on_duplicate)
            assert len(report.unchanged) == 12 and not report.added and not report.replaced
    assert path.read_bytes() == before


@pytest.mark.usefixtures("small_batches")
def test_an_import_that_was_interrupted_is_made_again(folder: Path, path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with contextlib.closing(archive_for(folder, path)) as archive:
        with pytest.raises(KeyboardInterrupt):
            import_archive(archive, folder, cancel)
        assert len(archive) == 10
        report = import_archive(archive, folder)
        assert len(report.unchanged) == 10 and report.added == ["c10", "c11"]
        assert maintenance.check(archive) == []


OTHERS: dict[str, tuple[Record, int]] = {
    "diagnosis": (make_record("c07", diagnosis="melanosis", attributes={"sex": "female"}), 0),
    "attributes": (make_record("c07", attributes={"sex": "male"}), 0),
    "descriptor": (make_record("c07", attributes={"sex": "female"}), 1),
}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("what", OTHERS)
def test_a_case_that_is_there_with_others_is_refused_skipped_or_replaced(
    what: str, folder: Path, path: Path
) -> None:
    record, seed = OTHERS[what]
    with contextlib.closing(archive_for(folder, path)) as archive:
        archive.write([record], random_descriptors(12, seed)[7:8])
        old = _content(archive)["c07"]
        with pytest.raises(ArchiveError) as caught:
            import_archive(archive, folder)
        assert caught.value.code == "case-duplicate"
        assert "'c07'" in str(caught.value) and what in str(caught.value) and "--replace" in str(caught.value)
        assert "5 cases before it" in caught.value.__notes__[0]
        assert len(archive) == 6 and _content(archive)["c07"] == old
        report = import_archive(archive, folder, on_duplicate="skip")
        assert "c07" in report.unchanged and len(report.added) == 6 and _content(archive)["c07"] == old
        report = import_archive(archive, folder, on_duplicate="replace")
        assert report.replaced == ["c07"] and not report.added and len(report.unchanged) == 11
        assert len(archive) == 12 and _content(archive)["c07"] != old
        with contextlib.closing(open_archive(folder.parent / "first.skinret")) as first:
            assert _content(archive) == _content(first)


def test_a_value_of_another_type_is_another_fact(tmp_path: Path) -> None:
    """In Python 1, 1.0 and True are equal; in an archive they are not."""
    with contextlib.closing(
        _fill(tmp_path / "a.skinret", [make_record("1", attributes={"n": 1})])
    ) as archive:
        export_archive(archive, tmp_path / "out")
    for value in (True, 1.0, "1"):
        record = make_record("1", attributes={"n": value})
        with (
            contextlib.closing(_fill(tmp_path / f"{value!r}.skinret", [record])) as other,
            refusal_of("case-duplicate", "attributes"),
        ):
            import_archive(other, tmp_path / "out")


def test_cases_that_were_there_before_stay(folder: Path, path: Path) -> None:
    with contextlib.closing(_fill(path, [make_record("mine")])) as archive:
        assert len(import_archive(archive, folder).added) == 12
        assert len(archive) == 13 and "mine" in archive.get(["mine"])


@pytest.mark.parametrize("option", ["Replace", "", None])
def test_an_unknown_on_duplicate_is_refused(option: Any, folder: Path, path: Path) -> None:
    with (
        contextlib.closing(archive_for(folder, path)) as archive,
        refusal_of("option", "skip", kind=InputError),
    ):
        import_archive(archive, folder, on_duplicate=option)
    assert not path.exists()


# -- imports that are refused --


def test_another_models_cases_are_refused_with_both_names(folder: Path, path: Path) -> None:
    with contextlib.closing(open_archive(path, fingerprint="e" * 64, model="other 2")) as archive:
        archive.write([make_record("1")], random_descriptors(1))
        with refusal_of("archive-model", folder, "m 1", "other 2", "new archive"):
            import_archive(archive, folder)
        assert len(archive) == 1
    with pytest.raises(ArchiveError) as caught:
        archive_for(folder, path)
    assert caught.value.code == "archive-model" and "a new archive" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", sorted(ARCHIVE_FILES))
def test_an_incomplete_or_damaged_folder_is_refused(name: str, folder: Path, path: Path) -> None:
    whole = (folder / name).read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"x", b"\xff" + whole[1:]):
        (folder / name).write_bytes(content)
        _check_refused(folder, path, "exchange-damaged", folder / name, "copy the folder again")
    (folder / name).unlink()
    _check_refused(folder, path, "exchange-missing", folder / name, "cases.csv")
    (folder / name).mkdir()
    _check_refused(folder, path, "exchange-damaged", folder / name)


def _check_refused(folder: Path, path: Path, code: str, *names: object) -> None:
    """Check that an import is refused and writes nothing."""
    with refusal_of(code, *names), contextlib.closing(archive_for(folder, path)) as archive:
        import_archive(archive, folder)
    assert not path.exists()


def test_a_folder_that_was_not_exported_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "file", "none"):
        with refusal_of("exchange-missing", tmp_path / name, "skinret archive export"):
            archive_for(tmp_path / name, path)
    with refusal_of("exchange-damaged"):
        archive_for("a\0b", path)
    with refusal_of("exchange-damaged"):
        archive_for("x" * 300, path)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"version": 2}, "exchange-version"),
        ({"escape": "#"}, "exchange-damaged"),
        ({"escape": None}, "exchange-damaged"),
        ({"escape": ["'"]}, "exchange-damaged"),
        ({"version": 10**9}, "exchange-version"),
        ({"version": 0}, "exchange-version"),
        ({"version": "1"}, "exchange-version"),
        ({"version": True}, "exchange-version"),
        ({"format": "photos"}, "exchange-damaged"),
        ({"model": 3}, "exchange-damaged"),
        ({"fingerprint": None}, "exchange-damaged"),
        ({"layout": None}, "exchange-damaged"),
        ({"layout": {"local": [4, 6], "global_": [4, 6, 8]}}, "exchange-damaged"),
        ({"layout": {"local": [4, 6, -8], "global_": [4, 6, 8]}}, "exchange-damaged"),
        ({"layout": {"local": [4, 6, 8]}}, "exchange-damaged"),
        ({"layout": {"local": [4, 6, 9], "global_": [4, 6, 8], "concepts": [3, 2]}}, "exchange-damaged"),
        ({"layout": {"local": [8, 6, 4], "global_": [4, 6, 8], "concepts": [3, 2]}}, "exchange-damaged"),
        ({"cases": 11}, "exchange-damaged"),
        ({"cases": 13}, "exchange-damaged"),
        ({"cases": -1}, "exchange-damaged"),
        ({"cases": True}, "exchange-damaged"),
        ({"cases": 12.0}, "exchange-damaged"),
        ({"sha256": {}}, "exchange-damaged"),
        ({"sha256": ["cases.csv", "descriptors.npy"]}, "exchange-damaged"),
        ({"sha256": {"cases.csv": None, "descriptors.npy": ""}}, "exchange-damaged"),
    ],
    ids=str,
)
def test_an_archive_json_with_wrong_fields_is_refused(
    fields: dict[str, Any], code: str, folder: Path, path: Path
) -> None:
    _check_refused(_update_hashes(folder, **fields), path, code, folder)


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", "{", "[" * 100_000, '{"format": "skinret archive", "version": 1}']
)
def test_another_json_in_place_of_archive_json_is_refused(content: str, folder: Path, path: Path) -> None:
    (folder / "archive.json").write_text(content)
    _check_refused(folder, path, "exchange-damaged", folder / "archive.json")


def _cell(row: int, column: int, value: str) -> Callable[[list[list[str]]], list[list[str]]]:
    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[row][column] = value
        return rows

    return change


TABLES: dict[str, tuple[Callable[[list[list[str]]], list[list[str]]], str]] = {
    "no header": (lambda rows: rows[1:], "case_id,diagnosis"),
    "another header": (_cell(0, 0, "id"), "case_id,diagnosis"),
    "nothing": (lambda rows: [], "case_id,diagnosis"),
    "a cell too few": (lambda rows: [*rows[:3], rows[3][:-1], *rows[4:]], "line 4: 6"),
    "a cell too many": (lambda rows: [*rows[:3], [*rows[3], ""], *rows[4:]], "line 4: 8"),
    "an empty line": (lambda rows: [*rows[:3], [], *rows[3:]], "line 4: 0"),
    "a case too few": (lambda rows: rows[:-1], "12 cases"),
    "a case too many": (lambda rows: [*rows, ["new", *rows[1][1:]]], "12 cases"),
    "a case twice": (_cell(12, 0, "c03"), "'c03' again"),
    "a case without id": (_cell(3, 0, ""), "line 4"),
    "a NUL": (_cell(3, 1, "a\0b"), "line 4"),
    "a NUL in the hash": (_cell(3, 6, "a\0b"), "line 4: image_sha256"),
    "attributes that are no JSON": (_cell(3, 4, "sex: female"), "line 4"),
    "attributes that are a list": (_cell(3, 4, "[1]"), "line 4"),
    "attributes in attributes": (_cell(3, 4, '{"a": {}}'), "line 4"),
    "attributes too deep": (_cell(3, 4, "[" * 100_000), "line 4"),
    "a number that is none": (_cell(3, 4, '{"a": NaN}'), "line 4"),
    "a number too large": (_cell(3, 4, '{"a": 9223372036854775808}'), "line 4"),
    "a lone surrogate": (_cell(3, 4, '{"a": "\\ud800"}'), "line 4"),
}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_an_export_would_not_write_is_refused_before_anything_is_written(
    what: str, folder: Path, path: Path
) -> None:
    change, message = TABLES[what]
    _rewrite(folder, change(_rows(folder)))
    _check_refused(_update_hashes(folder), path, "exchange-damaged", folder / "cases.csv", message)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'"', b'"a"b,c\n'], ids=["utf-16", "open", "quotes"])
def test_a_table_that_is_no_csv_in_utf8_is_refused(content: bytes, folder: Path, path: Path) -> None:
    whole = (folder / "cases.csv").read_bytes()
    (folder / "cases.csv").write_bytes(whole + content)
    _check_refused(_update_hashes(folder), path, "exchange-damaged", folder / "cases.csv")


ARRAYS: dict[str, Callable[[Vector], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "big-endian": lambda x: x.astype(">f4"),
    "a row too few": lambda x: x[:-1],
    "a row too many": lambda x: np.concatenate([x, x[:1]]),
    "a number too few": lambda x: x[:, 1:],
    "flat": lambda x: x.ravel(),
    "objects": lambda x: x.astype(object),
    "not of length one": lambda x: 2 * x,
    "NaN": lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x).astype(np.float32),
}


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("what", ARRAYS)
def test_an_array_that_does_not_fit_is_refused_before_anything_is_written(
    what: str, folder: Path, path: Path
) -> None:
    np.save(folder / "descriptors.npy", ARRAYS[what](random_descriptors(12)), allow_pickle=True)
    message = "row 7" if what == "NaN" else "descriptors.npy"
    _check_refused(_update_hashes(folder), path, "exchange-damaged", message)


def test_an_array_in_fortran_order_is_read(folder: Path, path: Path) -> None:
    np.save(folder / "descriptors.npy", np.asfortranarray(random_descriptors(12)))
    with contextlib.closing(archive_for(_update_hashes(folder), path)) as archive:
        import_archive(archive, folder)
        with contextlib.closing(open_archive(folder.parent / "first.skinret")) as first:
            assert _content(archive) == _content(first)


def test_an_import_into_another_file_is_refused(folder: Path, path: Path) -> None:
    path.write_text("years of work")
    with refusal_of(None, path):
        archive_for(folder, path)
    assert path.read_text() == "years of work"


# -- descriptors, file states and checks --


def test_descriptors_can_be_read_back(path: Path) -> None:
    with contextlib.closing(open_archive(path)) as archive:
        assert archive.get_with_descriptors(["c01"]) == {} and archive.index.file_states() == {}
        with archive.snapshot() as (count, batches):
            assert count == 0 and list(batches) == []
        make_archive(path)
        found = archive.get_with_descriptors(["c05", "c01", "none", "c01"])
        assert found.keys() == {"c01", "c05"}
        for case_id, (record, descriptor) in found.items():
            assert record == archive.get([case_id])[case_id]
            assert (descriptor == random_descriptors(12)[int(case_id[1:])]).all()


def test_index_files_are_right_missing_or_stale(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pruning", "segments", "table", "maintenance"):
        monkeypatch.setattr(f"skinret_infer.archive.{module}.SEGMENT", 4)
    with contextlib.closing(open_archive(make_archive(path, 10))) as archive:
        assert sorted(archive.index.file_states().values()) == ["right", "right"]
        one, two = sorted(archive.index.folder.glob("*.segment"))
        two.write_bytes(two.read_bytes()[:-1])
        one.rename(one.with_name("old.segment"))
        assert archive.index.file_states() == {one.name: "missing", two.name: "stale", "old.segment": "stale"}
        assert maintenance.check(archive) == []
    with contextlib.closing(open_archive(path)) as archive:
        assert len(search_archive(archive, QUERY, 20, 0.6, GAMMA)[0]) == 10
        states = archive.index.file_states()
        assert (states[one.name], states[two.name]) == ("right", "right")


DAMAGE: dict[str, str] = {
    "the projection": "INSERT INTO projection VALUES ('none', x'00')",
    "the next id": "DELETE FROM meta WHERE name = 'next_id'",
    "the counts": "UPDATE segments SET cases = -1",
    "the facts": "UPDATE cases SET attributes = '[]' WHERE case_id = 'c03'",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_check_returns_the_fault(what: str, path: Path) -> None:
    make_archive(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(DAMAGE[what])
    with contextlib.closing(Archive.open(path)) as archive:
        assert len(maintenance.check(archive)) == 1


@pytest.mark.parametrize("name", ["fingerprint", "model", "layout"])
def test_an_archive_without_the_facts_of_its_model_is_refused(name: str, path: Path) -> None:
    make_archive(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM meta WHERE name = ?", [name])
    with refusal_of("archive-damaged", path):
        Archive.open(path)


def test_opening_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("none", "empty", "."):
        with refusal_of("archive-empty"):
            Archive.open(tmp_path / name)
    with refusal_of("archive-io"):
        Archive.open(tmp_path / ("x" * 300))


def test_maintenance_where_no_file_can_be_is_refused(path: Path, tmp_path: Path) -> None:
    with contextlib.closing(open_archive(make_archive(path))) as archive:
        for name in ("x" * 300, "a\0b", f"{path.name}/copy"):
            with refusal_of("archive-io"):
                maintenance.backup(archive, tmp_path / name)
        archive.index.folder.touch()
        for maintain in (maintenance.repair, maintenance.compact):  # the index is held in memory then
            maintain(archive)
            assert maintenance.check(archive) == [] and len(archive) == 12


def test_an_archive_whose_last_writer_was_killed_opens_without_a_bundle(path: Path, tmp_path: Path) -> None:
    """SQLite must undo the journal of the killed writer when the file is opened."""
    make_archive(path, 200)
    copy = tmp_path / "copy.skinret"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE cases SET diagnosis = diagnosis || 'z'")  # spilt, with its journal beside it
        shutil.copy(path, copy)
        shutil.copy(f"{path}-journal", f"{copy}-journal")
        db.execute("ROLLBACK")
    assert b"clark nevusz" in copy.read_bytes()
    with contextlib.closing(Archive.open(copy)) as archive:
        assert maintenance.check(archive) == [] and archive.get(["c01"])["c01"].diagnosis == "clark nevus"
