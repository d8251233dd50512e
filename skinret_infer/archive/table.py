"""The table of cases: its rows as records and descriptors, and the count of cases in each segment."""

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from .._values import is_storable
from ..descriptor import Layout, Vector
from .database import Malformed
from .pruning import SEGMENT, Ids
from .store import Record

# Only "group" needs quotes: SQLite reads a quoted name that is not a column as a text.
_COLUMNS = 'case_id, diagnosis, "group", confirmed_by, attributes, image_ref, image_sha256'
_IN = "IN (SELECT value FROM json_each(?))"
_RANDOM = "random() & 0x7fffffffffffffff"
# A removed case leaves an empty row, whose case_id is a BLOB, until the archive is compacted. If the row were
# deleted, SQLite would move its neighbours to other pages and leave copies in the gaps of the old pages.
_IS_CASE = "typeof(case_id) = 'text'"
_BLANK = f"""
UPDATE cases SET case_id = CAST(id AS BLOB), diagnosis = '', "group" = '', confirmed_by = '', attributes = '',
image_ref = '', image_sha256 = '', descriptor = x'' WHERE id {_IN}"""
_BATCH = 2048


def case_ids(db: sqlite3.Connection) -> list[str]:
    """Return the ids of all cases, sorted."""
    return sorted(row[0] for row in db.execute(f"SELECT case_id FROM cases WHERE {_IS_CASE}"))


def records(db: sqlite3.Connection, case_ids: Collection[str]) -> dict[str, Record]:
    """Return the records of the case ids that are in the table, by case id."""
    query = f"SELECT {_COLUMNS} FROM cases WHERE case_id {_IN}"
    return {row[0]: _record(row) for row in db.execute(query, (_json_of(case_ids),))}


def records_by_row(db: sqlite3.Connection, row_ids: Ids) -> dict[int, Record]:
    """Return the records of row ids."""
    query = f"SELECT id, {_COLUMNS} FROM cases WHERE id {_IN}"
    return {row[0]: _record(row[1:]) for row in db.execute(query, (json.dumps(row_ids.tolist()),))}


def records_with_descriptors(
    db: sqlite3.Connection, layout: Layout, case_ids: Collection[str]
) -> dict[str, tuple[Record, Vector]]:
    """Return record and descriptor of the case ids that are in the table, by case id."""
    query = f"SELECT id, {_COLUMNS} FROM cases WHERE case_id {_IN}"
    rows = db.execute(query, (_json_of(case_ids),)).fetchall()
    vectors = descriptors(db, layout, np.array([row[0] for row in rows], np.int64))
    return {row[1]: (_record(row[1:]), vector) for row, vector in zip(rows, vectors, strict=True)}


def descriptors(db: sqlite3.Connection, layout: Layout, row_ids: Ids) -> Vector:
    """Return the descriptors of row ids, in their order."""
    query = f"SELECT id, descriptor FROM cases WHERE id {_IN}"
    blobs = dict(db.execute(query, (json.dumps(row_ids.tolist()),)))
    places = [f"row {n}" for n in row_ids]
    return _parse_descriptors([blobs.get(number) for number in row_ids.tolist()], places, layout)


def rows(
    db: sqlite3.Connection, layout: Layout, start: int = 0, end: int = 2**62
) -> Iterator[tuple[list[int], list[Record], Vector]]:
    """Yield row ids, records and descriptors of the cases with start <= row id < end, in batches."""
    cursor = db.execute(
        f"SELECT id, {_COLUMNS}, descriptor FROM cases WHERE id >= ? AND id < ? AND {_IS_CASE} ORDER BY id",
        (start, end),
    )
    while batch := cursor.fetchmany(_BATCH):
        vectors = _parse_descriptors(
            [row[-1] for row in batch], [f"case {row[1]!r}" for row in batch], layout
        )
        yield [row[0] for row in batch], [_record(row[1:-1]) for row in batch], vectors


def row_ids(db: sqlite3.Connection, case_ids: Collection[str] | None = None) -> Ids:
    """Return the row ids of case ids, or of all cases, in their order."""
    if case_ids is None:
        rows = db.execute(f"SELECT id FROM cases WHERE {_IS_CASE} ORDER BY id")
    else:
        rows = db.execute(f"SELECT id FROM cases WHERE case_id {_IN}", (_json_of(case_ids),))
    return np.array([row[0] for row in rows], np.int64)


