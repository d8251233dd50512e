"""What the benchmarks stand on: a bundle, every runtime that runs here, PyTorch beside them, and a report."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from material import SHORT, Material, Product, checklists, draw, findings, full_size, rows, write_archive
from peer import PyTorch, load_modules
from report import Report
from search_contestant import LAYOUT
from search_report import SearchReport

from skinret_infer.bundle import Bundle
from skinret_infer.engines.base import Engine
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.engines.registry import RUNTIMES, open_engine, precisions, why_not
from skinret_infer.engines.verdicts import refusal
from skinret_infer.tables import read_cases
from skinret_infer.text import TextEncoderInput

_TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(_TESTS), str(_TESTS / "hostile")]  # helpers.py; durability.py and fuzz.py, of both
_SHORT = "The short form, of a tiny model and few rounds: it shows that all runs; its figures mean nothing."
AnyReport = TypeVar("AnyReport", bound=Report)
_REPORT, _SEARCH = pytest.StashKey[Report](), pytest.StashKey[SearchReport]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("skinret")
    group.addoption("--bundle", type=Path, help="Measure this bundle.  [default: full size, random weights]")
    group.addoption("--checkpoint", type=Path, help="With --bundle: the ckpt.pt that it was exported from.")
    group.addoption(
        "--durability", action="store_true", help="Kill, fill up and wear an archive for minutes."
    )
    group.addoption(
        "--product", type=Path, help="What `skinret demo --out DIR` made: judge its evidence, let it soak."
    )
    group.addoption("--soak", type=int, default=0, help="Ask --product so many times, from 8 threads.")
    group.addoption("--fuzz", type=int, default=0, help="Try so many hostile inputs: 20000.")
    out = Path("build/benchmarks-short" if SHORT else "build/benchmarks")
    group.addoption("--out", type=Path, default=out, help=f"Folder of the report.  [{out}]")
    cases = "2000" if SHORT else "10000"
    group.addoption("--cases", default=cases, help=f"Search among so many: 10000,200000,1000000.  [{cases}]")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for key, title in ((_REPORT, "beside PyTorch"), (_SEARCH, "search")):
        report = config.stash.get(key, None)
        if report and report.rows:
            terminalreporter.section(title)
            terminalreporter.write_line(report.text())
            for path in report.write(config.getoption("--out")):
                terminalreporter.write_line(f"written: {path}")


def _marked(report: AnyReport) -> AnyReport:
    """Mark a report of the short form, its picture too."""
    if SHORT:
        report.note(_SHORT)
        report.title = f"NOT to be quoted. {report.title}"
    return report


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    made = _marked(Report(threads=available_cpus()))
    request.config.stash[_REPORT] = made
    return made


@pytest.fixture(scope="session")
def search_report(request: pytest.FixtureRequest) -> SearchReport:
    made = _marked(SearchReport(threads=available_cpus(), bundle=f"{LAYOUT.length:,} numbers a case"))
    request.config.stash[_SEARCH] = made
    return made


@pytest.fixture(scope="session")
def material(
    request: pytest.FixtureRequest, report: Report, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Material]:
    torch.set_num_threads(report.threads)
    path, checkpoint = (request.config.getoption(name) for name in ("--bundle", "--checkpoint"))
    random = path is None
    if path is None:
        size = "short" if SHORT else "full-size"
        cache = getattr(request.config, "cache", None)  # pytest may have been told to keep none
        kept = cache.mkdir("skinret") if cache else tmp_path_factory.mktemp("skinret")
        path, checkpoint = full_size(kept / size)
        report.note(
            "Random weights: they change no speed, but have no ranks that lower precision could keep, so the "
            "precision check is left out here. With a real bundle it decides what is allowed to run."
        )
    bundle = Bundle.load(path)
    report.bundle = f"{bundle.manifest.model} {bundle.manifest.version}"
    table = rows()
    full = checklists(table)
    lengths = TextEncoderInput(bundle.tokenizer(), bundle.manifest.text)(full)[1].sum(axis=1)
    usual = [text for text, n in zip(full, lengths, strict=True) if 48 < n < 64]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = draw(root / "images")
        np.save(root / "matrix.npy", write_archive(root / "cases.skinret", bundle, images))
        yield Material(
            bundle=bundle, checkpoint=checkpoint, random=random, images=images,
            full=usual if len(usual) >= 60 else full, short=findings(table), archive=root / "cases.skinret",
            matrix=root / "matrix.npy", cache=root / "engines", threads=report.threads,
        )  # fmt: skip


@pytest.fixture(scope="session")
def product(request: pytest.FixtureRequest) -> Product:
    folder = request.config.getoption("--product")
    if folder is None:
        pytest.skip("asked for with --product DIR, which `skinret demo --out DIR` makes")
    data = folder / "data" if (folder / "data").exists() else Path(os.environ["SKINRET_DERM7PT"])
    images = data / "release_v0" / "images" if (data / "release_v0").is_dir() else data / "images"
    return Product(folder / "bundle", folder / "cases.skinret", images, read_cases(data).cases)


@pytest.fixture(scope="session")
def pairs(material: Material, report: Report) -> list[tuple[str, str]]:
    """Each runtime and precision that runs here; it notes why others do not, and failed precision checks."""
    found = []
    for name in RUNTIMES:
        reason = why_not(name)
        if reason:
            report.note(f"Not here: {name}, {reason}.")
            continue
        for precision in precisions(name, material.bundle):
            found.append((name, precision))
            refused = refusal(material.bundle, name, precision, material.cache)
            if refused and not material.random:
                report.refuse(f"{name} {precision}", refused)
    return found


@pytest.fixture(scope="session")
def engines(material: Material, pairs: list[tuple[str, str]]) -> Iterator[dict[str, Engine]]:
    """Every runtime in every precision, by label."""
    opened = {
        f"{name} {p}": open_engine(
            material.bundle, name, material.threads, precision=p, cache=material.cache, check=False
        )
        for name, p in pairs
    }
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture(scope="session")
def peers(material: Material, report: Report) -> dict[str, PyTorch]:
    """PyTorch in its ways, by label; none without a checkpoint."""
    if material.checkpoint is None:
        report.note("Without --checkpoint there is no PyTorch to stand beside, and no goal.")
        return {}
    return load_modules(material.checkpoint, np.load(material.matrix))
