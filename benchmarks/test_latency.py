"""How fast, how soon, in how much memory: every runtime that is installed, beside PyTorch in the same run.

    pytest benchmarks                                    # a full-size bundle with random weights
    pytest benchmarks --bundle DIR --checkpoint ckpt.pt  # a real one
    SKINRET_BENCHMARK=short pytest benchmarks            # does it run here? A tiny model, no figures to quote

Nothing here asks for speed; every answer is held against PyTorch's. The table comes at the end, and as
Markdown, JSON and a picture in --out.
"""

import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import SHORT, Fixtures
from pytorch_baseline import PyTorch
from report import COLD, GRAPHS, INDEX, MEMORY, QUERY, Report

from skinret_infer import Case, Searcher
from skinret_infer.descriptor import COMPOSED, LEVELS, weigh
from skinret_infer.engines.base import Engine
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess
from skinret_infer.text import TextEncoderInput

# Seconds until the threads of the one before sleep: numpy's OpenBLAS keeps one spinning for a tenth.
NAP, LONG_NAP = 0.01, 0.15
COMPILING = 75.0  # seconds that torch.compile has in all
Run = Callable[[int], object]  # of a round

pytestmark = pytest.mark.filterwarnings("ignore")


def take_turns(
    competitors: Mapping[str, Run], seconds: float, rounds: tuple[int, int] = (5, 25), nap: float = NAP
) -> dict[str, list[float]]:
    """Time every competitor once a round, in ms, so that a drift of the machine hits all alike.

    rounds : at least, and at most; where they take thrice the seconds, on a busy machine, three are enough.
    """
    if SHORT:
        seconds, rounds = 0.0, (1, 1)
    for run in competitors.values():
        run(0)
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    start = time.monotonic()
    for n in range(1, rounds[1] + 1):
        spent = time.monotonic() - start
        if (n > rounds[0] and spent > seconds) or (n > 3 and spent > 3 * seconds):
            break
        for name, run in competitors.items():
            time.sleep(nap)
            began = time.perf_counter()
            run(n)
            samples[name].append((time.perf_counter() - began) * 1e3)
    return samples


@pytest.fixture(scope="session")
def beside(baselines: dict[str, PyTorch], report: Report) -> "Beside":
    return Beside(baselines, report)


class Beside:
    """PyTorch's ways as competitors. torch.compile is tried before the clock runs."""

    def __init__(self, baselines: dict[str, PyTorch], report: Report) -> None:
        self._peers, self._report, self._left = baselines, report, COMPILING
        self._fault = "not tried" if SHORT else ""

    def runs(self, make: Callable[[str, PyTorch], Run], *, bf16: bool = True) -> dict[str, Run]:
        """Return what `make` makes of each of PyTorch's ways that works."""
        wanted = {name: baseline for name, baseline in self._peers.items() if bf16 or name != "PyTorch bf16"}
        runs = {name: make(name, baseline) for name, baseline in wanted.items()}
        if "torch.compile" in runs and not self._compiles(runs["torch.compile"]):
            del runs["torch.compile"]
        return runs

    def missing(self) -> dict[str, str]:
        """Return why torch.compile is not among the runs, if it is not."""
        return {"torch.compile": self._fault} if self._fault else {}

    def _compiles(self, run: Run) -> bool:
        if self._fault:
            return False

        late: list[object] = []

        def stop(*_: object) -> None:
            late.append(True)  # torch.compile wraps what is raised inside it
            raise TimeoutError

        began, before = time.monotonic(), signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self._left, 0.01))
        try:
            for n in range(3):  # other words, another length
                run(n)
        except Exception as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            why = f"it takes more than {COMPILING:.0f} s in all" if late else why
            self._fault = "too long" if late else "failed"
            self._report.note(f"torch.compile, {self._fault}: {why}.")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._left -= time.monotonic() - began
        return not self._fault


# -- cold start and memory, before this process holds much --


