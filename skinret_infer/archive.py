"""The archive: one SQLite file that holds each case once, and exact search over it.

SQLite is the truth. The matrix that a search scans is derived from it, held in memory, and read anew when the
archive has changed, in this process or in another.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cases import AttributeValue, Case, can_be_stored
from .descriptor import Layout, Vector, part_weights, products, weigh, well_formed
from .errors import ArchiveError, InputError

SCHEMA = 1
_APPLICATION_ID = 0x534B4E52  # "SKNR"
_CREATE = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
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
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
"""
_COLUMNS = ("case_id", "diagnosis", "group", "confirmed_by", "attributes", "image_ref", "image_sha256")
# Only what must be is quoted: SQLite reads a quoted name that is no column as a text.
_SELECT = ", ".join(_COLUMNS).replace("group", '"group"')
_BUSY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """A case as the archive keeps it, without its descriptor."""

    case_id: str
    diagnosis: str
    group: str
    confirmed_by: str
    attributes: Mapping[str, AttributeValue]
    image_ref: str
    image_sha256: str

    @classmethod
    def of(cls, case: Case, image_sha256: str) -> "Record":
        """Return what is kept of a case."""
        return cls(
            case.case_id,
            case.diagnosis,
            case.group,
            case.confirmed_by,
            dict(case.attributes),
            case.image_ref,
            image_sha256,
        )

    def row(self) -> tuple[str, ...]:
        """Return the record as text columns."""
        attributes = json.dumps(dict(self.attributes), sort_keys=True, ensure_ascii=False)
        return (
            self.case_id,
            self.diagnosis,
            self.group,
            self.confirmed_by,
            attributes,
            self.image_ref,
            self.image_sha256,
        )


@dataclass(frozen=True, slots=True)
class Match:
    """A record, its score, and its products [6 + C]: the six cosines, and the agreement of each trait."""

    record: Record
    score: float
    products: npt.NDArray[np.float64]


class _Malformed(Exception):
    """Something in the file is not what this package wrote."""


@dataclass(frozen=True, slots=True)
class _Scan:
    revision: str
    ids: npt.NDArray[np.int64]  # [N]
    case_ids: list[str]  # N of them
    descriptors: Vector  # [N, D]


