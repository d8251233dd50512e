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
from skinret_infer.evaluation.evaluate import ALONE, PARTS
from skinret_infer.evaluation.metrics import ACC_AT, BALANCED, NDCG, SHARED
from skinret_infer.evaluation.precision import KINDS as IMAGE_KINDS
from skinret_infer.tables import CaseTable

from .external import ARCHIVES as EXTERNAL_ARCHIVES
from .origin import Adaptation
from .systems import MODELS, SYSTEMS
from .systems.base import BOTH_SIDES
from .systems.page import page, picture
from .train import TrainConfig

log = logging.getLogger(__name__)
FORMAT = "skinret-crossval-1"
ARCHIVES: Mapping[str, str] = {
    "training_folds": "the training folds",
    "held_out_fold": "the held-out fold without the query itself",
}
KINDS = (*IMAGE_KINDS, ALONE, BOTH_SIDES)
FIGURES = ("mAP", *(f"Acc@{k}" for k in ACC_AT), NDCG, SHARED)
# Results of backbones that have seen other dermoscopy and of those that have not never share a table.
ORIGINS = {False: "This data alone", True: "With other dermoscopy"}
_COMPARED = ("balanced mAP", "mAP", "Acc@1", SHARED)
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
    adaptation: Adaptation | None,
    external: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of EXPERIMENT.json: protocol, every run, and the summary over folds and seeds.

    external : for the name of each external source, its facts and the runs of each seed.
    """
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
        "system": (SYSTEMS[method] if method in SYSTEMS else MODELS[method]).facts(),
        "protocol": {
            "cases": dict(sorted(Counter(case.group for case in table.cases).items())),
            "folds": config.folds,
            "seeds": list(seeds),
            "archives": dict(ARCHIVES),
            "validation": config.validation if method in MODELS else None,
        },
        "options": options,
        "not_default": {
            k: v for k, v in options.items() if v != default[k] and k not in ("folds", "fold", "seed")
        },
        "data_sha256": data,
        "adaptation": {"pictures": adaptation.pictures, "sha256": adaptation.sha256} if adaptation else None,
        "searched_with": sorted(f"{runtime} in {precision}" for runtime, precision in engines if runtime),
        "versions": _versions(),
        "minutes": {"total": round(sum(minutes), 2), "a_fold": round(fmean(of_full_runs), 2)},
        "summary": summarize(runs),
        "runs": [{k: v for k, v in run.items() if not k.endswith("_ids")} for run in runs],
        "external": {
            source: {**facts, "summary": summarize(facts["runs"])} for source, facts in external.items()
        },
    }


def summarize(runs: Sequence[_Run]) -> dict[str, Any]:
    """Return the figures over folds and seeds, for each archive and kind of query."""
    return {
        archive: {
            kind: _summary([(run["seed"], run["archives"][archive][kind]) for run in runs])
            for kind in KINDS
            if all(kind in run["archives"][archive] for run in runs)
        }
        for archive in runs[0]["archives"]
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
    seeds = len({seed for seed, _ in runs})
    summary: dict[str, Any] = {
        "all": _spreads(runs),
        "balanced": _spreads([(seed, figures["balanced"]) for seed, figures in runs]),
        "by_group": {
            g: _spreads([(seed, f["by_group"][g]) for seed, f in runs if g in f["by_group"]]) for g in groups
        },
        "queries": {
            g: round(sum(f["by_group"].get(g, {}).get("queries", 0) for _, f in runs) / seeds) for g in groups
        },
    }
    if beyond := _values(runs, "beyond_group"):
        summary["beyond_group"] = {
            name: _pooled([(seed, figures[name]) for seed, figures in beyond]) for name in (NDCG, SHARED)
        }
    for nested in (*PARTS, "random_order"):
        if of_nested := _values(runs, nested):
            summary[nested] = _summary(of_nested)
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
    _write(out / f"{result['experiment']}.json", json.dumps(result, indent=1) + "\n")
    results = []
    for path in sorted(out.glob("*.json")):
        try:
            other = json.loads(path.read_text("utf-8"))
            if other["format"] != FORMAT:
                raise ValueError(f"format {other['format']!r}")
            results.append(other)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s holds no results of an experiment, so README.md leaves it out: %r", path, error)
    for other in results:  # a new baseline is compared with all of them
        _write(out / f"{other['experiment']}.md", markdown(other, results))
    _write(out / "README.md", overview(results))
    for is_adapted in ORIGINS:  # which never share a page
        described = [r for r in results if "system" in r and bool(r.get("adaptation")) == is_adapted]
        if len(described) > 1:
            name = "systems-adapted" if is_adapted else "systems"
            order = [*MODELS, *SYSTEMS]
            described.sort(key=lambda r: (order.index(r["method"]), r["experiment"]))
            _write(out / f"{name}.svg", picture(described))
            _write(out / f"{name}.md", page(described, grid, f"{name}.svg"))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


# -- tables --


def markdown(result: Mapping[str, Any], others: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the text of EXPERIMENT.md: the protocol, then tables for each archive and kind of query.

    others : results in the same folder. Baselines among them are compared with the result, see `compare`.
    """
    lines = [f"# {result['experiment']}", "", *_protocol_lines(result)]
    for baseline in others:
        if is_baseline_of(baseline, result):
            lines += ["", f"## Against {baseline['experiment']}", "", *_comparison(result, baseline)]
    for archive, title in result["protocol"]["archives"].items():
        lines += ["", f"## Archive: {title}", *_archive_tables(result, archive)]
    for name, source in result.get("external", {}).items():
        lines += ["", f"## External source: {name}", "", *_source_lines(source)]
        for archive, title in EXTERNAL_ARCHIVES.items():
            lines += ["", f"## {name}, archive: {title}", *_archive_tables(source, archive)]
    lines += [
        "",
        "- balanced: the mean over the groups, each counted once.",
        "- mean ± std: the std of the folds of one seed, as the root mean square over seeds.",
        "- between seeds: the std of the seeds' means.",
        "- S alone, concepts alone: the same queries, ranked with gamma 0 and with gamma 1.",
        "- random order: the exact expected figure of an archive in random order.",
        "- Equal scores have no order: a figure is the mean over all orders of cases with equal scores.",
        "- by chance: each hit is replaced by a random case of its group; the seed with the smallest z.",
        "- mAP, Acc@K and nDCG@10 in per cent, shared@5 in criteria of seven.",
    ]
    return "\n".join(lines) + "\n"


