"""`skinret engines`: TensorRT engines, built before the first query needs them."""

from pathlib import Path

import click

from ..engines import tensorrt
from ..engines.build import build_engines
from .common import PATH, key_option, report_errors


@click.group(short_help="Build TensorRT engines before the first query.")
def engines() -> None:
    """Build TensorRT engines before the first query, which would build them otherwise."""


@engines.command(short_help="Build the engines of a bundle.")
@click.argument("bundle", type=PATH)
@click.option(
    "--runtime", required=True, type=click.Choice([*tensorrt.MODULES]), help="Builds and runs them."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "fp16"]),
    help="fp16 needs a bundle that was exported with --fp16.",
)
@click.option(
    "--capability",
    multiple=True,
    metavar="X.Y",
    help="Compute capability to build for, by tensorrt-rtx, without a card; may be repeated.  "
    "[default: that of the card here]",
)
@click.option(
    "--cache", type=PATH, help="Folder of the engines.  [default: SKINRET_CACHE or the user's cache folder]"
)
@key_option
@report_errors
def build(
    bundle: Path,
    runtime: str,
    precision: str,
    capability: tuple[str, ...],
    cache: Path | None,
    key: Path | None,
) -> None:
    """Build the engines of BUNDLE's four graphs, unless the cache has valid ones, and print their paths."""
    paths = build_engines(
        bundle,
        runtime,
        precision,
        capabilities=capability,
        cache=cache,
        trusted_keys=key,
        notify=lambda line: click.echo(line, err=True),
    )
    for path in paths:
        click.echo(path)
