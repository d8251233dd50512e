"""Exact search beside numpy and faiss in the same run: time, building, opening, memory, disk, recall.

    python -m pytest benchmarks/test_search.py --cases 10000,200000,1000000

The descriptors are of the paper's size; SKINRET_SEARCH=default takes the default recipe's, a sixth as long.
No test requires a speed; every list must be the exact one. A million cases need 17 GB
of disk for temporary files (TMPDIR) and 16 GB of memory for the baselines, and take about half an hour.
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
from fixtures import SHORT, learned_like, to_descriptors
from search_competitors import FLAT, IVF, KINDS, LAYOUT, MODEL, NUMPY, OURS, PROBES, SQ8, STEP, Lists
from search_report import MANY, ONE, UNSTRUCTURED, SearchReport, section_of

from skinret_infer.archive.archive import Archive
from skinret_infer.archive.store import Record
from skinret_infer.descriptor import Vector

QUERIES = 100 if SHORT else 1000  # queries; at most 60 of them are timed one by one
NAP = 0.0 if SHORT else 0.1  # seconds until the previous competitor's threads sleep
IN_A_ROW = 5  # queries of one competitor before the turn of the next
ROUNDS = {("all", 1): 12, ("all", 32): 5}  # other filters: 5 of one query, 3 of 32
LONG = 0.0 if SHORT else 60.0  # seconds after which three rounds are enough
FILTERS = {
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
            "same distribution. A filter allows 5 %; numpy and faiss get it as a mask, and numpy copies the "
            "rows of few cases. Each competitor has its own process; its turn is 5 queries in a row."
        )


# -- the archive and the queries --


@dataclass
class SearchData:
    """An archive on disk with the queries, and how long it took to write."""

    folder: Path
    cases: int
    write_seconds: list[float] = field(default_factory=list)  # of each batch
    plain_seconds: list[float] = field(default_factory=list)  # of its descriptors alone, to a plain file
    cpu_seconds: float = 0.0  # while the archive was written

    @property
    def archive(self) -> Path:
        return self.folder / "cases.skinret"

    def files(self) -> list[Path]:
        return [self.archive, *Path(f"{self.archive}.index").glob("*.segment")]

    def drop_from_cache(self) -> None:
        """Remove the files from the page cache of the system."""
        for path in self.files():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def written_archive(cases: int, batches: Iterator[Vector], queries: Vector) -> Iterator[SearchData]:
    """Write an archive, and after each batch a plain file on the same disk; remove both at the end."""
    with tempfile.TemporaryDirectory(prefix="skinret-search-") as name:
        free, need = shutil.disk_usage(name).free, int(1.35 * cases * BYTES) + 2 * GB
        if free < need:
            pytest.skip(f"{cases:,} cases need {need / GB:.0f} GB in {name}, which has {free / GB:.0f} GB")
        available = psutil.virtual_memory().available
        need = int(1.35 * cases * BYTES) + GB  # faiss Flat, while it grows
        if available < need:
            pytest.skip(f"{cases:,} cases need {need / GB:.0f} GB of memory; {available / GB:.0f} are free")
        data, rng = SearchData(Path(name), cases), np.random.default_rng(7)
        np.save(data.folder / "queries.npy", queries)
        archive = Archive(data.archive, layout=LAYOUT, **MODEL)
        masks: list[tuple[Any, Any]] = []
        with (data.folder / "plain").open("wb") as plain:
            first = 0
            for batch in batches:
                records = list(facts(first, len(batch), rng))
                masks += [
                    (r.attributes["location"] == "acral", int(r.attributes["age"]) >= 80) for r in records
                ]
                began, cpu_began = time.perf_counter(), time.process_time()
                archive.write(records, batch)
                data.write_seconds.append(time.perf_counter() - began)
                data.cpu_seconds += time.process_time() - cpu_began
                if plain.tell() > GB:
                    plain.seek(0)
                    plain.truncate()
                    os.fsync(plain.fileno())
                began = time.perf_counter()
                plain.write(batch.data)
                plain.flush()
                os.fsync(plain.fileno())
                data.plain_seconds.append(time.perf_counter() - began)
                first += len(batch)
        (data.folder / "plain").unlink()
        archive.close()
        not_excluded = np.ones(cases, bool)
        not_excluded[rng.choice(cases, 100, replace=False)] = False
        attribute, in_range = np.array(masks).T
        np.savez(data.folder / "masks.npz", attribute=attribute, range=in_range, exclude=not_excluded)
        yield data


def facts(first: int, count: int, rng: np.random.Generator) -> Iterator[Record]:
    """Yield records like those of a clinic: 5 % are acral, 5 % are 80 or older."""
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
    """The process of one competitor (search_competitors.py)."""

    def __init__(self, kind: str, data: SearchData) -> None:
        script = Path(__file__).with_name("search_competitors.py")
        arguments = {"kind": kind, "folder": str(data.folder), "cases": data.cases}
        command = [sys.executable, str(script), json.dumps(arguments)]
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

    def request(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


def groups(data: SearchData) -> list[list[str]]:
    """Return the competitors in groups that are measured together: half of the memory holds their vectors."""
    limit = psutil.virtual_memory().available / 2
    whole = data.cases * BYTES
    needs = {NUMPY: whole, FLAT: whole, SQ8: whole / 4, IVF: whole / 4 if data.cases >= 500_000 else whole}
    if not importlib.util.find_spec("faiss"):
        needs = {NUMPY: whole}
    result: list[list[str]] = [[OURS]]
    used = 0.0
    for kind, need in needs.items():
        if used and used + need > limit:
            result.append([])
            used = 0.0
        result[-1].append(kind)
        used += need
    return result


# -- the measurements --


@dataclass
class Measurements:
    """The answers of the competitors: ms a query, and lists by the number of the query."""

    ms: dict[tuple[str, int], dict[str, list[float] | str]] = field(default_factory=dict)
    lists: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)  # by kind and filter
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    exact: dict[str, Lists] = field(default_factory=dict)  # by filter
    fp32: Lists = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)

    def take_turns(self, competitors: Mapping[str, Competitor], filter_name: str, batch: int) -> None:
        """Query every competitor in turn, so that a drift of the machine affects all alike."""
        row = batch if batch > 1 else IN_A_ROW
        for competitor in competitors.values():
            competitor.request(
                do="search", filter_name=filter_name, batch=batch, first=QUERIES - batch, end=QUERIES
            )
        samples = self.ms.setdefault((filter_name, batch), {})
        began = time.monotonic()
        for n in range(ROUNDS.get((filter_name, batch), 5 if batch == 1 else 3)):
            if n >= 3 and time.monotonic() - began > LONG:
                break
            for kind, competitor in competitors.items():
                time.sleep(NAP)
                answer = competitor.request(
                    do="search", filter_name=filter_name, batch=batch, first=n * row, end=(n + 1) * row
                )
                times = samples.setdefault(kind, [])
                assert isinstance(times, list)
                times += answer["ms"]
                self.add_lists(kind, filter_name, n * row, answer["lists"])

    def add_lists(self, kind: str, filter_name: str, first: int, lists: Lists) -> None:
        """Add lists. A list of ours must be the same in every batch."""
        known = self.lists.setdefault((kind, filter_name), {})
        for n, hits in enumerate(lists, first):
            assert kind != OURS or known.setdefault(n, hits) == hits, f"query {n}: two lists"
            known[n] = hits


def measure(data: SearchData, filters: Sequence[str], exact_queries: int) -> Measurements:
    """Measure all competitors, and compute the exact lists of the first `exact_queries` queries."""
    measured = Measurements(groups=groups(data))
    for kinds in measured.groups:
        with contextlib.ExitStack() as stack:
            competitors = {kind: stack.enter_context(Competitor(kind, data)) for kind in kinds}
            measured.ready |= {kind: competitor.ready for kind, competitor in competitors.items()}
            for filter_name in filters:
                for batch in (1, 32):
                    measured.take_turns(competitors, filter_name, batch)
            measured.after |= {
                kind: competitor.request(do="memory") for kind, competitor in competitors.items()
            }
            if OURS not in competitors:
                continue
            for filter_name in filters:
                end = exact_queries if filter_name == "all" else 50
                truth = competitors[NUMPY].request(do="exact", filter_name=filter_name, first=0, end=end)
                measured.exact[filter_name] = truth["exact"]
                measured.fp32 = measured.fp32 or truth["fp32"]
                answer = competitors[OURS].request(
                    do="search", filter_name=filter_name, batch=32, first=0, end=end
                )
                measured.add_lists(OURS, filter_name, 0, answer["lists"])
    if missing := [kind for kind in KINDS if kind not in measured.ready]:
        for samples in measured.ms.values():
            samples |= dict.fromkeys(missing, "not installed")
    return measured


def opening_seconds(data: SearchData) -> dict[str, list[float]]:
    """Return the seconds until a new process gives its first answer, with warm and cold page cache."""
    seconds: dict[str, list[float]] = {"warm": [], "cold": []}
    for cache in ("warm", "cold") if SHORT else ("warm", "warm", "warm", "cold", "cold", "cold"):
        if cache == "cold":
            data.drop_from_cache()
        with Competitor(OURS, data) as competitor:
            seconds[cache].append(competitor.ready["seconds"])
    return seconds


def check(measured: Measurements) -> None:
    """Assert that every list of ours is the exact one."""
    for filter_name, lists in measured.exact.items():
        ours = measured.lists[OURS, filter_name]
        wrong = [n for n, exact in enumerate(lists) if ours[n] != exact]
        assert not wrong, (
            f"{filter_name}: not the exact list for queries {wrong[:5]}, {len(wrong)} of {len(lists)}"
        )


def add_times(
    report: SearchReport,
    section: str,
    measured: Measurements,
    filters: Sequence[str],
    goals: Mapping[tuple[str, int], Any],
) -> None:
    for filter_name in filters:
        for batch in (1, 32):
            name = (ONE if batch == 1 else MANY) + FILTERS[filter_name]
            short = "isotropic" if section == UNSTRUCTURED else section.split(" ")[0]
            samples, place = measured.ms[filter_name, batch], len(report.rows)
            report.add(
                section, name, "ms", samples, place=place, **goals.get((filter_name, batch), {}),
                label=f"{short}: {name}", drawn=filter_name in ("all", "attribute"),
                detail={"p95": {kind: round(p95(ms), 4) for kind, ms in samples.items() if ms != str(ms)}},
            )  # fmt: skip
            if (filter_name, batch) == ("all", 1):
                slow = {kind: [p95(ms)] if isinstance(ms, list) else ms for kind, ms in samples.items()}
                report.add(section, f"{name}, p95", "ms", slow, place=place, drawn=False)


def p95(values: Any) -> float:
    return float(np.quantile(values, 0.95))


def recall(measured: Measurements, kind: str) -> float:
    """Return the share of the exact ten best cases that a competitor finds, over its single queries."""
    found, exact = measured.lists[kind, "all"], measured.exact["all"]
    queries = [n for n in found if n < len(exact)]
    return statistics.mean(len({*found[n]} & {*exact[n]}) / len(exact[n]) for n in queries)


# -- the tests --


def test_search_beside_numpy_and_faiss(cases: int, search_report: SearchReport) -> None:
    exact_queries = QUERIES if cases <= 200_000 else 64
    section, report = section_of(cases), search_report
    queries = np.concatenate([*learned_like(QUERIES, LAYOUT, seed=77)])
    with written_archive(cases, learned_like(cases, LAYOUT, seed=5), queries) as data:
        opening = opening_seconds(data)
        measured = measure(data, tuple(FILTERS), exact_queries)
        disk = [path.stat().st_size / 1e6 for path in data.files()]
    check(measured)

    goals: dict[tuple[str, int], Any] = {}
    ours = measured.ms["all", 1][OURS]
    assert isinstance(ours, list)
    if cases == 200_000:
        goals["all", 1] = {"goal": 0.30}
        report.note(f"{section}, one query: a further goal is 0.1.")
    if cases == 1_000_000:
        goals["all", 1] = {"goal": 150.0, "absolute": True}
        for filter_name in ("attribute", "range"):
            goals[filter_name, 1] = {"goal": round(statistics.median(ours), 2), "absolute": True}
    add_times(report, section, measured, tuple(FILTERS), goals)

    def row(name: str, unit: str, samples: Mapping[str, Any], **options: Any) -> None:
        if any(isinstance(value, list) for value in samples.values()):
            report.add(section, name, unit, dict(samples), place=len(report.rows), drawn=False, **options)

    rate = cases * BYTES / 1e6
    row(
        "adding 2,048 at a time, each durable; a plain file, fsync each", "MB/s",
        {NUMPY: [rate / sum(data.plain_seconds)], OURS: [rate / sum(data.write_seconds)]},
        more_is_better=True,
        detail={
            "seconds": {"ours": data.write_seconds, "plain": data.plain_seconds},
            "cpu_seconds": data.cpu_seconds,
        },
    )  # fmt: skip
    seconds = {
        kind: [ready["seconds"]] for kind, ready in measured.ready.items() if kind not in (OURS, NUMPY)
    }
    row("building in all", "s", {**seconds, OURS: [sum(data.write_seconds)]}, ratios=False)
    goal = {"goal": 3.0, "absolute": True} if cases == 1_000_000 else {}
    row("opening, to the first answer", "s", {OURS: opening["warm"]}, **goal)
    row("opening, files not in the page cache", "s", {OURS: opening["cold"]}, **goal)
    anonymous = {kind: [memory["resident"] - memory["files"]] for kind, memory in measured.after.items()}
    goal = {"goal": 4000.0, "absolute": True} if cases == 1_000_000 else {}
    row("resident, but for mapped files", "MB", anonymous, detail={"after": measured.after}, **goal)
    row("mapped files, resident", "MB", {OURS: [measured.after[OURS]["files"]]})
    row(
        "on disk",
        "MB",
        {NUMPY: [rate], OURS: [sum(disk)]},
        detail={"archive": disk[0], "scan": sum(disk[1:])},
    )
    is_exact = [ours == exact for ours, exact in zip(measured.fp32, measured.exact["all"], strict=True)]
    row(
        f"lists of {exact_queries:,} queries that are the exact ones", "%",
        {NUMPY: [100 * sum(is_exact) / len(is_exact)], OURS: [100.0]},
        goal=100.0, absolute=True, more_is_better=True, ratios=False,
        detail={"fp32_differs": is_exact.count(False)},
    )  # fmt: skip
    found = {kind: [100 * recall(measured, kind)] for kind in measured.ready}
    row("recall of the ten best", "%", found, more_is_better=True, ratios=False)

    if FLAT in measured.ready:
        report.note(f"{section}: faiss IVF is {measured.ready[IVF]['what']}, {PROBES} lists probed.")
    later = [kind for kinds in measured.groups if OURS not in kinds for kind in kinds]
    if later:
        report.note(f"{section}: measured afterwards, for want of memory: {', '.join(later)}.")
    report.note(
        f"{section}: {is_exact.count(False)} of {exact_queries:,} lists of numpy fp32 differ from the exact "
        f"ones. Adding took {sum(data.write_seconds):.1f} s, {data.cpu_seconds:.1f} s of CPU. The archive "
        f"has {disk[0]:,.0f} MB, its pruning index {sum(disk[1:]):,.0f} MB."
    )


@pytest.mark.skipif(SHORT, reason="not in the short form: SKINRET_BENCHMARK is short")
def test_descriptors_without_structure(search_report: SearchReport) -> None:
    """The worst case: all directions are alike, so no projection can prune."""

    def isotropic(count: int, seed: int) -> Iterator[Vector]:
        rng = np.random.default_rng(seed)
        for start in range(0, count, STEP):
            yield to_descriptors(
                rng.standard_normal((min(STEP, count - start), LAYOUT.length), np.float32), LAYOUT
            )

    with written_archive(20_000, isotropic(20_000, 5), np.concatenate([*isotropic(QUERIES, 77)])) as data:
        measured = measure(data, ("all",), 200)
    check(measured)
    add_times(search_report, UNSTRUCTURED, measured, ("all",), {})
    anonymous = {kind: [memory["resident"] - memory["files"]] for kind, memory in measured.after.items()}
    place = len(search_report.rows)
    search_report.add(
        UNSTRUCTURED, "resident, but for mapped files", "MB", anonymous, place=place, drawn=False
    )
    found = {kind: [100 * recall(measured, kind)] for kind in measured.ready}
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
