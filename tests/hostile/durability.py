"""Durability of an archive: processes change it and are killed; this module checks the archive afterwards.

As a program, this file is one of those processes:

    python durability.py live ARCHIVE SEED            random operations; prints a line before and after each
    python durability.py write ARCHIVE SEED SECONDS   the operations of a History, one after the other
    python durability.py read ARCHIVE SEED            searches compared with the History, until stdin ends

The id and the version of a case determine its record and its descriptor.
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
TRACE = re.compile(rb"(?:case|mark)-[0-9a-f]{12}")  # every case has two such texts of its own
State = dict[str, int]  # the version of each case in the archive
Op = tuple[str, Any]


def small_segments(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make segments so small that a hundred cases fill several; a monkeypatch's setattr can undo it."""
    for module in (pruning, table, segments, maintenance):
        change(module, "SEGMENT", 64)
    for module in (pruning, segments, maintenance):
        change(module, "SAMPLE", 64)  # so that a projection is fitted
    change(pruning, "_RANKS", (4, 8, 16))
    change(pruning, "_FETCH", 500.0)


def opened(path: Path) -> Archive:
    return Archive(path, "f" * 64, LAYOUT, "m 1")


# -- cases --


def _digest(case_id: str, version: int) -> str:
    return hashlib.sha256(f"{case_id} {version}".encode()).hexdigest()


def record(case_id: str, version: int) -> Record:
    digest, sex = _digest(case_id, version), "male" if version % 2 else "female"
    attributes = {"mark": f"mark-{digest[:12]}", "version": version, "sex": sex}
    diagnosis = f"diagnosis {version % 5}"
    return Record(case_id, diagnosis, "nevus", "unknown", attributes, f"{digest[:9]}.jpg", digest)


