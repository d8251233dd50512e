"""Exact search beside numpy and faiss in the same run: time, building, opening, memory, disk, recall.

    python -m pytest benchmarks/test_search.py --cases 10000,200000,1000000

The descriptors are of the paper's size; SKINRET_SEARCH=default takes the default recipe's, a sixth as long.
Nothing here asks for speed; what is asserted is that every list is the exact one. A million cases need 17 GB
of disk where temporary files lie (TMPDIR) and 16 GB of memory for the baselines, and take about half an hour.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
from fixtures import SHORT, formed, learned_like
from search_competitors import FLAT, IVF, KINDS, LAYOUT, MODEL, NUMPY, OURS, PROBES, SQ8, STEP, Lists
from search_report import MANY, ONE, UNSTRUCTURED, SearchReport, section_of

from skinret_infer.archive.archive import Archive
from skinret_infer.archive.store import Record
from skinret_infer.descriptor import Vector

ASKED = 100 if SHORT else 1000  # queries; at most 60 of them are timed one by one
NAP = 0.0 if SHORT else 0.1  # seconds until the threads of the one before sleep
IN_A_ROW = 5  # queries of one competitor, then the next one's turn
ROUNDS = {("all", 1): 12, ("all", 32): 5}  # of others: 5 of one query, 3 of 32
LONG = 0.0 if SHORT else 60.0  # seconds after which three rounds are enough
WAYS = {
    "all": "",
    "attribute": ", filter on a value",
    "range": ", filter on a range",
    "exclude": ", 100 excluded",
}
GB = 10**9
BYTES = 4 * LAYOUT.length
CRITERIA = {
    "pigment_network": ("absent", "typical", "atypical"),
    "streaks": ("absent", "regular", "irregular"),
    "pigmentation": ("absent", "diffuse regular", "diffuse irregular", "localized irregular"),
    "regression_structures": ("absent", "blue areas", "white areas", "combinations"),
    "dots_and_globules": ("absent", "regular", "irregular"),
    "blue_whitish_veil": ("absent", "present"),
    "vascular_structures": ("absent", "arborizing", "comma", "dotted", "hairpin", "linear irregular"),
}
DIAGNOSES = ("clark nevus", "melanoma (in situ)", "melanoma (0.76 to 1.5 mm)", "seborrheic keratosis")
PLACES = ("abdomen", "back", "chest", "head neck", "lower limbs", "upper limbs")


def sizes_of(config: pytest.Config) -> list[int]:
    return sorted({int(part) for part in config.getoption("--cases").split(",")})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cases" in metafunc.fixturenames:
        metafunc.parametrize("cases", sizes_of(metafunc.config))


@pytest.fixture(autouse=True)
def planned(search_report: SearchReport, pytestconfig: pytest.Config) -> None:
    if not search_report.sections:
        search_report.plan(sizes_of(pytestconfig))
        search_report.note(
            "Descriptors like learned ones: 500 clusters, low rank, noise; queries are other draws of the "
            "same law. A filter lets 5 % through; numpy and faiss get theirs as a ready mask, and numpy "
            "copies the rows of few. Each competitor is a process of its own; its turn is 5 queries in a row."
        )


# -- the ground --


@dataclass
class Ground:
    """An archive on disk, what it is asked, and how long it took to write."""

    folder: Path
    cases: int
    ours: list[float] = field(default_factory=list)  # seconds of each batch
    plain: list[float] = field(default_factory=list)  # of its descriptors alone, to a plain file
    busy: float = 0.0  # seconds of CPU while ours was written

    @property
    def archive(self) -> Path:
        return self.folder / "cases.skinret"

    def files(self) -> list[Path]:
        return [self.archive, *Path(f"{self.archive}.index").glob("*.segment")]

    def drop_from_cache(self) -> None:
        """Have the system forget what it keeps of the files."""
        for path in self.files():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def laid_out(cases: int, batches: Iterator[Vector], queries: Vector) -> Iterator[Ground]:
    """Write an archive, batch by batch beside a plain file on the same disk; remove all at the end."""
    with tempfile.TemporaryDirectory(prefix="skinret-search-") as name:
        free, need = shutil.disk_usage(name).free, int(1.35 * cases * BYTES) + 2 * GB
        if free < need:
            pytest.skip(f"{cases:,} cases need {need / GB:.0f} GB in {name}, which has {free / GB:.0f} GB")
        available = psutil.virtual_memory().available
        need = int(1.35 * cases * BYTES) + GB  # faiss Flat, while it grows
        if available < need:
            pytest.skip(f"{cases:,} cases need {need / GB:.0f} GB of memory; {available / GB:.0f} are free")
        made, rng = Ground(Path(name), cases), np.random.default_rng(7)
        np.save(made.folder / "queries.npy", queries)
        archive = Archive(made.archive, layout=LAYOUT, **MODEL)
        masks: list[tuple[Any, Any]] = []
        with (made.folder / "plain").open("wb") as plain:
            first = 0
            for batch in batches:
                records = list(facts(first, len(batch), rng))
                masks += [
                    (r.attributes["location"] == "acral", int(r.attributes["age"]) >= 80) for r in records
                ]
                began, busy = time.perf_counter(), time.process_time()
                archive.write(records, batch)
                made.ours.append(time.perf_counter() - began)
                made.busy += time.process_time() - busy
                if plain.tell() > GB:
                    plain.seek(0)
                    plain.truncate()
                    os.fsync(plain.fileno())
                began = time.perf_counter()
                plain.write(batch.data)
                plain.flush()
                os.fsync(plain.fileno())
                made.plain.append(time.perf_counter() - began)
                first += len(batch)
        (made.folder / "plain").unlink()
        archive.close()
        kept = np.ones(cases, bool)
        kept[rng.choice(cases, 100, replace=False)] = False
        attribute, in_range = np.array(masks).T
        np.savez(made.folder / "masks.npz", attribute=attribute, range=in_range, exclude=kept)
        yield made


def facts(first: int, count: int, rng: np.random.Generator) -> Iterator[Record]:
    """Give records as a clinic might have them; 5 % are acral, 5 % are 80 or older."""
    drawn = {name: rng.choice(values, count) for name, values in CRITERIA.items()}
    drawn["location"] = rng.choice(["acral", *PLACES], count, p=[0.05, *[0.95 / len(PLACES)] * len(PLACES)])
    drawn["sex"] = rng.choice(["female", "male"], count)
    ages = np.clip(rng.normal(52, 17, count), 5, 95).astype(int)
    diagnoses = rng.choice(DIAGNOSES, count, p=[0.6, 0.15, 0.1, 0.15])
    for n in range(count):
        attributes: dict[str, Any] = {name: str(values[n]) for name, values in drawn.items()}
        diagnosis, name = str(diagnoses[n]), f"{first + n:07}"
        group = {"c": "nevus", "m": "mel", "s": "bkl"}[diagnosis[0]]
        yield Record(
            name, diagnosis, group, "histopathology", attributes | {"age": int(ages[n])},
            f"images/{name}.jpg", f"{first + n:064x}",
        )  # fmt: skip


class Competitor:
    """One competitor's process."""

    def __init__(self, kind: str, ground: Ground) -> None:
        script = Path(__file__).with_name("search_competitors.py")
        given = {"kind": kind, "folder": str(ground.folder), "cases": ground.cases}
        command = [sys.executable, str(script), json.dumps(given)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


def groups(ground: Ground) -> list[list[str]]:
    """Return who is measured together: more than one only where half of the memory holds their vectors."""
    room = psutil.virtual_memory().available / 2
    whole = ground.cases * BYTES
    needs = {NUMPY: whole, FLAT: whole, SQ8: whole / 4, IVF: whole / 4 if ground.cases >= 500_000 else whole}
    if not importlib.util.find_spec("faiss"):
        needs = {NUMPY: whole}
    found: list[list[str]] = [[OURS]]
    taken = 0.0
    for kind, need in needs.items():
        if taken and taken + need > room:
            found.append([])
            taken = 0.0
        found[-1].append(kind)
        taken += need
    return found


# -- the run --


@dataclass
class Run:
    """What the competitors said: ms a query, and lists by the number of the query."""

    ms: dict[tuple[str, int], dict[str, list[float] | str]] = field(default_factory=dict)
    lists: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)  # by kind and way
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    exact: dict[str, Lists] = field(default_factory=dict)  # by way
    fp32: Lists = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)

    def take_turns(self, competitors: Mapping[str, Competitor], way: str, batch: int) -> None:
        """Ask every competitor in turn, so that a drift of the machine hits all alike."""
        row = batch if batch > 1 else IN_A_ROW
        for competitor in competitors.values():
            competitor.ask(do="search", way=way, batch=batch, first=ASKED - batch, end=ASKED)
        samples = self.ms.setdefault((way, batch), {})
        began = time.monotonic()
        for n in range(ROUNDS.get((way, batch), 5 if batch == 1 else 3)):
            if n >= 3 and time.monotonic() - began > LONG:
                break
            for kind, competitor in competitors.items():
                time.sleep(NAP)
                answer = competitor.ask(do="search", way=way, batch=batch, first=n * row, end=(n + 1) * row)
                times = samples.setdefault(kind, [])
                assert isinstance(times, list)
                times += answer["ms"]
                self.keep(kind, way, n * row, answer["lists"])

    def keep(self, kind: str, way: str, first: int, lists: Lists) -> None:
        """Keep lists, having seen that a competitor gives the same one whatever it is asked with."""
        known = self.lists.setdefault((kind, way), {})
        for n, found in enumerate(lists, first):
            assert kind != OURS or known.setdefault(n, found) == found, f"query {n}: two lists"
            known[n] = found


