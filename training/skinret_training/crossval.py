"""Stratified cross-validation: train, export and query each fold of each seed, and evaluate it once.

Other sources of cases are queried once a seed, by a model that is trained on all of the data.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from skinret_infer._files import atomic_write
from skinret_infer.cases import Case
from skinret_infer.errors import InputError, MissingExtra, SkinretError
from skinret_infer.evaluation.evaluate import evaluate_parts
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.searcher import Searcher
from skinret_infer.tables import CaseTable

from .crossval_report import ARCHIVES, check_folder, experiment_result, write_experiment
from .data import Dataset, Split, load_dataset, split
from .external import Source, load_source
from .origin import Adaptation, read_adaptation
from .systems import MODELS, SYSTEMS
from .systems.evaluate import evaluate_scores
from .systems.inputs import compute_inputs
from .train import TrainConfig, Trained, read_checklist, train

log = logging.getLogger(__name__)
METHODS = (*MODELS, *SYSTEMS)
_TRAINING, _HELD_OUT = ARCHIVES
_Report = dict[str, Any]


class _Method(Protocol):
    """A method that is ready to run."""

    def run_fold(self, run: TrainConfig, subsets: Split, folder: Path) -> _Report:
        """Train on the training folds and query with the held-out one."""
        ...

    def run_external(self, run: TrainConfig, sources: Sequence[Source], folder: Path) -> dict[str, _Report]:
        """Train on all of the data and query with each source; return a report by its name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One line of the results: a method, its options, and its seeds."""

    name: str
    method: str
    config: TrainConfig  # each run sets its own fold and seed
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        check_name("experiment", self.name)
        if self.method not in METHODS:
            raise InputError(
                "the method is not known", code="option", expected=", ".join(METHODS), found=repr(self.method)
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                "the seeds cannot be used",
                code="option",
                expected="different whole numbers from 0 up",
                found=", ".join(map(str, self.seeds)) or "none",
            )

    def runs(self) -> list[TrainConfig]:
        """Return the configuration of every run: the folds of the first seed, then those of the next."""
        folds = range(self.config.folds)
        return [replace(self.config, fold=fold, seed=seed) for seed in self.seeds for fold in folds]

    def check(self, table: CaseTable) -> None:
        """Raise InputError for data that the method cannot be measured on, and MissingExtra."""
        if self.method in MODELS:
            _check_export()
        else:
            checklist = read_checklist(self.config)
            has_words = any(checklist.values_of(case.attributes) for case in table.cases)
            SYSTEMS[self.method].check(len(table.cases) // self.config.folds - 1, has_words)


def check_name(what: str, name: str) -> None:
    """Raise InputError for a name that cannot be that of a file and stand in a table."""
    if not name or name.startswith(".") or not name.isprintable() or set(name) & {*'/\\|"'}:
        raise InputError(
            f"the name of the {what} cannot be used",
            code="option",
            expected="a name that a file can have",
            found=repr(name),
        )


def cross_validate(
    table: CaseTable,
    experiment: Experiment,
    out: Path,
    *,
    cache: Path,
    external: Mapping[str, CaseTable] | None = None,
    keep: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the folds of every seed; write EXPERIMENT.json, EXPERIMENT.md and a line of README.md to `out`.

    Finished runs are stored in out/.work/EXPERIMENT and not run again. After a kill, the same call continues
    in the fold and epoch where it stopped.

    cache : the folder of the frozen maps.
    external : other sources of cases by name. They query a model that was trained on all of the table.
    keep : whether checkpoints, bundles and archives stay in out/.work/EXPERIMENT.

    Raises InputError for data and options that cannot be used, before the training begins, and SkinretError
    if packages for the export are missing.
    """
    experiment.check(table)
    check_folder(out)
    config = experiment.config
    image = ImageRecipe(size=config.image_size, fit=config.fit)
    dataset = load_dataset(table, image, read_checklist(config), quiet=quiet)
    adaptation = read_adaptation(config.vision)
    if adaptation:
        adaptation.check_unseen("the data", dataset.case_ids, dataset.pictures)
    sources = [
        load_source(name, found, table, dataset, image, adaptation, quiet=quiet)
        for name, found in (external or {}).items()
    ]
    runs = experiment.runs()
    splits = [
        split(dataset, folds=run.folds, fold=run.fold, validation=run.validation, seed=run.seed)
        for run in runs
    ]
    data = _digest(table.cases, dataset)
    work = _claim(out / ".work" / experiment.name, experiment, data, adaptation)
    opened = functools.cache(lambda: _open(experiment.method, table, dataset, config, cache, quiet))
    reports = []
    for number, (run, subsets) in enumerate(zip(runs, splits, strict=True), 1):
        name = f"{experiment.name}, seed {run.seed}, fold {run.fold} ({number} of {len(runs)})"
        reports.append(_run_fold(opened, run, subsets, work, name))
        if not keep:
            _remove_artifacts(work / f"seed{run.seed}-fold{run.fold}")
    others: list[dict[str, _Report]] = []
    for seed in experiment.seeds if sources else ():
        others.append(_run_external(opened, replace(config, fold=None, seed=seed), sources, work))
        if not keep:
            _remove_artifacts(work / f"seed{seed}-all")
    result = experiment_result(
        table, experiment.name, experiment.method, config, experiment.seeds, data, reports, adaptation,
        {source.name: source.facts() | {"runs": [o[source.name] for o in others]} for source in sources},
    )  # fmt: skip
    write_experiment(out, result)
    return result


