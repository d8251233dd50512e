"""The audit trail: an append-only log of JSON lines, each chained to the one before it by its hash.

The hash of a record is the SHA-256 of its line as far as before ``,"hash":``. Beside the log lies its head
file, which names the last acknowledged record, so that a log whose end was cut off is found out, and which is
the lock of those who write. The log is written and synced, then the head file, then `append` returns: the
head file may be behind by what was not acknowledged, and is never ahead of a log that is whole.
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
_LONGEST = 4_000_000  # bytes of a line
_BUSY_SECONDS = 30.0
_TOLD = 20  # faults, and notes
_RECORD = re.compile(
    rb'\{"sequence":(\d{1,18}),"previous":"([0-9a-f]{64})".*,"hash":"([0-9a-f]{64})"\}', re.DOTALL
)
_HEAD = re.compile(rb'\{"sequence":(\d{1,18}),"hash":"([0-9a-f]{64})"\}\n')
_log = logging.getLogger(__name__)

if sys.platform == "win32":
    import msvcrt

    def _flock(file: int, *, hold: bool) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # past what is read, for nobody else may read what is locked
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

    Any number of threads and processes may append. Nothing is held open between two appends, so that a log
    may be used on both sides of a fork. A file that would pass `max_bytes` is renamed to
    ``<stem>.<its last sequence><suffix>``, and a new one continues the chain.

    Raises AuditError if the log cannot be written.
    """

    def __init__(self, path: str | Path, *, max_bytes: int = 64_000_000) -> None:
        self.path = Path(path).absolute()
        self.max_bytes = max_bytes
        self.append(())

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records, all in one go; on return they outlive a kill and a loss of power.

        Raises AuditError; then none, some or all of them are in the log.
        """
        members = [_members(record) for record in records]
        with _told(self.path, "write"):
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
            with _opened(_head_file(self.path), os.O_RDWR | os.O_CREAT) as head, _locked(head, self.path):
                self._append(members, head)

    def _append(self, members: list[bytes], head: int) -> None:
        noted = _noted(head, self.path)
        if noted is None:
            raise AuditError(
                f"the head file of audit log {self.path} is missing or damaged",
                code="audit-head",
                expected=f"{_head_file(self.path).name} to name the last record",
                found="records without it",
                cure="restore it, or move all files of the log to another folder: a new one then begins",
            )
        if noted == _START:
            _note(head, noted)  # before there is a log
        last, size = self._end()
        last = max(noted, last, key=lambda link: link.sequence)  # if records were cut off, the chain shows it
        before, lines = last, []
        for more in members:
            line = b'{"sequence":%d,"previous":"%s"%s' % (last.sequence + 1, last.hash.encode(), more)
            last = _Link(last.sequence + 1, hashlib.sha256(line).hexdigest())
            lines.append(b'%s,"hash":"%s"}\n' % (line, last.hash.encode()))
        data = b"".join(lines)
        if data and size and size + len(data) > self.max_bytes:
            self._rotate(before, head)
        with _opened(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as log:
            if not os.fstat(log).st_size:
                sync(self.path.parent)  # before there is a record in it
            if data:
                _write(log, data)
                os.fsync(log)
                _note(head, last)

    def _end(self) -> tuple[_Link, int]:
        """Return the last whole record and the size of the log; end its last line if that was cut off."""
        last = _START
        try:
            with _opened(self.path, os.O_RDWR | os.O_APPEND) as log:
                size = os.lseek(log, 0, os.SEEK_END)
                for length in (1 << 14, 3 * _LONGEST):  # lines that were cut off may follow the record
                    start = os.lseek(log, max(0, size - length), os.SEEK_SET)
                    data = os.read(log, length)
                    parsed = map(_parsed, reversed(data.split(b"\n")[start > 0 :]))
                    if found := next((one[0] for one in parsed if one and one[2]), None):
                        last = found
                        break
                if data and not data.endswith(b"\n"):
                    _write(log, b"\n")
                return last, size
        except FileNotFoundError:
            return last, 0

    def _rotate(self, last: _Link, head: int) -> None:
        with _opened(self.path, os.O_WRONLY | os.O_APPEND) as log:
            os.fsync(log)
        _note(head, last)  # for a writer that finds no log, if this one is killed
        target = self.path.with_name(f"{self.path.stem}.{last.sequence:012}{self.path.suffix}")
        try:
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            self.path.rename(target)
        except OSError as error:
            _log.warning("audit log %s is past its size, but cannot be renamed (%s)", self.path, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What `verify` found.

    Parameters
    ----------
    records : how many whole records there are.
    first : the sequence of the first, 0 if there is none.
    files : how many files hold them.
    head : the hash of the last. Stored elsewhere, it proves later that the log was not replaced.
    faults : what is wrong, in words: the first twenty, and how many more.
    notes : oddities without a missing record; at most 20.
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
        said = [
            f"records: {self.records}, from {self.first} on",
            f"files: {self.files}",
            f"head: {self.head}",
        ]
        said += [f"note: {note}" for note in self.notes]
        said += [f"fault: {fault}" for fault in self.faults]
        return "\n".join(map(printable, said))


def verify(path: str | Path, *, removed: int = 0, head: str | None = None) -> Verified:
    """Read all files of a log, which may be in use, and say whether they are what was written.

    Parameters
    ----------
    removed : how many records, the first ones, were removed on purpose.
    head : a hash that was noted elsewhere; it must be that of a record.

    Raises AuditError if there is no log or it cannot be read.
    """
    path = Path(path)
    with _told(path, "read"), contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as lock:  # only for a moment: what is written from then on is not read
            noted = newest = None
            if _head_file(path).is_file():
                descriptor = lock.enter_context(_opened(_head_file(path), os.O_RDONLY))
                lock.enter_context(_locked(descriptor, path))
                noted = _noted(descriptor, path)
            files = _files(path)
            if path in files:
                newest = stack.enter_context(path.open("rb"))
                size = os.fstat(newest.fileno()).st_size
        if noted is None and not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        chain = _Chain(noted, removed, head if head is None else head.lower())
        for file in files:
            if file == path and newest:
                chain.read(file.name, newest, size)
            else:
                with file.open("rb") as older:
                    chain.read(file.name, older)
        return chain.verified(len(files), _head_file(path).name)


class _Texts:
    """The first of some texts, and how many more there are."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.more = 0

    def add(self, text: str) -> None:
        if len(self.first) < _TOLD:
            self.first.append(text)
        else:
            self.more += 1

    def told(self) -> tuple[str, ...]:
        return (*self.first, *([f"and {self.more} more"] if self.more else []))