def run(ground: Ground, ways: Sequence[str], asked: int) -> Run:
    """Run everything; exact lists of `asked` queries."""
    done = Run(groups=groups(ground))
    for kinds in done.groups:
        with contextlib.ExitStack() as stack:
            competitors = {kind: stack.enter_context(Competitor(kind, ground)) for kind in kinds}
            done.ready |= {kind: competitor.ready for kind, competitor in competitors.items()}
            for way in ways:
                for batch in (1, 32):
                    done.take_turns(competitors, way, batch)
            done.after |= {kind: each.ask(do="memory") for kind, each in competitors.items()}
            if OURS not in competitors:
                continue
            for way in ways:
                end = asked if way == "all" else 50
                truth = competitors[NUMPY].ask(do="exact", way=way, first=0, end=end)
                done.exact[way] = truth["exact"]
                done.fp32 = done.fp32 or truth["plain"]
                found = competitors[OURS].ask(do="search", way=way, batch=32, first=0, end=end)
                done.keep(OURS, way, 0, found["lists"])
    if missing := [kind for kind in KINDS if kind not in done.ready]:
        for samples in done.ms.values():
            samples |= dict.fromkeys(missing, "not installed")
    return done


def openings(ground: Ground) -> dict[str, list[float]]:
    """Return the seconds in which a new process gives its first answer, three times each, or once."""
    found: dict[str, list[float]] = {"warm": [], "cold": []}
    for how in ("warm", "cold") if SHORT else ("warm", "warm", "warm", "cold", "cold", "cold"):
        if how == "cold":
            ground.drop_from_cache()
        with Competitor(OURS, ground) as competitor:
            found[how].append(competitor.ready["seconds"])
    return found


