"""The command line. It only calls the library: messages go to stderr, data to stdout."""

import importlib.metadata
import json
import logging
import math
import re
import sys
from pathlib import Path

import click

from .. import doctor
from .._extras import missing_extra
from .._version import __version__
from ..archive.filters import Range, parse_number
from ..bundle import Bundle
from ..cases import Case
from ..descriptor import LEVELS
from ..engines.cache import cache_folder
from ..engines.registry import RUNTIMES, open_engine
from ..engines.verdicts import save_record
from ..errors import InputError, RuntimeUnavailable, printable
from ..evaluation import evaluate
from ..evaluation.precision import format_record, make_validation_set, validate_precision
from ..evaluation.ways import read_ways
from ..query import DEFAULT_K
from ..report.figure import draw_results
from ..searcher import Searcher
from ..tables import read_cases, read_ids
from ..text import TextRecipe, check_text
from ..words.checklist import Checklist
from ..words.reading import Reading, reader_of
from .archive import archive as archive_group
from .audit import audit as audit_group
from .bundle import bundle as bundle_group
from .common import (
    PATH,
    json_option,
    key_option,
    progress,
    replace_option,
    report_errors,
    skip_option,
    unable,
)
from .engines import engines as engines_group

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


class _Group(click.Group):
    """The commands of this package, and the entry points `skinret.commands` of other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(e.name for e in _plugins())})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        entry = next((e for e in _plugins() if e.name == name), None)
        if entry is None:
            return super().get_command(ctx, name)
        try:
            if isinstance(command := entry.load(), click.Command):
                return command
            error: Exception = TypeError(f"{type(command).__name__} is no command")
        except Exception as failure:  # whatever it is, the other commands must work
            error = failure
        message = f"`skinret {name}` cannot run here"
        if entry.module.startswith("skinret_"):
            return unable(name, missing_extra(message, error, "export"))
        found, cure = f"{type(error).__name__}: {error}", "reinstall the package that provides it"
        why = RuntimeUnavailable(
            message, code="command-broken", expected=f"a command at {entry.value}", found=found, cure=cure
        )
        return unable(name, why)


def _plugins() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group="skinret.commands")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skinret")
def main() -> None:
    """Find the most similar confirmed cases for a dermoscopy image and a few words.

    The score is a similarity, not a probability, and no diagnosis is predicted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


main.add_command(archive_group)
main.add_command(audit_group)
main.add_command(bundle_group)
main.add_command(engines_group)

_runtime = click.option(
    "--runtime",
    default="auto",
    show_default=True,
    help=f"auto or {', '.join(RUNTIMES)}; a named runtime is used or refused, never replaced.",
)
_threads = click.option(
    "--threads", type=click.IntRange(1), help="For the runtime.  [default: the CPUs this process may use]"
)
_precision = click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="auto, fp32, bf16 or fp16; one below fp32 must have passed the precision check.",
)
_beta = click.option(
    "--beta",
    type=click.FloatRange(0, 1),
    help="Weight of local against global similarity.  [default: the model's]",
)
_gamma = click.option(
    "--gamma",
    type=click.FloatRange(0, 1),
    help="Weight of concept against visual similarity.  [default: the model's]",
)
_recorded = click.option(
    "--recorded-findings",
    is_flag=True,
    help="The recorded criteria of a case replace what the model reads off its picture. An archive is made "
    "with this or without.",
)
_level = click.option(
    "--level-weight",
    "levels",
    multiple=True,
    metavar="NAME=WEIGHT",
    help=f"Weight of a level ({', '.join(LEVELS)}) in the visual similarity.  [default: 1 each]",
)


