"""The audit log loses no acknowledged record, and no change of it goes unseen."""

import contextlib
import hashlib
import json
import os
import random
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from skinret_infer.cli.main import main
from skinret_infer.errors import AuditError
from skinret_infer.trust import audit
from skinret_infer.trust.audit import AuditLog, Verified, verify

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and permissions of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def _made(path: Path, count: int = 12, max_bytes: int = 900) -> list[Path]:
    """Write a log of some records, four a file, and return its files."""
    log = AuditLog(path, max_bytes=max_bytes)
    for n in range(count):
        log.append([{"query": n, "text": "streaks"}])
    return audit._files(path)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in audit._files(path) for line in file.read_bytes().splitlines()]


def _clean(path: Path, count: int) -> Verified:
    report = verify(path)
    assert report.faults == () and report.records == count, str(report)
    return report


def _run(program: str, *arguments: object) -> Any:
    """Run a program in a process of its own and return the JSON that it prints last."""
    start = (
        "import json, os, resource, signal, sys, threading, time; from pathlib import Path\n"
        "from skinret_infer.trust.audit import AuditLog, verify\n"
        "from skinret_infer.errors import AuditError\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + program, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# -- the records --


def test_records_come_back_in_order_each_chained_to_the_one_before(path: Path) -> None:
    log = AuditLog(path)
    log.append([{"text": "bläulich\u2028", "score": 0.1, "hits": [["1", None]]}, {}])
    log.append([{"nested": {"hash": 'a,"hash":"b'}}])
    first, second, third = records = _records(path)
    assert [r["sequence"] for r in records] == [1, 2, 3]
    assert first["text"] == "bläulich\u2028" and first["score"] == 0.1 and first["hits"] == [["1", None]]
    assert first["previous"] == "0" * 64
    assert second["previous"] == first["hash"] and third["previous"] == second["hash"]
    line = path.read_bytes().splitlines()[0]
    assert hashlib.sha256(line[: line.rindex(b',"hash":')]).hexdigest() == first["hash"]
    report = _clean(path, 3)
    assert (report.first, report.files, report.head, report.notes) == (1, 1, third["hash"], ())
    if os.name == "posix":
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_a_log_without_records_is_whole(path: Path) -> None:
    AuditLog(path)
    assert _clean(path, 0).head == "0" * 64


def test_a_log_stays_where_it_is_when_the_process_changes_its_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    log = AuditLog(path.name)
    monkeypatch.chdir("/")
    log.append([{}])
    _clean(path, 1)


def test_a_file_past_its_size_gets_the_name_of_its_last_record_and_the_chain_goes_on(path: Path) -> None:
    files = _made(path, 11)
    assert [f.name for f in files] == ["audit.000000000004.jsonl", "audit.000000000008.jsonl", "audit.jsonl"]
    assert all(file.stat().st_size <= 900 for file in files)
    assert [r["query"] for r in _records(path)] == [*range(11)]
    assert _clean(path, 11).files == 3


def test_a_record_larger_than_a_file_may_be_gets_one_of_its_own(path: Path) -> None:
    log = AuditLog(path, max_bytes=10)
    for _ in range(3):
        log.append([{"text": "x" * 100}])
    assert _clean(path, 3).files == 3


@pytest.mark.parametrize(
    "record",
    [
        {"sequence": 1}, {"previous": ""}, {"hash": "0"}, {1: "a"}, {"x": float("nan")}, {"x": b"a"},
        {"x": {1}}, {"x": [float("inf")]}, {"x": "a" * 4_000_000}, {"x": {(1,): 2}},
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_kept_is_refused_before_anything_is_written(
    record: dict[str, Any], path: Path
) -> None:
    log = AuditLog(path)
    with pytest.raises(AuditError) as caught:
        log.append([{"good": 1}, record])
    assert caught.value.code == "audit-record"
    _clean(path, 0)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(AuditError):
        log.append([{"x": loop}])


# -- tampering --

Lines = list[bytes]


def _forged(line: bytes, **members: Any) -> bytes:
    """Return a line with other members, and the hash that suits them."""
    record = {**json.loads(line), **members}
    del record["hash"]
    text = json.dumps(record, separators=(",", ":"))[:-1].encode()
    return text + b',"hash":"%s"}' % hashlib.sha256(text).hexdigest().encode()


def _new(sequence: int, previous: bytes) -> bytes:
    return _forged(b'{"hash":0}', sequence=sequence, previous=json.loads(previous)["hash"])


LINES: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "a value": (lambda x: [x[0], x[1].replace(b"streaks", b"strekas"), *x[2:]], r"08.jsonl line 2 was ch"),
    "a value, and its hash": (lambda x: [x[0], _forged(x[1], text="none"), *x[2:]], r"3: the record before"),
    "a sequence": (lambda x: [x[0], x[1].replace(b":6,", b":7,"), *x[2:]], r"line 2 was changed"),
    "a hash": (lambda x: [x[0], x[1][:-3] + b'z"}', *x[2:]], r"line 2 is not a record"),
    "one out": (lambda x: [x[0], *x[2:]], r"line 2: records 6 to 6 are missing"),
    "the first of a file out": (lambda x: x[1:], r"line 1: records 5 to 5 are missing"),
    "the last of a file out": (lambda x: x[:-1], r"audit.jsonl line 1: records 8 to 8 are missing"),
    "two exchanged": (lambda x: [x[0], x[2], x[1], x[3]], r"line 3: record 6 stands after record 7"),
    "one twice": (lambda x: [x[0], x[1], *x[1:]], r"line 3: record 6 stands after record 6"),
    "one put between": (lambda x: [x[0], _new(6, x[0]), *x[1:]], r"line 3: record 6 stands after record 6"),
    "one before": (lambda x: [_forged(x[0], sequence=0), *x], r"line 1: record 0 stands after record 4"),
    "an empty line": (lambda x: [x[0], b"", *x[1:]], r"line 2 is not a record"),
    "garbage": (lambda x: [x[0], b"\xff\0{[" * 9, *x[1:]], r"line 2 is not a record"),
    "half a record": (lambda x: [x[0], x[1][:120], *x[2:]], r"line 2 is not a record"),
    "half a new record": (lambda x: [x[0], _new(7, x[0])[:120], *x[1:]], r"line 2 is not a record"),
    "a line without end": (lambda x: [x[0], b"x" * 5_000_000, *x[1:]], r"line 2 is too long"),
    "deep brackets": (lambda x: [x[0], b"[" * 100_000, *x[1:]], r"line 2 is not a record"),
    "Windows ends": (lambda x: [line + b"\r" for line in x], r"line 1 is not a record"),
    "nothing left": (lambda x: [], r"audit.jsonl line 1: records 5 to 8 are missing"),
}  # fmt: skip


@pytest.mark.parametrize("change", LINES)
def test_changed_lines_are_found(change: str, path: Path) -> None:
    file = _made(path)[1]
    tampered, found = LINES[change]
    lines = tampered(file.read_bytes().splitlines())
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    assert any(re.search(found, fault) for fault in verify(path).faults), verify(path).faults


def _cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def _exchange(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


def _head(path: Path) -> Path:
    return path.with_name("audit.jsonl.head")


FILES: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "the last byte": (lambda f: _cut(f[2], 1), r"audit.jsonl line 4 lacks its end"),
    "the last byte of an older file": (lambda f: _cut(f[1], 1), r"000008.jsonl line 4 lacks its end"),
    "half of the last record": (lambda f: _cut(f[2], 100), r"records 12 to 12, which audit.jsonl.head"),
    "the last two records": (lambda f: _cut(f[2], 420), r"records 10 to 12, which audit.jsonl.head"),
    "all of the newest file": (lambda f: f[2].write_bytes(b""), r"records 9 to 12, which audit.jsonl.head"),
    "the newest file out": (lambda f: f[2].unlink(), r"records 9 to 12, which audit.jsonl.head"),
    "a file in the middle out": (lambda f: f[1].unlink(), r"audit.jsonl line 1: records 5 to 8 are missing"),
    "the first file out": (lambda f: f[0].unlink(), r"000008.jsonl line 1: records 1 to 4 are missing"),
    "all files out": (lambda f: [x.unlink() for x in f], r"records 1 to 12, which audit.jsonl.head"),
    "files exchanged": (lambda f: _exchange(f[0], f[1]), r"000004.jsonl line 1: records 1 to 4 are missing"),
    "another last byte": (lambda f: f[2].write_bytes(f[2].read_bytes()[:-1] + b" "), r"12 to 12, which"),
    "the head file out": (lambda f: _head(f[2]).unlink(), r"audit.jsonl.head is missing"),
    "an empty head file": (lambda f: _head(f[2]).write_bytes(b""), r"audit.jsonl.head is missing or damaged"),
    "a head file of garbage": (lambda f: _head(f[2]).write_bytes(b"\xff" * 999), r".head is missing"),
    "another hash in the head file": (
        lambda f: _head(f[2]).write_text('{"sequence":12,"hash":"%s"}\n' % ("a" * 64)), r"12 with another"),
    "an earlier record in the head file": (
        lambda f: _head(f[2]).write_text(_head(f[2]).read_text().replace("12", "11")), r"11 with another"),
    "many faults": (lambda f: f[0].write_bytes(b"x\n" * 5000), r"and 4981 more"),
}  # fmt: skip


@pytest.mark.parametrize("change", FILES)
def test_changed_files_are_found(change: str, path: Path) -> None:
    tampered, found = FILES[change]
    tampered(_made(path))
    assert any(re.search(found, fault) for fault in verify(path).faults), verify(path).faults


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    return {file.name: file.read_bytes() for file in (*_made(path), _head(path))}


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_change_of_bytes_or_lines_is_found(contents: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in contents]
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
        file = data.draw(st.sampled_from(files))
        content = file.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        lines = content.splitlines(keepends=True)
        one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        kind = data.draw(
            st.sampled_from(["flip", "delete", "insert", "cut", "swap", "drop", "double", "move"])
        )
        if kind == "flip":
            changed = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))])
            changed += content[place + 1 :]
        elif kind == "delete":
            changed = content[:place] + content[place + data.draw(st.integers(1, 9)) :]
        elif kind == "insert":
            changed = content[:place] + data.draw(st.binary(min_size=1, max_size=9)) + content[place:]
        elif kind == "cut":
            changed = content[:place]
        elif kind == "swap":
            lines[one], lines[other] = lines[other], lines[one]
            changed = b"".join(lines)
        elif kind == "drop":
            changed = b"".join(lines[:one] + lines[one + 1 :])
        elif kind == "double":
            changed = b"".join([*lines[: other + 1], lines[one], *lines[other + 1 :]])
        else:
            target = data.draw(st.sampled_from(files))
            target.write_bytes(content)
            changed = content if target == file else b""
        file.write_bytes(changed)
        report = verify(files[-2])
        found = report.faults or (kind == "insert" and report.notes)  # as of a write that was cut off: b"{\n"
        assert bool(found) == (changed != content)