class _Chain:
    """What is known of a log as far as it is read."""

    def __init__(self, noted: _Link | None, removed: int, asked: str | None) -> None:
        self.noted, self.removed, self.asked = noted, removed, asked
        self.wanted: set[object] = {noted, asked}  # not met in the log so far
        self.records = self.first = 0
        self.last = _START
        self.cut = _Texts()  # lines that are perhaps of writes that were cut off
        self.faults, self.notes = _Texts(), _Texts()

    def read(self, name: str, file: BinaryIO, size: int | None = None) -> None:
        """Read a file of the log; the newest, which may grow meanwhile, as far as `size`."""
        left, number = sys.maxsize if size is None else size, 0
        while line := file.readline(min(left, _LONGEST)):
            left -= len(line)
            number += 1
            where = f"{name} line {number}"
            ended = line.endswith(b"\n")
            if len(line) < _LONGEST or ended:
                self._take(where, line.removesuffix(b"\n"))
            else:
                self.faults.add(f"{where} is too long for a record")
                while not ended and (line := file.readline(min(left, _LONGEST))):
                    left -= len(line)
                    ended = line.endswith(b"\n")
            unnoted = self.cut.first or (self.noted and self.last.sequence > self.noted.sequence)
            if not ended and not unnoted:
                self.faults.add(f"{where} lacks its end")

    def _take(self, where: str, line: bytes) -> None:
        parsed, last = _parsed(line), self.last
        if parsed is None:
            right = b'{"sequence":%d,"previous":"%s"' % (last.sequence + 1, last.hash.encode())
            start = line.rstrip(b"\0")  # which some file systems leave after a loss of power
            if line and (start.startswith(right) or right.startswith(start)):
                self.cut.add(where)
            else:
                self.faults.add(f"{where} is not a record")
            return
        link, previous, intact = parsed
        number, due = link.sequence, last.sequence + 1
        fits = intact and number == due and previous == last.hash
        self._settle(fits)
        if not intact:
            self.faults.add(f"{where} was changed")
            self.last = link._replace(sequence=max(due, min(number, self.removed + 1)))
            return
        if number < due:
            self.faults.add(f"{where}: record {number} stands after record {last.sequence}")
            return
        if number > due and (last != _START or number > self.removed + 1):
            self.faults.add(f"{where}: records {due} to {number - 1} are missing before it")
        elif number == due and not fits:
            self.faults.add(f"{where}: the record before it is not the one that it was chained to")
        self.records += 1
        self.first = self.first or number
        self.last = link
        self.wanted -= {link, link.hash, previous}

    def _settle(self, proven: bool) -> None:
        """Tell of lines that look cut off; it is proven if what follows shows that no record was there."""
        for where in self.cut.first:
            if proven:
                self.notes.add(f"{where} is of a write that was cut off")
            else:
                self.faults.add(f"{where} is not a record")
        (self.notes if proven else self.faults).more += self.cut.more
        self.cut = _Texts()

    def verified(self, files: int, head_name: str) -> Verified:
        noted, last = self.noted, self.last
        self._settle(noted is not None and noted.sequence <= last.sequence)
        if noted is None:
            self.faults.add(f"{head_name} is missing or damaged")
        elif not self.records and noted.sequence <= self.removed:
            last = noted
        elif noted.sequence > last.sequence:
            self.faults.add(
                f"records {last.sequence + 1} to {noted.sequence}, which {head_name} names, are missing"
            )
        elif noted in self.wanted and noted != _START:
            self.faults.add(f"{head_name} names record {noted.sequence} with another hash, {noted.hash}")
        elif late := last.sequence - noted.sequence:
            self.notes.add(f"the last {late} records were written, but are not acknowledged in {head_name}")
        if self.removed > last.sequence:
            self.faults.add(f"{self.removed} records cannot have been removed from {last.sequence}")
        if self.asked in self.wanted - {None, last.hash}:
            self.faults.add(f"no record has the hash {self.asked!r}")
        return Verified(
            records=self.records,
            first=self.first,
            files=files,
            head=last.hash,
            faults=self.faults.told(),
            notes=self.notes.told(),
        )


