"""The pruning index of an archive on disk and in memory, and its update after changes of the archive.

Every process has its own view of the index, and updates it when the archive has a new revision.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from .. import _forks
from ..descriptor import Vector
from ..errors import ArchiveError
from . import table
from .database import Database, Malformed
from .pruning import SAMPLE, SEGMENT, Projection, SegmentIndex, Stale, index_cases, remove_stale, segment_file
from .store import Record


@dataclass(frozen=True, slots=True)
class View:
    """The index at one revision and state of the archive."""

    file: tuple[int, int] | None  # device and inode of the archive
    revision: int
    state: str
    projection: Projection
    segments: Mapping[int, tuple[int, SegmentIndex]]  # by number: generation and index


class PruningIndex:
    """The index of one archive, in a folder beside it. Safe for several threads and across a fork."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.folder = database.path.with_name(database.path.name + ".index")
        self.view: View | None = None
        self.after_fork()
        _forks.renew(self)

    def after_fork(self) -> None:
        """Make a new lock and thread, in a forked child."""
        self._lock = threading.Lock()  # guards the view
        self._pool = ThreadPoolExecutor(1, "skinret-index")  # projects cases while SQLite writes them

    def close(self) -> None:
        """Release the index."""
        self._pool.shutdown(wait=False)
        self.view = None

    def current(self, db: sqlite3.Connection) -> View:
        """Return the view of the archive in this transaction."""
        database = self._database
        with self._lock:
            revision, state = database.number(db, "revision"), database.state(db)
            old = self.view if self.view and self.view.file == database.file else None
            if old is not None and (old.revision, old.state) == (revision, state):
                return old
            projection = self.projection(db, old.projection if old else None)
            known: Mapping[int, tuple[int, SegmentIndex]] = {}
            if old and old.projection.key == projection.key:
                known = old.segments if database.was_in_state(db, old.revision, old.state) else {}
            segments = {
                number: (generation, self._segment(db, projection, number, generation, count, known))
                for number, generation, count in table.segments(db)
            }
            self.view = View(database.file, revision, state, projection, segments)
            return self.view

    def start(
        self, records: Sequence[Record], descriptors: Vector
    ) -> "tuple[View, Future[SegmentIndex]] | None":
        """Start to index cases before they are written; return None if there is no view to extend."""
        if self.view is None:
            return None
        return self.view, self._pool.submit(_index, records, descriptors, self.view.projection)

    def extend(self, before: View, new: SegmentIndex, first: int, state: str) -> None:
        """Add new cases, with row ids from `first` on, to the view from before the write.

        state : the state of the archive after the write.
        """
        new = replace(new, ids=new.ids + first)
        with self._database.reading() as db, self._lock:
            version = self._database.number(db, "revision"), self._database.state(db)
            if self.view is not before or version != (before.revision + 1, state):
                return  # another process wrote too
            segments, rank = dict(before.segments), before.projection.rank(self._database.layout)
            for number, generation, count in table.segments(db):
                if len(more := new.rows(number * SEGMENT, (number + 1) * SEGMENT)):
                    index = segments[number][1].concat(more) if number in segments else more
                    if len(index) != count:
                        return
                    if self._is_full(db, number):
                        name = segment_file(before.projection, number, generation)
                        index = self._write_and_map(index, name, rank)
                    segments[number] = generation, index
            self.view = View(self._database.file, *version, before.projection, segments)

    def rebuild(self) -> None:
        """Update the index. Fit a projection first if there is none and the cases are enough."""
        with self._database.reading() as db:
            has_projection = db.execute("SELECT count(*) FROM projection").fetchone()[0]
            sample = None if has_projection or table.count(db) < SAMPLE else self.sample(db)
        if sample is not None:
            self.take_projection(Projection.fit(sample, self._database.layout))
        with self._database.reading() as db:
            self.current(db)
        self.remove_stale()

    def remove_stale(self) -> None:
        """Remove the files that are not current: they may hold a removed case."""
        with self._database.reading() as db:
            projection = self.projection(db, self.view.projection if self.view else None)
            remove_stale(self.folder, {segment_file(projection, n, g) for n, g, _ in table.segments(db)})

    def remove_all(self) -> None:
        """Remove all files of the index."""
        remove_stale(self.folder, ())

    def file_states(self) -> dict[str, str]:
        """Return the state of each file: "right", "missing" or "stale". Nothing is changed.

        A search makes missing and stale files again, which costs only time.
        """
        with self._database.reading_if_there() as db:
            if not db:
                return {}
            projection, full = self.projection(db, None), self._database.number(db, "next_id") // SEGMENT
            names = {path.name for path in self.folder.glob("*.segment")}
            states = dict.fromkeys(names, "stale")
            for number, generation, _ in table.segments(db):
                name = segment_file(projection, number, generation)
                if name in names:
                    with contextlib.suppress(OSError, Stale):
                        SegmentIndex.load(self.folder / name, projection.rank(self._database.layout))
                        states[name] = "right"
                elif number < full:
                    states[name] = "missing"
            return states

    def differs(self, db: sqlite3.Connection, projection: Projection, number: int, generation: int) -> str:
        """Return the name of a segment's file if it differs from the cases of the archive, else ""."""
        path = self.folder / segment_file(projection, number, generation)
        if path.exists():
            with contextlib.suppress(OSError, Stale):  # the next search makes it again
                index = SegmentIndex.load(path, projection.rank(self._database.layout))
                expected = self.from_cases(db, projection, number * SEGMENT, (number + 1) * SEGMENT)
                if (
                    len(index) != len(expected)
                    or (index.ids != expected.ids).any()
                    or (np.abs(index.z - expected.z).max(initial=0) > 1e-5)
                ):
                    return path.name
        return ""

    def from_cases(
        self, db: sqlite3.Connection, projection: Projection, start: int, end: int
    ) -> SegmentIndex:
        """Compute the index of the cases with start <= row id < end from their descriptors and facts."""
        layout = self._database.layout
        index = index_cases([], np.empty((0, layout.length), np.float32), [], projection)
        for ids, records, descriptors in table.rows(db, layout, start, end):
            index = index.concat(replace(_index(records, descriptors, projection), ids=np.array(ids)))
        return index

    def projection(self, db: sqlite3.Connection, known: Projection | None) -> Projection:
        """Return the projection that the archive holds; `known` itself if it is the same."""
        row = db.execute("SELECT key FROM projection").fetchone()
        if known and known.key == (row[0] if row else Projection.of(None).key):
            return known
        if not row:
            return Projection.of(None)
        [blob] = db.execute("SELECT vectors FROM projection").fetchone()
        try:
            vectors = np.frombuffer(blob, "<f8").reshape(self._database.layout.length, -1) if blob else None
        except (TypeError, ValueError) as error:
            raise Malformed(f"the projection: {error}") from None
        projection = Projection.of(vectors)
        if projection.key != row[0]:
            raise Malformed("a projection that does not match its key")
        return projection

    def take_projection(self, projection: Projection) -> None:
        """Write a projection to the archive. All segments are indexed with it from then on."""
        vectors = projection.vectors
        blob = b"" if vectors is None else np.ascontiguousarray(vectors, "<f8").tobytes()
        with self._database.writing(create=False) as db:
            db.execute("DELETE FROM projection")
            db.execute("INSERT INTO projection VALUES (?, ?)", (projection.key, blob))

    def sample(self, db: sqlite3.Connection) -> Vector:
        """Return the descriptors of at most SAMPLE cases, drawn at random with a fixed seed."""
        ids = table.row_ids(db)
        rng = np.random.default_rng(0)
        drawn = np.sort(rng.choice(ids, min(len(ids), SAMPLE), replace=False))
        return table.descriptors(db, self._database.layout, drawn)

    def _is_full(self, db: sqlite3.Connection, number: int) -> bool:
        return self._database.number(db, "next_id") >= (number + 1) * SEGMENT

    def _segment(
        self,
        db: sqlite3.Connection,
        projection: Projection,
        number: int,
        generation: int,
        count: int,
        known: Mapping[int, tuple[int, SegmentIndex]],
    ) -> SegmentIndex:
        """Return a segment's index: the known one with new cases, or that of its file, or a new one."""
        index: SegmentIndex | None = None
        if number in known and known[number][0] == generation and len(known[number][1]) <= count:
            index = known[number][1]
        full, name = self._is_full(db, number), segment_file(projection, number, generation)
        rank = projection.rank(self._database.layout)
        if index is None and full:
            with contextlib.suppress(OSError, Stale):
                index = SegmentIndex.load(self.folder / name, rank)
        if index is None or len(index) != count:
            start = int(index.ids[-1]) + 1 if index is not None and len(index) else number * SEGMENT
            more = self.from_cases(db, projection, start, (number + 1) * SEGMENT)
            index = index.concat(more) if index is not None else more
            if len(index) != count:
                raise Malformed(f"{len(index)} of {count} cases in segment {number}")
            if full:
                index = self._write_and_map(index, name, rank)
        return index

    def _write_and_map(self, index: SegmentIndex, name: str, rank: int) -> SegmentIndex:
        """Write a full segment's index and return the mapped file; return the index if writing fails."""
        with contextlib.suppress(OSError, Stale):
            index.save(self.folder / name)
            return SegmentIndex.load(self.folder / name, rank)
        return index


def update_after_write(
    index: PruningIndex,
    pending: "tuple[View, Future[SegmentIndex]] | None",
    version: tuple[int, str],
    new_rows: tuple[int, int, str],
    replaced: bool,
) -> None:
    """Update the index after a write. If this fails, the next search does it.

    pending : the result of `PruningIndex.start` before the write.
    version : the revision and state before the write.
    new_rows : the first row id, the one after the last, and the state after the write.
    replaced : the write replaced cases; then a view cannot be extended.
    """
    first, end, state = new_rows
    with contextlib.suppress(ArchiveError):
        if pending and not replaced:
            view, future = pending
            if (view.revision, view.state) == version:
                index.extend(view, future.result(), first, state)
        if first // SEGMENT != end // SEGMENT or first < SAMPLE <= end:
            index.rebuild()


def _index(records: Sequence[Record], descriptors: Vector, projection: Projection) -> SegmentIndex:
    """Return the index of cases, with row ids that count from 0."""
    facts = [
        {**r.attributes, "diagnosis": r.diagnosis, "group": r.group, "confirmed_by": r.confirmed_by}
        for r in records
    ]
    return index_cases(range(len(records)), descriptors, facts, projection)