def check(done: Run) -> None:
    """Assert that every list of ours is the exact one."""
    for way, lists in done.exact.items():
        ours = done.lists[OURS, way]
        wrong = [n for n, exact in enumerate(lists) if ours[n] != exact]
        assert not wrong, f"{way}: not the exact list for queries {wrong[:5]}, {len(wrong)} of {len(lists)}"


def add_times(
    report: SearchReport, section: str, done: Run, ways: Sequence[str], goals: Mapping[tuple[str, int], Any]
) -> None:
    for way in ways:
        for batch in (1, 32):
            name = (ONE if batch == 1 else MANY) + WAYS[way]
            short = "isotropic" if section == UNSTRUCTURED else section.split(" ")[0]
            samples, place = done.ms[way, batch], len(report.rows)
            report.add(
                section, name, "ms", samples, place=place, **goals.get((way, batch), {}),
                label=f"{short}: {name}", drawn=way in ("all", "attribute"),
                detail={"p95": {kind: round(p95(ms), 4) for kind, ms in samples.items() if ms != str(ms)}},
            )  # fmt: skip
            if (way, batch) == ("all", 1):
                slow = {kind: [p95(ms)] if isinstance(ms, list) else ms for kind, ms in samples.items()}
                report.add(section, f"{name}, p95", "ms", slow, place=place, drawn=False)


def p95(values: Any) -> float:
    return float(np.quantile(values, 0.95))


def recall(done: Run, kind: str) -> float:
    """Return what share of the exact ten best of the queries asked one by one a competitor finds."""
    found, exact = done.lists[kind, "all"], done.exact["all"]
    asked = [n for n in found if n < len(exact)]
    return statistics.mean(len({*found[n]} & {*exact[n]}) / len(exact[n]) for n in asked)


# -- the tests --