def _protocol_lines(result: Mapping[str, Any]) -> list[str]:
    protocol, minutes = result["protocol"], result["minutes"]
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
    return [
        f"- Method: {result['method']}",
        f"- Backbone: {_backbone(result)}",
        f"- Cases: {sum(protocol['cases'].values())} ({_counts(protocol['cases'])})",
        f"- {protocol['folds']} stratified folds, seeds {seeds}: {len(result['runs'])} runs. {selection}; "
        "the held-out fold is read once.",
        f"- Archives: {'; '.join(protocol['archives'].values())}. "
        "A hit is right if its group is the query's.",
        f"- Options other than the defaults: {options or 'none'}",
        f"- Searched with: {', '.join(result['searched_with']) or 'no bundle: scores in memory'}",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
        f"- Minutes: {minutes['total']:.1f} in all, {minutes['a_fold']:.1f} a fold ({by_step})",
    ]


def _backbone(result: Mapping[str, Any]) -> str:
    vision, adaptation = result["options"]["vision"], result.get("adaptation")
    if not adaptation:
        return f"{vision}, not adapted to other pictures"
    return (
        f"{vision}, adapted to {adaptation['pictures']:,} other pictures (data {adaptation['sha256'][:12]}), "
        "none of which is evaluated"
    )


def _source_lines(source: Mapping[str, Any]) -> list[str]:
    return [
        f"- Queries: {sum(source['cases'].values())} pictures ({_counts(source['cases'])}) of "
        f"{source['lesions']} lesions; {source['with_words']} have words.",
        "- For each seed, a model that was trained on all of the data answers. No hit shows the query's "
        "lesion or its picture.",
        *(f"- {note}" for note in source["notes"]),
    ]


