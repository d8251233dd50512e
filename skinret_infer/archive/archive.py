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

    Safe for several threads and across a fork. The first `write` makes the file if there is none; opening
    does not. Raises ArchiveError for a file that is not an archive, is damaged, has another schema, or holds
    descriptors of another model.
    """

    def __init__(self, path: str | Path, fingerprint: str, layout: Layout, model: str) -> None:
        self.database = database = Database(path, fingerprint, layout, model)
        self.index = PruningIndex(database)
        self.path, self.layout = database.path, database.layout
        self.fingerprint, self.model = database.fingerprint, database.model

    @classmethod
    def open(cls, path: str | Path) -> "Archive":
        """Open an archive without its bundle, for the model that its file names."""
        database = Database.open(path)
        return cls(path, database.fingerprint, database.layout, database.model)

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        with self.database.reading_if_there() as db:
            return table.count(db) if db else 0

    @property
    def state(self) -> str:
        """The SHA-256 of the archive's history: of the model, and of every write and removal in order.

        It identifies what the archive held at one moment. A backup has the state of the moment when it was
        made.
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
        """Return the records of the case ids that are in the archive, by case id."""
        with self.database.reading_if_there() as db:
            return table.records(db, case_ids) if db else {}

    def get_with_descriptors(self, case_ids: Collection[str]) -> dict[str, tuple[Record, Vector]]:
        """Return record and descriptor of the case ids that are in the archive, by case id."""
        with self.database.reading_if_there() as db:
            return table.records_with_descriptors(db, self.layout, case_ids) if db else {}

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[tuple[int, Iterator[tuple[list[Record], Vector]]]]:
        """Yield the number of cases, and an iterator over all cases with their descriptors, in batches.

        All cases belong to one moment: a writer waits until the context has ended.
        """
        with self.database.reading_if_there() as db:
            if not db:
                yield 0, iter(())
                return
            batches = table.rows(db, self.layout)
            yield len(table.row_ids(db)), ((records, vectors) for _, records, vectors in batches)

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        """Write cases in one transaction, all or none. A case replaces the one with the same id."""
        self.layout.check(descriptors, len(records))
        vectors = np.ascontiguousarray(descriptors, "<f4")
        pending = self.index.start(records, vectors)
        with self.database.writing(create=True) as db:
            version = self._version(db)
            replaced = table.blank(db, [record.case_id for record in records])
            new_rows = self._insert(db, records, vectors)
        update_after_write(self.index, pending, version, new_rows, replaced > 0)
        if replaced:
            self.index.remove_stale()

    def update(self, record: Record) -> bool:
        """Change the facts of a case and keep its descriptor; return False if there is no such case."""
        with self.database.writing(create=False) as db:
            version = self._version(db)
            old = table.records_with_descriptors(db, self.layout, [record.case_id])
            if record.case_id not in old:
                return False
            _, vector = old[record.case_id]
            table.blank(db, [record.case_id])
            new_rows = self._insert(db, [record], np.ascontiguousarray(vector[None], "<f4"))
        update_after_write(self.index, None, version, new_rows, replaced=True)
        self.index.remove_stale()
        return True

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases and overwrite their bytes in the file; return how many cases were removed.

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

        One transaction reads everything: a writer waits until the search has ended, and the list belongs to
        one moment. The scores are sums in float64 over the stored descriptors, so pruning cannot change them.
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
            masks = [segment.allowed(conditions, excluded) for segment in segments]
            searched = sum(
                len(segment) if mask is None else int(mask.sum())
                for segment, mask in zip(segments, masks, strict=True)
            )
            repeated = np.repeat(weights, self.layout.lengths)
            ys = [repeated * query.astype(np.float64) for query in queries]  # y of pruning.py
            max_norm = len(self.layout.lengths) ** 0.5  # of a descriptor: no part is longer than 1
            bounds = candidates(segments, masks, view.projection, ys, k, max_norm)
            fetch = partial(table.descriptors, db, self.layout)
            matches = [
                _matches(db, k, *rescore(query, ids, upper, weights, self.layout, k, fetch))
                for query, (ids, upper) in zip(queries, bounds, strict=True)
            ]
            return SearchResult(matches, searched, self.database.state(db))

    def _version(self, db: sqlite3.Connection) -> tuple[int, str]:
        """Return the revision and the state."""
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
    """Return the k best as matches, best first; equal scores are in the order of the case ids."""
    records = table.records_by_row(db, ids)
    matches = [Match(records[int(i)], float(s), p) for i, s, p in zip(ids, scores, products, strict=True)]
    return sorted(matches, key=lambda match: (-match.score, match.record.case_id))[:k]
