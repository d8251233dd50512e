"""The archive: one SQLite file that holds each case once, and exact search over it.

The file (database.py) is the truth. The pruning index (segments.py) is derived from it and lies beside it.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..descriptor import Layout, Vector
from ..errors import ArchiveError
from . import table
from .database import Database
from .filters import parse_filter
from .pruning import Ids, candidates, rescore
from .segments import PruningIndex, update_after_write
from .store import Match, Record, SearchResult


class Archive:
    """Cases in a SQLite file, bound to the model whose fingerprint it carries. A Store.

    Safe from several threads and across a fork. A file that does not exist is made by the first `write`, not
    by opening it. Raises ArchiveError for a file that is no archive, is damaged, is of another schema, or
    holds descriptors of another model.
    """

    def __init__(self, path: str | Path, fingerprint: str, layout: Layout, model: str) -> None:
        self.database = database = Database(path, fingerprint, layout, model)
        self.index = PruningIndex(database)
        self.path, self.layout = database.path, database.layout
        self.fingerprint, self.model = database.fingerprint, database.model

    @classmethod
    def open(cls, path: str | Path) -> "Archive":
        """Open an archive without its bundle: its model is the one that it names itself."""
        database = Database.open(path)
        return cls(path, database.fingerprint, database.layout, database.model)

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        with self.database.reading_if_there() as db:
            return table.count(db) if db else 0

    @property
    def state(self) -> str:
        """The SHA-256 of the archive's history: of the model, and of every write and removal in its order.

        It names what the archive held at a moment; a backup has the state of the moment of its making.
        """
        with self.database.reading_if_there() as db:
            return self.database.state(db) if db else ""

    def check_open(self) -> None:
        """Raise ArchiveError if the archive was closed."""
        self.database.check_open()

    def close(self) -> None:
        """Close the file. A closed archive cannot be used again."""
        self.database.close()
        self.index.close()

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, sorted."""
        with self.database.reading_if_there() as db:
            return table.case_ids(db) if db else []

    def get(self, case_ids: Collection[str]) -> dict[str, Record]:
        """Return the records of those of the case ids that are in the archive."""
        with self.database.reading_if_there() as db:
            return table.records(db, case_ids) if db else {}

    def get_with_descriptors(self, case_ids: Collection[str]) -> dict[str, tuple[Record, Vector]]:
        """Return the records, with their descriptors, of those of the case ids that are in the archive."""
        with self.database.reading_if_there() as db:
            return table.stored(db, self.layout, case_ids) if db else {}

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[tuple[int, Iterator[tuple[list[Record], Vector]]]]:
        """Yield how many cases there are, and all of them with their descriptors, some at a time.

        All are of one moment: a writer waits until the context has ended.
        """
        with self.database.reading_if_there() as db:
            if not db:
                yield 0, iter(())
                return
            batches = table.rows(db, self.layout)
            yield len(table.row_ids(db)), ((records, vectors) for _, records, vectors in batches)

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        """Write cases in one transaction, all or none; a case id that is there already is replaced."""
        self.layout.check(descriptors, len(records))
        vectors = np.ascontiguousarray(descriptors, "<f4")
        started = self.index.start(records, vectors)
        with self.database.writing(create=True) as db:
            point = self._point(db)
            replaced = table.blank(db, [record.case_id for record in records])
            written = self._insert(db, records, vectors)
        update_after_write(self.index, started, point, written, replaced > 0)
        if replaced:
            self.index.remove_stale()

    def update(self, record: Record) -> bool:
        """Change the facts of a case and keep its descriptor; return False if there is no such case."""
        with self.database.writing(create=False) as db:
            point = self._point(db)
            found = table.stored(db, self.layout, [record.case_id])
            if record.case_id not in found:
                return False
            _, vector = found[record.case_id]
            table.blank(db, [record.case_id])
            written = self._insert(db, [record], np.ascontiguousarray(vector[None], "<f4"))
        update_after_write(self.index, None, point, written, replaced=True)
        self.index.remove_stale()
        return True

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases and overwrite their bytes in the file; return how many were there.

        On return the pruning index no longer holds the cases. If the process is killed first, the next
        remove, replace or compact finishes the clean-up. After a killed `write`, free pages of the file may
        still hold data until the archive is compacted.
        """
        with self.database.writing(create=False) as db:
            removed = table.blank(db, list(case_ids))
            if removed:
                self.database.advance_state(db, table.removal_of(case_ids))
        self.index.remove_stale()
        return removed

    def search(
        self,
        queries: Vector,
        weights: npt.NDArray[np.float64],
        k: int,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> SearchResult:
        """Return the exact k best cases of each query by score, as `Store.search` says.

        Everything is read in one transaction, so that a writer waits until the search has ended and the list
        is of one moment. The scores are sums in float64 over the stored descriptors: pruning cannot change
        the answer.
        """
        with self.database.reading_if_there() as db:
            if not db or not table.count(db):
                state = "is empty" if db else "does not exist"
                raise ArchiveError(
                    f"archive {self.path} {state}",
                    code="archive-empty",
                    expected="cases to search",
                    cure="add cases with Searcher.add or `skinret index`",
                )
            view = self.index.current(db)
            segments = [segment for _, segment in view.segments.values()]
            conditions = parse_filter(where, [segment.columns for segment in segments])
            excluded = table.row_ids(db, exclude)
            keeps = [segment.allowed(conditions, excluded) for segment in segments]
            searched = sum(
                len(segment) if keep is None else int(keep.sum())
                for segment, keep in zip(segments, keeps, strict=True)
            )
            repeated = np.repeat(weights, self.layout.lengths)
            weighed = [repeated * query.astype(np.float64) for query in queries]
            longest = len(self.layout.lengths) ** 0.5  # no part of a descriptor is longer than 1
            bounded = candidates(segments, keeps, view.projection, weighed, k, longest)
            fetch = partial(table.descriptors, db, self.layout)
            matches = [
                _matches(db, k, *rescore(query, some, upper, weights, self.layout, k, fetch))
                for query, (some, upper) in zip(queries, bounded, strict=True)
            ]
            return SearchResult(matches, searched, self.database.state(db))

    def _point(self, db: sqlite3.Connection) -> tuple[int, str]:
        return self.database.number(db, "revision"), self.database.state(db)

    def _insert(
        self, db: sqlite3.Connection, records: Sequence[Record], vectors: Vector
    ) -> tuple[int, int, str]:
        """Insert cases; return the first row id, the one after the last, and the new state."""
        first = self.database.number(db, "next_id")
        end = table.insert(db, first, records, vectors)
        self.database.advance_state(db, table.change_of(records), vectors.data)
        return first, end, self.database.state(db)


def _matches(
    db: sqlite3.Connection,
    k: int,
    ids: Ids,
    scores: npt.NDArray[np.float64],
    products: npt.NDArray[np.float64],
) -> list[Match]:
    """Return the k best as matches, equal scores by case id."""
    records = table.records_by_row(db, ids)
    matches = [Match(records[int(i)], float(s), p) for i, s, p in zip(ids, scores, products, strict=True)]
    return sorted(matches, key=lambda match: (-match.score, match.record.case_id))[:k]
