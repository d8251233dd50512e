"""Stratified cross-validation: each fold of each seed is trained, exported, searched, and judged once."""

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
from skinret_infer.text import TextRecipe

from .baselines import BASELINES, compute_features, evaluate_scores
from .crossval_report import ARCHIVES, check_folder, experiment_result, write_row
from .data import Dataset, Split, load_dataset, split
from .train import TrainConfig, train

log = logging.getLogger(__name__)
METHODS = ("skinret", *BASELINES)
_TRAINING, _HELD_OUT = ARCHIVES
_Report = dict[str, Any]
_Method = Callable[[TrainConfig, Split, Path], _Report]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A row of the results: one method, its options, and the seeds that it is measured with."""

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
                "the row's name cannot be used", code="option", expected="a file name", found=repr(self.name)
            )
        if self.method not in METHODS:
            raise InputError(
                "the method is not known", code="option", expected=", ".join(METHODS), found=repr(self.method)
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                "the seeds cannot be used",
                code="option",
                expected="different numbers of at least 0",
                found=", ".join(map(str, self.seeds)) or "none",
            )

    def runs(self) -> list[TrainConfig]:
        """Return the configuration of every run: the folds of the first seed, then those of the next."""
        folds = range(self.config.folds)
        return [replace(self.config, fold=fold, seed=seed) for seed in self.seeds for fold in folds]


def cross_validate(
    table: CaseTable, row: Experiment, out: Path, *, cache: Path, keep: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Run the folds of every seed; write EXPERIMENT.json, EXPERIMENT.md and a line of README.md to `out`.

    A finished run is kept in out/.work/EXPERIMENT and never run again: killed and called again with the same
    experiment, the work continues in its fold and epoch.

    cache : the folder of the frozen maps.
    keep : whether checkpoints, bundles and archives stay in out/.work/EXPERIMENT.

    Raises InputError for data and options that cannot be used, before anything is trained; SkinretError if
    what the model needs for its export is not installed.
    """
    if row.method == "skinret":
        _check_export()
    check_folder(out)
    config = row.config
    image, text = ImageRecipe(size=config.image_size, fit=config.fit), TextRecipe(length=config.tokens)
    dataset = load_dataset(table, image, text, quiet=quiet)
    data = _digest(table, dataset)
    parts = [
        split(dataset, folds=run.folds, fold=run.fold, validation=run.validation, seed=run.seed)
        for run in row.runs()
    ]
    work = out / ".work" / row.name
    _claim(work, row, data)
    method: _Method | None = None
    done: list[_Report] = []
    for number, (run, part) in enumerate(zip(row.runs(), parts, strict=True), 1):
        folder = work / f"seed{run.seed}-fold{run.fold}"
        name = f"{row.name}, seed {run.seed}, fold {run.fold} ({number} of {len(parts)})"
        if (folder / "run.json").is_file():
            log.info("%s: done before", name)
        else:
            log.info("%s", name)
            method = method or _open(row.method, table, dataset, config, cache, quiet)
            report = {"seed": run.seed, "fold": run.fold, **method(run, part, folder)}
            _write_json(folder / "run.json", report)
        done.append(_read_json(folder / "run.json"))
        if not keep:
            for made in ("ckpt.pt", "ckpt.pt.resume"):
                (folder / made).unlink(missing_ok=True)
            shutil.rmtree(folder / "product", ignore_errors=True)
    result = experiment_result(table, row.name, row.method, config, row.seeds, data, done)
    write_row(out, result)
    return result


def _open(
    method: str, table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, quiet: bool
) -> _Method:
    """Return the function that makes a run of a method, given its configuration, split and folder."""
    if method not in BASELINES:
        return lambda run, part, folder: _through_the_product(table, dataset, run, folder, cache, quiet)
    began = time.perf_counter()
    seen = compute_features(table, dataset, config, cache, quiet=quiet)
    log.info("features of %d cases: %.1f minutes", len(table.cases), _minutes(began))

    def baseline(run: TrainConfig, part: Split, folder: Path) -> _Report:
        began = time.perf_counter()
        scores = BASELINES[method](seen, part, run)
        fitted = _minutes(began)
        reports = {
            archive: evaluate_scores(scores, table, part.test, cases, dataset.pictures)
            for archive, cases in ((_TRAINING, part.archive), (_HELD_OUT, part.test))
        }
        minutes = {"training": fitted, "search": round(_minutes(began) - fitted, 3)}
        return {"minutes": minutes, "archives": reports, **_ids(table, part)}

    return baseline


