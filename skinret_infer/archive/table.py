"""The table of cases: rows to records and descriptors, and the count of cases in each segment."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from .._values import is_storable
from ..descriptor import Layout, Vector
from .database import Malformed
from .pruning import SEGMENT, Ids
from .store import Record

# Only what must be is quoted: SQLite reads a quoted name that is no column as a text.
_COLUMNS = 'case_id, diagnosis, "group", confirmed_by, attributes, image_ref, image_sha256'
_IN = "IN (SELECT value FROM json_each(?))"
_DRAWN = "random() & 0x7fffffffffffffff"
# A removed case leaves an empty row, whose case_id is no text, until the archive is compacted: if the row
# were deleted, SQLite would move its neighbours to other pages and leave copies in the gaps of the old ones.
_IS_CASE = "typeof(case_id) = 'text'"
_BLANK = f"""
UPDATE cases SET case_id = CAST(id AS BLOB), diagnosis = '', "group" = '', confirmed_by = '', attributes = '',
image_ref = '', image_sha256 = '', descriptor = x'' WHERE id {_IN}"""
_ROWS_AT_ONCE = 2048


def case_ids(db: sqlite3.Connection) -> list[str]:
    """Return the ids of all cases, sorted."""
    return sorted(row[0] for row in db.execute(f"SELECT case_id FROM cases WHERE {_IS_CASE}"))


def records(db: sqlite3.Connection, wanted: Collection[str]) -> dict[str, Record]:
    """Return the records of those of the case ids that are there."""
    query = f"SELECT {_COLUMNS} FROM cases WHERE case_id {_IN}"
    return {row[0]: _record(row) for row in db.execute(query, (_json_of(wanted),))}


def records_by_row(db: sqlite3.Connection, row_ids: Ids) -> dict[int, Record]:
    """Return the records of row ids."""
    query = f"SELECT id, {_COLUMNS} FROM cases WHERE id {_IN}"
    return {row[0]: _record(row[1:]) for row in db.execute(query, (json.dumps(row_ids.tolist()),))}


def stored(
    db: sqlite3.Connection, layout: Layout, wanted: Collection[str]
) -> dict[str, tuple[Record, Vector]]:
    """Return the records and descriptors of those of the case ids that are there."""
    query = f"SELECT id, {_COLUMNS} FROM cases WHERE case_id {_IN}"
    rows = db.execute(query, (_json_of(wanted),)).fetchall()
    vectors = descriptors(db, layout, np.array([row[0] for row in rows], np.int64))
    return {row[1]: (_record(row[1:]), vector) for row, vector in zip(rows, vectors, strict=True)}


def descriptors(db: sqlite3.Connection, layout: Layout, row_ids: Ids) -> Vector:
    """Return the descriptors of row ids, in their order."""
    query = f"SELECT id, descriptor FROM cases WHERE id {_IN}"
    blobs = dict(db.execute(query, (json.dumps(row_ids.tolist()),)))
    places = [f"row {n}" for n in row_ids]
    return _checked([blobs.get(number) for number in row_ids.tolist()], places, layout)


def rows(
    db: sqlite3.Connection, layout: Layout, start: int = 0, end: int = 2**62
) -> Iterator[tuple[list[int], list[Record], Vector]]:
    """Yield row ids, records and descriptors of all cases with these row ids, some at a time."""
    cursor = db.execute(
        f"SELECT id, {_COLUMNS}, descriptor FROM cases WHERE id >= ? AND id < ? AND {_IS_CASE} ORDER BY id",
        (start, end),
    )
    while some := cursor.fetchmany(_ROWS_AT_ONCE):
        vectors = _checked([row[-1] for row in some], [f"case {row[1]!r}" for row in some], layout)
        yield [row[0] for row in some], [_record(row[1:-1]) for row in some], vectors


def row_ids(db: sqlite3.Connection, wanted: Collection[str] | None = None) -> Ids:
    """Return the row ids of case ids, or of all cases, in their order."""
    if wanted is None:
        found = db.execute(f"SELECT id FROM cases WHERE {_IS_CASE} ORDER BY id")
    else:
        found = db.execute(f"SELECT id FROM cases WHERE case_id {_IN}", (_json_of(wanted),))
    return np.array([row[0] for row in found], np.int64)


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
        added = min(end, (number + 1) * SEGMENT) - max(first, number * SEGMENT)
        db.execute(f"INSERT OR IGNORE INTO segments VALUES (?, {_DRAWN}, 0)", (number,))
        db.execute("UPDATE segments SET cases = cases + ? WHERE number = ?", (added, number))
        if end >= (number + 1) * SEGMENT:
            db.execute(f"UPDATE segments SET generation = {_DRAWN} WHERE number = ?", (number,))
    return end


def blank(db: sqlite3.Connection, wanted: Collection[str]) -> int:
    """Overwrite cases, and give their segments another generation; return how many were there."""
    ids = row_ids(db, wanted).tolist()
    db.execute(_BLANK, (json.dumps(ids),))
    if ids:
        db.execute("REINDEX cases")  # on new pages, for the same reason; SQLite overwrites the old ones
    for number in {n // SEGMENT for n in ids}:
        lost = sum(n // SEGMENT == number for n in ids)
        db.execute(
            f"UPDATE segments SET generation = {_DRAWN}, cases = cases - ? WHERE number = ?", (lost, number)
        )
    return len(ids)


def delete_blank(db: sqlite3.Connection) -> None:
    """Delete the rows of removed cases; the file must be vacuumed afterwards."""
    db.execute(f"DELETE FROM cases WHERE NOT {_IS_CASE}")


def segments(db: sqlite3.Connection) -> list[tuple[int, int, int]]:
    """Return the number, the generation and the count of cases of each segment."""
    found = db.execute("SELECT number, generation, cases FROM segments ORDER BY number").fetchall()
    if not all(isinstance(value, int) and value >= 0 for row in found for value in row) or any(
        number > 2**62 // SEGMENT or cases > SEGMENT for number, _, cases in found
    ):
        raise Malformed("counts of the segments that cannot be")
    return found


def count(db: sqlite3.Connection) -> int:
    """Return how many cases there are, by the counts of the segments."""
    return sum(cases for _, _, cases in segments(db))


def recount_segments(db: sqlite3.Connection) -> None:
    """Count the cases of each segment again, and give all another generation."""
    db.execute("DELETE FROM segments")
    db.execute(
        f"INSERT INTO segments SELECT id / ?, {_DRAWN}, count(*) FROM cases WHERE {_IS_CASE} GROUP BY id / ?",
        (SEGMENT, SEGMENT),
    )


def change_of(new: Sequence[Record]) -> bytes:
    """Return the bytes by which written records enter the archive's state."""
    return json.dumps([record.row() for record in new]).encode()