def _counts(cases: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {n}" for group, n in cases.items())


def _archive_tables(result: Mapping[str, Any], archive: str) -> list[str]:
    """Return the tables of each kind of query; `result` has "summary" and "runs"."""
    lines = []
    for kind, summary in result["summary"][archive].items():
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
    return lines


def _balanced_first(plain: Mapping[str, Any], balanced: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures in the order of a table: the balanced ones, then those of all queries."""
    first = {f"balanced {name}": balanced[name] for name in BALANCED if name in balanced}
    return first | {name: plain[name] for name in FIGURES if name in plain}


def _runs_table(runs: Sequence[_Run], archive: str, kind: str, summary: Mapping[str, Any]) -> list[str]:
    figures = _balanced_first(summary["all"], summary["balanced"])
    rows = []
    for run in runs:
        measured = run["archives"][archive][kind]
        values = _balanced_first(measured, measured["balanced"])
        rows.append([_run_name(run), *(_number(name, values[name]) for name in figures)])
    rows.append(["mean ± std", *(_with_std(name, f) for name, f in figures.items())])
    rows.append(["between seeds", *(_number(name, f["std_seeds"], 1) for name, f in figures.items())])
    for nested, title in _nested(summary):
        values = _balanced_first(summary[nested]["all"], summary[nested]["balanced"])
        write = _with_std if nested in PARTS else _mean
        rows.append([title, *(write(n, values[n]) if n in values else "–" for n in figures)])
    return grid(["", *figures], rows)


def _run_name(run: _Run) -> str:
    return f"seed {run['seed']}, fold {run['fold']}" if "fold" in run else f"seed {run['seed']}"


def _nested(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the key and the title of the other rankings of the same queries."""
    titles = PARTS | {"random_order": "random order"}
    return [(nested, title) for nested, title in titles.items() if nested in summary]


def _groups_table(summary: Mapping[str, Any]) -> list[str]:
    numbers = summary.get("queries", {})
    rows: dict[str, Mapping[str, Any]] = {}
    for nested, title in [("", ""), *_nested(summary)]:
        of_nested, suffix = (summary[nested], f", {title}") if nested else (summary, "")
        rows |= {f"balanced{suffix}": of_nested["balanced"], f"all{suffix}": of_nested["all"]}
        for group, figures in of_nested["by_group"].items():
            number = f" ({numbers[group]})" if numbers and not nested else ""
            rows[f"{group}{number}{suffix}"] = figures
    names = list(summary["all"])
    return grid(
        ["group", *names],
        [[g, *(_mean(n, f[n]) if n in f else "–" for n in names)] for g, f in rows.items()],
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


def overview(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of README.md: tables for each origin of the backbone, with rows for each experiment."""
    lines = [_TITLE]
    for is_adapted, title in ORIGINS.items():
        of_origin = [result for result in results if bool(result.get("adaptation")) == is_adapted]
        if of_origin:
            lines += ["", f"## {title}"]
            if is_adapted:
                adapted = {result["experiment"]: _backbone(result) for result in of_origin}
                lines += ["", *(f"- {experiment}: {text}" for experiment, text in adapted.items())]
            lines += _overview_tables(of_origin)
    lines += [
        "",
        f"- {ORIGINS[False]}: the backbone has seen no pictures but these since it was published.",
        f"  {ORIGINS[True]}: skinret-adapt took it to other pictures. Compare no row of one with the other.",
        "- balanced: the mean over the groups, each counted once.",
        "- S alone, concepts alone: the same queries, ranked with gamma 0 and with gamma 1.",
        "- random order: the exact expected figure of an archive in random order. Compare Acc@4 with it.",
        "- External sources query a model that was trained on all of the data.",
        "- mean ± std: over the folds of a seed. Each experiment has a page, EXPERIMENT.md,",
        "  and all its figures in EXPERIMENT.json.",
    ]
    return "\n".join(lines) + "\n"


def _overview_tables(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table for each archive, and for each external source and archive."""
    lines = []
    for archive, title in ARCHIVES.items():
        entries = [(result, result["summary"][archive]) for result in results]
        lines += ["", f"### Archive: {title}", "", *_overview_table(entries)]
    for source in dict.fromkeys(name for result in results for name in result.get("external", {})):
        having = [result for result in results if source in result.get("external", {})]
        for archive, title in EXTERNAL_ARCHIVES.items():
            entries = [(result, result["external"][source]["summary"][archive]) for result in having]
            lines += ["", f"### External source {source}, archive: {title}", "", *_overview_table(entries)]
    return lines


def _overview_table(entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Return a table with rows for each kind of query; an entry is a result and its summary of an archive."""
    groups = sorted({g for _, summary in entries for kind in summary.values() for g in kind["by_group"]})
    header = ["experiment", "method", "folds x seeds", "query", *(f"balanced {name}" for name in BALANCED)]
    header += ["mAP", "Acc@1", "Acc@4", f"{NDCG} (by chance)", f"{SHARED} (by chance)"]
    header += [*(f"{group}: mAP" for group in groups), "minutes a fold"]
    rows = []
    chance_rows: dict[tuple[str, int], list[str]] = {}  # by data set and number of folds
    for result, summary in entries:
        folds = f"{result['protocol']['folds']} x {len(result['protocol']['seeds'])}"
        minutes = f"{result['minutes']['a_fold']:.1f}"
        for kind, figures in summary.items():
            query = kind.replace("_", " ")
            for name, of_name in (("", figures), *((t, figures[n]) for n, t in _nested(figures))):
                if name == "random order":
                    row = [f"random order for {result['experiment']}", "–", folds, "any"]
                    row += [*_overview_cells(of_name, groups), "–"]
                    chance_rows.setdefault((result["data_sha256"], result["protocol"]["folds"]), row)
                else:
                    row = [result["experiment"], result["method"], folds, f"{query}, {name}".strip(", ")]
                    rows.append([*row, *_overview_cells(of_name, groups), minutes])
    if len(chance_rows) == 1:
        next(iter(chance_rows.values()))[0] = "random order"
    return grid(header, rows + list(chance_rows.values()))


def _overview_cells(summary: Mapping[str, Any], groups: Sequence[str]) -> list[str]:
    figures = _balanced_first(summary["all"], summary["balanced"])
    names = [*(f"balanced {name}" for name in BALANCED), "mAP", "Acc@1", "Acc@4"]
    cells = [_with_std(name, figures[name]) for name in names]
    beyond = summary.get("beyond_group")
    for name in (NDCG, SHARED):
        pair = [_number(name, beyond[name][side]) for side in ("measured", "shuffled")] if beyond else []
        cells.append("{} ({})".format(*pair) if pair else "–")
    numbers, by_group = summary.get("queries", {}), summary["by_group"]
    for group in groups:
        cell = _with_std("mAP", by_group[group]["mAP"]) if group in by_group else "–"
        cells.append(f"{cell} ({numbers[group]})" if group in numbers else cell)
    return cells


# -- a result beside a baseline --


def is_baseline_of(baseline: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Say whether a result is that of a baseline with the same data, folds, seeds and backbone."""

    def facts(of: Mapping[str, Any]) -> tuple[Any, ...]:
        runs = [(run["seed"], run["fold"]) for run in of["runs"]]
        return of["data_sha256"], runs, of["options"]["vision"], of.get("adaptation")

    return (
        baseline["method"] in SYSTEMS and result["method"] not in SYSTEMS and facts(baseline) == facts(result)
    )


def compare(
    result: Mapping[str, Any], baseline: Mapping[str, Any], archive: str, kind: str
) -> dict[str, dict[str, Any]]:
    """Return by how much a result exceeds a baseline in each figure, in the same folds.

    "runs" has the difference of each run, "mean" their mean, and "standard_error" that of the mean over the
    folds of one seed, as the root mean square over seeds; None for one fold. Other seeds repeat the same
    queries and make it no smaller.
    """

    def values(of: Mapping[str, Any]) -> list[dict[str, Any]]:
        measured = [run["archives"][archive][kind] for run in of["runs"]]
        return [_balanced_first(figures, figures["balanced"]) for figures in measured]

    differences: dict[str, dict[str, Any]] = {}
    pairs = list(zip(values(result), values(baseline), strict=True))
    for name in _COMPARED:
        if all(name in ours and name in theirs for ours, theirs in pairs):
            runs = [round(ours[name] - theirs[name], 3) for ours, theirs in pairs]
            of_folds = spread([(run["seed"], d) for run, d in zip(result["runs"], runs, strict=True)])
            std, folds = of_folds["std_folds"], result["protocol"]["folds"]
            error = None if std is None else round(std / folds**0.5, 3)
            differences[name] = {"runs": runs, "mean": of_folds["mean"], "standard_error": error}
    return differences


def _comparison(result: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    lines = [
        "Differences in the same folds, in the unit of the figure. Behind the baseline is **bold**. ± is the "
        "standard error over the folds of a seed."
    ]
    header = ["figure", "mean ± standard error", *map(_run_name, result["runs"])]
    for archive, title in result["protocol"]["archives"].items():
        for kind in IMAGE_KINDS:
            if kind not in result["summary"][archive] or kind not in baseline["summary"][archive]:
                continue
            rows = []
            for name, difference in compare(result, baseline, archive, kind).items():
                mean, error = _difference(name, difference["mean"]), difference["standard_error"]
                mean += "" if error is None else f" ± {_number(name, error, 1)}"
                rows.append([name, mean, *(_difference(name, d) for d in difference["runs"])])
            lines += ["", f"Archive: {title}. Query: {kind.replace('_', ' ')}.", "", *grid(header, rows)]
    return lines


def _difference(name: str, value: float) -> str:
    text = f"{value:+.{3 if name == SHARED else 2}f}"
    return f"**{text}**" if value < 0 else text


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


def _mean(name: str, figure: Mapping[str, Any]) -> str:
    return _number(name, figure["mean"])


def _with_std(name: str, figure: Mapping[str, Any]) -> str:
    mean = _mean(name, figure)
    return mean if figure["std_folds"] is None else f"{mean} ± {_number(name, figure['std_folds'])}"
