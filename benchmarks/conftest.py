"""Fixtures of the benchmarks: a bundle, every runtime that runs here, PyTorch as the baseline, reports."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from fixtures import SHORT, Fixtures, Product, checklists, draw, findings, full_size, rows, write_archive
from pytorch_baseline import PyTorch, load_modules
from report import Report
from search_competitors import LAYOUT
from search_report import SearchReport

from skinret_infer.bundle import Bundle
from skinret_infer.engines.base import Engine
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.engines.registry import RUNTIMES, open_engine, precisions, why_not
from skinret_infer.engines.verdicts import refusal
from skinret_infer.tables import derm7pt_root, read_cases
from skinret_infer.text import TextEncoderInput

_TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(_TESTS), str(_TESTS / "hostile")]  # helpers.py; durability.py and fuzz.py
_SHORT = (
    "The short form has a tiny model and few rounds. It shows that all tests run; its figures mean nothing."
)
AnyReport = TypeVar("AnyReport", bound=Report)
_REPORT, _SEARCH = pytest.StashKey[Report](), pytest.StashKey[SearchReport]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("skinret")
    group.addoption("--bundle", type=Path, help="Measure this bundle.  [default: full size, random weights]")
    group.addoption("--checkpoint", type=Path, help="With --bundle: its ckpt.pt.")
    group.addoption(
        "--durability", action="store_true", help="Test an archive with kills and full disks, for minutes."
    )
    group.addoption(
        "--product",
        type=Path,
        help="The DIR of `skinret demo --out DIR`: test its evidence and its endurance.",
    )
    group.addoption(
        "--crossval",
        type=Path,
        help="The folder of a cross-validation with --keep-artifacts: test ways of writing.",
    )
    group.addoption(
        "--runs",
        type=Path,
        help="A folder of trainings with --fold and of their bundles: test the warnings of what is unlike.",
    )
    group.addoption("--soak", type=int, default=0, help="Query --product this many times, from 8 threads.")
    group.addoption("--fuzz", type=int, default=0, help="Try this many hostile inputs, such as 20000.")
    out = Path("build/benchmarks-short" if SHORT else "build/benchmarks")
    group.addoption("--out", type=Path, default=out, help=f"Folder of the report.  [{out}]")
    cases = "2000" if SHORT else "10000"
    group.addoption(
        "--cases", default=cases, help=f"Numbers of cases to search, such as 10000,200000,1000000.  [{cases}]"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for key, title in ((_REPORT, "beside PyTorch"), (_SEARCH, "search")):
        report = config.stash.get(key, None)
        if report and report.rows:
            terminalreporter.section(title)
            terminalreporter.write_line(report.text())
            for path in report.write(config.getoption("--out")):
                terminalreporter.write_line(f"written: {path}")


def _mark_short(report: AnyReport) -> AnyReport:
    """Mark a report of the short form, and its picture."""
    if SHORT:
        report.note(_SHORT)
        report.title = f"NOT to be quoted. {report.title}"
    return report


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    report = _mark_short(Report(threads=available_cpus()))
    request.config.stash[_REPORT] = report
    return report


@pytest.fixture(scope="session")
def search_report(request: pytest.FixtureRequest) -> SearchReport:
    report = _mark_short(SearchReport(threads=available_cpus(), bundle=f"{LAYOUT.length:,} numbers a case"))
    request.config.stash[_SEARCH] = report
    return report


@pytest.fixture(scope="session")
def fixtures(
    request: pytest.FixtureRequest, report: Report, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fixtures]:
    torch.set_num_threads(report.threads)
    path, checkpoint = (request.config.getoption(name) for name in ("--bundle", "--checkpoint"))
    random = path is None
    if path is None:
        size = "short" if SHORT else "full-size"
        cache = getattr(request.config, "cache", None)  # None with -p no:cacheprovider
        folder = cache.mkdir("skinret") if cache else tmp_path_factory.mktemp("skinret")
        path, checkpoint = full_size(folder / size)
        report.note(
            "Random weights: they do not change the speed, but their ranks mean nothing, so the precision "
            "check is left out here. With a real bundle it decides which precisions may run."
        )
    bundle = Bundle.load(path)
    report.bundle = f"{bundle.manifest.model} {bundle.manifest.version}"
    table = rows()
    checklist_texts = checklists(table)
    lengths = TextEncoderInput(bundle.tokenizer(), bundle.manifest.text)(checklist_texts)[1].sum(axis=1)
    usual = [text for text, n in zip(checklist_texts, lengths, strict=True) if 48 < n < 64]
    full = usual if len(usual) >= 60 else checklist_texts
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        images = draw(root / "images")
        np.save(root / "matrix.npy", write_archive(root / "cases.skinret", bundle, images))
        yield Fixtures(
            bundle=bundle, checkpoint=checkpoint, random=random, images=images, full=full,
            short=findings(table), archive=root / "cases.skinret", matrix=root / "matrix.npy",
            cache=root / "engines", threads=report.threads,
        )  # fmt: skip


@pytest.fixture(scope="session")
def product(request: pytest.FixtureRequest) -> Product:
    folder = request.config.getoption("--product")
    if folder is None:
        pytest.skip("runs only with --product DIR, the folder of `skinret demo --out DIR`")
    data = folder / "data" if (folder / "data").exists() else Path(os.environ["SKINRET_DERM7PT"])
    images = derm7pt_root(data) / "images"
    return Product(folder / "bundle", folder / "cases.skinret", images, read_cases(data).cases)


@pytest.fixture(scope="session")
def pairs(fixtures: Fixtures, report: Report) -> list[tuple[str, str]]:
    """Return each runtime and precision that runs here. The report notes the others, and failed checks."""
    pairs = []
    for name in RUNTIMES:
        reason = why_not(name)
        if reason:
            report.note(f"Not here: {name}, {reason}.")
            continue
        for precision in precisions(name, fixtures.bundle):
            pairs.append((name, precision))
            reason = refusal(fixtures.bundle, name, precision, fixtures.cache)
            if reason and not fixtures.random:
                report.refuse(f"{name} {precision}", reason)
    return pairs


@pytest.fixture(scope="session")
def engines(fixtures: Fixtures, pairs: list[tuple[str, str]]) -> Iterator[dict[str, Engine]]:
    """Open every runtime in every precision, by label."""
    opened = {
        f"{name} {p}": open_engine(
            fixtures.bundle, name, fixtures.threads, precision=p, cache=fixtures.cache, check=False
        )
        for name, p in pairs
    }
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture(scope="session")
def baselines(fixtures: Fixtures, report: Report) -> dict[str, PyTorch]:
    """Return the variants of PyTorch, by label; none without a checkpoint."""
    if fixtures.checkpoint is None:
        report.note("Without --checkpoint there is no PyTorch to compare with, and no goal.")
        return {}
    return load_modules(fixtures.checkpoint, np.load(fixtures.matrix))
