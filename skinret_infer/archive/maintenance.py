"""Maintenance of an archive: check, repair, compact, back up."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from .._files import atomic_write
from ..errors import ArchiveError
from . import table
from .archive import Archive
from .database import Database, check_name, damaged, translated_errors
from .pruning import SAMPLE, SEGMENT, Projection, segment_file

Progress = Callable[[int, int], None]


def check(archive: Archive, progress: Progress | None = None) -> list[str]:
    """Read the whole archive and return its faults as texts; [] if there are none."""
    faults: list[str] = []
    try:
        _check(archive, faults, progress)
    except ArchiveError as error:
        if error.code != "archive-damaged":
            raise
        faults.append(str(error))
    return faults


def repair(archive: Archive) -> None:
    """Compute again from the cases: the next row id, the counts of the segments, and the pruning index."""
    database, index = archive.database, archive.index
    with database.writing(create=False) as db:
        [last] = db.execute("SELECT coalesce(max(id), -1) FROM cases").fetchone()
        if database.number(db, "next_id") <= last:
            db.execute("UPDATE meta SET value = ? WHERE name = 'next_id'", (str(last + 1),))
        table.recount_segments(db)
        db.execute("DELETE FROM projection")
    with translated_errors(archive.path):
        index.remove_all()
    index.rebuild()


def compact(archive: Archive) -> None:
    """Free the space of removed cases, and fit the pruning index to the remaining cases.

    This writes the whole file again. Other processes wait until it has ended.
    """
    database, index = archive.database, archive.index
    with database.reading() as db:
        enough = table.count(db) >= SAMPLE
        projection = Projection.fit(index.sample(db), database.layout) if enough else None
        full = database.number(db, "next_id") // SEGMENT
    if projection:
        for number in range(full):  # write the index files now, before a search needs them
            with database.reading() as db, contextlib.suppress(OSError):
                generations = {n: generation for n, generation, _ in table.segments(db)}
                if number in generations:
                    segment = index.from_cases(db, projection, number * SEGMENT, (number + 1) * SEGMENT)
                    segment.save(index.folder / segment_file(projection, number, generations[number]))
        index.take_projection(projection)
    with database.writing(create=False) as db:
        table.delete_blank(db)
    _vacuum(database)
    index.rebuild()


def backup(archive: Archive, target: str | Path, progress: Progress | None = None) -> None:
    """Copy an archive, while it is in use, to a file that does not exist yet.

    The pruning index is not copied. A write of another process starts the copy again. After the third such
    write the copy is made in one step, and other writers wait.
    """
    database, target = archive.database, Path(target)
    check_name(target)
    with translated_errors(archive.path):
        exists = target.exists()
    if exists:
        raise ArchiveError(
            f"{target} exists already",
            code="archive-exists",
            expected="a name that no file has",
            cure="give another name, or move the file away",
        )
    restarts, last_remaining = 0, 0

    def on_step(_: int, remaining: int, total: int) -> None:
        nonlocal restarts, last_remaining
        if remaining > last_remaining > 0:
            restarts += 1
        last_remaining = remaining
        if restarts > 2:
            raise InterruptedError
        if progress:
            progress(total - remaining, total)

    with database.reading():
        pass
    with database.connection() as db, atomic_write(target) as temporary:
        with contextlib.closing(sqlite3.connect(temporary)) as copy:
            try:
                db.backup(copy, pages=2048, progress=on_step)
            except InterruptedError:
                db.backup(copy)
            verdict = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise damaged(archive.path, f"a copy with a fault: {verdict}")


def _check(archive: Archive, faults: list[str], progress: Progress | None) -> None:
    """Add the faults of an archive to the list. Raises ArchiveError if it cannot be read to its end."""
    database, index = archive.database, archive.index
    with database.reading_if_there() as db:
        if not db:
            return
        verdicts = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
        faults += [line for line in verdicts if line != "ok"]
        counts: dict[int, int] = {}
        total, last = table.count(db), -1
        for ids, _, _ in table.rows(db, database.layout):
            for number in ids:
                counts[number // SEGMENT] = counts.get(number // SEGMENT, 0) + 1
            last = ids[-1]
            if progress:
                progress(sum(counts.values()), total)
        if last >= database.number(db, "next_id"):
            faults.append(f"row {last} is above the next row id")
        stored_counts = {number: count for number, _, count in table.segments(db) if count}
        if stored_counts != counts:
            faults.append(
                f"{sum(counts.values())} cases, but {sum(stored_counts.values())} are accounted for"
            )
        if faults:
            return
        projection = index.projection(db, None)
        for number, generation, _ in table.segments(db):
            if name := index.differs(db, projection, number, generation):
                faults.append(f"{name} does not match the cases of the archive")


def _vacuum(database: Database) -> None:
    """Write the file again, with the copy in a temporary file: memory may be too small for it."""
    with database.connection() as db:
        db.execute("PRAGMA temp_store = FILE")
        try:
            db.execute("VACUUM")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN:
                raise
            raise ArchiveError(
                f"archive {database.path} cannot be compacted",
                code="archive-temporary",
                expected="a folder for temporary files, with space for the archive",
                found="no writable folder",
                cure="set SQLITE_TMPDIR to such a folder before the process starts",
            ) from None
        finally:
            db.execute("PRAGMA temp_store = MEMORY")
