"""Stratified cross-validation: train, export and query each fold of each seed, and evaluate it once."""

import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from skinret_infer._files import atomic_write
from skinret_infer.errors import InputError, MissingExtra, SkinretError
from skinret_infer.evaluation.evaluate import evaluate_parts
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.searcher import Searcher
from skinret_infer.tables import CaseTable

from .baselines import BASELINES, compute_features, evaluate_scores
from .crossval_report import ARCHIVES, check_folder, experiment_result, write_experiment
from .data import Dataset, Split, load_dataset, split
from .train import TrainConfig, read_checklist, train

log = logging.getLogger(__name__)
METHODS = ("skinret", *BASELINES)
_TRAINING, _HELD_OUT = ARCHIVES
_Report = dict[str, Any]
_Method = Callable[[TrainConfig, Split, Path], _Report]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One line of the results: a method, its options, and its seeds."""

    name: str
    method: str
    config: TrainConfig  # each run sets its own fold and seed
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if (
            not self.name
            or self.name.startswith(".")
            or not self.name.isprintable()
            or set(self.name) & {*'/\\|"'}
        ):
            raise InputError(
                "the name of the experiment cannot be used",
                code="option",
                expected="a name that a file can have",
                found=repr(self.name),
            )
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


def cross_validate(
    table: CaseTable,
    experiment: Experiment,
    out: Path,
    *,
    cache: Path,
    keep: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the folds of every seed; write EXPERIMENT.json, EXPERIMENT.md and a line of README.md to `out`.

    Finished runs are stored in out/.work/EXPERIMENT and not run again. After a kill, the same call continues
    in the fold and epoch where it stopped.

    cache : the folder of the frozen maps.
    keep : whether checkpoints, bundles and archives stay in out/.work/EXPERIMENT.

    Raises InputError for data and options that cannot be used, before the training begins, and SkinretError
    if packages for the export are missing.
    """
    if experiment.method == "skinret":
        _check_export()
    check_folder(out)
    config = experiment.config
    image = ImageRecipe(size=config.image_size, fit=config.fit)
    dataset = load_dataset(table, image, read_checklist(config), quiet=quiet)
    data = _digest(table, dataset)
    runs = experiment.runs()
    splits = [
        split(dataset, folds=run.folds, fold=run.fold, validation=run.validation, seed=run.seed)
        for run in runs
    ]
    work = out / ".work" / experiment.name
    _claim(work, experiment, data)
    method: _Method | None = None
    reports: list[_Report] = []
    for number, (run, subsets) in enumerate(zip(runs, splits, strict=True), 1):
        folder = work / f"seed{run.seed}-fold{run.fold}"
        name = f"{experiment.name}, seed {run.seed}, fold {run.fold} ({number} of {len(runs)})"
        if (folder / "run.json").is_file():
            log.info("%s: done before", name)
        else:
            log.info("%s", name)
            method = method or _open(experiment.method, table, dataset, config, cache, quiet)
            report = {"seed": run.seed, "fold": run.fold, **method(run, subsets, folder)}
            _write_json(folder / "run.json", report)
        reports.append(_read_json(folder / "run.json"))
        if not keep:
            for file in ("ckpt.pt", "ckpt.pt.resume"):
                (folder / file).unlink(missing_ok=True)
            shutil.rmtree(folder / "product", ignore_errors=True)
    result = experiment_result(
        table, experiment.name, experiment.method, config, experiment.seeds, data, reports
    )
    write_experiment(out, result)
    return result


def _open(
    method: str, table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, quiet: bool
) -> _Method:
    """Return a function that runs a method for a configuration, a split and a folder."""
    if method not in BASELINES:
        return lambda run, subsets, folder: _run_model(table, dataset, run, folder, cache, quiet)
    began = time.perf_counter()
    features = compute_features(table, dataset, config, cache, quiet=quiet)
    log.info("features of %d cases: %.1f minutes", len(table.cases), _minutes(began))

    def run_baseline(run: TrainConfig, subsets: Split, folder: Path) -> _Report:
        began = time.perf_counter()
        scores = BASELINES[method](features, subsets, run)
        training = _minutes(began)
        reports = {
            archive: evaluate_scores(scores, table, dataset.checklist, subsets.test, cases, dataset.pictures)
            for archive, cases in ((_TRAINING, subsets.archive), (_HELD_OUT, subsets.test))
        }
        minutes = {"training": training, "search": round(_minutes(began) - training, 3)}
        return {"minutes": minutes, "archives": reports, **_ids(table, subsets)}

    return run_baseline


def _run_model(
    table: CaseTable, dataset: Dataset, config: TrainConfig, folder: Path, cache: Path, quiet: bool
) -> _Report:
    """Train, export with the public command, index both archives and query them through Searcher."""
    checkpoint, product = folder / "ckpt.pt", folder / "product"
    resume = checkpoint.with_name("ckpt.pt.resume")
    shutil.rmtree(product, ignore_errors=True)  # a killed run may leave half an archive, of another bundle
    resumed, began = resume.is_file(), time.perf_counter()
    trained = train(table, config, cache=cache, dataset=dataset, resume=resume, measure=False, quiet=quiet)
    trained.checkpoint.save(checkpoint)
    minutes = {"training": _minutes(began)}

    began = time.perf_counter()
    _export(checkpoint, product / "bundle")
    minutes["export"] = _minutes(began)

    began = time.perf_counter()
    cases = {case.case_id: case for case in table.cases}
    queries = [cases[i] for i in trained.query_ids]
    archives = {_TRAINING: set(trained.archive_ids), _HELD_OUT: set(trained.query_ids)}
    with Searcher(
        product / "bundle", product / "cases.skinret", precision="fp32", cache=product / "engines"
    ) as searcher:
        searcher.add([cases[i] for i in (*trained.archive_ids, *trained.query_ids)])
        reports = evaluate_parts(searcher, queries, archives)
    minutes["search"] = _minutes(began)
    return {
        "minutes": minutes,
        "resumed": resumed,  # if true, the minutes of training count from the last resume only
        "archives": reports,
        "training": dict(trained.checkpoint.metrics),
        "archive_ids": trained.archive_ids,
        "query_ids": trained.query_ids,
    }


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


def _digest(table: CaseTable, dataset: Dataset) -> str:
    """Return the SHA-256 of the cases: their pixels, groups and attributes."""
    facts = [(case.case_id, case.group, sorted(case.attributes.items())) for case in table.cases]
    return hashlib.sha256(f"{dataset.digest} {facts!r}".encode("utf-8", "backslashreplace")).hexdigest()


def _claim(work: Path, experiment: Experiment, data: str) -> None:
    """Record the experiment of the folder. Raises InputError if its runs have other options or data."""
    options = {k: v for k, v in asdict(experiment.config).items() if k not in ("fold", "seed")}
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
