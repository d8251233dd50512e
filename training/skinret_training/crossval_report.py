"""The result files of a cross-validation: EXPERIMENT.json, EXPERIMENT.md and README.md."""

import importlib.metadata
import json
import logging
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from skinret_infer._files import atomic_write
from skinret_infer.errors import InputError
from skinret_infer.evaluation.metrics import ACC_AT, NDCG, SHARED
from skinret_infer.tables import CaseTable

from .train import TrainConfig

log = logging.getLogger(__name__)
FORMAT = "skinret-crossval-1"
ARCHIVES: Mapping[str, str] = {
    "training_folds": "the training folds",
    "held_out_fold": "the held-out fold without the query itself",
}
KINDS = ("image_words", "image_only", "words_alone")
FIGURES = ("mAP", *(f"Acc@{k}" for k in ACC_AT), NDCG, SHARED)
_PACKAGES = (
    "skinret-infer", "torch", "transformers", "scikit-learn", "numpy", "onnxruntime", "onnxruntime-gpu",
    "openvino",
)  # fmt: skip
_TITLE = "# Cross-validation results"
_Run = Mapping[str, Any]


# -- figures --


def experiment_result(
    table: CaseTable,
    name: str,
    method: str,
    config: TrainConfig,
    seeds: Sequence[int],
    data: str,
    runs: Sequence[_Run],
) -> dict[str, Any]:
    """Return the content of EXPERIMENT.json: protocol, every run, and the summary over folds and seeds."""
    options, default = asdict(config), asdict(TrainConfig())
    for names in (options, default):
        names |= {"vision": Path(names["vision"]).name, "text": Path(names["text"]).name}
    minutes = [sum(run["minutes"].values()) for run in runs]
    # A resumed run does not know the minutes before the kill, so the mean of a fold leaves it out.
    of_full_runs = [m for m, run in zip(minutes, runs, strict=True) if not run.get("resumed")] or minutes
    engines = {(r.get("runtime"), r.get("precision")) for run in runs for r in run["archives"].values()}
    return {
        "format": FORMAT,
        "experiment": name,
        "method": method,
        "protocol": {
            "cases": dict(sorted(Counter(case.group for case in table.cases).items())),
            "folds": config.folds,
            "seeds": list(seeds),
            "archives": dict(ARCHIVES),
            "validation": config.validation if method == "skinret" else None,
        },
        "options": options,
        "not_default": {
            k: v for k, v in options.items() if v != default[k] and k not in ("folds", "fold", "seed")
        },
        "data_sha256": data,
        "searched_with": sorted(f"{runtime} in {precision}" for runtime, precision in engines if runtime),
        "versions": _versions(),
        "minutes": {"total": round(sum(minutes), 2), "a_fold": round(fmean(of_full_runs), 2)},
        "summary": summarize(runs),
        "runs": [{k: v for k, v in run.items() if not k.endswith("_ids")} for run in runs],
    }


def summarize(runs: Sequence[_Run]) -> dict[str, Any]:
    """Return the figures over folds and seeds, for each archive and kind of query."""
    return {
        archive: {
            kind: _summary([(run["seed"], run["archives"][archive][kind]) for run in runs])
            for kind in KINDS
            if all(kind in run["archives"][archive] for run in runs)
        }
        for archive in ARCHIVES
    }


def spread(runs: Sequence[tuple[int, float]]) -> dict[str, float | None]:
    """Return mean, std over folds and std over seeds of a figure from (seed, value) of each run.

    std_folds is the std of the folds of one seed, as the root mean square over seeds, because each seed makes
    other folds. std_seeds is the std of the seeds' means. Both divide by n - 1, and are None if n is 1.
    """
    by_seed = {seed: [v for s, v in runs if s == seed] for seed, _ in runs}
    folds = [stdev(values) for values in by_seed.values() if len(values) > 1]
    means = [fmean(values) for values in by_seed.values()]
    return {
        "mean": round(fmean(means), 3),
        "std_folds": round(fmean(s * s for s in folds) ** 0.5, 3) if folds else None,
        "std_seeds": round(stdev(means), 3) if len(means) > 1 else None,
    }


