"""Time and memory of every installed runtime, beside PyTorch in the same run.

    pytest benchmarks                                    # a full-size bundle with random weights
    pytest benchmarks --bundle DIR --checkpoint ckpt.pt  # a real one
    SKINRET_BENCHMARK=short pytest benchmarks            # with a tiny model: does it run here?

No test requires a speed; every answer is compared with PyTorch's. The table is printed at the end, and is
written to the folder --out as Markdown, JSON and a picture.
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
from skinret_infer.engines.base import Engine, head_inputs
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess
from skinret_infer.text import TextEncoderInput

# Seconds until the threads of the previous competitor sleep: those of numpy's OpenBLAS spin for 0.1 s.
NAP, LONG_NAP = 0.01, 0.15
COMPILING = 75.0  # seconds that torch.compile gets in all
Run = Callable[[int], object]  # called with the number of the round

pytestmark = pytest.mark.filterwarnings("ignore")


def take_turns(
    competitors: Mapping[str, Run], seconds: float, rounds: tuple[int, int] = (5, 25), nap: float = NAP
) -> dict[str, list[float]]:
    """Time every competitor once a round, in ms, so that a drift of the machine affects all alike.

    rounds : the least and the largest number. If they take three times the seconds, three are enough.
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
def torch_runs(baselines: dict[str, PyTorch], report: Report) -> "TorchRuns":
    return TorchRuns(baselines, report)


class TorchRuns:
    """The variants of PyTorch as competitors. torch.compile compiles before the clock runs."""

    def __init__(self, baselines: dict[str, PyTorch], report: Report) -> None:
        self._baselines, self._report, self._seconds_left = baselines, report, COMPILING
        self._fault = "not tried" if SHORT else ""

    def runs(self, make: Callable[[str, PyTorch], Run], *, bf16: bool = True) -> dict[str, Run]:
        """Return the run that `make` returns for each variant that works."""
        runs = {
            name: make(name, baseline)
            for name, baseline in self._baselines.items()
            if bf16 or name != "PyTorch bf16"
        }
        if "torch.compile" in runs and not self._compiles(runs["torch.compile"]):
            del runs["torch.compile"]
        return runs

    def missing(self) -> dict[str, str]:
        """Return the reason if torch.compile is not among the runs."""
        return {"torch.compile": self._fault} if self._fault else {}

    def _compiles(self, run: Run) -> bool:
        if self._fault:
            return False

        late: list[object] = []

        def stop(*_: object) -> None:
            late.append(True)  # torch.compile wraps exceptions, so the flag tells a timeout from them
            raise TimeoutError

        began, before = time.monotonic(), signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self._seconds_left, 0.01))
        try:
            for n in range(3):  # texts of several lengths
                run(n)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            reason = f"it takes more than {COMPILING:.0f} s in all" if late else reason
            self._fault = "too long" if late else "failed"
            self._report.note(f"torch.compile, {self._fault}: {reason}.")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._seconds_left -= time.monotonic() - began
        return not self._fault


# -- cold start and memory, while this process is small --


def test_cold_start_and_memory(fixtures: Fixtures, pairs: list[tuple[str, str]], report: Report) -> None:
    task = {
        "image": str(fixtures.images[0]), "texts": fixtures.full[:20], "threads": fixtures.threads,
        "bundle": str(fixtures.bundle.path), "archive": str(fixtures.archive), "cache": str(fixtures.cache),
        "checkpoint": str(fixtures.checkpoint), "matrix": str(fixtures.matrix),
    }  # fmt: skip
    variants = {f"{name} {p}": (name, p) for name, p in pairs}
    first = {label: start(task, *variant, queries=1) for label, variant in variants.items()}
    if fixtures.checkpoint and not SHORT:
        variants["PyTorch eager"] = ("pytorch", "fp32")
    starts: dict[str, list[dict[str, float]]] = {label: [] for label in variants}
    for n in (2,) if SHORT else range(3):
        for label, variant in variants.items():
            if n != 1 or label != "PyTorch eager":  # it takes long
                starts[label].append(start(task, *variant, queries=20 if n == 2 else 1))

    places = itertools.count()

    def row(section: str, name: str, key: str, last: int = 3, **options: Any) -> None:
        samples = {label: [s[key] for s in each][-last:] for label, each in starts.items()}
        unit = "s" if section == COLD else "MB"
        report.add(section, name, unit, samples, place=next(places), **options)

    row(COLD, "importing", "importing", drawn=False)
    row(COLD, "loading", "loading", drawn=False)
    row(COLD, "first answer", "answer", drawn=False)
    row(COLD, "in all", "cold", goal=2.5, absolute=True, label="cold start")
    builds = {label: [result["cold"]] for label, result in first.items()}
    report.add(COLD, "the very first, which builds", "s", builds, place=next(places), drawn=False)
    row(MEMORY, "resident", "resident", last=1, goal=1200, absolute=True, label="memory of a serving process")
    row(MEMORY, "of that, mapped files", "files", last=1, drawn=False)
    row(MEMORY, "at its peak", "peak", last=1, drawn=False)
    assert all(s["hits"] == 10 for each in starts.values() for s in each)