def test_search_beside_its_peers(cases: int, search_report: SearchReport) -> None:
    asked = ASKED if cases <= 200_000 else 64
    section, report = section_of(cases), search_report
    queries = np.concatenate([*learned_like(ASKED, LAYOUT, seed=77)])
    with laid_out(cases, learned_like(cases, LAYOUT, seed=5), queries) as ground:
        opened = openings(ground)
        done = run(ground, tuple(WAYS), asked)
        disk = [path.stat().st_size / 1e6 for path in ground.files()]
    check(done)

    goals: dict[tuple[str, int], Any] = {}
    ours = done.ms["all", 1][OURS]
    assert isinstance(ours, list)
    if cases == 200_000:
        goals["all", 1] = {"goal": 0.30}
        report.note(f"{section}, one query: the aim beyond the goal is 0.1.")
    if cases == 1_000_000:
        goals["all", 1] = {"goal": 150.0, "absolute": True}
        for way in ("attribute", "range"):
            goals[way, 1] = {"goal": round(statistics.median(ours), 2), "absolute": True}
    add_times(report, section, done, tuple(WAYS), goals)

    def row(name: str, unit: str, samples: Mapping[str, Any], **options: Any) -> None:
        if any(isinstance(value, list) for value in samples.values()):
            report.add(section, name, unit, dict(samples), place=len(report.rows), drawn=False, **options)

    rate = cases * BYTES / 1e6
    row(
        "adding 2,048 at a time, each durable; a plain file, fsync each", "MB/s",
        {NUMPY: [rate / sum(ground.plain)], OURS: [rate / sum(ground.ours)]}, more_is_better=True,
        detail={"seconds": {"ours": ground.ours, "plain": ground.plain}, "cpu_seconds": ground.busy},
    )  # fmt: skip
    seconds = {kind: [ready["seconds"]] for kind, ready in done.ready.items() if kind not in (OURS, NUMPY)}
    row("building in all", "s", {**seconds, OURS: [sum(ground.ours)]}, ratios=False)
    goal = {"goal": 3.0, "absolute": True} if cases == 1_000_000 else {}
    row("opening, to the first answer", "s", {OURS: opened["warm"]}, **goal)
    row("opening, files not in the page cache", "s", {OURS: opened["cold"]}, **goal)
    held = {kind: [said["resident"] - said["files"]] for kind, said in done.after.items()}
    goal = {"goal": 4000.0, "absolute": True} if cases == 1_000_000 else {}
    row("resident, but for mapped files", "MB", held, detail={"after": done.after}, **goal)
    row("mapped files, resident", "MB", {OURS: [done.after[OURS]["files"]]})
    row(
        "on disk",
        "MB",
        {NUMPY: [rate], OURS: [sum(disk)]},
        detail={"archive": disk[0], "scan": sum(disk[1:])},
    )
    right = [ours == exact for ours, exact in zip(done.fp32, done.exact["all"], strict=True)]
    row(
        f"lists of {asked:,} queries that are the exact ones", "%",
        {NUMPY: [100 * sum(right) / len(right)], OURS: [100.0]},
        goal=100.0, absolute=True, more_is_better=True, ratios=False,
        detail={"fp32_differs": right.count(False)},
    )  # fmt: skip
    found = {kind: [100 * recall(done, kind)] for kind in done.ready}
    row("recall of the ten best", "%", found, more_is_better=True, ratios=False)

    if FLAT in done.ready:
        report.note(f"{section}: faiss IVF is {done.ready[IVF]['what']}, {PROBES} lists probed.")
    apart = [kind for kinds in done.groups if OURS not in kinds for kind in kinds]
    if apart:
        report.note(f"{section}: measured afterwards, for want of memory: {', '.join(apart)}.")
    report.note(
        f"{section}: {right.count(False)} of {asked:,} lists of numpy fp32 differ from the exact ones. "
        f"Adding took {sum(ground.ours):.1f} s, {ground.busy:.1f} s of CPU. The archive has "
        f"{disk[0]:,.0f} MB, what is derived {sum(disk[1:]):,.0f} MB."
    )


@pytest.mark.skipif(SHORT, reason="not in the short form: SKINRET_BENCHMARK is short")
def test_descriptors_without_structure(search_report: SearchReport) -> None:
    """The hostile case: every direction alike, so that no projection says anything. Figures as they are."""

    def isotropic(count: int, seed: int) -> Iterator[Vector]:
        rng = np.random.default_rng(seed)
        for start in range(0, count, STEP):
            yield formed(rng.standard_normal((min(STEP, count - start), LAYOUT.length), np.float32), LAYOUT)

    with laid_out(20_000, isotropic(20_000, 5), np.concatenate([*isotropic(ASKED, 77)])) as ground:
        done = run(ground, ("all",), 200)
    check(done)
    add_times(search_report, UNSTRUCTURED, done, ("all",), {})
    held = {kind: [said["resident"] - said["files"]] for kind, said in done.after.items()}
    place = len(search_report.rows)
    search_report.add(UNSTRUCTURED, "resident, but for mapped files", "MB", held, place=place, drawn=False)
    found = {kind: [100 * recall(done, kind)] for kind in done.ready}
    search_report.add(
        UNSTRUCTURED,
        "recall of the ten best",
        "%",
        found,
        place=place,
        drawn=False,
        more_is_better=True,
        ratios=False,
    )
