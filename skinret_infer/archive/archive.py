"""The archive: one SQLite file that holds each case once, and exact search over it.

SQLite is the truth, in rollback journal mode: one file, no reader sees half a change, and no commit passes a
reader. What a search scans (scan.py) is derived from it and lies in a folder beside it; every process keeps
its own view of it, and brings that up to date when the archive's revision has moved.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import sqlite3
import threading
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _forks
from .._files import whole_file
from ..bundle import build
from ..cases import can_be_stored
from ..descriptor import Layout, Vector, well_formed
from ..errors import ArchiveError, InputError
from .filters import read_filter
from .pruning import SAMPLE, SEGMENT, Basis, Ids, Part, Stale, candidates, part_name, part_of, refine, sweep
from .store import Found, Match, Record

SCHEMA = 3
OLDEST_SQLITE = (3, 26, 0)  # of RHEL 8; what is older was not tried
_APPLICATION_ID = 0x534B4E52  # "SKNR"
_CASES = """
CREATE TABLE cases (
    id INTEGER PRIMARY KEY,
    case_id TEXT NOT NULL UNIQUE,
    diagnosis TEXT NOT NULL,
    "group" TEXT NOT NULL,
    confirmed_by TEXT NOT NULL,
    attributes TEXT NOT NULL,
    image_ref TEXT NOT NULL,
    image_sha256 TEXT NOT NULL,
    descriptor BLOB NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
# A row id is given once. Segment n has those of id / SEGMENT = n. Its generation is drawn by lot when it
# loses a case or becomes whole, and so names what a whole one holds: here, in a copy and in any other file.
# The history has the last states by revision: by it a reader knows whether what it remembers is of the past
# of this file, or of another file that was copied over it.
_SCANNED = f"""
CREATE TABLE IF NOT EXISTS segments (
    number INTEGER PRIMARY KEY, generation INTEGER NOT NULL, cases INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS basis (key TEXT NOT NULL, vectors BLOB NOT NULL);
CREATE TABLE history (revision INTEGER PRIMARY KEY, state TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
"""
_COLUMNS = ("case_id", "diagnosis", "group", "confirmed_by", "attributes", "image_ref", "image_sha256")
# Only what must be is quoted: SQLite reads a quoted name that is no column as a text.
_SELECT = ", ".join(_COLUMNS).replace("group", '"group"')
_IN = "IN (SELECT value FROM json_each(?))"
_DRAWN = "random() & 0x7fffffffffffffff"
# A removed case leaves an empty row, whose case_id is no text, until the archive is compacted: when rows go,
# SQLite moves their neighbours to other pages, and leaves copies of them behind in the gaps of the old.
_THERE = "typeof(case_id) = 'text'"
_BLANK = """
UPDATE cases SET case_id = CAST(id AS BLOB), diagnosis = '', "group" = '', confirmed_by = '', attributes = '',
image_ref = '', image_sha256 = '', descriptor = x'' WHERE id """
_BUSY_SECONDS = 30.0
_REMEMBERED = 4096  # revisions in the history
_STEP = 2048  # rows read at once

Progress = Callable[[int, int], None]


class _Malformed(Exception):
    """Something in the file is not what this package wrote."""


@dataclass(frozen=True, slots=True)
class _View:
    """The scan of the archive at a revision and state: its parts by segment, with their generations."""

    revision: int
    state: str
    basis: Basis
    parts: Mapping[int, tuple[int, Part]]


class Archive:
    """Cases in a SQLite file, bound to the model whose fingerprint it carries. Safe from several threads.

    A file that does not exist is made by the first `write`, not by opening it. An archive of an older schema
    is brought to this one when it is opened. Raises ArchiveError for a file that is no archive, is damaged,
    is of a newer schema, or holds descriptors of another model.
    """

    def __init__(self, path: str | Path, fingerprint: str, layout: Layout, model: str) -> None:
        self.path = Path(path)
        self.fingerprint, self.layout, self.model = fingerprint, layout, model
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._view: _View | None = None
        self._file: tuple[int, int] | None = None  # which it is on its disk
        self._ours = False  # it was looked at and is
        self._renew()
        _forks.renew(self)
        self._open()

    def _renew(self) -> None:
        self._lock = threading.Lock()  # of the idle connections, and of closing
        self._viewing = threading.Lock()  # of the view
        self._pool = ThreadPoolExecutor(1, "skinret-scan")  # projects what is written meanwhile

    def after_fork(self) -> None:
        """Take new connections, locks and threads, in a forked child."""
        _forks.abandon(self._idle, *self._idle)
        self._idle = []
        self._renew()

    @classmethod
    def existing(cls, path: str | Path) -> "Archive":
        """Open an archive without its bundle: what model it is of is as it says itself."""
        archive = cls.__new__(cls)
        archive.path, archive.fingerprint = Path(path), ""
        with archive._translated():
            if not archive.path.is_file() or not archive.path.stat().st_size:
                raise archive._missing()
            with contextlib.closing(archive._connect()) as db:
                meta = archive._meta(db)
            if "layout" not in meta:
                raise ArchiveError(
                    f"archive {path} is of an older schema",
                    code="archive-older",
                    expected=f"schema {SCHEMA}",
                    found="schema 1, which does not say how long its descriptors are",
                    cure="open it once with its bundle, such as by a query",
                )
            try:
                layout = build(Layout, json.loads(meta["layout"]), "layout")
                said = meta["fingerprint"], layout, meta["model"]
            except (KeyError, ValueError, TypeError, RecursionError) as error:
                raise _Malformed(f"what it says of itself: {error}") from None
        return cls(path, *said)

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        with self._reading() as db:
            return self._count(db) if db else 0

    @property
    def state(self) -> str:
        """The SHA-256 of the archive's history: of the model, and of every write and removal in its order.

        It names what the archive held at a moment; a backup has the state of the moment of its making.
        """
        with self._reading() as db:
            return self._state(db) if db else ""

    def close(self) -> None:
        """Close the file. A closed archive cannot be used again."""
        with self._lock:
            self._closed = True
            self._pool.shutdown(wait=False)
            while self._idle:
                self._idle.pop().close()
        self._view = None

    def find(self, case_ids: Collection[str]) -> dict[str, Record]:
        """Return the records of those of the case ids that are in the archive."""
        with self._reading() as db:
            if not db:
                return {}
            query = f"SELECT {_SELECT} FROM cases WHERE case_id {_IN}"
            return {row[0]: _record(row) for row in db.execute(query, (_json_of(case_ids),))}

    def stored(self, case_ids: Collection[str]) -> dict[str, tuple[Record, Vector]]:
        """Return the records, with their descriptors, of those of the case ids that are in the archive."""
        with self._reading() as db:
            if not db:
                return {}
            query = f"SELECT id, {_SELECT} FROM cases WHERE case_id {_IN}"
            rows = db.execute(query, (_json_of(case_ids),)).fetchall()
            descriptors = self._vectors(db, np.array([row[0] for row in rows], np.int64))
            return {row[1]: (_record(row[1:]), d) for row, d in zip(rows, descriptors, strict=True)}

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[tuple[int, Iterator[tuple[list[Record], Vector]]]]:
        """Give how many cases there are, and all of them with their descriptors, some at a time.

        All is of one moment: a writer waits until the context has ended.
        """
        with self._reading() as db:
            if not db:
                yield 0, iter(())
                return
            [count] = db.execute(f"SELECT count(*) FROM cases WHERE {_THERE}").fetchone()
            yield count, ((records, descriptors) for _, records, descriptors in self._rows(db))

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        """Write cases in one transaction, all or none; a case id that is there already is replaced."""
        shape = (len(records), self.layout.length)
        if descriptors.shape != shape or not well_formed(descriptors, self.layout).all():
            raise InputError(
                "the descriptors cannot be stored",
                code="descriptor-shape",
                found=f"shape {descriptors.shape}, or a part of another length or with NaN",
                expected=f"{shape[0]} x {shape[1]} finite numbers in six unit vectors, then distributions",
            )
        kept = np.ascontiguousarray(descriptors, "<f4")
        before = self._view
        scanned = self._pool.submit(_scanned, records, kept, before.basis) if before else None
        with self._writing(create=True) as db:
            point = self._said(db, "revision"), self._state(db)
            replaced = self._remove(db, [record.case_id for record in records])
            first = self._next_id(db)
            db.executemany(
                f"INSERT INTO cases (id, {_SELECT}, descriptor) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (n, *record.row(), blob.data)
                    for n, (record, blob) in enumerate(zip(records, kept, strict=True), first)
                ),
            )
            end = first + len(records)
            db.execute("UPDATE meta SET value = ? WHERE name = 'next_id'", (str(end),))
            self._chain(db, json.dumps([record.row() for record in records]).encode(), kept.data)
            for number in range(first // SEGMENT, -(-end // SEGMENT)):
                added = min(end, (number + 1) * SEGMENT) - max(first, number * SEGMENT)
                db.execute(f"INSERT OR IGNORE INTO segments VALUES (?, {_DRAWN}, 0)", (number,))
                db.execute("UPDATE segments SET cases = cases + ? WHERE number = ?", (added, number))
                if end >= (number + 1) * SEGMENT:
                    db.execute(f"UPDATE segments SET generation = {_DRAWN} WHERE number = ?", (number,))
            written = self._state(db)
        with contextlib.suppress(ArchiveError):  # the cases are written; a search makes what is missing
            if before and scanned and (before.revision, before.state) == point and not replaced:
                self._extend(before, scanned.result(), first, written)
            if first // SEGMENT != end // SEGMENT or first < SAMPLE <= end:
                self._derive()
        if replaced:
            self._sweep()

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases, overwriting their bytes in the file; return how many were there.

        What is derived of them is gone when the call returns; a call that was killed leaves that to the next
        that removes, replaces or compacts. Of a call to `write` that was killed, unused pages of the file may
        keep bytes until the archive is compacted.
        """
        with self._writing(create=False) as db:
            removed = self._remove(db, list(case_ids))
            if removed:
                self._chain(db, json.dumps(sorted(case_ids)).encode())
        self._sweep()
        return removed

    def search(
        self,
        queries: Vector,
        weights: npt.NDArray[np.float64],
        k: int,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> Found:
        """Return the exact k best cases of each query by score, as `Store.search` says.

        All is read in one transaction, so that a writer waits until the search has ended, and its list is
        that of one moment. The scores are sums in float64 of the stored descriptors: what prunes cannot
        change the answer.
        """
        with self._reading() as db:
            if not db or not self._count(db):
                state = "is empty" if db else "does not exist"
                raise ArchiveError(
                    f"archive {self.path} {state}",
                    code="archive-empty",
                    expected="cases to search",
                    cure="add cases with Searcher.add or `skinret index`",
                )
            view = self._current(db)
            parts = [part for _, part in view.parts.values()]
            asked = read_filter(where, [part.columns for part in parts])
            ids = db.execute(f"SELECT id FROM cases WHERE case_id {_IN}", (_json_of(exclude),))
            excluded = np.array([row[0] for row in ids], np.int64)
            keeps = [part.kept(asked, excluded) for part in parts]
            searched = sum(
                len(part) if keep is None else int(keep.sum())
                for part, keep in zip(parts, keeps, strict=True)
            )
            wide = np.repeat(weights, self.layout.lengths)
            weighed = [wide * query.astype(np.float64) for query in queries]
            longest = len(self.layout.lengths) ** 0.5  # no part of a descriptor exceeds 1
            likely = candidates(parts, keeps, view.basis, weighed, k, longest)
            found = []
            for query, (some, upper) in zip(queries, likely, strict=True):
                best = refine(query, some, upper, weights, self.layout, k, lambda ids: self._vectors(db, ids))
                found.append(self._matches(db, k, *best))
            return Found(found, searched, self._state(db))

    def _matches(
        self,
        db: sqlite3.Connection,
        k: int,
        ids: Ids,
        scores: npt.NDArray[np.float64],
        products: npt.NDArray[np.float64],
    ) -> list[Match]:
        query = f"SELECT id, {_SELECT} FROM cases WHERE id {_IN}"
        records = {row[0]: _record(row[1:]) for row in db.execute(query, (json.dumps(ids.tolist()),))}
        matches = [Match(records[int(i)], float(s), p) for i, s, p in zip(ids, scores, products, strict=True)]
        return sorted(matches, key=lambda match: (-match.score, match.record.case_id))[:k]

    def _vectors(self, db: sqlite3.Connection, ids: Ids) -> Vector:
        """Return the descriptors of row ids, in their order."""
        query = f"SELECT id, descriptor FROM cases WHERE id {_IN}"
        blobs = dict(db.execute(query, (json.dumps(ids.tolist()),)))
        return self._checked([blobs.get(number) for number in ids.tolist()], [f"row {n}" for n in ids])

    def _checked(self, blobs: Sequence[Any], where: Sequence[str]) -> Vector:
        """Return what is stored as descriptors as such; `where` says of each, for a message, where it is."""
        for blob, place in zip(blobs, where, strict=True):
            if not isinstance(blob, bytes) or len(blob) != 4 * self.layout.length:
                raise _Malformed(f"a descriptor of another length in {place}")
        stored = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), self.layout.length)
        descriptors = stored.astype(np.float32, copy=False)
        if not (right := well_formed(descriptors, self.layout)).all():
            raise _Malformed(f"a descriptor that is none in {where[int(np.argmin(right))]}")
        return descriptors

    # -- what is derived --

    @property
    def scan_folder(self) -> Path:
        """The folder of what is derived."""
        return self.path.with_name(self.path.name + ".scan")

    def _current(self, db: sqlite3.Connection) -> _View:
        """Return the view of the archive as this transaction sees it."""
        with self._viewing:
            revision, state = self._said(db, "revision"), self._state(db)
            old = self._view
            if old is None or (old.revision, old.state) != (revision, state):
                basis = self._basis(db, old.basis if old else None)
                known = old.parts if old and old.basis.key == basis.key and self._past(db, old) else {}
                parts = {}
                for number, generation, count in self._segments(db):
                    part = self._part(db, basis, number, generation, count, known.get(number))
                    parts[number] = generation, part
                self._view = _View(revision, state, basis, parts)
            assert self._view is not None
            return self._view

    @staticmethod
    def _past(db: sqlite3.Connection, view: _View) -> bool:
        """Say whether this file was once as a view has it."""
        row = db.execute("SELECT state FROM history WHERE revision = ?", (view.revision,)).fetchone()
        return row is not None and row[0] == view.state

    def _part(
        self,
        db: sqlite3.Connection,
        basis: Basis,
        number: int,
        generation: int,
        count: int,
        known: tuple[int, Part] | None,
    ) -> Part:
        """Return a segment's part: the known one with what was added, or from its file, or from the cases."""
        part = known[1] if known and known[0] == generation and len(known[1]) <= count else None
        whole = self._next_id(db) >= (number + 1) * SEGMENT
        path = self.scan_folder / part_name(basis, number, generation)
        rank = basis.rank(self.layout)
        if part is None and whole:
            with contextlib.suppress(OSError, Stale):
                part = Part.load(path, rank)
        if part is None or len(part) != count:
            start = int(part.ids[-1]) + 1 if part is not None and len(part) else number * SEGMENT
            more = self._read(db, basis, start, (number + 1) * SEGMENT)
            part = part.followed_by(more) if part is not None else more
            if len(part) != count:
                raise _Malformed(f"{len(part)} of {count} cases in segment {number}")
            if whole:
                part = self._kept(part, path.name, rank)
        return part

    def _extend(self, before: _View, more: Part, first: int, state: str) -> None:
        """Bring the view from before a write up to date with the scan of what was written."""
        more = replace(more, ids=more.ids + first)
        with self._reading() as db, self._viewing:
            assert db is not None
            now = self._said(db, "revision"), self._state(db)
            if self._view is not before or now != (before.revision + 1, state):
                return  # somebody else wrote too
            parts, rank = dict(before.parts), before.basis.rank(self.layout)
            for number, generation, count in self._segments(db):
                if len(new := more.of_rows(number * SEGMENT, (number + 1) * SEGMENT)):
                    part = parts[number][1].followed_by(new) if number in parts else new
                    if len(part) != count:
                        return
                    if self._next_id(db) >= (number + 1) * SEGMENT:
                        part = self._kept(part, part_name(before.basis, number, generation), rank)
                    parts[number] = generation, part
            self._view = _View(*now, before.basis, parts)

    def _kept(self, part: Part, name: str, rank: int) -> Part:
        """Write a whole segment's part and map it; where that cannot be, keep it in memory."""
        with contextlib.suppress(OSError, Stale):
            part.save(self.scan_folder / name)
            return Part.load(self.scan_folder / name, rank)
        return part

    def _read(self, db: sqlite3.Connection, basis: Basis, start: int, end: int) -> Part:
        """Make the part of row ids from the cases."""
        part = part_of([], np.empty((0, self.layout.length), np.float32), [], basis)
        for ids, records, descriptors in self._rows(db, start, end):
            part = part.followed_by(replace(_scanned(records, descriptors, basis), ids=np.array(ids)))
        return part

    def _rows(
        self, db: sqlite3.Connection, start: int = 0, end: int = 2**62
    ) -> Iterator[tuple[list[int], list[Record], Vector]]:
        """Give all that is stored of cases, some at a time."""
        query = (
            f"SELECT id, {_SELECT}, descriptor FROM cases WHERE id >= ? AND id < ? AND {_THERE} ORDER BY id"
        )
        cursor = db.execute(query, (start, end))
        while rows := cursor.fetchmany(_STEP):
            descriptors = self._checked([row[-1] for row in rows], [f"case {row[1]!r}" for row in rows])
            yield [row[0] for row in rows], [_record(row[1:-1]) for row in rows], descriptors

    def _basis(self, db: sqlite3.Connection, known: Basis | None) -> Basis:
        row = db.execute("SELECT key FROM basis").fetchone()
        if known and known.key == (row[0] if row else Basis.of(None).key):
            return known
        if not row:
            return Basis.of(None)
        [blob] = db.execute("SELECT vectors FROM basis").fetchone()
        try:
            vectors = np.frombuffer(blob, "<f8").reshape(self.layout.length, -1) if blob else None
        except (TypeError, ValueError) as error:
            raise _Malformed(f"the basis: {error}") from None
        basis = Basis.of(vectors)
        if basis.key != row[0]:
            raise _Malformed("another basis than was written")
        return basis

    def _derive(self) -> None:
        """Bring what is derived up to date."""
        with self._reading() as db:
            assert db is not None
            fitted = db.execute("SELECT count(*) FROM basis").fetchone()[0]
            sample = None if fitted or self._count(db) < SAMPLE else self._sample(db)
        if sample is not None:
            self._take_basis(Basis.fit(sample, self.layout))
        with self._reading() as db:
            assert db is not None
            self._current(db)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what is derived and stale: it may hold a removed case. No reader is behind a commit."""
        with self._reading() as db:
            assert db is not None
            basis = self._basis(db, self._view.basis if self._view else None)
            sweep(self.scan_folder, {part_name(basis, n, g) for n, g, _ in self._segments(db)})

    def _sample(self, db: sqlite3.Connection) -> Vector:
        ids = np.array(
            [row[0] for row in db.execute(f"SELECT id FROM cases WHERE {_THERE} ORDER BY id")], np.int64
        )
        rng = np.random.default_rng(0)
        return self._vectors(db, np.sort(rng.choice(ids, min(len(ids), SAMPLE), replace=False)))

    def _take_basis(self, basis: Basis) -> None:
        blob = b"" if basis.vectors is None else np.ascontiguousarray(basis.vectors, "<f8").tobytes()
        with self._writing(create=False) as db:
            db.execute("DELETE FROM basis")
            db.execute("INSERT INTO basis VALUES (?, ?)", (basis.key, blob))

    # -- care --

    def parts(self) -> dict[str, str]:
        """Return how each file of what is derived is: "right", "missing" or "stale"; nothing is changed.

        What is missing or stale is made anew by a search, and costs it time alone.
        """
        with self._reading() as db:
            if not db:
                return {}
            basis, whole = self._basis(db, None), self._next_id(db) // SEGMENT
            rank = basis.rank(self.layout)
            there = {path.name for path in self.scan_folder.glob("*.part")}
            states = dict.fromkeys(there, "stale")
            for number, generation, _ in self._segments(db):
                name = part_name(basis, number, generation)
                if name in there:
                    with contextlib.suppress(OSError, Stale):
                        Part.load(self.scan_folder / name, rank)
                        states[name] = "right"
                elif number < whole:
                    states[name] = "missing"
            return states

    def check(self, progress: Progress | None = None) -> list[str]:
        """Read everything, and return what is wrong, in words; [] for an archive that is whole."""
        faults: list[str] = []
        try:
            self._check(faults, progress)
        except ArchiveError as error:
            if error.code != "archive-damaged":
                raise
            faults.append(str(error))
        return faults

    def _check(self, faults: list[str], progress: Progress | None) -> None:
        with self._reading() as db:
            if not db:
                return
            said = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
            faults += [line for line in said if line != "ok"]
            counts: dict[int, int] = {}
            total, last = self._count(db), -1
            for ids, _, _ in self._rows(db):
                for number in ids:
                    counts[number // SEGMENT] = counts.get(number // SEGMENT, 0) + 1
                last = ids[-1]
                if progress:
                    progress(sum(counts.values()), total)
            if last >= self._next_id(db):
                faults.append(f"row {last} is above the next row id")
            stated = {number: count for number, _, count in self._segments(db) if count}
            if stated != counts:
                faults.append(f"{sum(counts.values())} cases, but {sum(stated.values())} are accounted for")
            if faults:
                return
            basis = self._basis(db, None)
            for number, generation, _ in self._segments(db):
                path = self.scan_folder / part_name(basis, number, generation)
                if path.exists():
                    with contextlib.suppress(OSError, Stale):  # the next search makes it anew
                        part = Part.load(path, basis.rank(self.layout))
                        right = self._read(db, basis, number * SEGMENT, (number + 1) * SEGMENT)
                        if (
                            len(part) != len(right)
                            or (part.ids != right.ids).any()
                            or (np.abs(part.z - right.z).max(initial=0) > 1e-5)
                        ):
                            faults.append(f"{path.name} does not hold what the archive does")

    def repair(self) -> None:
        """Make anew all that follows from the cases: the account of them, and what is derived."""
        with self._writing(create=False) as db:
            [last] = db.execute("SELECT coalesce(max(id), -1) FROM cases").fetchone()
            if self._next_id(db) <= last:
                db.execute("UPDATE meta SET value = ? WHERE name = 'next_id'", (str(last + 1),))
            self._account(db)
            db.execute("DELETE FROM basis")
        with self._translated():
            sweep(self.scan_folder, ())
        self._derive()

    def compact(self) -> None:
        """Give back the room of removed cases, and fit what is derived to the cases there are now.

        The whole file is written anew, and others wait meanwhile.
        """
        with self._reading() as db:
            if not db:
                raise self._missing()
            basis = Basis.fit(self._sample(db), self.layout) if self._count(db) >= SAMPLE else None
            whole = range(self._next_id(db) // SEGMENT) if basis else range(0)
        for number in whole:  # before they are asked for
            with self._reading() as db, contextlib.suppress(OSError):
                assert db is not None and basis is not None
                if (generation := {n: g for n, g, _ in self._segments(db)}.get(number)) is not None:
                    part = self._read(db, basis, number * SEGMENT, (number + 1) * SEGMENT)
                    part.save(self.scan_folder / part_name(basis, number, generation))
        if basis:
            self._take_basis(basis)
        with self._writing(create=False) as db:
            db.execute(f"DELETE FROM cases WHERE NOT {_THERE}")
        with self._connection() as db:
            self._vacuum(db)
        self._derive()

    def _vacuum(self, db: sqlite3.Connection) -> None:
        """Write the file anew, by a copy in a temporary file: memory may be too small."""
        db.execute("PRAGMA temp_store = FILE")
        try:
            db.execute("VACUUM")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN:
                raise
            raise ArchiveError(
                f"archive {self.path} cannot be compacted",
                code="archive-temporary",
                expected="a folder for temporary files, with room for the archive",
                found="none that can be written",
                cure="set SQLITE_TMPDIR to one before the process starts",
            ) from None
        finally:
            db.execute("PRAGMA temp_store = MEMORY")

    def backup(self, target: str | Path, progress: Progress | None = None) -> None:
        """Copy the archive, while it is in use, to a file that does not exist yet.

        What is derived is not copied. Where others keep writing, they wait while the last try copies all in
        one go.
        """
        target = Path(target)
        _check_name(target)
        with self._translated():
            taken = target.exists()
        if taken:
            raise ArchiveError(
                f"{target} is there already",
                code="archive-exists",
                expected="a name that no file has",
                cure="give another name, or move the file away",
            )
        tries, left = 0, 0

        def copied(_: int, remaining: int, total: int) -> None:
            nonlocal tries, left
            tries, left = tries + (remaining > left > 0), remaining
            if tries > 2:
                raise InterruptedError
            if progress:
                progress(total - remaining, total)

        with self._reading() as db:
            if not db:
                raise self._missing()
        with self._connection() as db, whole_file(target) as temporary:
            with contextlib.closing(sqlite3.connect(temporary)) as other:
                try:
                    db.backup(other, pages=2048, progress=copied)
                except InterruptedError:
                    db.backup(other)
                said = other.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise self._damaged(f"a copy with a fault: {said}")

    # -- the file --

    def _open(self) -> None:
        """Look at the file, if there is one, and check that it is ours."""
        with self._translated():
            try:
                state = self.path.stat()
            except (FileNotFoundError, ValueError):  # or a name that no file can have
                state = None
            file = (state.st_dev, state.st_ino) if state else None
            if file != self._file:  # there is none yet, or another was put in its place
                with self._lock:
                    while self._idle:
                        self._idle.pop().close()
                self._file, self._view, self._ours = file, None, False
            if state is None or not state.st_size or not self.path.is_file():
                self._ours = False
                return
            if self._ours:
                return
            with contextlib.closing(self._connect()) as db:
                pages = db.execute("PRAGMA page_count").fetchone()[0]
                if not pages and not self.path.stat().st_size:  # a first commit that a kill undid
                    return
                self._check_model(db)
                if self._schema(db) < SCHEMA:
                    try:
                        self._migrate(db)
                    except sqlite3.OperationalError as error:
                        if "readonly" not in str(error) and "unable to open" not in str(error):
                            raise
                        raise ArchiveError(
                            f"archive {self.path} is of an older schema and may not be brought to this one",
                            code="archive-older",
                            expected=f"schema {SCHEMA}, or a file and a folder that may be written",
                            found=f"schema {self._schema(db)}, and {error}",
                            cure="open it once where it may be written, or search a copy of it",
                        ) from None
            self._ours = True

    def _check_model(self, db: sqlite3.Connection) -> None:
        meta = self._meta(db)
        if meta.get("fingerprint") != self.fingerprint:
            raise ArchiveError(
                f"archive {self.path} was written by another model",
                code="archive-model",
                expected=f"{self.model} (fingerprint {self.fingerprint[:12]})",
                found=f"{meta.get('model')} (fingerprint {str(meta.get('fingerprint'))[:12]})",
                cure="open it with the bundle that wrote it, or index the images into a new archive",
            )

    @staticmethod
    def _schema(db: sqlite3.Connection) -> int:
        schema: int = db.execute("PRAGMA user_version").fetchone()[0]
        return schema

    def _meta(self, db: sqlite3.Connection) -> dict[str, str]:
        """Return what the archive says of itself, having checked that it is one."""
        if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise ArchiveError(
                f"{self.path} is not a skinret archive",
                code="archive-foreign",
                expected="a file that `skinret index` made",
                found="another SQLite database",
                cure="check the path",
            )
        if (schema := self._schema(db)) > SCHEMA:
            raise ArchiveError(
                f"archive {self.path} is newer than this package",
                code="archive-newer",
                expected=f"schema {SCHEMA} or older",
                found=f"schema {schema}",
                cure="pip install --upgrade skinret-infer",
            )
        return dict(db.execute("SELECT name, value FROM meta"))

    def _said(self, db: sqlite3.Connection, name: str) -> int:
        row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if not row or not re.fullmatch(r"[0-9]{1,18}", str(row[0])):
            raise _Malformed(f"no {name}")
        return int(row[0])

    @staticmethod
    def _segments(db: sqlite3.Connection) -> list[tuple[int, int, int]]:
        """Return the number, generation and count of the segments."""
        rows = db.execute("SELECT number, generation, cases FROM segments ORDER BY number").fetchall()
        if not all(isinstance(value, int) and value >= 0 for row in rows for value in row) or any(
            number > 2**62 // SEGMENT or cases > SEGMENT for number, _, cases in rows
        ):
            raise _Malformed("an account of the segments that is none")
        return rows

    def _next_id(self, db: sqlite3.Connection) -> int:
        return self._said(db, "next_id")

    def _count(self, db: sqlite3.Connection) -> int:
        return sum(count for _, _, count in self._segments(db))

    def _state(self, db: sqlite3.Connection) -> str:
        row = db.execute("SELECT value FROM meta WHERE name = 'state'").fetchone()
        return str(row[0]) if row else hashlib.sha256(self.fingerprint.encode()).hexdigest()

    def _chain(self, db: sqlite3.Connection, *change: bytes | memoryview) -> None:
        """Take a change into the state within its transaction."""
        sha = hashlib.sha256(self._state(db).encode())
        for part in change:
            sha.update(part)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (sha.hexdigest(),))

    def _remove(self, db: sqlite3.Connection, case_ids: Collection[str]) -> int:
        """Remove cases within a transaction, and give their segments another generation."""
        found = db.execute(f"SELECT id FROM cases WHERE case_id {_IN}", (_json_of(case_ids),))
        ids = [row[0] for row in found]
        db.execute(_BLANK + _IN, (json.dumps(ids),))
        if ids:
            db.execute("REINDEX cases")  # of new pages, for the same reason; SQLite clears the old
        for number in {n // SEGMENT for n in ids}:
            gone = sum(n // SEGMENT == number for n in ids)
            db.execute(
                f"UPDATE segments SET generation = {_DRAWN}, cases = cases - ? WHERE number = ?",
                (gone, number),
            )
        return len(ids)

    def _remember(self, db: sqlite3.Connection) -> None:
        """Take the state into the history."""
        revision = self._said(db, "revision")
        db.execute("INSERT OR REPLACE INTO history VALUES (?, ?)", (revision, self._state(db)))
        db.execute("DELETE FROM history WHERE revision <= ?", (revision - _REMEMBERED,))

    def _account(self, db: sqlite3.Connection) -> None:
        """Count the cases of each segment anew, and give all another generation."""
        db.execute("DELETE FROM segments")
        db.execute(
            f"INSERT INTO segments SELECT id / ?, {_DRAWN}, count(*) FROM cases WHERE {_THERE} "
            "GROUP BY id / ?",
            (SEGMENT, SEGMENT),
        )

    def _connect(self, mode: str = "rw") -> sqlite3.Connection:
        _check_name(self.path)
        check_sqlite()
        if _forks.torn():
            raise ArchiveError(
                f"archive {self.path} cannot be used in this process",
                code="archive-forked",
                expected="a fork while no other thread uses an archive",
                found="a fork in the middle of a transaction",
                cure='start processes with "spawn", or fork before the threads that use an archive',
            )
        db = sqlite3.connect(
            f"{sqlite_uri(self.path.absolute())}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("PRAGMA secure_delete = ON")  # a removed case's bytes are overwritten
        db.execute("PRAGMA synchronous = EXTRA")  # a commit outlives a loss of power
        db.execute("PRAGMA temp_store = MEMORY")  # ids that a removal sorts go to no shared folder
        return db

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to the file, which is there.

        It comes without pages of the file: SQLite believes those that it holds while a counter in the file
        is the same, which it may be in a backup that was copied over the file.
        """
        with self._translated(), _forks.no_fork():
            with self._lock:
                self.check_open()
                file, db = self._file, self._idle.pop() if self._idle else None
            db = db or self._connect()
            try:
                yield db
            finally:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("PRAGMA shrink_memory")
                with self._lock:
                    if not self._closed and file == self._file and not db.in_transaction:
                        self._idle.append(db)
                        db = None
                if db:
                    db.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Give a connection inside one read transaction, or None where there is no file yet."""
        self.check_open()
        self._open()
        if not self._ours:
            yield None
            return
        with self._connection() as db:
            db.execute("BEGIN")
            try:
                self._check_model(db)  # another file may have been copied over the one that was opened
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        self.check_open()
        self._open()
        if not self._ours:
            if not create:
                raise self._missing()
            self._create()
            self._open()
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                self._check_model(db)
                yield db
                db.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
                self._remember(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _create(self) -> None:
        """Make the tables in one transaction: a kill leaves an empty file, which counts as none.

        Another writer that was faster is left to have made them.
        """
        meta = {"fingerprint": self.fingerprint, "model": self.model, "revision": "0", "next_id": "0"}
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect("rwc")) as db:
                db.execute("BEGIN IMMEDIATE")
                if not db.execute("PRAGMA application_id").fetchone()[0]:
                    _run(db, _CASES + _SCANNED)
                    meta["layout"] = json.dumps(asdict(self.layout))
                    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                db.execute("COMMIT")

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Bring schema 1 or 2 to this one, in one transaction."""
        db.execute("BEGIN IMMEDIATE")
        schema = self._schema(db)
        if schema < SCHEMA:  # no other process was faster
            _run(db, _SCANNED)
        if schema < 2:
            [last] = db.execute("SELECT coalesce(max(id), -1) FROM cases").fetchone()
            meta = {"next_id": str(last + 1), "layout": json.dumps(asdict(self.layout))}
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            self._account(db)
        db.execute("COMMIT")

    def check_open(self) -> None:
        """Raise ArchiveError if the archive was closed."""
        if self._closed:
            raise ArchiveError(
                f"archive {self.path} is closed", code="archive-closed", cure="open a new Searcher"
            )

    def _missing(self) -> ArchiveError:
        return ArchiveError(
            f"archive {self.path} does not exist", code="archive-empty", cure="check the path"
        )

    def _damaged(self, found: str) -> ArchiveError:
        return ArchiveError(
            f"archive {self.path} is damaged or no archive",
            code="archive-damaged",
            expected="a whole SQLite file that `skinret index` made",
            found=found,
            cure="restore it from a backup, or index the images again",
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite raises into an ArchiveError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text:
                raise ArchiveError(
                    f"archive {self.path} is locked by another writer",
                    code="archive-locked",
                    expected=f"it to be free within {_BUSY_SECONDS:g} s",
                    cure="wait until the other process has finished",
                ) from None
            if any(
                sign in text for sign in ("malformed", "no such table", "no column", "such column", "UTF-8")
            ):
                raise self._damaged(text) from None
            raise ArchiveError(
                f"archive {self.path} cannot be used",
                code="archive-io",
                expected="a readable file, and to add, a writable folder with room",
                found=text,
                cure="check its permissions and the free disk space",
            ) from None
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, UnicodeEncodeError) as error:
            raise InputError("a case cannot be stored", code="case-attribute", found=str(error)) from None
        except (sqlite3.DatabaseError, _Malformed, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from None
        except OSError as error:
            raise ArchiveError(
                f"archive {self.path} cannot be used",
                code="archive-io",
                found=str(error),
                cure="check the path and its permissions",
            ) from None


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
        raise _Malformed(f"facts of another type in case {case_id!r}")
    return Record(case_id, diagnosis, group, confirmed_by, known, image_ref, image_sha256)


def _scanned(records: Sequence[Record], descriptors: Vector, basis: Basis) -> Part:
    """Make the scan of cases, whose row ids count from 0."""
    facts = [
        {**r.attributes, "diagnosis": r.diagnosis, "group": r.group, "confirmed_by": r.confirmed_by}
        for r in records
    ]
    return part_of(range(len(records)), descriptors, facts, basis)


def _json_of(case_ids: Collection[str]) -> str:
    """Return case ids as JSON for SQLite, whose older releases misread an escaped character beyond U+FFFF.

    An id that no case can have is left out: SQLite could not read a lone surrogate.
    """
    return json.dumps([case_id for case_id in case_ids if can_be_stored(case_id)], ensure_ascii=False)


def check_sqlite() -> None:
    """Raise ArchiveError where Python's SQLite cannot hold an archive."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE or not _has_json():
        raise ArchiveError(
            "the SQLite of this Python cannot hold an archive",
            code="archive-sqlite",
            expected=f"SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer, with JSON",
            found=f"SQLite {sqlite3.sqlite_version}{'' if _has_json() else ' without JSON'}",
            cure="take a Python with a newer SQLite, such as one from conda, uv or python.org",
        )


@functools.cache
def _has_json() -> bool:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        try:
            db.execute("SELECT value FROM json_each('[]')")
        except sqlite3.OperationalError:
            return False
    return True


def sqlite_uri(path: PurePath) -> str:
    """Return the URI of an absolute path, as SQLite reads one: without an authority, also for a share."""
    posix = path.as_posix()
    return f"file://{'' if posix.startswith('/') else '/'}{urllib.parse.quote(os.fsencode(posix), safe='/:')}"


def _check_name(path: Path) -> None:
    if "\0" in str(path):
        raise ArchiveError(f"archive {str(path)!r} cannot be", code="archive-io", cure="check the path")


def _run(db: sqlite3.Connection, script: str) -> None:
    """Run statements within the transaction that is open, as executescript does not."""
    for statement in filter(str.strip, script.split(";")):
        db.execute(statement)