def _summary(runs: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    groups = list(dict.fromkeys(g for _, figures in runs for g in figures["by_group"]))
    summary: dict[str, Any] = {
        "all": _spreads(runs),
        "balanced": _spreads([(seed, figures["balanced"]) for seed, figures in runs]),
        "by_group": {
            g: _spreads([(seed, f["by_group"][g]) for seed, f in runs if g in f["by_group"]]) for g in groups
        },
    }
    if beyond := _values(runs, "beyond_group"):
        summary["beyond_group"] = {
            name: _pooled([(seed, figures[name]) for seed, figures in beyond]) for name in (NDCG, SHARED)
        }
    if random_order := _values(runs, "random_order"):
        summary["random_order"] = _summary(random_order)
    if tied := _values(runs, "tied"):
        summary["tied"] = sum(n for _, n in tied)
    return summary


def _values(runs: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> list[tuple[int, Any]]:
    """Return the seed and the named value of each run, or nothing if a run does not have it."""
    values = [(seed, figures[name]) for seed, figures in runs if name in figures]
    return values if len(values) == len(runs) else []


def _spreads(runs: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    names = [name for name in FIGURES if runs and all(name in figures for _, figures in runs)]
    return {name: spread([(seed, figures[name]) for seed, figures in runs]) for name in names}


def _pooled(runs: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Pool a comparison with chance over the folds of each seed; return that of the seed with the smallest z.

    The folds of a seed have different queries, so the squares of their errors add. Other seeds repeat the
    same queries and are no further evidence.
    """
    seeds = []
    for seed in dict.fromkeys(seed for seed, _ in runs):
        folds = [comparison for s, comparison in runs if s == seed]
        measured, shuffled = (fmean(c[name] for c in folds) for name in ("measured", "shuffled"))
        error = sum((c["standard_error"] or 0.0) ** 2 for c in folds) ** 0.5 / len(folds)
        z = round((measured - shuffled) / error, 3) if error else None
        seeds.append(
            {"seed": seed, "measured": round(measured, 3), "shuffled": round(shuffled, 3)}
            | {"standard_error": round(error, 4), "z": z}
        )
    weakest = min(seeds, key=lambda s: float("inf") if s["z"] is None else s["z"])
    return {**weakest, "seeds": seeds}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


# -- files --


def check_folder(out: Path) -> None:
    """Raise InputError if `out` is a file, or a folder with a README.md that this program did not write."""
    readme = out / "README.md"
    foreign = readme.is_file() and not readme.read_text("utf-8", "replace").startswith(_TITLE)
    if foreign or (out.exists() and not out.is_dir()):
        raise InputError(
            f"{out} cannot take the results",
            code="option",
            expected="a folder for results only; it is created if it does not exist",
            found="a README.md of something else in it" if foreign else "a file",
            cure="give another --out",
        )


def write_experiment(out: Path, result: Mapping[str, Any]) -> None:
    """Write EXPERIMENT.json and EXPERIMENT.md, and README.md from all experiments in the folder."""
    texts = {
        f"{result['experiment']}.json": json.dumps(result, indent=1) + "\n",
        f"{result['experiment']}.md": markdown(result),
    }
    for name, text in texts.items():
        _write(out / name, text)
    results = []
    for path in sorted(out.glob("*.json")):
        try:
            other = json.loads(path.read_text("utf-8"))
            if other["format"] != FORMAT:
                raise ValueError(f"format {other['format']!r}")
            results.append(other)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s holds no results of an experiment, so README.md leaves it out: %r", path, error)
    _write(out / "README.md", overview(results))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


# -- tables --


def markdown(result: Mapping[str, Any]) -> str:
    """Return the text of EXPERIMENT.md: the protocol, then tables for each archive and kind of query."""
    protocol, minutes = result["protocol"], result["minutes"]
    cases = ", ".join(f"{g} {n}" for g, n in protocol["cases"].items())
    seeds = ", ".join(map(str, protocol["seeds"]))
    selection = (
        f"Model choice and early stopping use {100 * protocol['validation']:.0f} % of the training folds"
        if protocol["validation"]
        else "Fitted on all training folds, without model choice"
    )
    steps = Counter[str]()
    for run in result["runs"]:
        steps.update(run["minutes"])
    by_step = ", ".join(f"{name} {total / len(result['runs']):.1f}" for name, total in steps.items())
    options = ", ".join(f"{k} {v}" for k, v in result["not_default"].items())
    lines = [
        f"# {result['experiment']}",
        "",
        f"- Method: {result['method']}",
        f"- Cases: {sum(protocol['cases'].values())} ({cases})",
        f"- {protocol['folds']} stratified folds, seeds {seeds}: {len(result['runs'])} runs. {selection}; "
        "the held-out fold is read once.",
        f"- Archives: {'; '.join(protocol['archives'].values())}. "
        "A hit is right if its group is the query's.",
        f"- Options other than the defaults: {options or 'none'}",
        f"- Searched with: {', '.join(result['searched_with']) or 'no bundle: scores in memory'}",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
        f"- Minutes: {minutes['total']:.1f} in all, {minutes['a_fold']:.1f} a fold ({by_step})",
    ]
    for archive, kinds in result["summary"].items():
        lines += ["", f"## Archive: {protocol['archives'][archive]}"]
        for kind, summary in kinds.items():
            lines += ["", f"### Query: {kind.replace('_', ' ')}", ""]
            lines += _runs_table(result["runs"], archive, kind, summary)
            lines += ["", *_groups_table(summary)]
            if summary.get("tied"):
                count = sum(run["archives"][archive][kind]["queries"] for run in result["runs"])
                lines += [
                    "",
                    f"{summary['tied']} of {count} queries have equal scores for right and wrong cases.",
                ]
            if "beyond_group" in summary:
                lines += ["", *_beyond_table(summary["beyond_group"])]
    lines += [
        "",
        "- mean ± std: the std of the folds of one seed, as the root mean square over seeds.",
        "- between seeds: the std of the seeds' means.",
        "- random order: the exact expected figure of an archive in random order.",
        "- Equal scores have no order: a figure is the mean over all orders of cases with equal scores.",
        "- by chance: each hit is replaced by a random case of its group; the seed with the smallest z.",
        "- mAP, Acc@K and nDCG@10 in per cent, shared@5 in criteria of seven.",
    ]
    return "\n".join(lines) + "\n"


def _runs_table(runs: Sequence[_Run], archive: str, kind: str, summary: Mapping[str, Any]) -> list[str]:
    figures = summary["all"]
    rows = [
        [f"seed {run['seed']}, fold {run['fold']}"]
        + [_number(name, run["archives"][archive][kind][name]) for name in figures]
        for run in runs
    ]
    rows.append(["mean ± std", *(_with_std(name, f) for name, f in figures.items())])
    rows.append(["between seeds", *(_number(name, f["std_seeds"], 1) for name, f in figures.items())])
    if "random_order" in summary:
        chance = summary["random_order"]["all"]
        rows.append(["random order", *(_number(name, chance[name]["mean"]) for name in figures)])
    return grid(["", *figures], rows)


def _groups_table(summary: Mapping[str, Any]) -> list[str]:
    rows = {"balanced": summary["balanced"], **summary["by_group"]}
    if chance := summary.get("random_order"):
        chance_rows = {"balanced": chance["balanced"], **chance["by_group"]}
        rows |= {f"{group}, random order": figures for group, figures in chance_rows.items()}
    names = list(summary["all"])
    return grid(
        ["group", *names],
        [[g, *(_number(n, f[n]["mean"]) if n in f else "–" for n in names)] for g, f in rows.items()],
    )


def _beyond_table(beyond: Mapping[str, Any]) -> list[str]:
    return grid(
        ["beyond the group", "measured", "by chance", "standard error", "z", "seed"],
        [
            [
                name,
                *(_number(name, c[k], 1) for k in ("measured", "shuffled", "standard_error")),
                "–" if c["z"] is None else f"{c['z']:.1f}",
                str(c["seed"]),
            ]
            for name, c in beyond.items()
        ],
    )


def overview(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of README.md: a line for each experiment."""
    header = ["experiment", "method", "folds x seeds"]
    header += [
        f"{archive}: {name}"
        for archive in ("training folds", "held-out fold")
        for name in ("mAP", "Acc@1", "Acc@4")
    ]
    header += ["image alone: mAP", "image alone: Acc@1", "words alone: mAP"]
    header += [f"{NDCG} (by chance)", f"{SHARED} (by chance)", "minutes a fold"]
    lines = []
    chance_lines: dict[tuple[str, int], list[str]] = {}  # by data set and number of folds
    for result in results:
        protocol, chance = result["protocol"], _random_order(result["summary"])
        folds = f"{protocol['folds']} x {len(protocol['seeds'])}"
        minutes = f"{result['minutes']['a_fold']:.1f}"
        lines.append([result["experiment"], result["method"], folds, *_cells(result["summary"]), minutes])
        if chance:
            line = [f"random order for {result['experiment']}", "–", folds, *_cells(chance), "–"]
            chance_lines.setdefault((result["data_sha256"], protocol["folds"]), line)
    if len(chance_lines) == 1:
        next(iter(chance_lines.values()))[0] = "random order"
    lines += chance_lines.values()
    notes = (
        "- Queries have image and words, unless the column names another kind.",
        "- random order: the exact expected figure of an archive in random order. Compare Acc@4 with it.",
        "- For image alone, words alone, nDCG@10 and shared@5 the archive is the training folds. The last",
        "  two are those of the first kind of query that the method has.",
        "- mean ± std: over the folds of a seed. Each experiment has a page, EXPERIMENT.md,",
        "  and all its figures in EXPERIMENT.json.",
    )
    return "\n".join([_TITLE, "", *grid(header, lines), "", *notes]) + "\n"


def _cells(summary: Mapping[str, Any]) -> list[str]:
    training = summary["training_folds"]
    line = [
        _cell(summary[archive], "image_words", name)
        for archive in ARCHIVES
        for name in ("mAP", "Acc@1", "Acc@4")
    ]
    line += [_cell(training, "image_only", name) for name in ("mAP", "Acc@1")]
    line.append(_cell(training, "words_alone", "mAP"))
    beyond: Mapping[str, Any] = next(
        (s["beyond_group"] for s in training.values() if "beyond_group" in s), {}
    )
    for name in (NDCG, SHARED):
        pair = [_number(name, beyond[name][side]) for side in ("measured", "shuffled")] if beyond else []
        line.append("{} ({})".format(*pair) if pair else "–")
    return line


def _random_order(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a random order, which is the same for every kind of query."""
    return {
        archive: {name: kind["random_order"] for name in KINDS}
        for archive, kinds in summary.items()
        for kind in kinds.values()
        if "random_order" in kind
    }


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose columns are also aligned as plain text."""
    widths = [max(3, *(len(row[n]) for row in [header, *rows])) for n in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if n == 0 else "-" * (w - 1) + ":" for n, w in enumerate(widths)]
    return [line(header), f"| {' | '.join(rule)} |", *map(line, rows)]


def _number(name: str, value: float | None, more_digits: int = 0) -> str:
    digits = more_digits + (2 if name == SHARED else 1)
    return "–" if value is None else f"{value:.{digits}f}"


def _with_std(name: str, figure: Mapping[str, Any]) -> str:
    mean = _number(name, figure["mean"])
    return mean if figure["std_folds"] is None else f"{mean} ± {_number(name, figure['std_folds'])}"


def _cell(summary: Mapping[str, Any], kind: str, name: str) -> str:
    return _with_std(name, summary[kind]["all"][name]) if kind in summary else "–"