def _through_the_product(
    table: CaseTable, dataset: Dataset, config: TrainConfig, folder: Path, cache: Path, quiet: bool
) -> _Report:
    """Train, export with the public command, index both archives and query them through Searcher."""
    checkpoint, product = folder / "ckpt.pt", folder / "product"
    resume = checkpoint.with_name("ckpt.pt.resume")
    shutil.rmtree(product, ignore_errors=True)  # of a killed run: half an archive, of another bundle
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
    parts = {_TRAINING: set(trained.archive_ids), _HELD_OUT: set(trained.query_ids)}
    with Searcher(
        product / "bundle", product / "cases.skinret", precision="fp32", cache=product / "engines"
    ) as searcher:
        searcher.add([cases[i] for i in (*trained.archive_ids, *trained.query_ids)])
        reports = evaluate_parts(searcher, queries, parts)
    minutes["search"] = _minutes(began)
    return {
        "minutes": minutes,
        "resumed": resumed,  # then the minutes of training are those since
        "archives": reports,
        "training": dict(trained.checkpoint.metrics),
        "archive_ids": trained.archive_ids,
        "query_ids": trained.query_ids,
    }


def _check_export() -> None:
    if missing := [m for m in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(m) is None]:
        raise MissingExtra(
            "the cross-validation exports each model, and the export cannot run here",
            code="export-missing",
            expected="the packages that skinret-export needs",
            found=f"no {', '.join(missing)}",
            cure='run: pip install "skinret-infer[export]"',
        )


def _export(checkpoint: Path, bundle: Path) -> None:
    options = [str(checkpoint), "--out", str(bundle), "--no-check-precision", "--no-engines"]
    command = [sys.executable, "-m", "skinret_export.cli", *options]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()][-12:]
        error = SkinretError(
            f"{checkpoint} could not be exported",
            code="export-failed",
            expected="a bundle of skinret-export",
            found=f"exit code {done.returncode}",
        )
        for line in said:
            error.add_note(line)
        raise error


def _ids(table: CaseTable, part: Split) -> dict[str, list[str]]:
    return {
        role: [table.cases[n].case_id for n in indices]
        for role, indices in (("archive_ids", part.archive), ("query_ids", part.test))
    }


def _digest(table: CaseTable, dataset: Dataset) -> str:
    """SHA-256 of all that is known of the cases: their pixels, groups and words."""
    facts = [(case.case_id, case.group, sorted(case.attributes.items())) for case in table.cases]
    return hashlib.sha256(f"{dataset.digest} {facts!r}".encode("utf-8", "backslashreplace")).hexdigest()


def _claim(work: Path, row: Experiment, data: str) -> None:
    """Note whose runs the folder holds. Raises InputError if they are of other options or data."""
    options = {k: v for k, v in asdict(row.config).items() if k not in ("fold", "seed")}
    identity = json.loads(json.dumps({"method": row.method, "data": data, **options}))
    path = work / "row.json"
    if not path.is_file():
        _write_json(path, identity)
        (work.parent / ".gitignore").write_text("*\n", "utf-8")
    elif (kept := _read_json(path)) != identity:
        names = [k for k in {**identity, **kept} if kept.get(k) != identity.get(k)]
        raise InputError(
            f"{work} holds runs of another row",
            code="crossval-row",
            expected="the same method, data and options",
            found="; ".join(
                "other data" if k == "data" else f"{k} {kept.get(k)!r} there, {identity.get(k)!r} now"
                for k in names
            ),
            cure="give another --experiment, or delete that folder to begin again",
        )


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], dict(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read", code="crossval-row", found=str(error), cure="delete it to run it again"
        ) from None


def _minutes(began: float) -> float:
    return round((time.perf_counter() - began) / 60, 3)