def test_cold_start_and_memory(fixtures: Fixtures, pairs: list[tuple[str, str]], report: Report) -> None:
    asked = {
        "image": str(fixtures.images[0]), "texts": fixtures.full[:20], "threads": fixtures.threads,
        "bundle": str(fixtures.bundle.path), "archive": str(fixtures.archive), "cache": str(fixtures.cache),
        "checkpoint": str(fixtures.checkpoint), "matrix": str(fixtures.matrix),
    }  # fmt: skip
    ways = {f"{name} {p}": (name, p) for name, p in pairs}
    first = {label: start(asked, *way, queries=1) for label, way in ways.items()}
    if fixtures.checkpoint and not SHORT:
        ways["PyTorch eager"] = ("pytorch", "fp32")
    starts: dict[str, list[dict[str, float]]] = {label: [] for label in ways}
    for n in (2,) if SHORT else range(3):
        for label, way in ways.items():
            if n != 1 or label != "PyTorch eager":  # which takes long
                starts[label].append(start(asked, *way, queries=20 if n == 2 else 1))

    places = itertools.count()

    def row(section: str, name: str, key: str, last: int = 3, **options: Any) -> None:
        samples = {label: [s[key] for s in each][-last:] for label, each in starts.items()}
        unit = "s" if section == COLD else "MB"
        report.add(section, name, unit, samples, place=next(places), **options)

    row(COLD, "importing", "importing", drawn=False)
    row(COLD, "loading", "loading", drawn=False)
    row(COLD, "first answer", "answer", drawn=False)
    row(COLD, "in all", "cold", goal=2.5, absolute=True, label="cold start")
    builds = {label: [it["cold"]] for label, it in first.items()}
    report.add(COLD, "the very first, which builds", "s", builds, place=next(places), drawn=False)
    row(MEMORY, "resident", "resident", last=1, goal=1200, absolute=True, label="memory of a serving process")
    row(MEMORY, "of that, mapped files", "files", last=1, drawn=False)
    row(MEMORY, "at its peak", "peak", last=1, drawn=False)
    assert all(s["hits"] == 10 for each in starts.values() for s in each)