def removal_of(wanted: Collection[str]) -> bytes:
    """Return the bytes by which removed case ids enter the archive's state."""
    return json.dumps(sorted(wanted)).encode()


def _checked(blobs: Sequence[Any], places: Sequence[str], layout: Layout) -> Vector:
    """Return stored blobs as descriptors; `places` names each in a message."""
    for blob, place in zip(blobs, places, strict=True):
        if not isinstance(blob, bytes) or len(blob) != 4 * layout.length:
            raise Malformed(f"a descriptor of another length in {place}")
    vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), layout.length)
    vectors = vectors.astype(np.float32, copy=False)
    if not (right := layout.well_formed(vectors)).all():
        raise Malformed(f"an invalid descriptor in {places[int(np.argmin(right))]}")
    return vectors


def _record(row: Sequence[Any]) -> Record:
    case_id, diagnosis, group, confirmed_by, attributes, image_ref, image_sha256 = row
    try:
        known = json.loads(attributes)
    except (ValueError, TypeError, RecursionError):
        known = None
    texts = (case_id, diagnosis, group, confirmed_by, image_ref, image_sha256)
    plain = isinstance(known, dict) and all(
        isinstance(v, str | float) or (isinstance(v, int) and -(2**63) <= v < 2**63) for v in known.values()
    )
    if not plain or not all(isinstance(text, str) for text in texts):
        raise Malformed(f"facts of another type in case {case_id!r}")
    return Record(case_id, diagnosis, group, confirmed_by, known, image_ref, image_sha256)


def _json_of(wanted: Collection[str]) -> str:
    """Return case ids as JSON for SQLite, whose older releases misread an escaped character beyond U+FFFF.

    An id that no case can have is left out: SQLite could not read a lone surrogate.
    """
    return json.dumps([case_id for case_id in wanted if is_storable(case_id)], ensure_ascii=False)