@functools.lru_cache(maxsize=1 << 14)
def _random_numbers(case_id: str, version: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(int(_digest(case_id, version)[:16], 16)).standard_normal(12 + LAYOUT.length)


_MIXING = np.arange(1, 13)[:, None] ** -0.9 * np.random.default_rng(5).standard_normal((12, LAYOUT.length))


def descriptors(cases: Sequence[tuple[str, int]]) -> Vector:
    """Return descriptors close to a space of 12 dimensions, as those of a trained model are close to few."""
    numbers = np.array([_random_numbers(*case) for case in cases]).reshape(len(cases), -1)
    x = numbers[:, :12] @ _MIXING + 0.01 * numbers[:, 12:]
    visual = LAYOUT.visual_length
    x[:, visual:] = np.exp(x[:, visual:])
    sums = np.add.reduceat(np.hstack([x[:, :visual] ** 2, x[:, visual:]]), LAYOUT.starts, axis=1)
    sums[:, :6] = np.sqrt(sums[:, :6])
    result: Vector = (x / np.repeat(sums, LAYOUT.lengths, axis=1)).astype(np.float32)
    return result


def traces(paths: Sequence[Path]) -> set[bytes]:
    """Return the ids and marks of cases that occur in the bytes of files."""
    return {trace for path in paths if path.is_file() for trace in TRACE.findall(path.read_bytes())}


def traces_of(state: State) -> set[bytes]:
    marks = (str(record(*case).attributes["mark"]) for case in state.items())
    return {text.encode() for text in (*state, *marks)}


def held(path: Path) -> State:
    """Read the state of an archive without the package, and check that each case is complete."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            "SELECT case_id, attributes, image_sha256, descriptor FROM cases WHERE image_sha256 > ''"
        ).fetchall()
    state = {case_id: json.loads(attributes)["version"] for case_id, attributes, _, _ in rows}
    assert len(state) == len(rows)
    for row, descriptor in zip(rows, descriptors([*state.items()]), strict=True):
        case_id, _, digest, stored = row
        complete = digest == _digest(case_id, state[case_id]) and stored == descriptor.tobytes()
        assert complete, f"{case_id} is incomplete"
    return state


def check_answers(archive: Archive, state: State, chance: random.Random) -> None:
    """Check that searches find the best cases of a state, and that its records are complete."""
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
        ranked = sorted(zip(scores, state.items(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        expected = [(score, record(*case)) for score, case in ranked if not where or case[1] % 2]
        [matches], searched, _ = archive.search(query[None], weights, k, where)
        assert searched == len(expected)
        assert [(match.score, match.record) for match in matches] == expected[:k]


# -- random operations, and kills --


def after(state: State, op: Op) -> State:
    """Return the state that an operation leads to."""
    kind, argument = op
    if kind == "write":
        return state | dict(argument)
    if kind == "remove":
        return {case_id: version for case_id, version in state.items() if case_id not in argument}
    return state


def chosen(chance: random.Random, state: State, among: Sequence[str] = ()) -> Op:
    """Choose an operation that suits a state; the archive tends to 120 to 400 cases."""
    kinds = {"write": 4, "replace": 3, "remove": 4, "compact": 1.5, "backup": 1.5, "search": 1, "repair": 0.3}
    if not state:  # the archive may not exist yet
        kinds = {"write": 1}
    elif len(state) < 120:
        kinds |= {"write": 9, "remove": 1}
    elif len(state) > 400:
        kinds |= {"write": 1, "remove": 9}
    [kind] = chance.choices(
        [*kinds], [weight * (not among or kind in among) for kind, weight in kinds.items()]
    )
    sample = chance.sample(sorted(state), min(len(state), chance.choice((1, 2, 7, 30))))
    if kind == "remove":
        return kind, sample
    if kind in ("write", "replace"):
        new = [f"case-{chance.getrandbits(48):012x}" for _ in range(chance.choice((1, 8, 60)))]
        ids = new if kind == "write" else [*sample, *new[:3]]
        return "write", [(case_id, chance.getrandbits(30)) for case_id in ids]
    return kind, f"{chance.getrandbits(48):012x}.skinret" if kind == "backup" else None


def perform(archive: Archive, op: Op, state: State, chance: random.Random) -> None:
    kind, argument = op
    if kind == "write":
        archive.write([record(*case) for case in argument], descriptors(argument))
    elif kind == "remove":
        assert archive.remove(argument) == len(argument)
    elif kind == "compact":
        maintenance.compact(archive)
    elif kind == "repair":
        maintenance.repair(archive)
    elif kind == "backup":
        maintenance.backup(archive, backups(archive.path) / argument)
    else:
        check_answers(archive, state, chance)


def backups(path: Path) -> Path:
    """Return the folder of the backups of an archive."""
    return path.with_name("backups")


def _print_line(*words: Any) -> None:
    """Write a line of JSON to stdout without a buffer, so that it is written before the process goes on."""
    os.write(1, json.dumps(words).encode() + b"\n")


STEPS = (
    (pruning.SegmentIndex, "save"),
    (segments, "remove_stale"),
    (PruningIndex, "take_projection"),
    (PruningIndex, "rebuild"),
)  # of the upkeep of the pruning index; `live` announces each


def live(path: Path, seed: int) -> None:
    """Do random operations on an archive without end."""
    chance = random.Random(seed)
    for owner, name in STEPS:
        setattr(owner, name, _announce(name, getattr(owner, name)))
    _print_line("open")
    archive = opened(path)
    state = held(path) if len(archive) else {}
    while True:
        op = chosen(chance, state)
        _print_line("begin", op)
        perform(archive, op, state, chance)
        _print_line("done", op)
        state = after(state, op)


def _announce(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that prints its name before it runs."""

    def wrapper(*arguments: Any) -> Any:
        _print_line(name)
        return function(*arguments)

    return wrapper


EVENTS = ("begin", "begin", "begin", "done", *(name for _, name in STEPS), "open")


@dataclass
class Life:
    """The states of an archive over many kills."""

    path: Path
    chance: random.Random
    possible: list[State] = field(default_factory=lambda: [{}])  # the archive is in one of these
    copies: dict[str, list[State]] = field(default_factory=dict)  # the possible states of each backup
    promised: set[str] = field(default_factory=set)  # backups that were reported as complete
    figures: Counter[str] = field(default_factory=Counter)

    def kill(self) -> None:
        """Let a process change the archive, and kill it at a random moment."""
        backups(self.path).mkdir(exist_ok=True)
        chance = self.chance
        event, countdown = chance.choice(EVENTS), chance.randint(1, 6)
        if chance.random() < 0.5:  # kill in an operation of one kind, even a rare one
            event, countdown = chance.choice(("write", "remove", "compact", "backup", "compact", "backup")), 1
        delay = 10 ** chance.uniform(-4.5, -1.5)
        process = spawn("live", self.path, chance.getrandbits(30))
        with process:
            assert process.stdout and process.stderr
            lines = []
            for line in iter(process.stdout.readline, b""):
                lines.append(json.loads(line))
                line_kind, *arguments = lines[-1]
                if event == line_kind or (line_kind == "begin" and event == arguments[-1][0]):
                    countdown -= 1
                if countdown <= 0 or event == "open" or len(lines) > 200:
                    break
            end = time.perf_counter() + delay
            while time.perf_counter() < end:
                time.sleep(min(delay, 1e-4))
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split(b"\n")[:-1]  # the last line is cut short or empty
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
        self.figures.update(f"saw {line[0]}" for line in lines if line[0] in EVENTS)
        self.figures[f"killed in {running[0]}" if running else "killed between"] += 1
        journal = self.path.with_name(self.path.name + "-journal")
        self.figures["half a change in the file"] += journal.exists() and journal.stat().st_size > 0

    def verify(self) -> None:
        """Check that no case is lost or incomplete, and that no data of removed cases remain."""
        chance, scan = self.chance, self.path.with_name(self.path.name + ".index")
        self.figures["half an index file"] += len([*scan.glob(".*.partial")])
        exists = self.path.is_file() and self.path.stat().st_size
        by_own_header = exists and chance.random() < 0.5 and any(self.possible)
        archive = Archive.open(self.path) if by_own_header else opened(self.path)
        with contextlib.closing(archive):
            assert not (faults := maintenance.check(archive)), faults
            state = held(self.path) if len(archive) else {}
            assert state in self.possible, [state.items() ^ other.items() for other in self.possible]
            self.figures["done, though not reported"] += state != self.possible[0]
            check_answers(archive, state, chance)
            removed = {case for other in self.possible for case in other.items()} - state.items()
            if state:
                case_id = chance.choice(sorted(state))
                removed.add((case_id, state[case_id]))
                assert archive.remove([case_id]) == 1
                del state[case_id]
            if compacted := bool(state) and chance.random() < 0.3:
                maintenance.compact(archive)
            check_answers(archive, state, chance)
            assert not (faults := maintenance.check(archive)), faults
        files = [self.path, *scan.glob("*"), *scan.glob(".*")]
        for file in files[1:]:
            assert not (remains := traces([file]) - traces_of(state)), f"{remains} in {file.name}"
            if file.is_file():
                content = file.read_bytes()
                assert not any(vector.tobytes()[:48] in content for vector in descriptors(sorted(removed)))
        if compacted:
            assert traces(files[:1]) == traces_of(state)
        self.figures["most index files"] = max(self.figures["most index files"], len(files) - 1)
        self._verify_backups()
        self.possible = [state]

    def _verify_backups(self) -> None:
        paths = {path.name: path for path in backups(self.path).glob("*.skinret")}
        assert self.promised <= paths.keys() <= self.copies.keys()
        for name, path in paths.items():
            with contextlib.closing(Archive.open(path)) as copy:
                assert not (faults := maintenance.check(copy)), faults
                state = held(path) if len(copy) else {}
                assert state in self.copies[name] and len(copy) == len(state)
            path.unlink()
            self.figures["backups"] += 1
        self.promised, self.copies = set(), {}


def killed_many_times(path: Path, kills: int, seed: int) -> Counter[str]:
    """Kill the process of an archive this many times, with checks between; return what happened."""
    life = Life(path, random.Random(seed))
    while life.figures["kills"] < kills:
        life.kill()
        # Without a check the next process opens the archive as the kill left it
        if life.chance.random() < 0.85 or life.figures["kills"] == kills:
            life.verify()
    life.figures["half a backup"] = len([*backups(path).glob(".*.partial")])
    return life.figures


# -- readers and a writer --

_CASES, _GROUPS = 8, 30  # the cases of a group are written, replaced and removed together


class History:
    """A sequence of states: operation n, from 1, writes a group in version n, or removes a group."""

    def __init__(self, seed: int) -> None:
        self.seed, self.ops = seed, [("none", [])]
        self.groups: list[dict[int, int]] = [{}]  # the versions of the groups after operation n

    def op(self, n: int) -> Op:
        while len(self.ops) <= n:
            number = len(self.ops)
            chance, groups = random.Random(f"{self.seed} {number}"), dict(self.groups[-1])
            if len(groups) > 5 and chance.random() < len(groups) / _GROUPS / 2:
                group = min(groups, key=lambda number: groups[number])  # the oldest: no state comes twice
                del groups[group]
                self.ops.append(("remove", [*_members(group)]))
            else:
                group = chance.randrange(_GROUPS)
                groups[group] = number
                self.ops.append(("write", [(case_id, number) for case_id in _members(group)]))
            self.groups.append(groups)
        return self.ops[n]

    def place(self, state: State, least: int) -> int:
        """Return the number of the operation that led to a state. It must be `least` or more."""
        groups = {int(case_id.split("-")[1], 16) >> 8: version for case_id, version in state.items()}
        complete = {case_id: version for group, version in groups.items() for case_id in _members(group)}
        assert state == complete, "an incomplete group"
        for n in range(max(least, *groups.values()), max(least, *groups.values()) + 10_000):
            self.op(n)
            if self.groups[n] == groups:
                return n
        raise AssertionError("a state that never existed, or an older one")


def _members(group: int) -> Iterator[str]:
    return (f"case-{group << 8 | n:012x}" for n in range(_CASES))


WARM_UP = 40  # operations before the first search


def begin(path: Path, seed: int) -> None:
    """Make the archive of the readers and the writer."""
    history = History(seed)
    with contextlib.closing(opened(path)) as archive:
        for n in range(1, WARM_UP + 1):
            perform(archive, history.op(n), {}, random.Random(0))


def write(path: Path, seed: int, seconds: float) -> None:
    history, chance = History(seed), random.Random(seed)
    end, n = time.monotonic() + seconds, WARM_UP
    with contextlib.closing(opened(path)) as archive:
        while time.monotonic() < end:
            n += 1
            perform(archive, history.op(n), {}, chance)
            _print_line(n, time.monotonic(), history.op(n)[0])
            if n % 90 == 0:
                maintenance.compact(archive)
            if n % 70 == 0:
                maintenance.backup(archive, path.with_name(f"{n}.skinret"))
            time.sleep(chance.choice((0, 0.005, 0.05)))


def read(path: Path, seed: int) -> None:
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    history, chance, at, searches = History(seed), random.Random(os.getpid()), WARM_UP, 0
    weights = part_weights(LAYOUT, 0.6, 0.5)
    with contextlib.closing(opened(path)) as archive:
        while not stop.is_set():
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
            for k in (1, 5):
                [best], *_ = archive.search(query[None], weights, k)
                cases = {m.record.case_id: int(m.record.attributes["version"]) for m in best}
                best_scores = (products(query, descriptors([*cases.items()]), LAYOUT) * weights).sum(1)
                assert [m.score for m in best] == best_scores.tolist() and len(best) == k
            searches += 3
            if new != at or searches == 3:
                _print_line(new, now)
            at = new
    _print_line("end", searches)


def readers_and_a_writer(path: Path, readers: int, seconds: float, seed: int) -> dict[str, float]:
    """Let processes read while one writes; return figures. Raises AssertionError for any wrong result."""
    begin(path, seed)
    reader_processes = [spawn("read", path, seed) for _ in range(readers)]
    logs: list[list[list[Any]]] = [[] for _ in reader_processes]
    threads = [
        threading.Thread(target=_listen, args=(process, log), daemon=True)
        for process, log in zip(reader_processes, logs, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        _wait_until(lambda: all(logs), reader_processes)
        with spawn("write", path, seed, seconds) as writer:
            assert writer.stdout and writer.stderr
            operations = [json.loads(line) for line in writer.stdout]
            error = writer.stderr.read().decode()
        assert writer.returncode == 0, error
        _wait_until(lambda: all(log[-1][0] == operations[-1][0] for log in logs), reader_processes)
    finally:
        for process in reader_processes:
            assert process.stdin
            process.stdin.close()
    for process, thread in zip(reader_processes, threads, strict=True):
        thread.join(60)
        assert process.stderr
        error = process.stderr.read().decode()
        assert process.wait(60) == 0, error
    delays = []
    for log in logs:
        searches = iter(log[:-1])
        place, search_time = next(searches)
        for n, write_time, kind in operations:
            while place < n:
                place, search_time = next(searches)
            if kind == "write":
                delays.append(max(0.0, search_time - write_time))
    with contextlib.closing(opened(path)) as archive:
        assert not (faults := maintenance.check(archive)), faults
    for copy in path.parent.glob("[0-9]*.skinret"):
        with contextlib.closing(opened(copy)) as archive:
            assert not (faults := maintenance.check(archive)), faults
            assert History(seed).place(held(copy), 0) == int(copy.stem)
    return {
        "operations of the writer": len(operations),
        "searches of the readers": sum(log[-1][1] for log in logs),
        "worst delay until a reader saw a new case, s": max(delays),
        "median delay, s": sorted(delays)[len(delays) // 2],
    }


def _listen(process: "subprocess.Popen[bytes]", log: list[list[Any]]) -> None:
    assert process.stdout
    for line in process.stdout:
        log.append(json.loads(line))


def _wait_until(
    condition: Callable[[], bool], processes: Sequence["subprocess.Popen[bytes]"], seconds: float = 60
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        for process in processes:
            if process.poll() is not None:
                assert process.stderr
                raise AssertionError(process.stderr.read().decode())
        assert time.monotonic() < end, "a process prints nothing"
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
    """Run code that uses this module in a new process; return the JSON that it prints.

    ends : the return code that it must have.
    within : a command that runs the process.
    """
    start = "import sys\nfrom pathlib import Path\nfrom durability import *\nsmall_segments()\n"
    process = subprocess.run(
        [*within, sys.executable, "-c", start + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=_ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert process.returncode == ends, process.stderr
    return json.loads(process.stdout or "null")


_ENVIRONMENT: Mapping[str, str] = os.environ | {"OPENBLAS_NUM_THREADS": "1"}

if __name__ == "__main__":
    small_segments()
    name, place, seed, *more = sys.argv[1:]
    {"live": live, "write": write, "read": read}[name](Path(place), int(seed), *map(float, more))