def start(asked: dict[str, Any], runtime: str, precision: str, queries: int) -> dict[str, float]:
    """Start a process, ask it, and return what it says."""
    script = Path(__file__).with_name("cold_start.py")
    given = {**asked, "runtime": runtime, "precision": precision, "texts": asked["texts"][:queries]}
    command = [sys.executable, script, json.dumps({**given, "began": time.time()})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


# -- each graph --


ROWS: list[tuple[str, int, int, float | None]] = [
    ("visual_encoder", 1, 0, 0.28),
    ("visual_encoder", 8, 0, 0.38),
    ("text_encoder", 1, 32, 0.50),
    ("text_encoder", 8, 32, None),
    ("text_encoder", 1, 64, 0.50),
    ("text_encoder", 8, 64, None),
    ("composer", 1, 64, None),
    ("composer", 8, 64, None),
    ("similarity_head", 1, 0, None),
    ("similarity_head", 8, 0, None),
]


# Batch 1 first: it is what torch.compile has its time for.
@pytest.mark.parametrize(("graph", "batch", "tokens", "goal"), sorted(ROWS, key=lambda row: row[1]))
def test_each_graph(
    graph: str, batch: int, tokens: int, goal: float | None, feeds: "Feeds", engines: dict[str, Engine],
    beside: Beside, report: Report,
) -> None:  # fmt: skip
    given, outputs = feeds(graph, batch, tokens)
    answers: dict[str, list[np.ndarray]] = {}

    def ask(name: str, run: Callable[..., list[np.ndarray]]) -> Run:
        def once(_: int) -> None:
            results = run(graph, given, outputs)
            answers[name] = [results[output] for output in outputs]

        return once

    runs = beside.runs(lambda name, baseline: ask(name, baseline.run))
    runs |= {name: ask(name, engine.run) for name, engine in engines.items()}
    samples = take_turns(runs, seconds=6) | beside.missing()
    name = f"{graph.replace('_', ' ')}, batch {batch}" + (f", {tokens} tokens" if tokens else "")
    place = ROWS.index((graph, batch, tokens, goal))
    report.add(GRAPHS, name, "ms", samples, goal=goal, drawn=graph != "similarity_head", place=place)
    truth = answers.get("PyTorch eager", next(iter(answers.values())))
    for name, found in answers.items():
        for ours, right in zip(found, truth, strict=True):
            agree(name, ours.reshape(batch, -1), right.reshape(batch, -1))


def agree(name: str, found: np.ndarray, truth: np.ndarray) -> None:
    """Check that each answer [B, n] points where PyTorch's does, and nowhere more than there."""
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(truth, axis=1)
    cosine = found @ truth.T / np.outer(*lengths)
    assert np.diag(cosine).min() >= 0.99, f"{name}: cosine with PyTorch {np.diag(cosine).min():.4f}"
    assert (cosine.argmax(axis=1) == np.arange(len(found))).all(), f"{name}: nearer to another's answer"


Feeds = Callable[[str, int, int], tuple[dict[str, np.ndarray], tuple[str, ...]]]


@pytest.fixture(scope="session")
def feeds(fixtures: Fixtures, engines: dict[str, Engine]) -> Feeds:
    """Return what a graph is fed, and which outputs serve: pictures, tokens of words, real maps."""
    recipe, text = fixtures.bundle.manifest.image, fixtures.bundle.manifest.text
    pixels = np.stack([preprocess(decode(path), recipe) for path in fixtures.images[::4]])
    known = np.unique(TextEncoderInput(fixtures.bundle.tokenizer(), text)(fixtures.full)[0])
    ids = np.random.default_rng(6).choice(known, (8, text.length))
    engine = next(engine for name, engine in engines.items() if name.endswith("fp32"))
    mask = np.ones_like(ids)
    given = engine.run("visual_encoder", {"pixels": pixels}, LEVELS)
    given |= {"pixels": pixels, "tokens": engine.encode_text(ids, mask)}

    def make(graph: str, batch: int, tokens: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        words = {"input_ids": ids[:, :tokens], "attention_mask": mask[:, :tokens]}
        maps = {level: given[level] for level in LEVELS}
        fed, outputs = {
            "visual_encoder": ({"pixels": pixels}, LEVELS),
            "text_encoder": (words, ("tokens",)),
            "composer": ({**maps, "tokens": given["tokens"], "attention_mask": mask}, COMPOSED),
            "similarity_head": (maps, ("descriptor",)),
        }[graph]
        return {name: np.ascontiguousarray(array[:batch]) for name, array in fed.items()}, tuple(outputs)

    return make


# -- the whole road --


@pytest.fixture(scope="session")
def searchers(fixtures: Fixtures, engines: dict[str, Engine]) -> Iterator[dict[str, Searcher]]:
    opened = open_searchers(fixtures, engines, lambda _: fixtures.archive)
    yield opened
    for searcher in opened.values():
        searcher.close()


def open_searchers(
    fixtures: Fixtures, engines: dict[str, Engine], archive: Callable[[str], Path]
) -> dict[str, Searcher]:
    """Open a searcher on each engine that is open already, whatever its precision check says."""
    opened = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, engine in engines.items():
            patch.setattr("skinret_infer.encoder.open_engine", lambda *_, e=engine, **__: e)
            opened[name] = Searcher(fixtures.bundle.path, archive(name))
    return opened


@pytest.mark.parametrize(
    ("words", "in_a_row"),
    [("new, whole checklist", 1), ("new, three findings", 1), ("seen before", 1), ("seen before", 5)],
)
def test_a_composed_query_end_to_end(
    words: str,
    in_a_row: int,
    fixtures: Fixtures,
    searchers: dict[str, Searcher],
    beside: Beside,
    report: Report,
) -> None:
    texts = {"new, whole checklist": fixtures.full, "new, three findings": fixtures.short}.get(
        words, fixtures.full[:1]
    )

    answers: dict[str, list[Any]] = {}

    def ask(name: str, query: Callable[[Path, str], object]) -> Run:
        def once(n: int) -> None:
            image, text = fixtures.images[n % len(fixtures.images)], texts[n % len(texts)]
            answers.setdefault(name, []).extend(query(image, text) for _ in range(in_a_row))

        return once

    runs = beside.runs(lambda name, baseline: ask(name, baseline.query), bf16=in_a_row == 1)
    runs |= {name: ask(name, searcher.query) for name, searcher in searchers.items()}
    samples = take_turns(runs, seconds=8, rounds=(5, 25) if in_a_row == 1 else (3, 5), nap=LONG_NAP)
    samples = {name: [ms / in_a_row for ms in each] for name, each in samples.items()}
    timings = {name: [results.timings_ms for results in answers[name][in_a_row:]] for name in searchers}
    steps = {
        name: {step: round(statistics.median(t.get(step, 0.0) for t in each), 1) for step in each[0]}
        for name, each in timings.items()
    }
    name = f"words {words}" + (f", {in_a_row} in a row, each" if in_a_row > 1 else "")
    report.add(
        QUERY, name, "ms", samples | beside.missing(), goal=0.25 if words == "seen before" else 0.35,
        label=f"query, {name}", detail={"timings_ms": steps}, place=len(report.rows),
    )  # fmt: skip


def test_the_answers_are_those_of_pytorch(
    fixtures: Fixtures, searchers: dict[str, Searcher], baselines: dict[str, PyTorch]
) -> None:
    if not baselines:
        pytest.skip("without --checkpoint there is no PyTorch to ask")
    images, texts = fixtures.images[:3], fixtures.full[-3:]
    truth = baselines["PyTorch eager"].embed(images, texts)
    manifest = fixtures.bundle.manifest
    matrix = np.load(fixtures.matrix)
    for name, searcher in searchers.items():
        agree(name, np.stack(list(map(searcher.embed, images, texts))), truth)
        for image, text, true in zip(images, texts, truth, strict=True):
            scores = matrix @ weigh(true, manifest.layout, manifest.beta, manifest.gamma)
            given = scores[[int(hit.case_id) for hit in searcher.query(image, text)]]
            assert np.sort(scores)[-10:].mean() - given.mean() <= 1e-3, f"{name}: other cases are better"


def test_indexing(
    fixtures: Fixtures, engines: dict[str, Engine], beside: Beside, report: Report, tmp_path: Path
) -> None:
    searchers = open_searchers(fixtures, engines, lambda name: tmp_path / f"{name}.skinret")
    if fixtures.random:  # no precision was checked; else the verdict says which of them may write an archive
        for name, searcher in searchers.items():
            searcher._encoder._archive_engine = engines[name]
    images = fixtures.images[:24]

    def add(searcher: Searcher) -> Run:
        return lambda n: searcher.add([Case(f"{n}-{i}", image) for i, image in enumerate(images)])

    def embed(_: str, baseline: PyTorch) -> Run:
        return lambda _: [baseline.embed(images[i : i + 8]) for i in range(0, len(images), 8)]

    runs = beside.runs(embed, bf16=False) | {name: add(searcher) for name, searcher in searchers.items()}
    samples = take_turns(runs, seconds=20, rounds=(5, 5), nap=LONG_NAP)
    rates = {name: [len(images) / ms * 1e3 for ms in each] for name, each in samples.items()}
    report.add(
        INDEX, "images a second", "images/s", rates | beside.missing(), goal=2.8,
        more_is_better=True, label="indexing",
    )  # fmt: skip
    for searcher in searchers.values():
        assert len(searcher) == (2 if SHORT else 6) * len(images)