class Archive:
    """Cases in a SQLite file, bound to the model whose fingerprint it carries. Safe from several threads.

    A file that does not exist is made by the first `add`, not by opening it. Raises ArchiveError for a file
    that is no archive, is damaged, is of a newer schema, or holds descriptors of another model.
    """

    def __init__(self, path: str | Path, fingerprint: str, layout: Layout, model: str) -> None:
        self.path = Path(path)
        self._fingerprint, self._layout, self._model = fingerprint, layout, model
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._scan: _Scan | None = None
        self._closed = False
        self._open()

    def __len__(self) -> int:
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM cases").fetchone()[0]) if db else 0

    def close(self) -> None:
        """Close the file. A closed archive cannot be used again."""
        with self._lock:
            self._closed = True
            self._scan = None
            if self._connection:
                self._connection.close()
                self._connection = None

    def find(self, case_ids: Collection[str]) -> dict[str, Record]:
        """Return the records of those of the case ids that are in the archive."""
        with self._reading() as db:
            if not db:
                return {}
            query = f"SELECT {_SELECT} FROM cases WHERE case_id IN (SELECT value FROM json_each(?))"
            return {row[0]: _record(row) for row in db.execute(query, (json.dumps(list(case_ids)),))}

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        """Write cases in one transaction, all or none; a case id that is there already is replaced."""
        shape = (len(records), self._layout.length)
        if descriptors.shape != shape or not well_formed(descriptors, self._layout).all():
            raise InputError(
                "the descriptors cannot be stored",
                code="descriptor-shape",
                found=f"shape {descriptors.shape}, or a part of another length or with NaN",
                expected=f"{shape[0]} x {shape[1]} finite numbers in six unit vectors, then distributions",
            )
        blobs = [d.tobytes() for d in descriptors.astype("<f4")]
        with self._writing(create=True) as db:
            db.executemany(
                f"INSERT OR REPLACE INTO cases ({_SELECT}, descriptor) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*record.row(), blob) for record, blob in zip(records, blobs, strict=True)],
            )

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases, overwriting their bytes in the file; return how many were there."""
        with self._writing(create=False) as db:
            cursor = db.execute(
                "DELETE FROM cases WHERE case_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(case_ids)),),
            )
            return cursor.rowcount

    def search(
        self,
        query: Vector,
        k: int,
        beta: float,
        gamma: float,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> tuple[list[Match], int]:
        """Return the exact k best cases by score, ties by case id, and how many cases the filter let through.

        query : the descriptor of the query, float32 [D].

        One float32 pass prunes; what lies within that pass's own rounding error of the k-th best is scored
        again in float64, so that neither the BLAS nor its threads can change the answer.
        """
        with self._reading() as db:
            if not db or not (count := int(db.execute("SELECT count(*) FROM cases").fetchone()[0])):
                state = "is empty" if db else "does not exist"
                raise ArchiveError(
                    f"archive {self.path} {state}",
                    code="archive-empty",
                    expected="cases to search",
                    cure="add cases with Searcher.add or `skinret index`",
                )
            scan = self._scanned(db, count)
            keep = self._filter(db, scan, where, exclude)
            order, scores, parts = _exact_top(scan, keep, query, k, beta, gamma, self._layout)
            found = {i: r for i, r in self._rows(db, scan.ids[order])}
            matches = [
                Match(found[int(scan.ids[n])], float(s), p)
                for n, s, p in zip(order, scores, parts, strict=True)
            ]
            return matches, int(keep.sum())

    def _rows(self, db: sqlite3.Connection, ids: npt.NDArray[np.int64]) -> Iterator[tuple[int, Record]]:
        query = f"SELECT id, {_SELECT} FROM cases WHERE id IN (SELECT value FROM json_each(?))"
        for row in db.execute(query, (json.dumps(ids.tolist()),)):
            yield row[0], _record(row[1:])

    def _scanned(self, db: sqlite3.Connection, count: int) -> _Scan:
        row = db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
        if not row:
            raise _Malformed("no revision")
        revision = str(row[0])
        if self._scan is None or self._scan.revision != revision:
            ids = np.empty(count, np.int64)
            case_ids: list[str] = []
            descriptors = np.empty((count, self._layout.length), np.float32)
            for number, case_id, blob in db.execute("SELECT id, case_id, descriptor FROM cases ORDER BY id"):
                n = len(case_ids)
                whole = isinstance(blob, bytes) and len(blob) == 4 * self._layout.length
                if n == count or not isinstance(case_id, str) or not whole:
                    raise _Malformed(f"a descriptor of another length in case {case_id!r}")
                ids[n], descriptors[n] = number, np.frombuffer(blob, "<f4")
                case_ids.append(case_id)
            if len(case_ids) != count:
                raise _Malformed(f"{len(case_ids)} of {count} cases")
            if not (right := well_formed(descriptors, self._layout)).all():
                raise _Malformed(f"a descriptor that is none in case {case_ids[int(np.argmin(right))]!r}")
            self._scan = _Scan(revision, ids, case_ids, descriptors)
        return self._scan

    def _filter(
        self, db: sqlite3.Connection, scan: _Scan, where: Mapping[str, Any] | None, exclude: Collection[str]
    ) -> npt.NDArray[np.bool_]:
        keep = np.ones(len(scan.ids), bool)
        if where is not None and not isinstance(where, Mapping):
            raise InputError(
                "the filter cannot be used",
                code="filter-type",
                expected='a mapping such as {"sex": "female"}',
                found=repr(where),
            )
        for name, wanted in (where or {}).items():
            values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            if not all(isinstance(v, str | int | float) and can_be_stored(v) for v in values):
                raise InputError(
                    f"the filter on {name!r} cannot be used",
                    code="filter-type",
                    expected="a str or number, or a list of them",
                    found=repr(wanted),
                )
            if name in ("diagnosis", "group", "confirmed_by"):
                query = f'SELECT id FROM cases WHERE "{name}" IN (SELECT value FROM json_each(?))'
                rows = db.execute(query, (json.dumps(values),))
            else:
                known = [
                    r[0]
                    for r in db.execute(
                        "SELECT DISTINCT key FROM cases, json_each(cases.attributes) ORDER BY key"
                    )
                ]
                if name not in known:
                    raise InputError(
                        f"no case has the attribute {name!r}",
                        code="filter-unknown",
                        found=repr(name),
                        expected=f"one of {', '.join(['diagnosis', 'group', 'confirmed_by', *known])}",
                    )
                rows = db.execute(
                    "SELECT id FROM cases WHERE EXISTS (SELECT 1 FROM json_each(cases.attributes) AS a"
                    " WHERE a.key = ? AND a.value IN (SELECT value FROM json_each(?)))",
                    (name, json.dumps(values)),
                )
            keep &= np.isin(scan.ids, np.fromiter((r[0] for r in rows), np.int64))
        if exclude:
            rows = db.execute(
                "SELECT id FROM cases WHERE case_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(exclude)),),
            )
            keep &= ~np.isin(scan.ids, np.fromiter((r[0] for r in rows), np.int64))
        return keep

    # -- the file --

    def _open(self) -> None:
        """Connect if there is a file to connect to, and check that it is ours."""
        with self._translated():
            if self._connection or not self.path.is_file() or not self.path.stat().st_size:
                return
        db = self._connect()
        try:
            with self._translated():
                pages = db.execute("PRAGMA page_count").fetchone()[0]
                if not pages and not self.path.stat().st_size:  # a first commit that a kill undid
                    db.close()
                    return
                application = db.execute("PRAGMA application_id").fetchone()[0]
                schema = db.execute("PRAGMA user_version").fetchone()[0]
                if application != _APPLICATION_ID:
                    raise ArchiveError(
                        f"{self.path} is not a skinret archive",
                        code="archive-foreign",
                        expected="a file that `skinret index` made",
                        found="another SQLite database",
                        cure="check the path",
                    )
                if schema > SCHEMA:
                    raise ArchiveError(
                        f"archive {self.path} is newer than this package",
                        code="archive-newer",
                        expected=f"schema {SCHEMA} or older",
                        found=f"schema {schema}",
                        cure="pip install --upgrade skinret-infer",
                    )
                meta = dict(db.execute("SELECT name, value FROM meta"))
            if meta.get("fingerprint") != self._fingerprint:
                raise ArchiveError(
                    f"archive {self.path} was written by another model",
                    code="archive-model",
                    expected=f"{self._model} (fingerprint {self._fingerprint[:12]})",
                    found=f"{meta.get('model')} (fingerprint {str(meta.get('fingerprint'))[:12]})",
                    cure="open it with the bundle that wrote it, or index the images into a new archive",
                )
        except BaseException:
            db.close()
            raise
        self._connection = db

    def _connect(self) -> sqlite3.Connection:
        if "\0" in str(self.path):
            raise ArchiveError(
                f"archive {str(self.path)!r} cannot be", code="archive-io", cure="check the path"
            )
        with self._translated():
            db = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            db.execute("PRAGMA secure_delete = ON")  # a removed case's bytes are overwritten
            return db

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Give a connection inside one read transaction, or None where there is no file yet."""
        with self._lock, self._translated():
            self.check_open()
            self._open()
            db = self._connection
            if db is None:
                yield None
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self.check_open()
            self._open()
            if self._connection is None:
                if not create:
                    raise ArchiveError(
                        f"archive {self.path} does not exist", code="archive-empty", cure="check the path"
                    )
                self._create()
                self._open()
            db = self._connection
            assert db is not None
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _create(self) -> None:
        """Make the tables in one transaction: a kill leaves an empty file, which counts as none.

        Another writer that was faster is left to have made them.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = self._connect()
        meta = {"fingerprint": self._fingerprint, "model": self._model, "revision": "0"}
        try:
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("PRAGMA application_id").fetchone()[0]:
                for statement in filter(str.strip, _CREATE.split(";")):
                    db.execute(statement)
                db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            db.execute("COMMIT")
        finally:
            db.close()

    def check_open(self) -> None:
        """Raise ArchiveError if the archive was closed."""
        if self._closed:
            raise ArchiveError(
                f"archive {self.path} is closed", code="archive-closed", cure="open a new Searcher"
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
    if not isinstance(known, dict) or not all(isinstance(text, str) for text in texts):
        raise _Malformed(f"facts of another type in case {case_id!r}")
    return Record(case_id, diagnosis, group, confirmed_by, known, image_ref, image_sha256)


def _exact_top(
    scan: _Scan,
    keep: npt.NDArray[np.bool_],
    query: Vector,
    k: int,
    beta: float,
    gamma: float,
    layout: Layout,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the positions of the k best kept cases in order, their scores [k] and products [k, 6 + C]."""
    kept = np.flatnonzero(keep)
    if k < len(kept):
        weighed = weigh(query, layout, beta, gamma)
        # Not BLAS: its threads spin on for 20 ms after the product, on the cores that the next query needs.
        rough = np.einsum("ij,j->i", scan.descriptors, weighed)[kept]
        # |fl(x.y) - x.y| <= D u |x||y| in any order of summation (Higham 2002, 3.5); no part exceeds 1.
        longest = len(layout.lengths) ** 0.5
        bound = (layout.length + 2) * 2.0**-24 * float(np.linalg.norm(weighed)) * longest
        kth = np.partition(rough, len(kept) - k)[len(kept) - k]
        kept = kept[rough >= kth - 2.1 * bound]
    parts = products(query, scan.descriptors[kept], layout)
    score = (parts * part_weights(layout, beta, gamma)).sum(
        axis=1
    )  # not BLAS: the same bits whatever stands beside
    order = sorted(range(len(kept)), key=lambda n: (-score[n], scan.case_ids[kept[n]]))[:k]
    return kept[order], score[order], parts[order]