@given(junk=st.lists(st.binary(max_size=300), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_hostile_files_are_faults_and_no_other_error(junk: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        names = ["audit.jsonl", "audit.jsonl.head", "audit.000000000004.jsonl", "audit.000000000009.jsonl"]
        for name, content in zip(names, junk, strict=False):
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / "audit.000000000011.jsonl").mkdir()
        assert verify(path).records == 0
        try:
            AuditLog(path).append([{}])
        except AuditError as error:
            assert error.code == "audit-head"


def test_a_log_of_which_records_were_cut_off_goes_on_and_shows_it_for_ever(path: Path) -> None:
    *_, newest = _made(path)
    _cut(newest, len(b"".join(newest.read_bytes().splitlines(keepends=True)[2:])))
    AuditLog(path).append([{"query": 12}, {"query": 13}])
    [fault] = verify(path).faults
    assert "line 3: records 11 to 12 are missing before it" in fault
    path.unlink()
    AuditLog(path).append([{"query": 14}])
    [fault] = verify(path).faults
    assert "line 1: records 9 to 14 are missing before it" in fault


@pytest.mark.parametrize("content", [None, b"", b"{}\n"])
def test_a_log_without_its_head_file_is_not_written(content: bytes | None, path: Path) -> None:
    _made(path)
    _head(path).unlink() if content is None else _head(path).write_bytes(content)
    with pytest.raises(AuditError, match=r"restore it, or move all files of the log") as caught:
        AuditLog(path)
    assert caught.value.code == "audit-head"
    assert len(_records(path)) == 12


def test_records_removed_on_purpose_are_told(path: Path) -> None:
    files = _made(path)
    files[0].unlink()
    assert verify(path).faults
    report = verify(path, removed=4)
    assert (report.faults, report.records, report.first) == ((), 8, 5)
    assert verify(path, removed=3).faults
    whole = files[1].read_bytes()
    files[1].write_bytes(whole.replace(b"streaks", b"strekas", 1))
    assert verify(path, removed=4).faults == ("audit.000000000008.jsonl line 1 was changed",)
    files[1].write_bytes(b"".join(whole.splitlines(keepends=True)[::2]))
    assert verify(path, removed=8).faults
    files[1].unlink()
    assert verify(path, removed=8).faults == () and verify(path, removed=4).faults
    assert "cannot have been removed" in verify(path, removed=13).faults[0]
    files[2].unlink()
    assert verify(path, removed=11).faults
    assert verify(path, removed=12).faults == ()
    AuditLog(path).append([{}])
    assert verify(path, removed=12).first == 13


def test_a_log_that_was_written_anew_is_found_by_a_hash_noted_elsewhere(path: Path) -> None:
    files = _made(path)
    heads = [record["hash"] for record in _records(path)]
    assert not any(verify(path, head=head).faults for head in (*heads, heads[0].upper(), "0" * 64))
    files[0].unlink()
    assert verify(path, removed=4, head=heads[3]).faults == ()
    assert verify(path, removed=4, head=heads[2]).faults
    for file in path.parent.iterdir():
        file.unlink()
    log = AuditLog(path)
    log.append([{"query": n, "text": "none"} for n in range(12)])
    assert verify(path).faults == ()
    assert verify(path, head=heads[5]).faults == (f"no record has the hash '{heads[5]}'",)
    assert verify(path, head="").faults


# -- writes that were cut off --


@pytest.mark.parametrize("left", [1, 60, 100, 110, 210, 230])
def test_a_write_that_was_cut_off_is_noted_and_the_log_goes_on(left: int, path: Path) -> None:
    AuditLog(path).append([{"query": 0}])
    noted, whole = _head(path).read_bytes(), path.read_bytes()
    AuditLog(path).append([{"query": 1, "text": "streaks" * 10}])
    lost = path.read_bytes()[len(whole) :]
    _head(path).write_bytes(noted)
    path.write_bytes(whole + lost[:left])
    assert verify(path).notes == ("audit.jsonl line 2 is of a write that was cut off",)
    _clean(path, 1)
    log = AuditLog(path)
    path.write_bytes(path.read_bytes() + lost[: left + 1])  # and again
    for n in (2, 3):
        log.append([{"query": n}])
    assert _clean(path, 3).notes == tuple(
        f"audit.jsonl line {n} is of a write that was cut off" for n in (2, 3)
    )
    path.write_bytes(path.read_bytes().replace(b'"query":2', b'"query":7'))
    assert verify(path).faults


def test_many_writes_that_were_cut_off_are_noted_and_counted(path: Path) -> None:
    log = AuditLog(path)
    path.write_bytes(b'{"sequence":1,"prev\n' * 50)
    log.append([{"query": 0}])
    assert _clean(path, 1).notes[20:] == ("and 30 more",)


def test_a_write_cut_off_before_its_last_byte_or_its_acknowledgement_is_no_fault(path: Path) -> None:
    AuditLog(path).append([{"query": 0}])
    noted = _head(path).read_bytes()
    AuditLog(path).append([{"query": 1}, {"query": 2}])
    for content in (path.read_bytes(), path.read_bytes()[:-1]):
        _head(path).write_bytes(noted)
        path.write_bytes(content)
        [note] = _clean(path, 3).notes
        assert "the last 2 records were written, but are not acknowledged" in note
        AuditLog(path).append([{"query": 3}])
        assert _clean(path, 4).notes == ()


def test_a_long_write_that_was_cut_off_does_not_hide_the_record_before_it(path: Path) -> None:
    log = AuditLog(path)
    log.append([{"query": 0}])
    [last] = _records(path)
    start = b'{"sequence":2,"previous":"%s","x":"' % last["hash"].encode()
    path.write_bytes(path.read_bytes() + start + b"x" * 3_000_000)
    log.append([{"query": 1}])
    assert len(_clean(path, 2).notes) == 1


def test_a_kill_between_the_renaming_of_a_file_and_the_next_loses_nothing(path: Path) -> None:
    AuditLog(path).append([{"query": 0}])
    AuditLog(path).append([{"query": 1}])
    path.rename(path.with_name("audit.000000000002.jsonl"))
    _clean(path, 2)
    AuditLog(path).append([{"query": 2}])
    assert _clean(path, 3).files == 2


def test_zeros_that_a_loss_of_power_left_are_a_write_that_was_cut_off(path: Path) -> None:
    log = AuditLog(path)
    log.append([{"query": 0}])
    path.write_bytes(path.read_bytes() + bytes(4096))
    log.append([{"query": 1}])
    assert len(_clean(path, 2).notes) == 1


class _Lost(BaseException):
    """The process, or the power, is lost."""


class _Disk:
    """What is certain on a disk; and a loss at one of the steps, which are writes, syncs and renamings.

    A write is done in part, that of the head file, within a sector, as a whole or not at all.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.left, self.part = folder, 0, 0.0
        self.names: dict[str, int] = {}  # of the folder, and the inodes that they stand for
        self.contents: dict[int, bytes] = {}
        write, rename = os.write, Path.rename

        def writing(file: int, data: memoryview) -> int:
            part = self.part if os.fstat(file).st_ino != _head(folder / "audit.jsonl").stat().st_ino else 0
            with self._step(lambda: write(file, data[: int(part * len(data))])):
                return write(file, data)

        def syncing(file: int) -> None:
            with self._step():
                there = self._there()
                if stat.S_ISDIR(os.fstat(file).st_mode):
                    self.names = there
                else:
                    [name] = [n for n, inode in there.items() if inode == os.fstat(file).st_ino]
                    self.contents[there[name]] = (folder / name).read_bytes()

        def renaming(path: Path, target: Path) -> None:
            with self._step():
                rename(path, target)

        patch.setattr(os, "write", writing)
        patch.setattr(os, "fsync", syncing)
        patch.setattr(Path, "rename", renaming)

    @contextlib.contextmanager
    def _step(self, done: Callable[[], object] = bool) -> Iterator[None]:
        self.left -= 1
        if not self.left:
            done()
            raise _Lost
        yield

    def _there(self) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(self.folder)}

    def lose_power(self, *, names: bool) -> None:
        """Leave nothing of the contents, and of the names if so, but what is certain."""
        before = self.names if names else self._there()
        for file in self.folder.iterdir():
            file.unlink()
        for name, inode in before.items():
            (self.folder / name).write_bytes(self.contents.get(inode, b""))
        self.names = self._there()
        self.contents = {inode: self.contents.get(before[name], b"") for name, inode in self.names.items()}


@posix
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_at_any_step_loses_no_acknowledged_record(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, most = random.Random(seed), 0
    for first in range(1, 45):
        folder = tmp_path / str(first)
        folder.mkdir()
        acknowledged: set[tuple[int, ...]] = set()
        with monkeypatch.context() as patch:
            disk = _Disk(folder, patch)
            for life, disk.left in enumerate((first, chance.randint(1, 15), 0)):
                disk.part = chance.choice((0, 0.3, 0.8, 0.999, 1))
                with contextlib.suppress(_Lost):
                    log = AuditLog(folder / "audit.jsonl", max_bytes=500)
                    for n in range(4):
                        records = [(life, n, place) for place in range(n % 2 + 1)]
                        log.append([{"query": record} for record in records])
                        acknowledged.update(records)
                most = max(most, first * (life == 0 and disk.left == 0))
                if loss := chance.choice(("", "contents", "contents and names")):
                    disk.lose_power(names=loss == "contents and names")
                if audit._files(folder / "audit.jsonl"):
                    assert verify(folder / "audit.jsonl").faults == ()
        lines = b"".join(file.read_bytes() for file in audit._files(folder / "audit.jsonl")).splitlines()
        held = [json.loads(line)["query"] for line in lines if line.endswith(b'"}')]
        assert acknowledged <= {*map(tuple, held)}
        assert len(acknowledged) >= 6
    assert 30 < most < 44


# -- many writers --

_WRITERS = """
path, processes, threads, each = Path(sys.argv[1]), *map(int, sys.argv[2:5])
log = AuditLog(path, max_bytes=int(sys.argv[5]))
def write(name):
    for n in range(each):
        log.append([{"by": name, "n": n, "part": part} for part in range(2)])
for process in range(processes):
    if not os.fork():
        started = [threading.Thread(target=write, args=(f"{process} {t}",)) for t in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        os._exit(0)
clean = True
while processes:  # a log may be verified while it is written
    clean = clean and not (found := verify(path)).faults and not found.notes
    processes -= os.waitpid(-1, os.WNOHANG)[0] > 0
print(json.dumps([clean, found.faults]))
"""


@posix
@pytest.mark.parametrize("max_bytes", [10**9, 5000], ids=["one file", "many files"])
def test_processes_and_threads_write_one_whole_chain(max_bytes: int, path: Path) -> None:
    """They use one AuditLog, opened before the processes were forked."""
    assert _run(_WRITERS, path, 4, 3, 15, max_bytes) == [True, []]
    report = _clean(path, 360)
    assert report.notes == () and (report.files > 5) == (max_bytes == 5000)
    by: dict[str, list[int]] = {}
    for record in _records(path):
        by.setdefault(record["by"], []).append(2 * record["n"] + record["part"])
    assert len(by) == 12 and all(order == [*range(30)] for order in by.values())


_FORKED = """
from skinret_infer.trust import audit
path = Path(sys.argv[1])
log = AuditLog(path)
with audit._open_file(audit._head_file(path), os.O_RDWR) as head, audit._lock(head, path):
    child = os.fork()
    if not child:
        time.sleep(60)
audit._BUSY_SECONDS = 0.1
try:
    log.append([{}])
finally:
    os.kill(child, signal.SIGKILL)
print(json.dumps(verify(path).records))
"""


@posix
def test_a_process_forked_while_another_thread_writes_keeps_nobody_waiting(path: Path) -> None:
    assert _run(_FORKED, path) == 1


_KILLED = """
import random
path, chance = Path(sys.argv[1]), random.Random(0)
promised, clean, notes, torn = set(), True, 0, 0
for life in range(12):
    reader, writer = os.pipe()
    children = []
    for child in range(2):
        children.append(os.fork())
        if not children[-1]:
            log = AuditLog(path, max_bytes=400_000)
            for n in range(10**6):
                name = f"{life} {child} {n}"
                log.append([{"name": name, "text": "x" * random.Random(name).choice((10, 200_000))}])
                os.write(writer, name.encode() + b"\\n")
    os.close(writer)
    time.sleep(10 ** chance.uniform(-2.5, -0.7))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = b"".join(iter(lambda: os.read(reader, 1 << 16), b"")).decode().split("\\n")
    os.close(reader)
    promised |= set(said[:-1])
    found = verify(path)
    clean = clean and not found.faults
    notes += len(found.notes)
    if not clean:
        break
held = set()
for file in path.parent.glob("audit*.jsonl"):
    for line in file.read_bytes().splitlines():
        try:
            held.add(json.loads(line)["name"])
        except ValueError:
            torn += 1
print(json.dumps([clean and promised <= held, len(promised), notes, torn, found.faults]))
"""


@posix
def test_kills_at_random_moments_lose_no_acknowledged_record(path: Path) -> None:
    whole, promised, *rest = _run(_KILLED, path)
    assert whole and promised > 20, rest
    AuditLog(path).append([{"name": "after"}])
    assert verify(path).faults == ()


# -- a log that cannot be written or read --

_FULL = """
path, limit = Path(sys.argv[1]), int(sys.argv[2])
log = AuditLog(path)
log.append([{"query": 0}])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
codes = []
for n in range(3):
    try:
        log.append([{"query": 1, "text": "x" * 300}, {"query": 2}])
    except AuditError as error:
        codes.append(error.code)
    codes.append(verify(path).faults)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.append([{"query": 3}])
print(json.dumps([codes, [r for r in verify(path).faults], verify(path).records]))
"""


@posix
@pytest.mark.parametrize("limit", [200, 300, 500, 700])
def test_a_full_disk_is_an_error_and_loses_nothing(limit: int, path: Path) -> None:
    codes, faults, records = _run(_FULL, path, limit)
    assert codes == ["audit-write", []] * 3 and faults == [] and records >= 2


_SHUT = """
path = Path(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
codes = []
for use in (lambda: AuditLog(path), lambda: verify(path)):
    try:
        use()
    except AuditError as error:
        codes.append(error.code)
print(json.dumps(codes))
"""


@posix
@pytest.mark.parametrize("there", [False, True])
def test_a_shut_folder_or_file_is_an_error(there: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        if there:
            AuditLog(path).append([{}])
            for file in path.parent.iterdir():
                file.chmod(0)
        path.parent.chmod(0o555)
        assert _run(_SHUT, path) == ["audit-write", "audit-read" if there else "audit-missing"]
        path.parent.chmod(0o755)


def test_a_folder_that_is_not_there_and_a_path_that_is_one_are_errors(path: Path) -> None:
    (path.parent / "folder").mkdir()
    for wrong in (path.parent / "folder", path.parent / "none" / "audit.jsonl", "", ".", "a\0b"):
        with pytest.raises(AuditError) as caught:
            AuditLog(wrong)
        assert caught.value.code == "audit-write", wrong
        with pytest.raises(AuditError) as caught:
            verify(wrong)
        assert caught.value.code in ("audit-missing", "audit-read"), wrong
    assert sorted(file.name for file in path.parent.iterdir()) == ["folder"]


def test_a_file_that_may_not_be_renamed_is_written_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _made(path, 4)
    path.with_name("audit.000000000004.jsonl").touch()
    AuditLog(path, max_bytes=900).append([{"query": 4}])
    assert _clean(path, 5) and len(path.read_bytes().splitlines()) == 5
    assert "cannot be renamed" in caplog.text


def test_a_lock_that_is_held_is_not_waited_for_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path)
    monkeypatch.setattr(audit, "_BUSY_SECONDS", 0.05)
    with audit._open_file(_head(path), os.O_RDWR) as head, audit._lock(head, path):
        for use in (lambda: log.append([{}]), lambda: verify(path)):
            with pytest.raises(AuditError) as caught:
                use()
            assert caught.value.code == "audit-locked"
    log.append([{}])
    _clean(path, 1)


# -- the command --


def _verify(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["audit", "verify", *map(str, arguments)])


def test_the_command_says_what_it_read_and_exits_with_1_on_a_fault(path: Path) -> None:
    files = _made(path)
    head = _records(path)[-1]["hash"]
    good = _verify(path, "--head", head)
    assert good.exit_code == 0
    assert good.stdout == f"records: 12, from 1 on\nfiles: 3\nhead: {head}\n"
    files[0].unlink()
    bad = _verify(path)
    assert bad.exit_code == 1 and "fault: audit.000000000008.jsonl line 1: records 1 to 4 are" in bad.stdout
    told = _verify(path, "--removed", 4, "--json")
    assert told.exit_code == 0 and json.loads(told.stdout) == {
        "records": 8, "first": 5, "files": 2, "head": head, "faults": [], "notes": [],
    }  # fmt: skip
    assert _verify(path, "--json").exit_code == 1
    missing = _verify(path.with_name("none"))
    assert missing.exit_code == 1 and "[audit-missing]" in missing.stderr
    assert _verify(path, "--removed", "-1").exit_code == 2