def start(task: dict[str, Any], runtime: str, precision: str, queries: int) -> dict[str, float]:
    """Run cold_start.py in a new process and return its result."""
    script = Path(__file__).with_name("cold_start.py")
    task = {**task, "runtime": runtime, "precision": precision, "texts": task["texts"][:queries]}
    command = [sys.executable, script, json.dumps({**task, "began": time.time()})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


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


# Batch 1 first: torch.compile has too little time for all.
@pytest.mark.parametrize(("graph", "batch", "tokens", "goal"), sorted(ROWS, key=lambda row: row[1]))
def test_each_graph(
    graph: str, batch: int, tokens: int, goal: float | None, feeds: "Feeds", engines: dict[str, Engine],
    torch_runs: TorchRuns, report: Report,
) -> None:  # fmt: skip
    inputs, outputs = feeds(graph, batch, tokens)
    answers: dict[str, list[np.ndarray]] = {}

    def make(name: str, run: Callable[..., list[np.ndarray]]) -> Run:
        def run_once(_: int) -> None:
            results = run(graph, inputs, outputs)
            answers[name] = [results[output] for output in outputs]

        return run_once

    runs = torch_runs.runs(lambda name, baseline: make(name, baseline.run))
    runs |= {name: make(name, engine.run) for name, engine in engines.items()}
    samples = take_turns(runs, seconds=6) | torch_runs.missing()
    name = f"{graph.replace('_', ' ')}, batch {batch}" + (f", {tokens} tokens" if tokens else "")
    place = ROWS.index((graph, batch, tokens, goal))
    report.add(GRAPHS, name, "ms", samples, goal=goal, drawn=graph != "similarity_head", place=place)
    truth = answers.get("PyTorch eager", next(iter(answers.values())))
    for name, arrays in answers.items():
        for array, expected in zip(arrays, truth, strict=True):
            check_agreement(name, array.reshape(batch, -1), expected.reshape(batch, -1))


def check_agreement(name: str, found: np.ndarray, truth: np.ndarray) -> None:
    """Check each answer [B, n]: its cosine with PyTorch's is at least 0.99, and greater than with others."""
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(truth, axis=1)
    cosine = found @ truth.T / np.outer(*lengths)
    assert np.diag(cosine).min() >= 0.99, f"{name}: cosine with PyTorch {np.diag(cosine).min():.4f}"
    assert (cosine.argmax(axis=1) == np.arange(len(found))).all(), f"{name}: nearer to another's answer"


Feeds = Callable[[str, int, int], tuple[dict[str, np.ndarray], tuple[str, ...]]]


@pytest.fixture(scope="session")
def feeds(fixtures: Fixtures, engines: dict[str, Engine]) -> Feeds:
    """Return a function for the inputs of a graph, from real pictures and words, and its outputs."""
    recipe, text = fixtures.bundle.manifest.image, fixtures.bundle.manifest.text
    pixels = np.stack([preprocess(decode(path), recipe) for path in fixtures.images[::4]])
    vocabulary = np.unique(TextEncoderInput(fixtures.bundle.tokenizer(), text)(fixtures.full)[0])
    ids = np.random.default_rng(6).choice(vocabulary, (8, text.length))
    engine = next(engine for name, engine in engines.items() if name.endswith("fp32"))
    mask = np.ones_like(ids)
    arrays = engine.run("visual_encoder", {"pixels": pixels}, LEVELS)
    arrays |= {"pixels": pixels, "tokens": engine.encode_text(ids, mask)}
    weights, has_concepts = np.ones(len(ids), np.float32), bool(fixtures.bundle.manifest.concepts)

    def make(graph: str, batch: int, tokens: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        words = {"input_ids": ids[:, :tokens], "attention_mask": mask[:, :tokens]}
        maps = {level: arrays[level] for level in LEVELS}
        inputs, outputs = {
            "visual_encoder": ({"pixels": pixels}, LEVELS),
            "text_encoder": (words, ("tokens",)),
            "composer": ({**maps, "tokens": arrays["tokens"], "attention_mask": mask}, COMPOSED),
            "similarity_head": (head_inputs(maps, weights, has_concepts), ("descriptor",)),
        }[graph]
        return {name: np.ascontiguousarray(array[:batch]) for name, array in inputs.items()}, tuple(outputs)

    return make


# -- query and indexing --


@pytest.fixture(scope="session")
def searchers(fixtures: Fixtures, engines: dict[str, Engine]) -> Iterator[dict[str, Searcher]]:
    opened = open_searchers(fixtures, engines, lambda _: fixtures.archive)
    yield opened
    for searcher in opened.values():
        searcher.close()


def open_searchers(
    fixtures: Fixtures, engines: dict[str, Engine], archive: Callable[[str], Path]
) -> dict[str, Searcher]:
    """Open a searcher on each engine that is open already, without the precision check."""
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
    torch_runs: TorchRuns,
    report: Report,
) -> None:
    texts = {"new, whole checklist": fixtures.full, "new, three findings": fixtures.short}.get(
        words, fixtures.full[:1]
    )

    answers: dict[str, list[Any]] = {}

    def make(name: str, query: Callable[[Path, str], object]) -> Run:
        def run_once(n: int) -> None:
            image, text = fixtures.images[n % len(fixtures.images)], texts[n % len(texts)]
            answers.setdefault(name, []).extend(query(image, text) for _ in range(in_a_row))

        return run_once

    runs = torch_runs.runs(lambda name, baseline: make(name, baseline.query), bf16=in_a_row == 1)
    runs |= {name: make(name, searcher.query) for name, searcher in searchers.items()}
    samples = take_turns(runs, seconds=8, rounds=(5, 25) if in_a_row == 1 else (3, 5), nap=LONG_NAP)
    samples = {name: [ms / in_a_row for ms in each] for name, each in samples.items()}
    timings = {name: [results.timings_ms for results in answers[name][in_a_row:]] for name in searchers}
    steps = {
        name: {step: round(statistics.median(t.get(step, 0.0) for t in each), 1) for step in each[0]}
        for name, each in timings.items()
    }
    name = f"words {words}" + (f", {in_a_row} in a row, each" if in_a_row > 1 else "")
    report.add(
        QUERY, name, "ms", samples | torch_runs.missing(), goal=0.25 if words == "seen before" else 0.35,
        label=f"query, {name}", detail={"timings_ms": steps}, place=len(report.rows),
    )  # fmt: skip


def test_the_answers_are_those_of_pytorch(
    fixtures: Fixtures, searchers: dict[str, Searcher], baselines: dict[str, PyTorch]
) -> None:
    if not baselines:
        pytest.skip("without --checkpoint there is no PyTorch to compare with")
    images, texts = fixtures.images[:3], fixtures.full[-3:]
    truth = baselines["PyTorch eager"].embed(images, texts)
    manifest = fixtures.bundle.manifest
    matrix = np.load(fixtures.matrix)
    for name, searcher in searchers.items():
        check_agreement(name, np.stack(list(map(searcher.embed, images, texts))), truth)
        for image, text, true in zip(images, texts, truth, strict=True):
            scores = matrix @ weigh(
                true, manifest.layout, manifest.beta, manifest.gamma, manifest.group_weight
            )
            hit_scores = scores[[int(hit.case_id) for hit in searcher.query(image, text)]]
            assert np.sort(scores)[-10:].mean() - hit_scores.mean() <= 1e-3, f"{name}: other cases are better"


def test_indexing(
    fixtures: Fixtures, engines: dict[str, Engine], torch_runs: TorchRuns, report: Report, tmp_path: Path
) -> None:
    searchers = open_searchers(fixtures, engines, lambda name: tmp_path / f"{name}.skinret")
    if fixtures.random:  # without a precision check each precision may write an archive
        for name, searcher in searchers.items():
            searcher._encoder._archive_engine = engines[name]
    images = fixtures.images[:24]

    def add(searcher: Searcher) -> Run:
        return lambda n: searcher.add([Case(f"{n}-{i}", image) for i, image in enumerate(images)])

    def embed(_: str, baseline: PyTorch) -> Run:
        return lambda _: [baseline.embed(images[i : i + 8]) for i in range(0, len(images), 8)]

    runs = torch_runs.runs(embed, bf16=False) | {name: add(searcher) for name, searcher in searchers.items()}
    samples = take_turns(runs, seconds=20, rounds=(5, 5), nap=LONG_NAP)
    rates = {name: [len(images) / ms * 1e3 for ms in each] for name, each in samples.items()}
    report.add(
        INDEX, "images a second", "images/s", rates | torch_runs.missing(), goal=2.8,
        more_is_better=True, label="indexing",
    )  # fmt: skip
    for searcher in searchers.values():
        assert len(searcher) == (2 if SHORT else 6) * len(images)