def _run_fold(
    opened: Callable[[], _Method], run: TrainConfig, subsets: Split, work: Path, name: str
) -> _Report:
    """Return the report of a fold, from its file if it is done."""
    folder = work / f"seed{run.seed}-fold{run.fold}"
    path = folder / "run.json"
    if path.is_file():
        log.info("%s: done before", name)
    else:
        log.info("%s", name)
        report = {"seed": run.seed, "fold": run.fold, **opened().run_fold(run, subsets, folder)}
        _write_json(path, report)
    return _read_json(path)


def _run_external(
    opened: Callable[[], _Method], run: TrainConfig, sources: Sequence[Source], work: Path
) -> dict[str, _Report]:
    """Return the reports of a seed's external sources, from their files if they are of the same cases."""
    folder = work / f"seed{run.seed}-all"
    digests = {source.name: _digest(source.cases, source.dataset) for source in sources}
    paths = {name: folder / f"{name}.json" for name in digests}
    missing = [
        source
        for source in sources
        if not (path := paths[source.name]).is_file() or _read_json(path).get("data") != digests[source.name]
    ]
    if missing:
        log.info("seed %d, all cases, for %s", run.seed, ", ".join(source.name for source in missing))
        for name, report in opened().run_external(run, missing, folder).items():
            _write_json(paths[name], {"seed": run.seed, "data": digests[name], **report})
    return {name: _read_json(path) for name, path in paths.items()}


def _remove_artifacts(folder: Path) -> None:
    for file in ("ckpt.pt", "ckpt.pt.resume"):
        (folder / file).unlink(missing_ok=True)
    shutil.rmtree(folder / "product", ignore_errors=True)


def _open(
    method: str, table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, quiet: bool
) -> _Method:
    kind = _SystemRuns if method in SYSTEMS else _ModelRuns
    return kind(method, table, dataset, config, cache, quiet)


class _SystemRuns:
    """Runs of a compared system, with the inputs of all cases."""

    def __init__(
        self, method: str, table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, quiet: bool
    ) -> None:
        self._system, self._table, self._dataset = SYSTEMS[method], table, dataset
        self._cache, self._quiet = cache, quiet
        began = time.perf_counter()
        self._inputs = compute_inputs(table, dataset, config, cache, quiet=quiet)
        log.info("features of %d cases: %.1f minutes", len(table.cases), _minutes(began))

    def run_fold(self, run: TrainConfig, subsets: Split, folder: Path) -> _Report:
        table, dataset = self._table, self._dataset
        began = time.perf_counter()
        ranker = self._system.fit(self._inputs, subsets, run)
        training = _minutes(began)
        reports = {
            archive: evaluate_scores(
                ranker(cases), table, dataset.checklist, subsets.test, cases, dataset.pictures
            )
            for archive, cases in ((_TRAINING, subsets.archive), (_HELD_OUT, subsets.test))
        }
        minutes = {"training": training, "search": round(_minutes(began) - training, 3)}
        return {"minutes": minutes, "archives": reports, **_ids(table, subsets)}

    def run_external(self, run: TrainConfig, sources: Sequence[Source], folder: Path) -> dict[str, _Report]:
        reports = {}
        for source in sources:
            own = compute_inputs(
                CaseTable(source.cases, []), source.dataset, run, self._cache, quiet=self._quiet
            )
            began = time.perf_counter()
            archives = source.evaluate_system(
                self._system, run, self._table, self._dataset, self._inputs, own
            )
            reports[source.name] = {"minutes": {"search": _minutes(began)}, "archives": archives}
        return reports


