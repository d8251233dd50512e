"""The SQLite file of an archive: its schema, connections, transactions and errors.

It is in rollback journal mode: the archive is one file, no reader sees half a change, and a commit waits
until the readers have finished.
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
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from .. import _forks
from .._json import build
from ..descriptor import Layout
from ..errors import ArchiveError, InputError

SCHEMA = 1
OLDEST_SQLITE = (3, 26, 0)  # of RHEL 8; older versions are not tested
BUSY_SECONDS = 30.0  # how long a transaction waits for another process that writes
_APPLICATION_ID = 0x534B4E52  # "SKNR"
# A row id is never used again. Segment n has the rows with id // SEGMENT = n. Its generation is a random
# number, drawn when the segment loses a case or becomes full: it identifies the content of a full segment, in
# this file, in a copy and in any other file. The history has the last states by revision: it tells a reader
# whether the view in its memory belongs to the past of this file, or to another file copied over it.
_TABLES = (
    """CREATE TABLE cases (
        id INTEGER PRIMARY KEY,
        case_id TEXT NOT NULL UNIQUE,
        diagnosis TEXT NOT NULL,
        "group" TEXT NOT NULL,
        confirmed_by TEXT NOT NULL,
        attributes TEXT NOT NULL,
        image_ref TEXT NOT NULL,
        image_sha256 TEXT NOT NULL,
        descriptor BLOB NOT NULL
    )""",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE segments (
        number INTEGER PRIMARY KEY, generation INTEGER NOT NULL, cases INTEGER NOT NULL
    )""",
    "CREATE TABLE projection (key TEXT NOT NULL, vectors BLOB NOT NULL)",
    "CREATE TABLE history (revision INTEGER PRIMARY KEY, state TEXT NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA}",
)
_HISTORY_LENGTH = 4096  # revisions in the history


class Malformed(Exception):
    """The file holds something that this package did not write."""


class _Connection(sqlite3.Connection):
    """A connection that can close its cursors.

    The traceback of an exception may keep a cursor in the middle of a query. From Python 3.13 on, that query
    holds its lock on the file after a rollback, and even after the connection is closed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute a statement and return its cursor."""
        cursor = super().execute(*arguments)
        self._cursors.add(cursor)
        return cursor

    def close_cursors(self) -> None:
        """Close the cursors that are still referenced."""
        for cursor in list(self._cursors):
            cursor.close()
        self._cursors.clear()

    def close(self) -> None:
        """Close the cursors and the connection."""
        self.close_cursors()
        super().close()