def _parsed(line: bytes) -> tuple[_Link, str, bool] | None:
    """Return the place of a record, the hash of the one before, and whether it is intact."""
    if not (match := _RECORD.fullmatch(line)):
        return None
    link = _Link(int(match[1]), match[3].decode())
    intact = hashlib.sha256(line[: match.start(3) - len(',"hash":"')]).hexdigest() == link.hash
    return link, match[2].decode(), intact


def _members(record: Mapping[str, Any]) -> bytes:
    """Return a record's members as they stand in its line, each after a comma."""
    text = ""
    try:
        text = json.dumps(dict(record), allow_nan=False, separators=(",", ":"))
        wrong = "".join([f"the name {n!r}" for n in record if n in _RESERVED or not isinstance(n, str)][:1])
    except (TypeError, ValueError, RecursionError) as error:
        wrong = str(error)
    if len(text) > _LONGEST - 1000:
        wrong = f"{len(text)} bytes"
    if wrong:
        raise AuditError(
            "a record does not suit the audit log",
            code="audit-record",
            expected=f"values of JSON by names other than {', '.join(_RESERVED)}, below {_LONGEST} bytes",
            found=wrong,
            cure="change the record; nothing was written",
        )
    return b"," + text[1:-1].encode() if record else b""


def _files(path: Path) -> list[Path]:
    """Return the files of a log that are there, the oldest first."""
    name = re.compile(re.escape(path.stem) + r"\.([0-9]{12,18})" + re.escape(path.suffix))
    older = sorted((int(m[1]), file) for file in path.parent.iterdir() if (m := name.fullmatch(file.name)))
    return [file for file in (*(file for _, file in older), path) if file.is_file()]


def _head_file(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _noted(head: int, path: Path) -> _Link | None:
    """Return what the head file says, None if it is damaged; before there is a record it may be empty."""
    os.lseek(head, 0, os.SEEK_SET)
    if match := _HEAD.fullmatch(os.read(head, 200)):
        return _Link(int(match[1]), match[2].decode())
    return None if any(file.stat().st_size for file in _files(path)) else _START


def _note(head: int, last: _Link) -> None:
    os.lseek(head, 0, os.SEEK_SET)
    _write(head, b'{"sequence":%d,"hash":"%s"}\n' % (last.sequence, last.hash.encode()))
    os.fsync(head)


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    try:
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def _locked(head: int, path: Path) -> Iterator[None]:
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
                    expected=f"to wait for at most {_BUSY_SECONDS:g} s",
                    found="another process that holds it for longer",
                    cure="look for a process that was stopped while it wrote",
                ) from None
            time.sleep(0.001)
    try:
        yield
    finally:
        _flock(head, hold=False)  # closing it would not do: a child forked meanwhile holds it too


@contextlib.contextmanager
def _told(path: Path, use: str) -> Iterator[None]:
    """Turn an OSError, and the ValueError of a path that cannot be one, into an AuditError."""
    try:
        yield
    except (OSError, ValueError) as error:
        missing = use == "read" and isinstance(error, FileNotFoundError | NotADirectoryError)
        raise AuditError(
            f"audit log {str(path)!r} cannot be used",
            code="audit-missing" if missing else f"audit-{use}",
            expected=f"a file that this process may {use}",
            found=str(error),
            cure="check the path, the permissions and the room on the disk",
        ) from None