class _ModelRuns:
    """Runs of the model: train, export with the public command, index cases and query through Searcher."""

    def __init__(
        self, method: str, table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, quiet: bool
    ) -> None:
        self._table, self._dataset, self._cache, self._quiet = table, dataset, cache, quiet
        self._cases = {case.case_id: case for case in table.cases}

    def run_fold(self, run: TrainConfig, subsets: Split, folder: Path) -> _Report:
        trained, report = self._train(run, folder)
        began = time.perf_counter()
        archives = {_TRAINING: set(trained.archive_ids), _HELD_OUT: set(trained.query_ids)}
        with self._index(folder, [*trained.archive_ids, *trained.query_ids]) as searcher:
            reports = evaluate_parts(searcher, [self._cases[i] for i in trained.query_ids], archives)
        report["minutes"]["search"] = _minutes(began)
        return report | {
            "archives": reports,
            "archive_ids": trained.archive_ids,
            "query_ids": trained.query_ids,
        }

    def run_external(self, run: TrainConfig, sources: Sequence[Source], folder: Path) -> dict[str, _Report]:
        trained, report = self._train(run, folder)
        reports = {}
        with self._index(folder, trained.archive_ids) as searcher:
            for source in sources:
                began = time.perf_counter()
                searcher.add(source.cases)
                archives = source.evaluate(searcher)
                minutes = report["minutes"] | {"search": _minutes(began)}
                reports[source.name] = report | {"minutes": minutes, "archives": archives}
        return reports

    def _train(self, run: TrainConfig, folder: Path) -> tuple[Trained, _Report]:
        """Train and export; return the model's ids and what the report says about its training."""
        checkpoint, product = folder / "ckpt.pt", folder / "product"
        resume = checkpoint.with_name("ckpt.pt.resume")
        shutil.rmtree(product, ignore_errors=True)  # a killed run may leave half an archive
        resumed, began = resume.is_file(), time.perf_counter()
        uncalibrated = replace(run, calibration=0.0)  # it only serves warnings, and doubles the work
        trained = train(
            self._table, uncalibrated, cache=self._cache, dataset=self._dataset, resume=resume, measure=False,
            quiet=self._quiet,
        )  # fmt: skip
        trained.checkpoint.save(checkpoint)
        minutes = {"training": _minutes(began)}
        began = time.perf_counter()
        _export(checkpoint, product / "bundle")
        minutes["export"] = _minutes(began)
        return trained, {
            "minutes": minutes,
            "resumed": resumed,  # if true, the minutes of training count from the last resume only
            "training": dict(trained.checkpoint.metrics),
        }

    @contextlib.contextmanager
    def _index(self, folder: Path, case_ids: Sequence[str]) -> Iterator[Searcher]:
        """Open the exported bundle with a new archive of cases of the table."""
        product = folder / "product"
        with Searcher(
            product / "bundle", product / "cases.skinret", precision="fp32", cache=product / "engines"
        ) as searcher:
            searcher.add([self._cases[i] for i in case_ids])
            yield searcher


def _check_export() -> None:
    if missing := [m for m in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(m) is None]:
        raise MissingExtra(
            "the cross-validation exports each model, but packages of the export are missing",
            code="export-missing",
            expected="the packages that skinret-export needs",
            found=f"no {', '.join(missing)}",
            cure='run: pip install "skinret-infer[export]"',
        )


def _export(checkpoint: Path, bundle: Path) -> None:
    options = [str(checkpoint), "--out", str(bundle), "--no-check-precision", "--no-engines"]
    command = [sys.executable, "-m", "skinret_export.cli", *options]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.strip()][-12:]
        error = SkinretError(
            f"{checkpoint} could not be exported",
            code="export-failed",
            expected="a bundle from skinret-export",
            found=f"exit code {process.returncode}",
        )
        for line in lines:
            error.add_note(line)
        raise error


def _ids(table: CaseTable, subsets: Split) -> dict[str, list[str]]:
    return {
        role: [table.cases[n].case_id for n in indices]
        for role, indices in (("archive_ids", subsets.archive), ("query_ids", subsets.test))
    }


def _digest(cases: Sequence[Case], dataset: Dataset) -> str:
    """Return the SHA-256 of the cases: their pixels, groups and attributes."""
    facts = [(case.case_id, case.group, sorted(case.attributes.items())) for case in cases]
    return hashlib.sha256(f"{dataset.digest} {facts!r}".encode("utf-8", "backslashreplace")).hexdigest()


def _claim(work: Path, experiment: Experiment, data: str, adaptation: Adaptation | None) -> Path:
    """Record the experiment of the folder and return it. Raises InputError for other options or data."""
    options = {k: v for k, v in asdict(experiment.config).items() if k not in ("fold", "seed")}
    if adaptation:
        options["adaptation"] = adaptation.sha256
    identity = json.loads(json.dumps({"method": experiment.method, "data": data, **options}))
    path = work / "row.json"
    if not path.is_file():
        _write_json(path, identity)
        (work.parent / ".gitignore").write_text("*\n", "utf-8")
    elif (stored := _read_json(path)) != identity:
        names = [k for k in {**identity, **stored} if stored.get(k) != identity.get(k)]
        raise InputError(
            f"{work} holds runs of another experiment",
            code="crossval-row",
            expected="the same method, data and options",
            found="; ".join(
                "other data" if k == "data" else f"{k} {stored.get(k)!r} there, {identity.get(k)!r} now"
                for k in names
            ),
            cure="give another --experiment, or delete that folder to start again",
        )
    return work


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], dict(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read",
            code="crossval-row",
            found=str(error),
            cure="delete the file; its run is then done again",
        ) from None


def _minutes(began: float) -> float:
    return round((time.perf_counter() - began) / 60, 3)