class Database:
    """The file of one archive, bound to one model. Safe for several threads and across a fork.

    The first transaction that writes makes the file if there is none. Raises ArchiveError for a file that is
    not an archive, is damaged, has another schema, or holds descriptors of another model.
    """

    def __init__(self, path: str | Path, fingerprint: str, layout: Layout, model: str) -> None:
        self.path = Path(path)
        self.fingerprint, self.layout, self.model = fingerprint, layout, model
        self.file: tuple[int, int] | None = None  # device and inode; another file may take its place
        self._idle: list[_Connection] = []
        self._closed = False
        self._is_valid = False  # the file exists and is an archive of this model
        self._lock = threading.Lock()  # guards the idle connections, and closing
        _forks.renew(self)
        self._inspect_file()

    @classmethod
    def open(cls, path: str | Path) -> "Database":
        """Open an archive without its bundle, for the model that its file names."""
        path = Path(path)
        with translated_errors(path):
            if not path.is_file() or not path.stat().st_size:
                raise missing(path)
            with contextlib.closing(_connect(path)) as db:
                meta = _meta(db, path)
            try:
                layout = build(Layout, json.loads(meta["layout"]), "layout")
                fingerprint, model = meta["fingerprint"], meta["model"]
            except (KeyError, ValueError, TypeError, RecursionError) as error:
                raise Malformed(f"its model: {error}") from None
        return cls(path, fingerprint, layout, model)

    def after_fork(self) -> None:
        """Replace the connections and the lock, in a forked child."""
        _forks.abandon(self._idle, *self._idle)
        self._idle = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file. A closed database cannot be used again."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    def check_open(self) -> None:
        """Raise ArchiveError if the database was closed."""
        if self._closed:
            raise ArchiveError(
                f"archive {self.path} is closed", code="archive-closed", cure="open a new Searcher"
            )

    @contextlib.contextmanager
    def reading_if_there(self) -> Iterator[sqlite3.Connection | None]:
        """Yield a connection inside one read transaction, or None if there is no file yet."""
        self.check_open()
        self._inspect_file()
        if not self._is_valid:
            yield None
            return
        with self.connection() as db:
            db.execute("BEGIN")
            try:
                self._check_model(db)  # another file may have been copied over the one that was opened
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection inside one read transaction. Raises ArchiveError if there is no file."""
        with self.reading_if_there() as db:
            if db is None:
                raise missing(self.path)
            yield db

    @contextlib.contextmanager
    def writing(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        """Yield a connection inside one write transaction, which ends with a new revision.

        create : make the file if there is none. Raises ArchiveError if there is none and create is False.
        """
        self.check_open()
        self._inspect_file()
        if not self._is_valid:
            if not create:
                raise missing(self.path)
            self._create()
            self._inspect_file()
        with self.connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                self._check_model(db)
                yield db
                db.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
                self._add_to_history(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection to the file, which must exist.

        It caches no pages of the file. SQLite trusts cached pages while a counter in the file is the same,
        and a backup that was copied over the file may have the same counter.
        """
        with translated_errors(self.path), _forks.no_fork():
            with self._lock:
                self.check_open()
                file, db = self.file, self._idle.pop() if self._idle else None
            db = db or _connect(self.path)
            try:
                yield db
            finally:
                db.close_cursors()
                with contextlib.suppress(sqlite3.Error):
                    db.execute("PRAGMA shrink_memory")
                with self._lock:
                    if not self._closed and file == self.file and not db.in_transaction:
                        self._idle.append(db)
                        db = None
                if db:
                    db.close()

    def number(self, db: sqlite3.Connection, name: str) -> int:
        """Return a number of the table meta, such as the revision."""
        row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if not row or not re.fullmatch(r"[0-9]{1,18}", str(row[0])):
            raise Malformed(f"no {name}")
        return int(row[0])

    def state(self, db: sqlite3.Connection) -> str:
        """Return the SHA-256 of the archive's history: of the model, and of each change in order."""
        row = db.execute("SELECT value FROM meta WHERE name = 'state'").fetchone()
        return str(row[0]) if row else hashlib.sha256(self.fingerprint.encode()).hexdigest()

    def advance_state(self, db: sqlite3.Connection, *change: bytes | memoryview) -> None:
        """Add a change to the state, inside the transaction that makes the change."""
        sha = hashlib.sha256(self.state(db).encode())
        for piece in change:
            sha.update(piece)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (sha.hexdigest(),))

    def was_in_state(self, db: sqlite3.Connection, revision: int, state: str) -> bool:
        """Return whether this file had this state at this revision."""
        row = db.execute("SELECT state FROM history WHERE revision = ?", (revision,)).fetchone()
        return row is not None and row[0] == state

    def _add_to_history(self, db: sqlite3.Connection) -> None:
        """Add the state of this revision to the history."""
        revision = self.number(db, "revision")
        db.execute("INSERT OR REPLACE INTO history VALUES (?, ?)", (revision, self.state(db)))
        db.execute("DELETE FROM history WHERE revision <= ?", (revision - _HISTORY_LENGTH,))

    def _inspect_file(self) -> None:
        """If there is a file, check that it is an archive of this model. Forget a file that is gone."""
        with translated_errors(self.path):
            try:
                stat = self.path.stat()
            except (FileNotFoundError, ValueError):  # or a name that no file can have
                stat = None
            file = (stat.st_dev, stat.st_ino) if stat else None
            if file != self.file:  # the file is new, is gone, or was replaced by another
                with self._lock:
                    while self._idle:
                        self._idle.pop().close()
                self.file, self._is_valid = file, False
            if stat is None or not stat.st_size or not self.path.is_file():
                self._is_valid = False
                return
            if self._is_valid:
                return
            with contextlib.closing(_connect(self.path)) as db:
                pages = db.execute("PRAGMA page_count").fetchone()[0]
                if (
                    not pages and not self.path.stat().st_size
                ):  # the first commit was rolled back after a kill
                    return
                self._check_model(db)
            self._is_valid = True

    def _check_model(self, db: sqlite3.Connection) -> None:
        meta = _meta(db, self.path)
        if meta.get("fingerprint") != self.fingerprint:
            raise ArchiveError(
                f"archive {self.path} was written by another model",
                code="archive-model",
                expected=f"{self.model} (fingerprint {self.fingerprint[:12]})",
                found=f"{meta.get('model')} (fingerprint {str(meta.get('fingerprint'))[:12]})",
                cure="open it with the bundle that wrote it, or index the images into a new archive",
            )

    def _create(self) -> None:
        """Make the tables in one transaction: after a kill the file is empty, which counts as no file.

        If another process made them first, its tables stay.
        """
        meta = {
            "fingerprint": self.fingerprint,
            "model": self.model,
            "layout": json.dumps(asdict(self.layout)),
            "revision": "0",
            "next_id": "0",
        }
        with translated_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(_connect(self.path, "rwc")) as db:
                db.execute("BEGIN IMMEDIATE")
                if not db.execute("PRAGMA application_id").fetchone()[0]:
                    for statement in _TABLES:
                        db.execute(statement)
                    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                db.execute("COMMIT")