@main.command(short_help="Add the cases of a table to an archive.")
@click.argument("bundle", type=PATH)
@click.argument("archive", type=PATH)
@click.argument("cases", type=PATH)
@click.option("--images", type=PATH, help="Folder of the images.  [default: the folder of CASES]")
@click.option("--ids", type=PATH, help="Index only the case ids in this file, one a line.")
@replace_option
@skip_option
@_recorded
@_runtime
@_precision
@_threads
@key_option
@json_option
@report_errors
def index(
    bundle: Path,
    archive: Path,
    cases: Path,
    images: Path | None,
    ids: Path | None,
    duplicate: str | None,
    recorded_findings: bool,
    runtime: str,
    precision: str,
    threads: int | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Add the cases of CASES to ARCHIVE. A run that was interrupted can simply be started again.

    CASES is a CSV file or a Derm7pt release_v0 folder. The CSV file has the columns case_id, image and
    diagnosis; any other column becomes an attribute. A case that ARCHIVE holds with the same picture and
    facts stays as it is. A case that it holds with others is an error.
    """
    selection = _select_cases(cases, images, ids)
    with (
        Searcher(
            bundle,
            archive,
            runtime=runtime,
            precision=precision,
            threads=threads,
            trusted_keys=key,
            recorded_findings=recorded_findings,
        ) as searcher,
        progress("indexing") as bar,
    ):
        report = searcher.add(selection, on_duplicate=duplicate or "error", progress=bar)
        total = len(searcher)
    for line in report.warning_lines():
        click.echo(f"warning: {printable(line)}", err=True)
    if as_json:
        click.echo(json.dumps(report.to_dict() | {"cases": total}))
    click.echo(f"{report}; {archive} holds {total}", err=True)


@main.command(short_help="Show the most similar cases.")
@click.argument("bundle", type=PATH)
@click.argument("archive", type=PATH)
@click.option("--image", type=PATH, help="The dermoscopy image; without it, the words alone are the query.")
@click.option(
    "--text",
    help='Findings in your own words, such as "atypical network, no streaks"; without it, the image alone is '
    "the query. `skinret parse` shows what is understood.",
)
@click.option("-k", default=DEFAULT_K, show_default=True, type=click.IntRange(1), help="How many hits.")
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only cases with this value; repeat a name to allow several values. NAME=LOW..HIGH allows the "
    "numbers of a range, of which LOW or HIGH may be left out.",
)
@click.option("--exclude", multiple=True, metavar="CASE_ID", help="Leave out this case.")
@click.option(
    "--figure", type=PATH, help="Draw the query and its hits to this PNG; --images names their folder."
)
@click.option(
    "--report", type=PATH, help="Write the page of the query, its hits and their evidence to this HTML file."
)
@click.option("--images", type=PATH, help="Folder of the archive's images, for --figure and --report.")
@click.option("--audit", type=PATH, help="Record the query in this audit log.")
@click.option(
    "--context", multiple=True, metavar="NAME=VALUE", help="A fact about the caller, for the audit log."
)
@_beta
@_gamma
@_level
@_recorded
@_runtime
@_precision
@_threads
@key_option
@json_option
@report_errors
def query(
    bundle: Path,
    archive: Path,
    image: Path | None,
    text: str | None,
    k: int,
    where: tuple[str, ...],
    exclude: tuple[str, ...],
    figure: Path | None,
    report: Path | None,
    images: Path | None,
    audit: Path | None,
    context: tuple[str, ...],
    beta: float | None,
    gamma: float | None,
    levels: tuple[str, ...],
    recorded_findings: bool,
    runtime: str,
    precision: str,
    threads: int | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Show the most similar cases of ARCHIVE for an image and a few words."""
    with Searcher(
        bundle,
        archive,
        runtime=runtime,
        precision=precision,
        threads=threads,
        trusted_keys=key,
        audit=audit,
        recorded_findings=recorded_findings,
    ) as searcher:
        results = searcher.query(
            image,
            text,
            k=k,
            where=_parse_filters(where),
            exclude=exclude,
            beta=beta,
            gamma=gamma,
            levels=_parse_weights(levels),
            context=dict(_split_pair(item, "--context", "NAME=VALUE") for item in context),
        )
        if report:
            without_picture = results.to_html(report, image_folder=images)
            click.echo(f"{report} written", err=True)
            if without_picture:
                missing = f"{len(without_picture)} cases, such as {without_picture[0]}"
                click.echo(
                    f"the page lacks the pictures of {missing}; name their folder with --images", err=True
                )
    if figure:
        if image is None:
            raise click.BadParameter("a query by words alone has no picture to draw", param_hint="--figure")
        draw_results([(image, results)], images or Path(), figure)
        click.echo(f"{figure} written", err=True)
    click.echo(json.dumps(results.to_dict(), indent=2) if as_json else str(results))


@main.command("evaluate", short_help="Measure how good the hits are.")
@click.argument("bundle", type=PATH)
@click.argument("archive", type=PATH)
@click.argument("cases", type=PATH)
@click.option("--images", type=PATH, help="Folder of the images.  [default: the folder of CASES]")
@click.option("--ids", type=PATH, help="Query only with the case ids in this file, one a line.")
@click.option(
    "--ways",
    type=PATH,
    help="A TOML file of ways of writing: query with the words of each too, and report what gain they keep.",
)
@_beta
@_gamma
@_recorded
@_runtime
@_precision
@_threads
@key_option
@json_option
@report_errors
def evaluate_command(
    bundle: Path,
    archive: Path,
    cases: Path,
    images: Path | None,
    ids: Path | None,
    ways: Path | None,
    beta: float | None,
    gamma: float | None,
    recorded_findings: bool,
    runtime: str,
    precision: str,
    threads: int | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Query ARCHIVE with every case of CASES: image and words, each alone; report mAP, Acc@K and nDCG@10.

    A hit is right if its group is the query's. A query never finds itself: the case with its id and any case
    with the same picture or lesion_id are left out. Equal scores have no order: a figure is the mean over all
    orders. Balanced figures are the means over the groups.
    """
    selection = _select_cases(cases, images, ids)
    with (
        Searcher(
            bundle,
            archive,
            runtime=runtime,
            precision=precision,
            threads=threads,
            trusted_keys=key,
            recorded_findings=recorded_findings,
        ) as searcher,
        progress("queries") as bar,
    ):
        of_file = read_ways(ways, searcher.manifest.checklist) if ways else []
        report = evaluate.evaluate(searcher, selection, ways=of_file, beta=beta, gamma=gamma, progress=bar)
    click.echo(json.dumps(report, indent=2) if as_json else evaluate.table(report))


@main.command("parse", short_help="Show what is understood of a text.")
@click.argument("text")
@click.option(
    "--bundle", type=PATH, help="Read with this bundle's checklist.  [default: the seven-point one]"
)
@click.option("--checklist", type=PATH, help="Read with the checklist of this TOML file.")
@key_option
@json_option
@report_errors
def parse_command(
    text: str, bundle: Path | None, checklist: Path | None, key: Path | None, as_json: bool
) -> None:
    """Show the findings of TEXT, in canonical words, and what is not used of it. Nothing is searched."""
    if bundle and checklist:
        raise click.UsageError("--bundle and --checklist exclude each other")
    recipe, chosen = TextRecipe(), Checklist.seven_point()
    if bundle:
        manifest = Bundle.load(bundle, key).manifest
        recipe, chosen = manifest.text, manifest.checklist
    elif checklist:
        chosen = Checklist.read(checklist)
    reading = reader_of(chosen).read(check_text(text, recipe))
    click.echo(json.dumps(reading.to_dict(), indent=2) if as_json else _format_reading(reading))


def _format_reading(reading: Reading) -> str:
    """Return a line for each finding, and for each thing that is not used."""
    rows = [[f.criterion, " or ".join(f.values), printable(f.words)] for f in reading.findings]
    widths = [max((len(row[n]) for row in rows), default=0) for n in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows] or ["no finding is understood"]
    lines += [f"{printable(warning)} [{warning.code}]" for warning in reading.warnings]
    return "\n".join([*lines, f"canonical words: {reading.canonical or '-'}"])


@main.command("validate-precision", short_help="Measure whether a lower precision keeps the ranks.")
@click.argument("bundle", type=PATH)
@click.argument("cases", type=PATH)
@click.option("--images", type=PATH, help="Folder of the images.  [default: the folder of CASES]")
@click.option("--ids", type=PATH, help="Query only with the case ids in this file, one a line.")
@click.option("--runtime", required=True, help=f"One of {', '.join(RUNTIMES)}.")
@click.option("--precision", required=True, help="bf16 or fp16.")
@_threads
@key_option
@json_option
@report_errors
def validate_precision_command(
    bundle: Path,
    cases: Path,
    images: Path | None,
    ids: Path | None,
    runtime: str,
    precision: str,
    threads: int | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Query with the same cases on RUNTIME in PRECISION and on ONNX Runtime in fp32; compare the hits.

    At least 200 cases with words are needed. The record is saved in the cache folder, for this bundle only;
    from then on "auto" uses a precision that has passed. Exit code 3 if it is refused.
    """
    loaded, selection = Bundle.load(bundle, key), _select_cases(cases, images, ids)
    validation_set = make_validation_set(
        loaded.manifest, loaded.tokenizer(), selection, f"cases of {cases.name}"
    )
    reference = open_engine(loaded, "onnxruntime-cpu", threads, precision="fp32")
    candidate = open_engine(loaded, runtime, threads, precision=precision, check=False)
    with progress("queries") as bar:
        record = validate_precision(loaded, reference, candidate, validation_set, progress=bar)
    click.echo(json.dumps(record, indent=2) if as_json else format_record(record))
    path = save_record(loaded, record, cache_folder())
    click.echo(f"the record is {path}", err=True)
    if not record["passed"]:
        sys.exit(3)


@main.command("doctor", short_help="Say what runs here, and what is wrong with a bundle or an archive.")
@click.argument("bundle", type=PATH, required=False)
@click.argument("archive", type=PATH, required=False)
@key_option
@json_option
@report_errors
def doctor_command(bundle: Path | None, archive: Path | None, key: Path | None, as_json: bool) -> None:
    """Say what is installed, what runs, whether BUNDLE is whole and answers, and whether ARCHIVE is whole.

    Either may be left out: a folder is a bundle, a file an archive.
    """
    if bundle and bundle.is_file():  # the archive was named alone, or first
        archive, bundle = bundle, archive if archive and archive.is_dir() else None
    report = doctor.examine(bundle, archive, key)
    click.echo(json.dumps(report, indent=2) if as_json else doctor.format_report(report))
    if not report["healthy"]:
        sys.exit(4)


def _parse_filters(where: tuple[str, ...]) -> dict[str, list[str | float] | Range]:
    """Read the options --where. A value is a text; if it can be read as a number, the number matches too."""
    values: dict[str, list[str | float]] = {}
    ranges: dict[str, Range] = {}
    for item in where:
        name, value = _split_pair(item, "--where", "NAME=VALUE")
        if interval := _parse_range(value):
            if name in ranges:
                raise click.BadParameter(f"{name} has two ranges", param_hint="--where")
            ranges[name] = interval
        else:
            number = parse_number(value)
            values.setdefault(name, []).extend([value] if number is None else [value, number])
    if both := values.keys() & ranges.keys():
        raise click.BadParameter(f"{min(both)} has a value beside a range", param_hint="--where")
    return {**values, **ranges}


def _parse_range(value: str) -> Range | None:
    """Return LOW..HIGH as a range, where a missing end is open; None for any other text."""
    low, dots, high = value.partition("..")
    if not dots or value == ".." or not all(not end or _NUMBER.fullmatch(end) for end in (low, high)):
        return None
    ends = [float(end) if end else None for end in (low, high)]
    if not all(end is None or math.isfinite(end) for end in ends):
        return None
    return Range(*ends)


def _parse_weights(levels: tuple[str, ...]) -> dict[str, float] | None:
    weights: dict[str, float] = {}
    for item in levels:
        name, value = _split_pair(item, "--level-weight", "NAME=WEIGHT")
        if name in weights or not _NUMBER.fullmatch(value):
            reason = "appears twice" if name in weights else "has a weight that is no number"
            raise click.BadParameter(f"{item!r}: {name!r} {reason}", param_hint="--level-weight")
        weights[name] = float(value)
    return weights or None


def _split_pair(item: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        raise click.BadParameter(f"{item!r} is not {form}", param_hint=option)
    return name, value


def _select_cases(cases: Path, images: Path | None, ids: Path | None) -> list[Case]:
    """Read a table, print its notes, and return its cases, or those whose ids a file lists."""
    table = read_cases(cases, images)
    for note in table.notes:
        click.echo(note, err=True)
    if ids is None:
        return table.cases
    wanted = read_ids(ids)
    selection = [case for case in table.cases if case.case_id in wanted]
    if unknown := sorted(wanted - {case.case_id for case in selection}):
        raise InputError(
            f"{len(unknown)} of the ids are not in {cases}",
            code="ids-unknown",
            expected="case ids of the table",
            found=", ".join(unknown[:5]),
        )
    return selection


if __name__ == "__main__":
    main()
