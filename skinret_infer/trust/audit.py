"""The audit trail: an append-only log of JSON lines, each chained to the one before it by its hash.

The hash of a record is the SHA-256 of its line up to ``,"hash":``. The head file beside the log names the
last acknowledged record, so that `verify` detects a log whose end was cut off. It is also the lock of the
writers. `append` writes and syncs the log, then the head file, and then returns: the head file may lack
records that were not acknowledged, and never names a record that a complete log lacks.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .._files import sync
from ..errors import AuditError, printable

_RESERVED = ("sequence", "previous", "hash")
_MAX_LINE = 4_000_000  # bytes
_BUSY_SECONDS = 30.0  # how long a call waits for the lock
_MAX_TEXTS = 20  # faults in a report, and notes
_RECORD = re.compile(
    rb'\{"sequence":(\d{1,18}),"previous":"([0-9a-f]{64})".*,"hash":"([0-9a-f]{64})"\}', re.DOTALL
)
_HEAD = re.compile(rb'\{"sequence":(\d{1,18}),"hash":"([0-9a-f]{64})"\}\n')
_log = logging.getLogger(__name__)

if sys.platform == "win32":
    import msvcrt

    def _flock(file: int, *, hold: bool) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # beyond the content: no other process can read locked bytes
        msvcrt.locking(file, msvcrt.LK_NBLCK if hold else msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _flock(file: int, *, hold: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if hold else fcntl.LOCK_UN)


class _Link(NamedTuple):
    sequence: int
    hash: str


_START = _Link(0, "0" * 64)


class AuditLog:
    """An append-only file of JSON lines, one record a query, each chained to the one before by its hash.

    Any number of threads and processes may append. No file stays open between two appends, so a log can be
    used on both sides of a fork. A file that would become larger than `max_bytes` is renamed to
    ``<stem>.<its last sequence><suffix>``, and a new one continues the chain.

    Raises AuditError if the log cannot be written.
    """

    def __init__(self, path: str | Path, *, max_bytes: int = 64_000_000) -> None:
        self.path = Path(path).absolute()
        self.max_bytes = max_bytes
        self.append(())

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records in one step; on return they survive a kill and a power failure.

        Raises AuditError. Then none, some or all of the records are in the log.
        """
        members = [_members(record) for record in records]
        with _translated_errors(self.path, "write"):
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
            with _open_file(_head_file(self.path), os.O_RDWR | os.O_CREAT) as head, _lock(head, self.path):
                self._append(members, head)

    def _append(self, members: list[bytes], head: int) -> None:
        acknowledged = _read_head(head, self.path)
        if acknowledged is None:
            raise AuditError(
                f"the head file of audit log {self.path} is missing or damaged",
                code="audit-head",
                expected=f"a file {_head_file(self.path).name} that names the last record",
                found="records without it",
                cure="restore it, or move all files of the log to another folder to begin a new log",
            )
        if acknowledged == _START:
            _write_head(head, acknowledged)  # before there is a log
        last, size = self._end()
        # If the end of the log was cut off, the chain continues at the acknowledged record.
        last = max(acknowledged, last, key=lambda link: link.sequence)
        before, lines = last, []
        for text in members:
            line = b'{"sequence":%d,"previous":"%s"%s' % (last.sequence + 1, last.hash.encode(), text)
            last = _Link(last.sequence + 1, hashlib.sha256(line).hexdigest())
            lines.append(b'%s,"hash":"%s"}\n' % (line, last.hash.encode()))
        data = b"".join(lines)
        if data and size and size + len(data) > self.max_bytes:
            self._rotate(before, head)
        with _open_file(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as log:
            if not os.fstat(log).st_size:
                sync(self.path.parent)  # the name of the log must be durable before its first record
            if data:
                _write(log, data)
                os.fsync(log)
                _write_head(head, last)

    def _end(self) -> tuple[_Link, int]:
        """Return the last complete record and the size of the log; end its last line if that was cut off."""
        last = _START
        try:
            with _open_file(self.path, os.O_RDWR | os.O_APPEND) as log:
                size = os.lseek(log, 0, os.SEEK_END)
                for length in (1 << 14, 3 * _MAX_LINE):  # lines that were cut off may follow the record
                    start = os.lseek(log, max(0, size - length), os.SEEK_SET)
                    data = os.read(log, length)
                    lines = data.split(b"\n")
                    if start:
                        del lines[0]  # its beginning was not read
                    records = filter(None, map(_parse, reversed(lines)))
                    if link := next((link for link, _, intact in records if intact), None):
                        last = link
                        break
                if data and not data.endswith(b"\n"):
                    _write(log, b"\n")
                return last, size
        except FileNotFoundError:
            return last, 0

    def _rotate(self, last: _Link, head: int) -> None:
        """Rename the log to an older file that ends with record `last`."""
        with _open_file(self.path, os.O_WRONLY | os.O_APPEND) as log:
            os.fsync(log)
        _write_head(head, last)  # if this process is killed, the next writer finds no log
        target = self.path.with_name(f"{self.path.stem}.{last.sequence:012}{self.path.suffix}")
        try:
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            self.path.rename(target)
        except OSError as error:
            _log.warning("audit log %s is too large, but cannot be renamed (%s)", self.path, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The result of `verify`.

    Parameters
    ----------
    records : the number of complete records.
    first : the sequence of the first record, 0 if there is none.
    files : the number of files of the log.
    head : the hash of the last record. Stored elsewhere, it proves later that the log was not replaced.
    faults : the first 20 faults as texts, and how many more there are.
    notes : oddities without a missing record, in the same form.
    """

    records: int
    first: int
    files: int
    head: str
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only, ready for json.dumps."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"records: {self.records}, from {self.first} on",
            f"files: {self.files}",
            f"head: {self.head}",
        ]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"fault: {fault}" for fault in self.faults]
        return "\n".join(map(printable, lines))


def verify(path: str | Path, *, removed: int = 0, head: str | None = None) -> Verified:
    """Read all files of a log, which may be in use, and report every change that is not an append.

    Parameters
    ----------
    removed : how many records were removed from the start of the log on purpose.
    head : a hash that was stored elsewhere; a record must have it.

    Raises AuditError if there is no log or it cannot be read.
    """
    path = Path(path)
    with _translated_errors(path, "read"), contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as lock:  # only for a moment: later records are not read
            acknowledged = newest = None
            if _head_file(path).is_file():
                descriptor = lock.enter_context(_open_file(_head_file(path), os.O_RDONLY))
                lock.enter_context(_lock(descriptor, path))
                acknowledged = _read_head(descriptor, path)
            files = _files(path)
            if path in files:
                newest = stack.enter_context(path.open("rb"))
                size = os.fstat(newest.fileno()).st_size
        if acknowledged is None and not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        chain = _Chain(acknowledged, removed, head if head is None else head.lower())
        for file in files:
            if file == path and newest:
                chain.read(file.name, newest, size)
            else:
                with file.open("rb") as older:
                    chain.read(file.name, older)
        return chain.report(len(files), _head_file(path).name)


class _Texts:
    """The first texts of many, and the number of the others."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.more = 0

    def add(self, text: str) -> None:
        if len(self.first) < _MAX_TEXTS:
            self.first.append(text)
        else:
            self.more += 1

    def lines(self) -> tuple[str, ...]:
        return (*self.first, f"and {self.more} more") if self.more else tuple(self.first)


class _Chain:
    """The state of a check that reads a log line by line.

    acknowledged : the record that the head file names.
    removed, head : as in `verify`.
    """

    def __init__(self, acknowledged: _Link | None, removed: int, head: str | None) -> None:
        self.acknowledged, self.removed, self.head = acknowledged, removed, head
        self.not_found: set[object] = {acknowledged, head}  # that the log did not have so far
        self.records = self.first = 0
        self.last = _START
        self.incomplete = _Texts()  # lines that may come from writes that were cut off
        self.faults, self.notes = _Texts(), _Texts()

    def read(self, name: str, file: BinaryIO, size: int | None = None) -> None:
        """Read a file of the log up to `size`: the newest file may grow during the check."""
        remaining, number = sys.maxsize if size is None else size, 0
        while line := file.readline(min(remaining, _MAX_LINE)):
            remaining -= len(line)
            number += 1
            where = f"{name} line {number}"
            has_end = line.endswith(b"\n")
            if len(line) < _MAX_LINE or has_end:
                self._check_line(where, line.removesuffix(b"\n"))
            else:
                self.faults.add(f"{where} is too long for a record")
                while not has_end and (line := file.readline(min(remaining, _MAX_LINE))):
                    remaining -= len(line)
                    has_end = line.endswith(b"\n")
            is_behind = self.acknowledged and self.last.sequence > self.acknowledged.sequence
            if not has_end and not self.incomplete.first and not is_behind:
                self.faults.add(f"{where} lacks its end")

    def _check_line(self, where: str, line: bytes) -> None:
        record, last = _parse(line), self.last
        if record is None:
            expected = b'{"sequence":%d,"previous":"%s"' % (last.sequence + 1, last.hash.encode())
            start = line.rstrip(b"\0")  # some file systems leave zeros after a power failure
            if line and (start.startswith(expected) or expected.startswith(start)):
                self.incomplete.add(where)
            else:
                self.faults.add(f"{where} is not a record")
            return
        link, previous, intact = record
        number, expected_number = link.sequence, last.sequence + 1
        fits = intact and number == expected_number and previous == last.hash
        self._report_incomplete(proven=fits)
        if not intact:
            self.faults.add(f"{where} was changed")
            self.last = link._replace(sequence=max(expected_number, min(number, self.removed + 1)))
            return
        if number < expected_number:
            self.faults.add(f"{where}: record {number} stands after record {last.sequence}")
            return
        if number > expected_number and (last != _START or number > self.removed + 1):
            self.faults.add(f"{where}: records {expected_number} to {number - 1} are missing before it")
        elif number == expected_number and not fits:
            self.faults.add(f"{where}: the record before it is not the one that it was chained to")
        self.records += 1
        self.first = self.first or number
        self.last = link
        self.not_found -= {link, link.hash, previous}

    def _report_incomplete(self, *, proven: bool) -> None:
        """Report lines that look cut off.

        proven : the next record, or the head file, proves that the lines were never records.
        """
        for where in self.incomplete.first:
            if proven:
                self.notes.add(f"{where} is of a write that was cut off")
            else:
                self.faults.add(f"{where} is not a record")
        (self.notes if proven else self.faults).more += self.incomplete.more
        self.incomplete = _Texts()

    def report(self, files: int, head_name: str) -> Verified:
        """Return the result at the end of the log."""
        acknowledged, last = self.acknowledged, self.last
        self._report_incomplete(proven=acknowledged is not None and acknowledged.sequence <= last.sequence)
        if acknowledged is None:
            self.faults.add(f"{head_name} is missing or damaged")
        elif not self.records and acknowledged.sequence <= self.removed:
            last = acknowledged
        elif acknowledged.sequence > last.sequence:
            first, end = last.sequence + 1, acknowledged.sequence
            self.faults.add(f"records {first} to {end}, which {head_name} names, are missing")
        elif acknowledged in self.not_found and acknowledged != _START:
            number, wrong_hash = acknowledged
            self.faults.add(f"{head_name} names record {number} with another hash, {wrong_hash}")
        elif count := last.sequence - acknowledged.sequence:
            self.notes.add(f"the last {count} records were written, but are not acknowledged in {head_name}")
        if self.removed > last.sequence:
            self.faults.add(f"{self.removed} records cannot have been removed from {last.sequence}")
        if self.head in self.not_found - {None, last.hash}:
            self.faults.add(f"no record has the hash {self.head!r}")
        return Verified(
            records=self.records,
            first=self.first,
            files=files,
            head=last.hash,
            faults=self.faults.lines(),
            notes=self.notes.lines(),
        )


def _parse(line: bytes) -> tuple[_Link, str, bool] | None:
    """Return the sequence and hash of a record, the hash of the one before, and whether it is intact."""
    if not (match := _RECORD.fullmatch(line)):
        return None
    link = _Link(int(match[1]), match[3].decode())
    intact = hashlib.sha256(line[: match.start(3) - len(',"hash":"')]).hexdigest() == link.hash
    return link, match[2].decode(), intact


def _members(record: Mapping[str, Any]) -> bytes:
    """Return a record's members as they are written in its line, each after a comma."""
    text = fault = ""
    try:
        text = json.dumps(dict(record), allow_nan=False, separators=(",", ":"))
        for name in record:
            if name in _RESERVED or not isinstance(name, str):
                fault = f"the name {name!r}"
                break
    except (TypeError, ValueError, RecursionError) as error:
        fault = str(error)
    if len(text) > _MAX_LINE - 1000:
        fault = f"{len(text)} bytes"
    if fault:
        raise AuditError(
            "a record cannot be written to the audit log",
            code="audit-record",
            expected=f"JSON values, names other than {', '.join(_RESERVED)}, less than {_MAX_LINE} bytes",
            found=fault,
            cure="change the record; nothing was written",
        )
    return b"," + text[1:-1].encode() if record else b""


def _files(path: Path) -> list[Path]:
    """Return the existing files of a log, the oldest first."""
    name = re.compile(re.escape(path.stem) + r"\.([0-9]{12,18})" + re.escape(path.suffix))
    older = sorted((int(m[1]), file) for file in path.parent.iterdir() if (m := name.fullmatch(file.name)))
    return [file for file in (*(file for _, file in older), path) if file.is_file()]


def _head_file(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(head: int, path: Path) -> _Link | None:
    """Return the record that the head file names; None if it is damaged, or empty in a log with records."""
    os.lseek(head, 0, os.SEEK_SET)
    if match := _HEAD.fullmatch(os.read(head, 200)):
        return _Link(int(match[1]), match[2].decode())
    return None if any(file.stat().st_size for file in _files(path)) else _START


def _write_head(head: int, last: _Link) -> None:
    os.lseek(head, 0, os.SEEK_SET)
    _write(head, b'{"sequence":%d,"hash":"%s"}\n' % (last.sequence, last.hash.encode()))
    os.fsync(head)


def _write(file: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(file, remaining) :]


@contextlib.contextmanager
def _open_file(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    try:
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def _lock(head: int, path: Path) -> Iterator[None]:
    """Hold the lock of a log, which is on its head file. Raises AuditError if it is not free in time."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            _flock(head, hold=True)
            break
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                raise AuditError(
                    f"audit log {path} is locked",
                    code="audit-locked",
                    expected=f"that the log is free within {_BUSY_SECONDS:g} s",
                    found="another process that holds the lock",
                    cure="look for a process that was suspended while it wrote",
                ) from None
            time.sleep(0.001)
    try:
        yield
    finally:
        _flock(head, hold=False)  # to close the file is not enough: a forked child may hold it too


@contextlib.contextmanager
def _translated_errors(path: Path, use: str) -> Iterator[None]:
    """Turn an OSError, and the ValueError of an impossible path, into an AuditError."""
    try:
        yield
    except (OSError, ValueError) as error:
        missing = use == "read" and isinstance(error, FileNotFoundError | NotADirectoryError)
        raise AuditError(
            f"audit log {str(path)!r} cannot be used",
            code="audit-missing" if missing else f"audit-{use}",
            expected=f"a file that this process may {use}",
            found=str(error),
            cure="check the path, the permissions and the free disk space",
        ) from None