def insert(db: sqlite3.Connection, first: int, new: Sequence[Record], vectors: Vector) -> int:
    """Insert cases with the row ids from `first` on; return the next row id."""
    db.executemany(
        f"INSERT INTO cases (id, {_COLUMNS}, descriptor) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (n, *record.row(), blob.data)
            for n, (record, blob) in enumerate(zip(new, vectors, strict=True), first)
        ),
    )
    end = first + len(new)
    db.execute("UPDATE meta SET value = ? WHERE name = 'next_id'", (str(end),))
    for number in range(first // SEGMENT, -(-end // SEGMENT)):
        count = min(end, (number + 1) * SEGMENT) - max(first, number * SEGMENT)
        db.execute(f"INSERT OR IGNORE INTO segments VALUES (?, {_RANDOM}, 0)", (number,))
        db.execute("UPDATE segments SET cases = cases + ? WHERE number = ?", (count, number))
        if end >= (number + 1) * SEGMENT:
            db.execute(f"UPDATE segments SET generation = {_RANDOM} WHERE number = ?", (number,))
    return end


def blank(db: sqlite3.Connection, case_ids: Collection[str]) -> int:
    """Overwrite cases, and give their segments another generation; return the number of cases."""
    ids = row_ids(db, case_ids).tolist()
    db.execute(_BLANK, (json.dumps(ids),))
    if ids:
        db.execute("REINDEX cases")  # on new pages, for the same reason; SQLite overwrites the old ones
    for number, count in Counter(n // SEGMENT for n in ids).items():
        db.execute(
            f"UPDATE segments SET generation = {_RANDOM}, cases = cases - ? WHERE number = ?", (count, number)
        )
    return len(ids)


def delete_blank(db: sqlite3.Connection) -> None:
    """Delete the rows of removed cases; the file must be vacuumed afterwards."""
    db.execute(f"DELETE FROM cases WHERE NOT {_IS_CASE}")


def segments(db: sqlite3.Connection) -> list[tuple[int, int, int]]:
    """Return the number, the generation and the count of cases of each segment."""
    rows = db.execute("SELECT number, generation, cases FROM segments ORDER BY number").fetchall()
    if not all(isinstance(value, int) and value >= 0 for row in rows for value in row) or any(
        number > 2**62 // SEGMENT or cases > SEGMENT for number, _, cases in rows
    ):
        raise Malformed("impossible counts of cases in the segments")
    return rows


def count(db: sqlite3.Connection) -> int:
    """Return the number of cases: the sum of the counts of the segments."""
    return sum(cases for _, _, cases in segments(db))


def recount_segments(db: sqlite3.Connection) -> None:
    """Count the cases of each segment again, and give every segment another generation."""
    db.execute("DELETE FROM segments")
    db.execute(
        f"INSERT INTO segments SELECT id / ?, {_RANDOM}, count(*) FROM cases WHERE {_IS_CASE} "
        "GROUP BY id / ?",
        (SEGMENT, SEGMENT),
    )


def change_of(new: Sequence[Record]) -> bytes:
    """Return the bytes that the archive's state hashes for written records."""
    return json.dumps([record.row() for record in new]).encode()


def removal_of(case_ids: Collection[str]) -> bytes:
    """Return the bytes that the archive's state hashes for removed case ids."""
    return json.dumps(sorted(case_ids)).encode()


def _parse_descriptors(blobs: Sequence[Any], places: Sequence[str], layout: Layout) -> Vector:
    """Return stored blobs as descriptors, float32 [N, D]. Messages name a blob by its text in `places`."""
    for blob, place in zip(blobs, places, strict=True):
        if not isinstance(blob, bytes) or len(blob) != 4 * layout.length:
            raise Malformed(f"a descriptor of another length in {place}")
    vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), layout.length)
    vectors = vectors.astype(np.float32, copy=False)
    if not (valid := layout.well_formed(vectors)).all():
        raise Malformed(f"an invalid descriptor in {places[int(np.argmin(valid))]}")
    return vectors


def _record(row: Sequence[Any]) -> Record:
    case_id, diagnosis, group, confirmed_by, attributes, image_ref, image_sha256 = row
    try:
        values = json.loads(attributes)
    except (ValueError, TypeError, RecursionError):
        values = None
    texts = (case_id, diagnosis, group, confirmed_by, image_ref, image_sha256)
    plain = isinstance(values, dict) and all(
        isinstance(v, str | float) or (isinstance(v, int) and -(2**63) <= v < 2**63) for v in values.values()
    )
    if not plain or not all(isinstance(text, str) for text in texts):
        raise Malformed(f"facts of the wrong type in case {case_id!r}")
    return Record(case_id, diagnosis, group, confirmed_by, values, image_ref, image_sha256)


def _json_of(case_ids: Collection[str]) -> str:
    """Return case ids as JSON for SQLite, without escapes: older releases misread those beyond U+FFFF.

    An id that no case can have is left out: SQLite cannot read a lone surrogate.
    """
    return json.dumps([case_id for case_id in case_ids if is_storable(case_id)], ensure_ascii=False)