def missing(path: Path) -> ArchiveError:
    """Return the error for an archive that does not exist."""
    return ArchiveError(f"archive {path} does not exist", code="archive-empty", cure="check the path")


def damaged(path: Path, found: str) -> ArchiveError:
    """Return the error for an archive with content that this package did not write."""
    return ArchiveError(
        f"archive {path} is damaged or is not an archive",
        code="archive-damaged",
        expected="a complete SQLite file that `skinret index` made",
        found=found,
        cure="restore it from a backup, or index the images again",
    )


@contextlib.contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turn the exceptions of SQLite and of the file system into an ArchiveError or InputError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # Python's module raises one without a code, for text that is not UTF-8. For our own statements,
        # SQLITE_ERROR means that a table or a column is missing.
        name = getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise ArchiveError(
                f"archive {path} is locked by another writer",
                code="archive-locked",
                expected=f"that the archive is free within {BUSY_SECONDS:g} s",
                cure="wait until the other process has finished",
            ) from None
        if name == "SQLITE_ERROR" or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise damaged(path, str(error)) from None
        raise ArchiveError(
            f"archive {path} cannot be used",
            code="archive-io",
            expected="a readable file; to add cases, also a writable folder with free space",
            found=str(error),
            cure="check its permissions and the free disk space",
        ) from None
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, UnicodeEncodeError) as error:
        raise InputError("a case cannot be stored", code="case-attribute", found=str(error)) from None
    except (sqlite3.DatabaseError, Malformed, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from None
    except OSError as error:
        raise ArchiveError(
            f"archive {path} cannot be used",
            code="archive-io",
            found=str(error),
            cure="check the path and its permissions",
        ) from None


def check_sqlite() -> None:
    """Raise ArchiveError if Python's SQLite cannot hold an archive."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE or not _has_json():
        raise ArchiveError(
            "the SQLite of this Python cannot hold an archive",
            code="archive-sqlite",
            expected=f"SQLite {'.'.join(map(str, OLDEST_SQLITE))} or newer, with JSON",
            found=f"SQLite {sqlite3.sqlite_version}{'' if _has_json() else ' without JSON'}",
            cure="use a Python with a newer SQLite, such as one from conda, uv or python.org",
        )


def check_name(path: Path) -> None:
    """Raise ArchiveError for a name that no file can have."""
    if "\0" in str(path):
        raise ArchiveError(
            f"archive {str(path)!r} cannot exist: its name has a NUL",
            code="archive-io",
            cure="check the path",
        )


def sqlite_uri(path: PurePath) -> str:
    """Return the URI of an absolute path in SQLite's form: without an authority, also for a network share."""
    posix = path.as_posix()
    return f"file://{'' if posix.startswith('/') else '/'}{urllib.parse.quote(os.fsencode(posix), safe='/:')}"


@functools.cache
def _has_json() -> bool:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        try:
            db.execute("SELECT value FROM json_each('[]')")
        except sqlite3.OperationalError:
            return False
    return True


def _connect(path: Path, mode: str = "rw") -> _Connection:
    check_name(path)
    check_sqlite()
    if _forks.torn():
        raise ArchiveError(
            f"archive {path} cannot be used in this process",
            code="archive-forked",
            expected="a fork while no other thread uses an archive",
            found="a fork in the middle of a transaction",
            cure='start processes with "spawn", or fork before threads use an archive',
        )
    db = sqlite3.connect(
        f"{sqlite_uri(path.absolute())}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    db.execute("PRAGMA secure_delete = ON")  # a removed case's bytes are overwritten
    db.execute("PRAGMA synchronous = EXTRA")  # a commit survives a power failure
    db.execute("PRAGMA temp_store = MEMORY")  # the ids of a removal are not written to a shared folder
    return db


def _meta(db: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Check that the file is an archive of this schema, and return the table meta."""
    if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise ArchiveError(
            f"{path} is not a skinret archive",
            code="archive-foreign",
            expected="a file that `skinret index` made",
            found="another SQLite database",
            cure="check the path",
        )
    if (schema := db.execute("PRAGMA user_version").fetchone()[0]) != SCHEMA:
        raise ArchiveError(
            f"archive {path} has another schema",
            code="archive-schema",
            expected=f"schema {SCHEMA}",
            found=f"schema {schema}",
            cure="use the version of skinret-infer that wrote it, or index the images into a new archive",
        )
    return dict(db.execute("SELECT name, value FROM meta"))
