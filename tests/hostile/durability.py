"""Hard lives of an archive: what is done to it by processes that are killed, and what must hold afterwards.

Run as a program, this is one of those processes:

    python durability.py live ARCHIVE SEED            random operations, announced, and promised when done
    python durability.py write ARCHIVE SEED SECONDS   the operations of a History, one after the other
    python durability.py read ARCHIVE SEED            searches held against the History, until told to stop

What a case is follows from its id and its version, so that whoever knows these two knows all of it.
"""

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skinret_infer.archive import maintenance, pruning, segments, table
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.segments import PruningIndex
from skinret_infer.archive.store import Record
from skinret_infer.descriptor import Layout, Vector, part_weights, products

LAYOUT = Layout(local=(24, 24, 24), global_=(24, 24, 24), concepts=(3, 2))
TRACE = re.compile(rb"(?:case|mark)-[0-9a-f]{12}")  # every case has two such texts, like those of no other
State = dict[str, int]  # the version of each case that is there
Op = tuple[str, Any]


def small_segments(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make segments so small that a hundred cases have derived files; a monkeypatch's setattr undoes it."""
    for module in (pruning, table, segments, maintenance):
        change(module, "SEGMENT", 64)
    change(pruning, "_RANKS", (4, 8, 16))
    change(pruning, "_FETCH", 500.0)


def opened(path: Path) -> Archive:
    return Archive(path, "f" * 64, LAYOUT, "m 1")


# -- what a case is --


def _digest(case_id: str, version: int) -> str:
    return hashlib.sha256(f"{case_id} {version}".encode()).hexdigest()


def record(case_id: str, version: int) -> Record:
    said = _digest(case_id, version)
    facts = {"mark": f"mark-{said[:12]}", "version": version, "sex": ("female", "male")[version % 2]}
    return Record(case_id, f"diagnosis {version % 5}", "nevus", "unknown", facts, f"{said[:9]}.jpg", said)


@functools.lru_cache(maxsize=1 << 14)
def _wild(case_id: str, version: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(int(_digest(case_id, version)[:16], 16)).standard_normal(12 + LAYOUT.length)


_MIXING = np.arange(1, 13)[:, None] ** -0.9 * np.random.default_rng(5).standard_normal((12, LAYOUT.length))


def descriptors(cases: Sequence[tuple[str, int]]) -> Vector:
    """Return descriptors that lie near twelve dimensions, as those of a trained model lie near few."""
    wild = np.array([_wild(*case) for case in cases]).reshape(len(cases), -1)
    x = wild[:, :12] @ _MIXING + 0.01 * wild[:, 12:]
    six = LAYOUT.visual_length
    x[:, six:] = np.exp(x[:, six:])
    sums = np.add.reduceat(np.hstack([x[:, :six] ** 2, x[:, six:]]), LAYOUT.starts, axis=1)
    sums[:, :6] = np.sqrt(sums[:, :6])
    result: Vector = (x / np.repeat(sums, LAYOUT.lengths, axis=1)).astype(np.float32)
    return result


def traces(paths: Sequence[Path]) -> set[bytes]:
    """Return the ids and marks of cases whose bytes are in files."""
    return {trace for path in paths if path.is_file() for trace in TRACE.findall(path.read_bytes())}


def traces_of(state: State) -> set[bytes]:
    marks = (str(record(*case).attributes["mark"]) for case in state.items())
    return {text.encode() for text in (*state, *marks)}


def held(path: Path) -> State:
    """Read what an archive holds past the package, and check that each case is all of what it was."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            "SELECT case_id, attributes, image_sha256, descriptor FROM cases WHERE image_sha256 > ''"
        ).fetchall()
    state = {case_id: json.loads(attributes)["version"] for case_id, attributes, _, _ in rows}
    assert len(state) == len(rows)
    for row, right in zip(rows, descriptors([*state.items()]), strict=True):
        assert row[2] == _digest(row[0], state[row[0]]) and row[3] == right.tobytes(), (
            f"{row[0]} is half there"
        )
    return state


def check_answers(archive: Archive, state: State, chance: random.Random) -> None:
    """Check that searches find the very best of a state, and that its records are whole."""
    assert len(archive) == len(state)
    assert archive.get([*state, "none such"]) == {case[0]: record(*case) for case in state.items()}
    if not state:
        return
    everything = descriptors([*state.items()])
    for k, where in ((5, None), (10**6, None), (10**6, {"sex": "male"})):
        if where and not any(version % 2 for version in state.values()):
            continue
        weights = part_weights(LAYOUT, chance.random(), chance.random())
        query = descriptors([("query", chance.getrandbits(30))])[0]
        scores = (products(query, everything, LAYOUT) * weights).sum(1).tolist()
        ranked = sorted(zip(scores, state.items(), strict=True), key=lambda one: (-one[0], one[1]))
        right = [(s, record(*case)) for s, case in ranked if not where or case[1] % 2]
        [matches], searched, _ = archive.search(query[None], weights, k, where)
        assert searched == len(right)
        assert [(match.score, match.record) for match in matches] == right[:k]


# -- a life of operations, and kills --


def after(state: State, op: Op) -> State:
    """Return the state that an operation leads to."""
    kind, what = op
    if kind == "write":
        return state | dict(what)
    if kind == "remove":
        return {case_id: version for case_id, version in state.items() if case_id not in what}
    return state


def chosen(chance: random.Random, state: State, among: Sequence[str] = ()) -> Op:
    """Choose an operation that suits a state; the archive is kept at some hundred cases."""
    kinds = {"write": 4, "replace": 3, "remove": 4, "compact": 1.5, "backup": 1.5, "search": 1, "repair": 0.3}
    if not state:  # perhaps there is no archive yet
        kinds = {"write": 1}
    elif len(state) < 120:
        kinds |= {"write": 9, "remove": 1}
    elif len(state) > 400:
        kinds |= {"write": 1, "remove": 9}
    [kind] = chance.choices(
        [*kinds], [weight * (not among or kind in among) for kind, weight in kinds.items()]
    )
    some = chance.sample(sorted(state), min(len(state), chance.choice((1, 2, 7, 30))))
    if kind == "remove":
        return kind, some
    if kind in ("write", "replace"):
        new = [f"case-{chance.getrandbits(48):012x}" for _ in range(chance.choice((1, 8, 60)))]
        ids = new if kind == "write" else [*some, *new[:3]]
        return "write", [(case_id, chance.getrandbits(30)) for case_id in ids]
    return kind, f"{chance.getrandbits(48):012x}.skinret" if kind == "backup" else None


def perform(archive: Archive, op: Op, state: State, chance: random.Random) -> None:
    kind, what = op
    if kind == "write":
        archive.write([record(*case) for case in what], descriptors(what))
    elif kind == "remove":
        assert archive.remove(what) == len(what)
    elif kind == "compact":
        maintenance.compact(archive)
    elif kind == "repair":
        maintenance.repair(archive)
    elif kind == "backup":
        maintenance.backup(archive, backups(archive.path) / what)
    else:
        check_answers(archive, state, chance)


def backups(path: Path) -> Path:
    """Return the folder of the backups of an archive."""
    return path.with_name("backups")


def _say(*words: Any) -> None:
    """Write a line at once, so that it is out before whatever comes next."""
    os.write(1, json.dumps(words).encode() + b"\n")


def live(path: Path, seed: int) -> None:
    """Do random operations on an archive, for ever."""
    chance = random.Random(seed)
    for owner, name in (
        (pruning.SegmentIndex, "save"), (segments, "remove_stale"),
        (PruningIndex, "take_projection"), (PruningIndex, "rebuild"),
    ):  # fmt: skip
        setattr(owner, name, _announced(name, getattr(owner, name)))
    _say("open")
    archive = opened(path)
    state = held(path) if len(archive) else {}
    while True:
        op = chosen(chance, state)
        _say("begin", op)
        perform(archive, op, state, chance)
        _say("done", op)
        state = after(state, op)


def _announced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def announcing(*arguments: Any) -> Any:
        _say(name)
        return function(*arguments)

    return announcing


EVENTS = ("begin", "begin", "begin", "done", "save", "sweep", "_take_basis", "_derive", "open")


@dataclass
class Life:
    """A life of an archive, from kill to kill."""

    path: Path
    chance: random.Random
    possible: list[State] = field(default_factory=lambda: [{}])  # the archive holds one of these
    copies: dict[str, list[State]] = field(default_factory=dict)  # and each backup one of its own
    promised: set[str] = field(default_factory=set)  # backups that were reported as made
    figures: Counter[str] = field(default_factory=Counter)

    def kill(self) -> None:
        """Let a process live on the archive, and kill it at a random moment."""
        backups(self.path).mkdir(exist_ok=True)
        chance = self.chance
        event, left = chance.choice(EVENTS), chance.randint(1, 6)
        if chance.random() < 0.5:  # a kind of operation, be it a rare one
            event, left = chance.choice(("write", "remove", "compact", "backup", "compact", "backup")), 1
        delay = 10 ** chance.uniform(-4.5, -1.5)
        process = spawn("live", self.path, chance.getrandbits(30))
        with process:
            assert process.stdout and process.stderr
            lines = []
            for line in iter(process.stdout.readline, b""):
                lines.append(json.loads(line))
                left -= event in (lines[-1][0], lines[-1][-1][0] if lines[-1][0] == "begin" else "")
                if left <= 0 or event == "open" or len(lines) > 200:
                    break
            end = time.perf_counter() + delay
            while time.perf_counter() < end:
                time.sleep(min(delay, 1e-4))
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]  # the last is not whole, or nothing
            error = process.stderr.read().decode()
        assert process.returncode == -signal.SIGKILL, error
        running: Op | None = None
        for line in [*lines, *map(json.loads, rest)]:
            if line[0] == "begin":
                running = (line[1][0], line[1][1])
                if running[0] == "backup":
                    self.copies[running[1]] = [*self.possible]
            elif line[0] == "done":
                assert running
                self.possible = [after(state, running) for state in self.possible]
                self.promised |= {running[1]} if running[0] == "backup" else set()
                self.figures["operations"] += 1
                running = None
        if running:
            self.possible += [after(state, running) for state in self.possible]
        self.figures["kills"] += 1
        self.figures[f"killed in {running[0]}" if running else "killed between"] += 1
        journal = self.path.with_name(self.path.name + "-journal")
        self.figures["half a change in the file"] += journal.exists() and journal.stat().st_size > 0

    def verify(self) -> None:
        """Check that nothing is lost, nothing half there, nothing of what was removed left."""
        chance, scan = self.chance, self.path.with_name(self.path.name + ".index")
        self.figures["half a derived file"] += len([*scan.glob(".*.partial")])
        itself = (
            self.path.is_file() and self.path.stat().st_size and chance.random() < 0.5 and any(self.possible)
        )
        archive = Archive.open(self.path) if itself else opened(self.path)
        with contextlib.closing(archive):
            assert not (faults := maintenance.check(archive)), faults
            state = held(self.path) if len(archive) else {}
            assert state in self.possible, [state.items() ^ one.items() for one in self.possible]
            self.figures["done, though not reported"] += state != self.possible[0]
            check_answers(archive, state, chance)
            gone = {case for one in self.possible for case in one.items()} - state.items()
            if state:
                out = chance.choice(sorted(state))
                gone.add((out, state[out]))
                assert archive.remove([out]) == 1
                del state[out]
            if compacted := bool(state) and chance.random() < 0.3:
                maintenance.compact(archive)
            check_answers(archive, state, chance)
            assert not (faults := maintenance.check(archive)), faults
        files = [self.path, *scan.glob("*"), *scan.glob(".*")]
        for file in files[1:]:
            assert not (left := traces([file]) - traces_of(state)), f"{left} in {file.name}"
            if file.is_file():
                content = file.read_bytes()
                assert not any(one.tobytes()[:48] in content for one in descriptors(sorted(gone)))
        if compacted:
            assert traces(files[:1]) == traces_of(state)
        self.figures["most derived files"] = max(self.figures["most derived files"], len(files) - 1)
        self._verify_backups()
        self.possible = [state]

    def _verify_backups(self) -> None:
        there = {path.name: path for path in backups(self.path).glob("*.skinret")}
        assert self.promised <= there.keys() <= self.copies.keys()
        for name, path in there.items():
            with contextlib.closing(Archive.open(path)) as copy:
                assert not (faults := maintenance.check(copy)), faults
                state = held(path) if len(copy) else {}
                assert state in self.copies[name] and len(copy) == len(state)
            path.unlink()
            self.figures["backups"] += 1
        self.promised, self.copies = set(), {}


def killed_many_times(path: Path, kills: int, seed: int) -> Counter[str]:
    """Give an archive a life of so many kills; return what came to pass."""
    life = Life(path, random.Random(seed))
    while life.figures["kills"] < kills:
        life.kill()
        if life.chance.random() < 0.85 or life.figures["kills"] == kills:  # else the next meets it as it is
            life.verify()
    life.figures["half a backup"] = len([*backups(path).glob(".*.partial")])
    return life.figures


# -- readers and a writer --

_CASES, _GROUPS = 8, 30  # a group is written, replaced and removed as one


class History:
    """States one after the other: the n-th operation, from 1, writes a group in version n, or removes one."""

    def __init__(self, seed: int) -> None:
        self.seed, self.ops = seed, [("none", [])]
        self.groups: list[dict[int, int]] = [{}]  # the versions of the groups after the n-th operation

    def op(self, n: int) -> Op:
        while len(self.ops) <= n:
            number = len(self.ops)
            chance, groups = random.Random(f"{self.seed} {number}"), dict(self.groups[-1])
            if len(groups) > 5 and chance.random() < len(groups) / _GROUPS / 2:
                group = min(groups, key=lambda one: groups[one])  # the oldest: no state comes twice
                del groups[group]
                self.ops.append(("remove", [*_members(group)]))
            else:
                group = chance.randrange(_GROUPS)
                groups[group] = number
                self.ops.append(("write", [(case_id, number) for case_id in _members(group)]))
            self.groups.append(groups)
        return self.ops[n]

    def place(self, state: State, least: int) -> int:
        """Return the number of the operation that left a state, which none before `least` is."""
        groups = {int(case_id.split("-")[1], 16) >> 8: version for case_id, version in state.items()}
        whole = {case_id: version for group, version in groups.items() for case_id in _members(group)}
        assert state == whole, "a torn group"
        for n in range(max(least, *groups.values()), max(least, *groups.values()) + 10_000):
            self.op(n)
            if self.groups[n] == groups:
                return n
        raise AssertionError("a state that never was, or one of before")


def _members(group: int) -> Iterator[str]:
    return (f"case-{group << 8 | n:012x}" for n in range(_CASES))


BEGUN = 40  # operations that are done before anybody reads


def begin(path: Path, seed: int) -> None:
    """Make the archive that readers and a writer meet at."""
    history = History(seed)
    with contextlib.closing(opened(path)) as archive:
        for n in range(1, BEGUN + 1):
            perform(archive, history.op(n), {}, random.Random(0))


def write(path: Path, seed: int, seconds: float) -> None:
    history, chance = History(seed), random.Random(seed)
    end, n = time.monotonic() + seconds, BEGUN
    with contextlib.closing(opened(path)) as archive:
        while time.monotonic() < end:
            n += 1
            perform(archive, history.op(n), {}, chance)
            _say(n, time.monotonic(), history.op(n)[0])
            if n % 90 == 0:
                maintenance.compact(archive)
            if n % 70 == 0:
                maintenance.backup(archive, path.with_name(f"{n}.skinret"))
            time.sleep(chance.choice((0, 0.005, 0.05)))


def read(path: Path, seed: int) -> None:
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
    history, chance, at, searches = History(seed), random.Random(os.getpid()), BEGUN, 0
    weights = part_weights(LAYOUT, 0.6, 0.5)
    with contextlib.closing(opened(path)) as archive:
        while not told.is_set():
            query = descriptors([("query", chance.getrandbits(30))])[0]
            [matches], searched, _ = archive.search(query[None], weights, 10**6)
            now = time.monotonic()
            state = {m.record.case_id: int(m.record.attributes["version"]) for m in matches}
            assert len(state) == len(matches) == searched
            new = history.place(state, at)
            everything = descriptors([*state.items()])
            scores = (products(query, everything, LAYOUT) * weights).sum(1).tolist()
            assert [m.score for m in matches] == scores == sorted(scores, reverse=True)
            assert [m.record for m in matches] == [record(*case) for case in state.items()]
            for few in (1, 5):
                [best], *_ = archive.search(query[None], weights, few)
                seen = {m.record.case_id: int(m.record.attributes["version"]) for m in best}
                own = (products(query, descriptors([*seen.items()]), LAYOUT) * weights).sum(1)
                assert [m.score for m in best] == own.tolist() and len(best) == few
            searches += 3
            if new != at or searches == 3:
                _say(new, now)
            at = new
    _say("end", searches)


def readers_and_a_writer(path: Path, readers: int, seconds: float, seed: int) -> dict[str, float]:
    """Let processes read while one writes; return figures. Any error or torn result is raised."""
    begin(path, seed)
    reading = [spawn("read", path, seed) for _ in range(readers)]
    logs: list[list[list[Any]]] = [[] for _ in reading]
    listening = [
        threading.Thread(target=_listen, args=(process, log), daemon=True)
        for process, log in zip(reading, logs, strict=True)
    ]
    for thread in listening:
        thread.start()
    try:
        _until(lambda: all(logs), reading)
        with spawn("write", path, seed, seconds) as writing:
            assert writing.stdout and writing.stderr
            written = [json.loads(line) for line in writing.stdout]
            error = writing.stderr.read().decode()
        assert writing.returncode == 0, error
        _until(lambda: all(log[-1][0] == written[-1][0] for log in logs), reading)
    finally:
        for process in reading:
            assert process.stdin
            process.stdin.close()
    for process, thread in zip(reading, listening, strict=True):
        thread.join(60)
        assert process.stderr
        error = process.stderr.read().decode()
        assert process.wait(60) == 0, error
    delays = []
    for log in logs:
        seen = iter(log[:-1])
        place, when = next(seen)
        for n, done, kind in written:
            while place < n:
                place, when = next(seen)
            if kind == "write":
                delays.append(max(0.0, when - done))
    with contextlib.closing(opened(path)) as archive:
        assert not (faults := maintenance.check(archive)), faults
    for copy in path.parent.glob("[0-9]*.skinret"):
        with contextlib.closing(opened(copy)) as archive:
            assert not (faults := maintenance.check(archive)), faults
            assert History(seed).place(held(copy), 0) == int(copy.stem)
    return {
        "operations of the writer": len(written),
        "searches of the readers": sum(log[-1][1] for log in logs),
        "worst delay until a reader saw a new case, s": max(delays),
        "median delay, s": sorted(delays)[len(delays) // 2],
    }


def _listen(process: "subprocess.Popen[bytes]", log: list[list[Any]]) -> None:
    assert process.stdout
    for line in process.stdout:
        log.append(json.loads(line))


def _until(
    said: Callable[[], bool], processes: Sequence["subprocess.Popen[bytes]"], seconds: float = 60
) -> None:
    end = time.monotonic() + seconds
    while not said():
        for process in processes:
            if process.poll() is not None:
                assert process.stderr
                raise AssertionError(process.stderr.read().decode())
        assert time.monotonic() < end, "a process says nothing"
        time.sleep(0.01)


# -- processes --


def spawn(command: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Start one of the processes above."""
    return subprocess.Popen(
        [sys.executable, __file__, command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_ENVIRONMENT,
    )


def run(code: str, *arguments: object, ends: int = 0, within: Sequence[str] = ()) -> Any:
    """Run a program that stands on this module in a process of its own; return the JSON that it prints.

    ends : how it must, as a return code.
    within : a command that runs it.
    """
    start = "import sys\nfrom pathlib import Path\nfrom durability import *\nsmall_segments()\n"
    done = subprocess.run(
        [*within, sys.executable, "-c", start + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=_ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == ends, done.stderr
    return json.loads(done.stdout or "null")


_ENVIRONMENT: Mapping[str, str] = os.environ | {"OPENBLAS_NUM_THREADS": "1"}

if __name__ == "__main__":
    small_segments()
    name, place, seed, *more = sys.argv[1:]
    {"live": live, "write": write, "read": read}[name](Path(place), int(seed), *map(float, more))
